"""The activations that a parameter meets at a matrix product or a convolution, and their moments."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxprune.calibration import views
from jaxprune.calibration.layouts import Site
from jaxprune.calibration.views import SPREAD, Factor, NotFollowed, View

Equation = Any
Moments = dict[str, jax.Array]
Pairs = Sequence[tuple[int, int]]  # (axis of the weight, axis of the activation)


class Samples(NamedTuple):
    """Activations in the order of a site: [*batch, *samples, *inputs].

    Attributes:
      values: the array.
      batch: how many leading axes are batch axes.
      inputs: how many trailing axes are inputs.
    """

    values: jax.Array
    batch: int
    inputs: int


def dot(eqn: Equation, view: View, operand: int, other: jax.Array, met: tuple[object, ...]) -> tuple[Site, Samples]:
    """What a weight meets at a `dot_general`.

    Args:
      eqn: the equation.
      view: a view of one operand.
      operand: 0 or 1, which operand that is.
      other: the value of the other one.
      met: names the other one.

    Returns:
      The site, and the samples.
    """
    contract, batch = eqn.params["dimension_numbers"]
    mine, yours = operand, 1 - operand
    pair = lambda axes: list(zip(axes[mine], axes[yours], strict=True))
    return _meet(view, other, pair(batch), pair(contract), met)


def convolution(eqn: Equation, view: View, other: jax.Array, met: tuple[object, ...]) -> tuple[Site, Samples]:
    """What a kernel meets at a `conv_general_dilated`: the patches under it, one sample for each output position.

    Raises:
      NotFollowed: batch_group_count is not 1, or a grouped kernel is a part of its leaf along the outputs.
    """
    if eqn.params["batch_group_count"] != 1:
        raise NotFollowed("a convolution with batch_group_count")
    groups, numbers = eqn.params["feature_group_count"], eqn.params["dimension_numbers"]
    shape = tuple(eqn.invars[1].aval.shape)
    out_axis, in_axis, *spatial = numbers.rhs_spec
    # The kernel's output axis becomes (groups, outputs of a group), at the end.
    order = [a for a in range(len(shape)) if a != out_axis] + [out_axis]
    moved = views.transpose(view, order)
    kept = tuple(shape[a] for a in order)
    if groups > 1:
        moved = views.reshape(moved, kept, (*kept[:-1], groups, kept[-1] // groups))
    patches = _patches(eqn, other, [shape[a] for a in spatial], groups)
    # [batch, *positions, groups, channels, *kernel positions]
    rank, first = len(spatial), 1 + len(spatial)
    contract = [(order.index(in_axis), first + 1)] + [(order.index(a), first + 2 + i) for i, a in enumerate(spatial)]
    if groups > 1:
        return _meet(moved, patches, [(rank + 1, first)], contract, met)
    return _meet(moved, lax.squeeze(patches, (first,)), [], [(w, x - 1) for w, x in contract], met)


def _patches(eqn: Equation, x: jax.Array, kernel: Sequence[int], groups: int) -> jax.Array:
    params, numbers = eqn.params, eqn.params["dimension_numbers"]
    batch, channel, *spatial = numbers.lhs_spec
    x = x.transpose(batch, *spatial, channel)
    pads = [
        (lo, hi, dilation - 1) for (lo, hi), dilation in zip(params["padding"], params["lhs_dilation"], strict=True)
    ]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    positions = [eqn.outvars[0].aval.shape[a] for a in numbers.out_spec[2:]]
    strides, dilation = params["window_strides"], params["rhs_dilation"]
    pieces = []
    for at in itertools.product(*map(range, kernel)):
        start = [k * d for k, d in zip(at, dilation, strict=True)]
        limit = [s + (n - 1) * step + 1 for s, n, step in zip(start, positions, strides, strict=True)]
        pieces.append(lax.slice(x, (0, *start, 0), (x.shape[0], *limit, x.shape[-1]), (1, *strides, 1)))
    stacked = jnp.stack(pieces, -1)
    return stacked.reshape(*stacked.shape[:-2], groups, stacked.shape[-2] // groups, *kernel)


def _meet(view: View, x: jax.Array, batch: Pairs, contract: Pairs, met: tuple[object, ...]) -> tuple[Site, Samples]:
    """Cuts x to the part the view covers, splits its axes into the view's factors and puts them in order."""
    for mine, yours in (*batch, *contract):
        n = views.length(view.axes[mine])
        if n != x.shape[yours]:
            x = lax.slice_in_dim(x, view.start[mine], view.start[mine] + n, axis=yours)
    roles: dict[int, tuple[str, views.Factors]] = {yours: ("batch", view.axes[mine]) for mine, yours in batch}
    roles |= {yours: ("inputs", view.axes[mine]) for mine, yours in contract}
    split: list[tuple[str, Factor | None, int]] = []
    for axis, size in enumerate(x.shape):
        kind, factors = roles.get(axis, ("samples", ()))
        split += [(kind, f, f.size) for f in factors] if kind != "samples" else [(kind, None, size)]
    x = x.reshape([size for _, _, size in split])
    # One entry of the weight for several of x: samples where they lie in a batch, a sum where they are summed over.
    summed = [i for i, (kind, f, _) in enumerate(split) if kind == "inputs" and f is not None and f.axis == SPREAD]
    x = x.sum(summed)
    split = [entry for i, entry in enumerate(split) if i not in summed]
    places = {"batch": [], "samples": [], "inputs": []}
    for i, (kind, f, _) in enumerate(split):
        places["samples" if f is not None and f.axis == SPREAD else kind].append(i)
    places["inputs"].sort(key=lambda i: (split[i][1].axis, -split[i][1].stride))
    x = x.transpose(*places["batch"], *places["samples"], *places["inputs"])
    used = {mine for mine, _ in (*batch, *contract)}
    outputs = tuple(f for a, axis in enumerate(view.axes) if a not in used for f in axis if f.axis != SPREAD)
    of = lambda kind: tuple(split[i][1] for i in places[kind])
    count = math.prod(split[i][2] for i in places["samples"])
    if not places["inputs"] and not any(f.axis != SPREAD for mine, _ in contract for f in view.axes[mine]):
        raise NotFollowed("a product in which no axis of it is summed over")
    site = Site(view.leaf, of("batch"), of("inputs"), outputs, view.offset, count, met)
    return site, Samples(x, len(places["batch"]), len(places["inputs"]))


