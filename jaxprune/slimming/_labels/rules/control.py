"""Control flow: calls, scan, while, cond, remat, and functions with custom derivatives (custom_jvp, custom_vjp).

The smaller function keeps custom derivatives. JAX's own jvp and vjp trace the derivative of the original equation at
the whole shapes; the trace then runs with smaller shapes like any other program.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export, lax

from jaxprune._jaxprs import Sub, sub_jaxprs
from jaxprune._jaxprs.walk import scan_again, settle
from jaxprune.slimming._labels import axes as ax
from jaxprune.slimming._labels import pointing
from jaxprune.slimming._labels.axes import Axes, Axis
from jaxprune.slimming._labels.evaluate import Decision, Keep, Keeps, Piece, ShrinkSite, evaluate, labels_that_go
from jaxprune.slimming._labels.frames import Frame, Rule, Site, Zeros, ZeroSite, even, follow, together
from jaxprune.slimming._labels.labels import Labels

# The reason why whole layers of a scan are inexact units.
LAYER = "a layer that a scan runs over: a masked layer may still change its input"


def _follow_call(site: Site, operands: list[Axes]) -> list[Axes]:
    """Follows the one jaxpr of a call, whose inputs and outputs are the equation's."""
    [sub] = sub_jaxprs(site.eqn)
    return _outputs(site.child(sub, operands))


