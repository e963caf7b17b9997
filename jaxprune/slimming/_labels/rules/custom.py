"""Functions with custom derivatives (custom_jvp, custom_vjp): the smaller function keeps the derivatives.

JAX's own jvp and vjp trace the derivative of the original equation at the whole shapes; the trace then runs with
smaller shapes like any other program.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxprune.slimming._labels import axes as ax
from jaxprune.slimming._labels.decide import Piece, labels_that_go
from jaxprune.slimming._labels.evaluate import Decision, Keeps, ShrinkSite, evaluate
from jaxprune.slimming._labels.frames import Frame, follow
from jaxprune.slimming._labels.keeps import Keep
from jaxprune.slimming._labels.labels import Labels
from jaxprune.slimming._labels.rules.base import Rule
from jaxprune.slimming._labels.rules.control import follow_call, zero_call


def _shrink_jvp(site: ShrinkSite, operands: list[Any]) -> list[Any]:
    @jax.custom_jvp
    def smaller(*args: Any) -> list[Any]:
        return site.child(0, args)

    @smaller.defjvp
    def _(primals: Any, tangents: Any) -> tuple[list[Any], list[Any]]:
        keeps = [site.keeps(k) for k in range(len(primals))]
        moving = [k for k, v in enumerate(site.eqn.invars) if _moves(v)]

        def whole(primals: Sequence[Any], changes: Sequence[Any]) -> tuple[Any, Any]:
            full = [np.zeros(np.shape(p), jax.dtypes.float0) for p in primals]
            for k, change in zip(moving, changes, strict=True):
                full[k] = change
            return jax.jvp(site.bind, tuple(primals), tuple(full))

        shapes = [_shape(v) for v in site.eqn.invars]
        closed = jax.make_jaxpr(whole)(shapes, [shapes[k] for k in moving])
        run, _ = _smaller(site, closed, keeps + [keeps[k] for k in moving])
        outputs = run([*primals, *(tangents[k] for k in moving)])
        return outputs[: len(outputs) // 2], outputs[len(outputs) // 2 :]

    return smaller(*operands)


def _shrink_vjp(site: ShrinkSite, operands: list[Any]) -> list[Any]:
    keeps = [site.keeps(k) for k in range(len(operands))]
    shapes = [_shape(v) for v in site.eqn.invars]
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
        run, kept = _smaller(site, closed, keeps)
        outputs = run(args)
        count = len(site.eqn.outvars)
        saved = _Saved(structure[0], kept[count:], closed.out_avals[count:])
        return outputs[:count], (outputs[count:], saved)

    def backward(residuals: tuple[list[Any], Any], cotangents: list[Any]) -> tuple[Any, ...]:
        arrays, saved = residuals

        def whole(residuals: Any, cotangents: Any) -> Any:
            return jax.tree.unflatten(saved.structure, residuals)(cotangents)

        outs = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in site.eqn.outvars]
        known = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in saved.avals]
        closed = jax.make_jaxpr(whole)(known, outs)
        run, _ = _smaller(site, closed, [*saved.keeps, *(site.out_keeps(k) for k in range(len(outs)))])
        return tuple(run([*arrays, *cotangents]))

    smaller.defvjp(forward, backward)
    return smaller(*operands)


@jax.tree_util.register_static
class _Saved:
    """What the backward pass needs besides the residuals; equal only to itself."""

    def __init__(self, structure: Any, keeps: list[Keeps], avals: list[Any]) -> None:
        self.structure, self.keeps, self.avals = structure, keeps, avals


def _smaller(site: ShrinkSite, closed: Any, keeps: Sequence[Keeps]) -> tuple[Callable[..., list[Any]], list[Keeps]]:
    """A smaller program, from the positions that stay of its inputs."""
    labels, inputs, pieces = Labels(), [], []
    for k, (var, stays) in enumerate(zip(closed.jaxpr.invars, keeps, strict=True)):
        axes = tuple(_fresh(labels, site.frame, n, stay) for n, stay in zip(var.aval.shape, stays, strict=True))
        inputs.append(axes)
        pieces += [_piece(f"input {k}", a, s) for a, s in zip(axes, stays, strict=True) if a[0].of is not None]
    frame = follow(labels, closed.jaxpr, closed.consts, inputs, site.frame.layers, site.frame.rule_of)
    decision = Decision(labels, labels_that_go(labels, pieces))
    out = [tuple(decision.keep(axis) for axis in frame.read(v)) for v in frame.jaxpr.outvars]
    return lambda args: evaluate(decision, frame, args), out


def _fresh(labels: Labels, frame: Frame, n: int, keep: Keep | None) -> ax.Axis:
    layered = keep is not None and keep.positions.ndim > 1
    lead = np.broadcast_shapes(keep.positions.shape[:-1]) if layered and keep is not None else ()
    if layered:
        lead = frame.layers[len(frame.layers) - len(lead) :]
    return ax.labelled(labels.fresh((*lead, n)))


def _piece(name: str, axis: ax.Axis, keep: Keep | None) -> Piece:
    ids = axis[0].of
    assert ids is not None
    if keep is None:
        return Piece(name, ids, np.ones(ids.shape[-1], bool))
    stay = np.zeros((*keep.positions.shape[:-1], keep.full), bool)
    np.put_along_axis(stay, keep.positions, True, -1)
    return Piece(name, ids, stay)


def _moves(var: Any) -> bool:
    return jax.numpy.issubdtype(var.aval.dtype, jax.numpy.inexact)


def _shape(var: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype)


TABLE = {
    "custom_jvp_call": Rule(follow_call, zero_call, _shrink_jvp, ragged=True),
    "custom_vjp_call": Rule(follow_call, zero_call, _shrink_vjp, ragged=True),
}