def moments(samples: Samples, collect: frozenset[str], dtype: Any) -> Moments:
    """Sums over the samples.

    Args:
      samples: the activations.
      collect: what of "gram", "square", "total" and "zeros".
      dtype: in which to sum.

    Returns:
      "gram" [*batch, *inputs, *inputs]; "square" (of squares), "total" and "zeros" (how many) [*batch, *inputs].
    """
    x, first = samples.values.astype(dtype), samples.batch
    over = tuple(range(first, x.ndim - samples.inputs))
    batch = tuple(range(first))
    out: Moments = {}
    if "gram" in collect:
        numbers = ((over, over), (batch, batch))
        out["gram"] = lax.dot_general(x, x, numbers, precision=lax.Precision.HIGHEST, out_sharding=_everywhere(x))
    elif "square" in collect:
        out["square"] = (x * x).sum(over)
    if "total" in collect:
        out["total"] = x.sum(over)
    if "zeros" in collect:
        out["zeros"] = (x == 0).astype(dtype).sum(over)
    return out


def _everywhere(x: jax.Array) -> NamedSharding | None:
    # On a mesh with explicit axes a sum over a sharded axis must say where its result lies; elsewhere the compiler
    # knows.
    mesh = jax.typeof(x).sharding.mesh
    return NamedSharding(mesh, PartitionSpec()) if AxisType.Explicit in mesh.axis_types else None