def _zero_call(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    """Follows the one jaxpr of a call, whose inputs and outputs are the equation's."""
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
    # A layer of a scan over stacked parameters is a unit of all stacked arrays. A sequence keeps its length.
    if not run_over or any(ax.is_fixed(axis) for axis in run_over):
        for axis in run_over:
            site.freeze(axis, "the axis a scan runs over")
        return ax.fixed(site.eqn.params["length"])
    return together(site, run_over)


def _factors(axes: Axes) -> list[ax.Factor]:
    return [factor for axis in axes for factor in axis]


def _deeper(axis: Axis, depth: int) -> Axis:
    # Labels that differ between the layers of outer scans get one more axis, for the layers of this scan.
    return tuple(
        f if f.of is None or f.of.ndim == 1 or f.of.ndim - 1 > depth else f._replace(of=f.of[..., None, :])
        for f in axis
    )


def _zero_scan(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    [sub] = sub_jaxprs(site.eqn)
    for k in sub.stacked_inputs:
        site.inexact(site.operand(k)[0], LAYER)
    inputs = [Zeros(z.axes[1:], z.value) if k in sub.stacked_inputs else z for k, z in enumerate(known)]
    outputs = _until_stable(site, 0, sub, inputs)
    return [Zeros((True, *z.axes)) if k in sub.stacked_outputs else z for k, z in enumerate(outputs)]


def _until_stable(site: ZeroSite, k: int, sub: Sub, inputs: list[Zeros]) -> list[Zeros]:
    # A carried value is zero if it is zero before the loop and after each turn.
    def join(old: Zeros, new: Zeros) -> Zeros:
        zero = tuple(a and b for a, b in zip(old.axes, new.axes, strict=True))
        return Zeros(zero, old.value if old.value == new.value else None)

    return settle(sub, inputs, lambda known: site.child(k, known), join)[1]


def _shrink_scan(site: ShrinkSite, operands: list[Any]) -> list[Any]:
    [sub] = sub_jaxprs(site.eqn)
    body = lambda inputs, carry: (site.child(0, inputs), carry, ())
    length, unroll = _length(site, sorted(sub.stacked_inputs)), site.eqn.params["unroll"]
    return scan_again(sub, typed(site, operands), body, length=length, unroll=unroll)[0]


def _length(site: ShrinkSite, stacked: list[int]) -> int:
    keep = site.keeps(stacked[0])[0] if stacked else None
    return site.eqn.params["length"] if keep is None else keep.size


def typed(site: ShrinkSite, operands: list[Any]) -> list[Any]:
    """Returns the operands of an equation as arrays."""
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
    arrays = typed(site, operands)
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


def _shrink_jvp(site: ShrinkSite, operands: list[Any]) -> list[Any]:
    """Runs the smaller function of a custom_jvp, with its own derivative rule made smaller as well."""

    @jax.custom_jvp
    def smaller(*args: Any) -> list[Any]:
        return site.child(0, args)

    @smaller.defjvp
    def _(primals: Any, tangents: Any) -> tuple[list[Any], list[Any]]:
        keeps = [site.keeps(k) for k in range(len(primals))]
        moving = [k for k, v in enumerate(site.eqn.invars) if jax.numpy.issubdtype(v.aval.dtype, jax.numpy.inexact)]

        def whole(primals: Sequence[Any], changes: Sequence[Any]) -> tuple[Any, Any]:
            def of_moving(*own: Any) -> Any:
                by_place = dict(zip(moving, own, strict=True))
                return site.bind(*(by_place.get(k, p) for k, p in enumerate(primals)))

            return jax.jvp(of_moving, [primals[k] for k in moving], list(changes))

        shapes = [_shape(v.aval) for v in site.eqn.invars]
        closed = jax.make_jaxpr(whole)(shapes, [shapes[k] for k in moving])
        inside = [(site.frame, var) for var in site.eqn.invars]
        out = [site.out_keeps(k) for k in range(len(site.eqn.outvars))]
        run, _, _ = _smaller(site, closed, keeps + [keeps[k] for k in moving], inside, out + out)
        outputs = run([*primals, *(tangents[k] for k in moving)])
        return outputs[: len(outputs) // 2], outputs[len(outputs) // 2 :]

    return smaller(*operands)


def _shrink_vjp(site: ShrinkSite, operands: list[Any]) -> list[Any]:
    """Runs the smaller function of a custom_vjp, with its own forward and backward rules made smaller as well."""
    keeps = [site.keeps(k) for k in range(len(operands))]
    shapes = [_shape(v.aval) for v in site.eqn.invars]
    structure: list[Any] = []

    @jax.custom_vjp
    def smaller(*args: Any) -> list[Any]:
        return site.child(0, args)

    def forward(*args: Any) -> tuple[list[Any], tuple[list[Any], Any]]:
        def whole(*args: Any) -> tuple[Any, Any]:
            out, back = jax.vjp(site.bind, *args)
            residuals, tree = jax.tree.flatten(back)
            structure[:] = [tree]
            return out, residuals

        closed = jax.make_jaxpr(whole)(*shapes)
        count = len(site.eqn.outvars)
        sources, out = [(site.frame, var) for var in site.eqn.invars], [site.out_keeps(k) for k in range(count)]
        run, kept, frame = _smaller(site, closed, keeps, sources, out)
        outputs = run(args)
        places = [(frame, var) for var in frame.jaxpr.outvars[count:]]
        saved = _Saved(structure[0], kept[count:], closed.out_avals[count:], places)
        return outputs[:count], (outputs[count:], saved)

    def backward(residuals: tuple[list[Any], Any], cotangents: list[Any]) -> tuple[Any, ...]:
        arrays, saved = residuals

        def whole(residuals: Any, cotangents: Any) -> Any:
            return jax.tree.unflatten(saved.structure, residuals)(cotangents)

        outs = [_shape(v.aval) for v in site.eqn.outvars]
        known = [_shape(a) for a in saved.avals]
        closed = jax.make_jaxpr(whole)(known, outs)
        given = [*saved.keeps, *(site.out_keeps(k) for k in range(len(outs)))]
        run, _, _ = _smaller(site, closed, given, saved.sources, keeps)
        return tuple(run([*arrays, *cotangents]))

    smaller.defvjp(forward, backward)
    return smaller(*operands)


@jax.tree_util.register_static
class _Saved:
    """The static part of the residuals, for the backward pass; an instance equals only itself."""

    def __init__(self, structure: Any, keeps: list[Keeps], avals: list[Any], sources: list[tuple[Frame, Any]]) -> None:
        self.structure, self.keeps, self.avals, self.sources = structure, keeps, avals, sources


def _smaller(
    site: ShrinkSite,
    closed: Any,
    keeps: Sequence[Keeps],
    sources: Sequence[tuple[Frame, Any]],
    out_keeps: Sequence[Keeps],
) -> tuple[Callable[..., list[Any]], list[Keeps], Frame]:
    """Makes a program smaller, for the positions of its inputs and of its first outputs that stay.

    Args:
      site: the equation.
      closed: the whole program.
      keeps: for each input and axis, the positions that stay; None if all stay.
      sources: for the first inputs, the frame and the variable whose value the input equals.
      out_keeps: the same as `keeps`, for the first outputs.

    Returns:
      The smaller program, the positions that stay of each output, and the labels of the whole program.
    """
    labels, inputs, pieces = Labels(), [], []
    for k, (var, stays) in enumerate(zip(closed.jaxpr.invars, keeps, strict=True)):
        axes = tuple(_fresh(labels, site.frame, n, stay) for n, stay in zip(var.aval.shape, stays, strict=True))
        inputs.append(axes)
        pieces += [_piece(labels, f"input {k}", a, s) for a, s in zip(axes, stays, strict=True)]
    rule_of = site.frame.rule_of
    frame = follow(labels, closed.jaxpr, closed.consts, inputs, site.frame.layers, rule_of, (), sources)
    pointing.settle(labels, lambda axis: even(labels, axis, 0))
    for k, (var, stays) in enumerate(zip(closed.jaxpr.outvars, out_keeps, strict=False)):
        pieces += [_piece(labels, f"output {k}", a, s) for a, s in zip(frame.read(var), stays, strict=True)]
    decision = Decision(labels, labels_that_go(labels, [piece for piece in pieces if piece is not None]))
    out = [tuple(decision.keep(axis) for axis in frame.read(v)) for v in frame.jaxpr.outvars]
    return lambda args: evaluate(decision, frame, args), out, frame


def _fresh(labels: Labels, frame: Frame, n: Any, keep: Keep | None) -> ax.Axis:
    if export.is_symbolic_dim(n):
        return ax.fixed(n)
    layered = keep is not None and keep.positions.ndim > 1
    lead = np.broadcast_shapes(keep.positions.shape[:-1]) if layered and keep is not None else ()
    if layered:
        lead = frame.layers[len(frame.layers) - len(lead) :]
    return ax.labelled(labels.fresh((*lead, n)))


def _piece(labels: Labels, name: str, axis: ax.Axis, keep: Keep | None) -> Piece | None:
    ids = ax.flat(labels, axis)
    if ids is None:
        return None
    if keep is None:
        return Piece(name, ids, np.ones(ids.shape[-1], bool))
    stay = np.zeros((*keep.positions.shape[:-1], keep.full), bool)
    np.put_along_axis(stay, keep.positions, True, -1)
    return Piece(name, ids, stay)


def _shape(aval: Any) -> Any:
    # Inside a shard_map an aval also says along which mesh axes the value varies; a ShapeDtypeStruct does not.
    varying = getattr(getattr(aval, "manual_axis_type", None), "varying", getattr(aval, "vma", ()))
    return aval if varying else jax.ShapeDtypeStruct(aval.shape, aval.dtype)


CALL = Rule(_follow_call, _zero_call, _shrink_call, ragged=True)
TABLE = {
    **dict.fromkeys(("jit", "pjit", "closed_call", "core_call", "unstack"), CALL),
    **dict.fromkeys(("remat2", "remat", "checkpoint"), CALL._replace(shrink=_shrink_remat)),
    "scan": Rule(_follow_scan, _zero_scan, _shrink_scan, ragged=True),
    "while": Rule(_follow_while, _zero_while, _shrink_while),
    "cond": Rule(_follow_cond, _zero_cond, _shrink_cond),
    "custom_jvp_call": CALL._replace(shrink=_shrink_jvp),
    "custom_vjp_call": CALL._replace(shrink=_shrink_vjp),
}
