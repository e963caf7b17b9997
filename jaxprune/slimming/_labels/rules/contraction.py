"""dot_general: contracted axes are coupled, batch axes are coupled, free axes pass."""

from jaxprune.slimming._labels.axes import Axes
from jaxprune.slimming._labels.frames import Site
from jaxprune.slimming._labels.rules.base import Rule, rebind, settled
from jaxprune.slimming._labels.zeros import Zeros, ZeroSite


def _follow(site: Site, operands: list[Axes]) -> list[Axes]:
    lhs, rhs = operands
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = site.eqn.params["dimension_numbers"]
    for i, j in zip(lhs_contract, rhs_contract, strict=True):
        site.unify(lhs[i], rhs[j])
    batch = [site.unify(lhs[i], rhs[j]) for i, j in zip(lhs_batch, rhs_batch, strict=True)]
    left = [lhs[i] for i in _free(lhs, lhs_contract, lhs_batch)]
    right = [rhs[j] for j in _free(rhs, rhs_contract, rhs_batch)]
    return [(*batch, *left, *right)]


def _zero(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    lhs, rhs = (k.axes for k in known)
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = site.eqn.params["dimension_numbers"]
    for i, j in zip(lhs_contract, rhs_contract, strict=True):
        if not (settled(site, 0, i, lhs[i]) or settled(site, 1, j, rhs[j])):
            site.inexact(site.operand(0)[i], "a contraction over values that masking does not make zero")
    batch = [lhs[i] or rhs[j] for i, j in zip(lhs_batch, rhs_batch, strict=True)]
    left = [lhs[i] for i in _free(lhs, lhs_contract, lhs_batch)]
    right = [rhs[j] for j in _free(rhs, rhs_contract, rhs_batch)]
    return [Zeros((*batch, *left, *right))]


def _free(axes: tuple, *used: tuple[int, ...]) -> list[int]:
    taken = {i for group in used for i in group}
    return [i for i in range(len(axes)) if i not in taken]


TABLE = {"dot_general": Rule(_follow, _zero, rebind)}
