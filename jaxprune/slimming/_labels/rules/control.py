"""Control flow: calls, scan, while, cond, remat."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune._jaxprs import Sub, sub_jaxprs
from jaxprune._jaxprs.walk import scan_again, settle
from jaxprune.slimming._labels import axes as ax
from jaxprune.slimming._labels.axes import Axes, Axis
from jaxprune.slimming._labels.evaluate import ShrinkSite
from jaxprune.slimming._labels.frames import Frame, Site, even
from jaxprune.slimming._labels.rules.base import Rule, together
from jaxprune.slimming._labels.zeros import Zeros, ZeroSite


def follow_call(site: Site, operands: list[Axes]) -> list[Axes]:
    """One jaxpr whose inputs and outputs are the equation's."""
    [sub] = sub_jaxprs(site.eqn)
    return _outputs(site.child(sub, operands))


def zero_call(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    """One jaxpr whose inputs and outputs are the equation's."""
    return site.child(0, known)


def _shrink_call(site: ShrinkSite, operands: list[Any]) -> list[Any]:
    return site.child(0, operands)


def _shrink_remat(site: ShrinkSite, operands: list[Any]) -> list[Any]:
    params = site.eqn.params
    again = jax.checkpoint(
        lambda *args: site.child(0, args), prevent_cse=params["prevent_cse"], policy=params["policy"]
    )
    return again(*operands)


def _outputs(frame: Frame) -> list[Axes]:
    return [frame.read(v) for v in frame.jaxpr.outvars]


def _follow_scan(site: Site, operands: list[Axes]) -> list[Axes]:
    [sub] = sub_jaxprs(site.eqn)
    depth = len(site.frame.layers)
    layered = any(f.of is not None and f.of.ndim - 1 > depth for i in sub.stacked_inputs for f in _factors(operands[i]))
    inputs, turns = [], _turns(site, [operands[k][0] for k in sorted(sub.stacked_inputs)])
    for k, given in enumerate(operands):
        axes = given
        if k in sub.stacked_inputs:
            axes = axes[1:]
        elif layered:
            axes = tuple(even(site.labels, a, depth) for a in axes)
        inputs.append(tuple(_deeper(a, depth) for a in axes) if layered else axes)
    layers = (*site.frame.layers, site.eqn.params["length"]) if layered else site.frame.layers
    outputs = _outputs(site.child(sub, inputs, layers))
    results: list[Axes] = [(turns, *axes) for axes in outputs]
    for out, into in sub.carried:
        for a, b in zip(inputs[into], outputs[out], strict=True):
            site.unify(a, b)
        results[out] = operands[into]
    return results


def _turns(site: Site, run_over: list[Axis]) -> Axis:
    # The turns of a scan over stacked layers can go, with all that is stacked; a sequence stays as long as it is.
    if not run_over or any(ax.is_fixed(axis) for axis in run_over):
        for axis in run_over:
            site.freeze(axis, "the axis a scan runs over")
        return ax.fixed(site.eqn.params["length"])
    return together(site, run_over)


def _factors(axes: Axes) -> list[ax.Factor]:
    return [factor for axis in axes for factor in axis]


def _deeper(axis: Axis, depth: int) -> Axis:
    # One axis of layers more: labels that know the layers around this scan get a place for it.
    return tuple(
        f if f.of is None or f.of.ndim == 1 or f.of.ndim - 1 > depth else f._replace(of=f.of[..., None, :])
        for f in axis
    )


def _zero_scan(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    [sub] = sub_jaxprs(site.eqn)
    for k in sub.stacked_inputs:
        site.inexact(site.operand(k)[0], "a layer that a scan runs over: masked, it need not pass on what it is given")
    inputs = [Zeros(z.axes[1:], z.value) if k in sub.stacked_inputs else z for k, z in enumerate(known)]
    outputs = _until_stable(site, 0, sub, inputs)
    return [Zeros((True, *z.axes)) if k in sub.stacked_outputs else z for k, z in enumerate(outputs)]


def _until_stable(site: ZeroSite, k: int, sub: Sub, inputs: list[Zeros]) -> list[Zeros]:
    # What is carried is zero only if it starts and stays so.
    def join(old: Zeros, new: Zeros) -> Zeros:
        zero = tuple(a and b for a, b in zip(old.axes, new.axes, strict=True))
        return Zeros(zero, old.value if old.value == new.value else None)

    return settle(sub, inputs, lambda known: site.child(k, known), join)[1]


def _shrink_scan(site: ShrinkSite, operands: list[Any]) -> list[Any]:
    [sub] = sub_jaxprs(site.eqn)
    body = lambda inputs, carry: (site.child(0, inputs), carry, ())
    length, unroll = _length(site, sorted(sub.stacked_inputs)), site.eqn.params["unroll"]
    return scan_again(sub, _typed(site, operands), body, length=length, unroll=unroll)[0]


def _length(site: ShrinkSite, stacked: list[int]) -> int:
    keep = site.keeps(stacked[0])[0] if stacked else None
    return site.eqn.params["length"] if keep is None else keep.size


def _typed(site: ShrinkSite, operands: list[Any]) -> list[Any]:
    avals = [v.aval for v in site.eqn.invars]
    return [jnp.asarray(x, a.dtype) if not hasattr(x, "dtype") else x for x, a in zip(operands, avals, strict=True)]


def _follow_while(site: Site, operands: list[Axes]) -> list[Axes]:
    cond, body = sub_jaxprs(site.eqn)
    first = site.child(cond, [operands[i] for i in cond.inputs if i is not None])
    for axis in (axis for axes in _outputs(first) for axis in axes):
        site.freeze(axis, "the condition of a loop")
    inputs = [operands[i] for i in body.inputs if i is not None]
    outputs = _outputs(site.child(body, inputs))
    for out, into in body.carried:
        for a, b in zip(inputs[into], outputs[out], strict=True):
            site.unify(a, b)
    return [inputs[into] for _, into in body.carried]


def _zero_while(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    cond, body = sub_jaxprs(site.eqn)
    inputs = [known[i] for i in body.inputs if i is not None]
    results = _until_stable(site, 1, body, inputs)
    carried = iter(results)
    after = [
        k if i < site.eqn.params["cond_nconsts"] else next(carried)
        for i, k in enumerate(known[i] for i in cond.inputs if i is not None)
    ]
    site.child(0, after)
    return results


def _shrink_while(site: ShrinkSite, operands: list[Any]) -> list[Any]:
    n_cond, n_body = site.eqn.params["cond_nconsts"], site.eqn.params["body_nconsts"]
    arrays = _typed(site, operands)
    for_cond, for_body, carry = arrays[:n_cond], arrays[n_cond : n_cond + n_body], arrays[n_cond + n_body :]
    return list(
        lax.while_loop(
            lambda c: site.child(0, [*for_cond, *c])[0], lambda c: site.child(1, [*for_body, *c]), list(carry)
        )
    )


def _follow_cond(site: Site, operands: list[Axes]) -> list[Axes]:
    branches = [_outputs(site.child(sub, operands[1:])) for sub in sub_jaxprs(site.eqn)]
    return [
        tuple(together(site, axes) for axes in zip(*outputs, strict=True)) for outputs in zip(*branches, strict=True)
    ]


def _zero_cond(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    branches = [site.child(k, known[1:]) for k in range(len(site.eqn.params["branches"]))]
    return [
        Zeros(tuple(all(z) for z in zip(*(o.axes for o in outputs), strict=True)), _common(outputs))
        for outputs in zip(*branches, strict=True)
    ]


def _common(outputs: tuple[Zeros, ...]) -> float | None:
    return outputs[0].value if len({z.value for z in outputs}) == 1 else None


def _shrink_cond(site: ShrinkSite, operands: list[Any]) -> list[Any]:
    count = len(site.eqn.params["branches"])
    branches = [lambda *args, k=k: site.child(k, args) for k in range(count)]
    return list(lax.switch(operands[0], branches, *operands[1:]))


CALL = Rule(follow_call, zero_call, _shrink_call, ragged=True)
TABLE = {
    **dict.fromkeys(("jit", "pjit", "closed_call", "core_call"), CALL),
    **dict.fromkeys(("remat2", "remat", "checkpoint"), CALL._replace(shrink=_shrink_remat)),
    "scan": Rule(_follow_scan, _zero_scan, _shrink_scan, ragged=True),
    "while": Rule(_follow_while, _zero_while, _shrink_while),
    "cond": Rule(_follow_cond, _zero_cond, _shrink_cond),
}
