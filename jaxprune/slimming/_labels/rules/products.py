"""Matrix products, ragged products and convolutions.

A product couples the contracted axes of its operands, and their batch axes or groups. The result has the other axes.
"""

from typing import Any

import jax.numpy as jnp

from jaxprune._jaxprs.primitives import PRIMITIVES, Product
from jaxprune._jaxprs.views import is_sorted_product
from jaxprune.slimming._labels import axes as ax
from jaxprune.slimming._labels.axes import Axes
from jaxprune.slimming._labels.evaluate import ShrinkSite, rebind
from jaxprune.slimming._labels.frames import Rule, Site, Zeros, ZeroSite, settled, unknown


def _numbers(site: Site | ZeroSite) -> Any:
    what = PRIMITIVES[site.eqn.primitive.name]
    assert isinstance(what, Product)
    return what.numbers(site.eqn)


def _follow_product(site: Site, operands: list[Axes]) -> list[Axes]:
    lhs, rhs = operands
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = _numbers(site)
    for i, j in zip(lhs_contract, rhs_contract, strict=True):
        site.unify(lhs[i], rhs[j])
    batch = [site.unify(lhs[i], rhs[j]) for i, j in zip(lhs_batch, rhs_batch, strict=True)]
    left = [lhs[i] for i in _free(lhs, lhs_contract, lhs_batch)]
    right = [rhs[j] for j in _free(rhs, rhs_contract, rhs_batch)]
    return [(*batch, *left, *right)]


def _zero_product(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    lhs, rhs = (k.axes for k in known)
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = _numbers(site)
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


def _follow_ragged(site: Site, operands: list[Axes]) -> list[Axes]:
    # The operands are the sorted rows [rows, inputs], the matrices [groups, inputs, outputs] and the counts [groups].
    rows, matrices, sizes = operands[:3]
    if not is_sorted_product(site.eqn):
        return unknown(site, operands)
    site.unify(rows[1], matrices[1])
    site.unify(matrices[0], sizes[0])
    site.freeze(rows[0], "the rows of a ragged product")
    return [(ax.fixed(ax.size(rows[0])), matrices[2])]


def _zero_ragged(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    rows, matrices, sizes = known[:3]
    if not (settled(site, 0, 1, rows.axes[1]) or settled(site, 1, 1, matrices.axes[1])):
        site.inexact(site.operand(0)[1], "a contraction over values that masking does not make zero")
    if not settled(site, 2, 0, sizes.axes[0]):
        site.inexact(site.operand(2)[0], "groups of rows that are not empty when their matrix is removed")
    return [Zeros((False, matrices.axes[2]))]


def _follow_convolution(site: Site, operands: list[Axes]) -> list[Axes]:
    """Returns the labels of the result; couples the input channels with the kernel, and freezes the window."""
    # With g groups the channels of the input are (g, inputs of a group), those of the output (g, outputs of a group).
    lhs, rhs = operands
    numbers, groups = site.eqn.params["dimension_numbers"], site.eqn.params["feature_group_count"]
    batch, features, *space = numbers.lhs_spec
    outputs, inputs, *window = numbers.rhs_spec
    if site.eqn.params["batch_group_count"] != 1:
        for axis in (*lhs, *rhs):
            site.freeze(axis, "a convolution grouped over the batch")
        return [tuple(ax.fixed(n) for n in site.out_shape())]
    for axis in (*(lhs[i] for i in space), *(rhs[i] for i in window)):
        site.freeze(axis, "the window of a convolution")
    channels = rhs[outputs]
    if groups == 1:
        site.unify(lhs[features], rhs[inputs])
    else:
        split_in = ax.split(site.labels, lhs[features], (groups, ax.size(rhs[inputs])))
        split_out = ax.split(site.labels, channels, (groups, ax.size(channels) // groups))
        site.unify(split_in[0], split_out[0])
        site.unify(split_in[1], rhs[inputs])
        channels = ax.merge(split_out)
    result: list[Any] = [None] * len(lhs)
    out_batch, out_features, *out_space = numbers.out_spec
    result[out_batch], result[out_features] = lhs[batch], channels
    for i in out_space:
        result[i] = ax.fixed(site.out_shape()[i])
    return [tuple(result)]


def _zero_convolution(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    lhs, rhs = (k.axes for k in known)
    numbers = site.eqn.params["dimension_numbers"]
    features, (outputs, inputs) = numbers.lhs_spec[1], numbers.rhs_spec[:2]
    if not (settled(site, 0, features, lhs[features]) or settled(site, 1, inputs, rhs[inputs])):
        site.inexact(site.operand(0)[features], "a convolution over channels that masking does not make zero")
    result = [True] * len(lhs)
    result[numbers.out_spec[0]] = lhs[numbers.lhs_spec[0]]
    result[numbers.out_spec[1]] = rhs[outputs]
    return [Zeros(tuple(result))]


def _shrink_convolution(site: ShrinkSite, operands: list[Any]) -> list[Any]:
    lhs, rhs = operands
    if lhs.size == 0 or rhs.size == 0:  # all channels are removed
        return [jnp.zeros(site.out_shape(), site.eqn.outvars[0].aval.dtype)]
    numbers = site.eqn.params["dimension_numbers"]
    groups = lhs.shape[numbers.lhs_spec[1]] // max(rhs.shape[numbers.rhs_spec[1]], 1)
    return site.bind(lhs, rhs, feature_group_count=groups)


PRODUCT = Rule(_follow_product, _zero_product, rebind)
RAGGED = Rule(_follow_ragged, _zero_ragged, rebind)
CONVOLUTION = Rule(_follow_convolution, _zero_convolution, _shrink_convolution)
