"""`samples_of` and `moments`: the activations at a matrix product or a convolution, ordered like a weight's inputs."""

import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxprune._jaxprs import factors
from jaxprune._jaxprs.factors import Axis, Factor
from jaxprune._jaxprs.views import Meeting

Equation = Any
Moments = dict[str, jax.Array]


class Samples(NamedTuple):
    """Activations in the order of a site: array[*batch, *samples, *inputs].

    Attributes:
      values: the array.
      batch: the number of leading batch axes.
      inputs: the number of trailing input axes.
    """

    values: jax.Array
    batch: int
    inputs: int

    @property
    def number(self) -> int:
        """The number of samples."""
        return math.prod(self.values.shape[self.batch : self.values.ndim - self.inputs])


def samples_of(meeting: Meeting, other: jax.Array) -> Samples:
    """Returns the activations that a weight is multiplied by, in the order of a site.

    The function cuts the other operand to the part that the view covers, splits its axes into the view's factors and
    orders them.

    Args:
      meeting: the weight and its axes in the product.
      other: the other operand of the product; for a kernel, the patches of its input.
    """
    view, batch, contract = meeting
    for mine, yours in (*batch, *contract):
        n = factors.size(view.axes[mine])
        if n != other.shape[yours]:
            other = lax.slice_in_dim(other, view.start[mine], view.start[mine] + n, axis=yours)
    roles: dict[int, tuple[str, Axis]] = {yours: ("batch", view.axes[mine]) for mine, yours in batch}
    roles |= {yours: ("inputs", view.axes[mine]) for mine, yours in contract}
    split: list[tuple[str, Factor]] = []
    for axis, size in enumerate(other.shape):
        kind, own = roles.get(axis, ("samples", (Factor(size),)))
        split += [(kind, f) for f in own]
    x = other.reshape([f.size for _, f in split])
    # If one weight meets several entries of x: batch axes of x become samples, contracted axes are summed.
    summed = [i for i, (kind, f) in enumerate(split) if kind == "inputs" and f.of is None]
    x = x.sum(summed)
    split = [entry for i, entry in enumerate(split) if i not in summed]
    places: dict[str, list[int]] = {"batch": [], "samples": [], "inputs": []}
    for i, (kind, f) in enumerate(split):
        places[kind if f.of is not None else "samples"].append(i)
    places["inputs"].sort(key=lambda i: (split[i][1].of.axis, -split[i][1].of.stride))
    x = x.transpose(*places["batch"], *places["samples"], *places["inputs"])
    return Samples(x, len(places["batch"]), len(places["inputs"]))


def patches(eqn: Equation, x: jax.Array) -> jax.Array:
    """Returns the patches under the kernel of a convolution, one sample for each output position.

    Args:
      eqn: the convolution.
      x: the input of the convolution.

    Returns:
      [batch, *positions, groups if more than one, channels, *kernel positions].
    """
    params, numbers, groups = eqn.params, eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    kernel = [eqn.invars[1].aval.shape[a] for a in numbers.rhs_spec[2:]]
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
    split = (groups, stacked.shape[-2] // groups) if groups > 1 else stacked.shape[-2:-1]
    return stacked.reshape(*stacked.shape[:-2], *split, *kernel)


def moments(samples: Samples, collect: frozenset[str], dtype: Any, times: Any = None) -> Moments:
    """Returns sums over the samples.

    Args:
      samples: the activations.
      collect: one or more of "gram", "square", "total" and "zeros".
      dtype: the dtype of the sums.
      times: [*batch, *samples] how often each sample counts; None if each counts once.

    Returns:
      "gram" [*batch, *inputs, *inputs]; "square" (sums of squares), "total" (sums) and "zeros" (counts of zeros)
      [*batch, *inputs]; with `times` also "count", the number of samples [*batch, *inputs].
    """
    x, first = samples.values.astype(dtype), samples.batch
    over = tuple(range(first, x.ndim - samples.inputs))
    batch = tuple(range(first))
    out: Moments = {}
    weighted, zero = x, (x == 0).astype(dtype)
    if times is not None:
        each = times.reshape(*times.shape, *[1] * samples.inputs)
        counts = each.astype(jnp.int32).sum(over)
        out["count"] = jnp.broadcast_to(counts, x.shape[:first] + x.shape[x.ndim - samples.inputs :])
        # A row that does not count may contain anything, infinity too.
        weighted = jnp.where(each != 0, x * each.astype(dtype), 0)
        x, zero = jnp.where(each != 0, x, 0), zero * each.astype(dtype)
    if "gram" in collect:
        numbers = ((over, over), (batch, batch))
        out["gram"] = lax.dot_general(
            weighted, x, numbers, precision=lax.Precision.HIGHEST, out_sharding=_everywhere(x)
        )
    elif "square" in collect:
        out["square"] = (weighted * x).sum(over)
    if "total" in collect:
        out["total"] = weighted.sum(over)
    if "zeros" in collect:
        out["zeros"] = zero.sum(over)
    return out


def expert_moments(samples: Samples, collect: frozenset[str], dtype: Any, times: Any) -> Moments:
    """Returns sums over the samples of each expert, one expert after the other.

    Args:
      samples: activations without batch axes, which all experts share.
      collect: one or more of "gram", "square", "total" and "zeros".
      dtype: the dtype of the sums.
      times: [experts, *samples] how often each sample counts for each expert.

    Returns:
      The sums that `moments` returns, with a leading axis of experts.
    """
    return lax.map(lambda own: moments(samples, collect, dtype, own), times)


def _everywhere(x: jax.Array) -> NamedSharding | None:
    # With explicit mesh axes, a sum over a sharded axis must state the sharding of its result. Otherwise the compiler
    # chooses it.
    mesh = jax.typeof(x).sharding.mesh
    return NamedSharding(mesh, PartitionSpec()) if AxisType.Explicit in mesh.axis_types else None
