"""`Stats` and `Inputs`: moments of the activations of each leaf; `moments` computes them for one product.

`accumulate_gradients` returns `Gradients`: means of gradients and of squared gradients, for the Fisher, Taylor and
movement criteria.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxprune import _tree
from jaxprune._jaxprs import factors
from jaxprune._jaxprs.factors import Axis, Factor, Layout
from jaxprune._jaxprs.views import Meeting
from jaxprune._tree import Roles

PyTree = Any

Identity = tuple[str, ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inputs:
    """Sums over the activations that one leaf is multiplied by. A convolution has one sample for each output position.

    Attributes:
      layout: which axes of the leaf are inputs, outputs and a batch of matrices.
      count: the number of samples, [batch, inputs].
      gram: the Gram matrices X^T X, [batch, inputs, inputs]; None if "gram" was not collected.
      square: the sums of squares, [batch, inputs], which are the diagonals of the Gram matrices; None if not collected.
      total: the sums, [batch, inputs]; None if not collected.
      zeros: the number of samples that are exactly zero, [batch, inputs]; None if not collected.
    """

    layout: Layout = dataclasses.field(metadata={"static": True})
    count: Any
    gram: Any = None
    square: Any = None
    total: Any = None
    zeros: Any = None

    @property
    def mean(self) -> jax.Array:
        """The mean of each input, [batch, inputs]; 0 for an input without samples."""
        if self.total is None:
            raise ValueError("the mean was not collected; calibrate with collect=('total',) or more")
        return self.total / jnp.maximum(self.count, 1)

    @property
    def zero_fraction(self) -> jax.Array:
        """The fraction of samples in which each input is exactly zero (APoZ), [batch, inputs]."""
        if self.zeros is None:
            raise ValueError("zeros were not counted; calibrate with collect=('zeros',) or more")
        return self.zeros / jnp.maximum(self.count, 1)

    @property
    def norm(self) -> jax.Array:
        """The norm of each input over the samples, [batch, inputs]."""
        if self.square is None:
            raise ValueError("squares were not summed; calibrate with collect=('square',) or ('gram',)")
        return jnp.sqrt(self.square)


class Together(NamedTuple):
    """Leaves that are multiplied by the same activation.

    Attributes:
      names: the names of the leaves.
      loop: identifies the scan whose layers the leaves stack; None without such a scan.
    """

    names: tuple[str, ...]
    loop: tuple[int, ...] | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Experts:
    """Sums over the tokens that a router sends to each expert: [experts], or [layers, experts] in a scan.

    With the tokens t of expert j, its gates g_j(t) and its outputs f_j(t):

    Attributes:
      leaves: the weights of the experts: (name, axis of the experts), with None for a leaf that is one expert.
      tokens: the number of tokens.
      gate: the sum of g_j(t).
      norm: the sum of ||f_j(t)||.
      square: the sum of ||f_j(t)||^2.
      weighted: the sum of g_j(t) ||f_j(t)||.
    """

    leaves: tuple[tuple[str, int | None], ...] = dataclasses.field(metadata={"static": True})
    tokens: Any
    gate: Any
    norm: Any
    square: Any
    weighted: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stats:
    """The result of `calibrate`: a pytree, which jit accepts and checkpoints can store; `print` shows a table.

    Attributes:
      inputs: the sums of each leaf, by the leaf's path as a tuple.
      uncovered: pairs (name, reason) of leaves that `where` selects but that have no sums, because calibration could
        not follow them to a product.
      partly: pairs (name, reason) of leaves whose sums miss some uses of the leaf, or that are multiplied by a constant
        or by another parameter.
      together: the leaves in groups (`Together`): all leaves of a group are multiplied by the same activation. The
        groups are in the order in which the function uses them.
      roles: the inputs and outputs of every leaf, as `find_roles` returns them; None if you made the statistics
        yourself.
      experts: one `Experts` for each mixture of experts that the function computes; empty without experts.
    """

    inputs: dict[Identity, Inputs]
    uncovered: tuple[tuple[str, str], ...] = dataclasses.field(metadata={"static": True}, default=())
    partly: tuple[tuple[str, str], ...] = dataclasses.field(metadata={"static": True}, default=())
    together: tuple[Together, ...] = dataclasses.field(metadata={"static": True}, default=())
    roles: Roles | None = dataclasses.field(metadata={"static": True}, default=None)
    experts: tuple[Experts, ...] = ()

    def __str__(self) -> str:
        rows = []
        for identity, inputs in self.inputs.items():
            sums = [kind for kind in ("gram", "square", "total", "zeros") if getattr(inputs, kind) is not None]
            known = isinstance(inputs.count, np.ndarray)  # as calibrate returns it
            samples = f"{int(inputs.count.max()):,}" if known else _tree.shown(inputs.count)
            shape = "x".join(map(str, inputs.layout.shape))
            rows.append(("/".join(identity), shape, samples, ", ".join(sums)))
        reasons = [f"{name}: {why}" for name, why in (*self.uncovered, *self.partly)]
        return "\n".join([_tree.table(["leaf", "shape", "samples", "sums"], rows, numbers=False), *reasons])

    __repr__ = __str__

    def __getitem__(self, name: str) -> Inputs:
        """Returns the sums of the leaf with this name.

        Raises:
          KeyError: the leaf was not calibrated; the message gives the reason.
        """
        for identity, inputs in self.inputs.items():
            if "/".join(identity) == name:
                return inputs
        there = ", ".join("/".join(identity) for identity in self.inputs)
        why = dict(self.uncovered).get(name, f"was not calibrated; these leaves were: {there}")
        raise KeyError(f"{name}: {why}")

    def leaves(self, params: PyTree) -> list[Inputs | None]:
        """Returns the sums of each leaf in the order of `jax.tree.leaves(params)`; None if a leaf was not calibrated.

        Raises:
          ValueError: the shape of a leaf has changed since calibration.
        """
        found = []
        for path, leaf in _tree.with_paths(params):
            inputs = self.inputs.get(_tree.identity(path))
            if inputs is not None and tuple(leaf.shape) != inputs.layout.shape:
                raise ValueError(
                    f"{_tree.name(path)} was calibrated with shape {inputs.layout.shape}, but has shape "
                    f"{tuple(leaf.shape)} now; calibrate the parameters that you prune"
                )
            found.append(inputs)
        return found


class Gradients(NamedTuple):
    """Means of gradients, in the structure of the parameters; leaves that are not floating have a scalar zero.

    Attributes:
      mean: the mean of the gradients, in float32 at least.
      square: the mean of the squared gradients. For gradients of single examples this is the diagonal of the empirical
        Fisher matrix.
      samples: the number of gradients.
    """

    mean: PyTree
    square: PyTree
    samples: int


def accumulate_gradients(
    loss: Callable[[PyTree, PyTree], Any],
    params: PyTree,
    batches: Iterable[PyTree],
    *,
    per_example: bool = False,
) -> Gradients:
    r"""Returns the mean of $\nabla L(\theta; b)$ over batches b, and the elementwise mean of its square.

    Pass `mean` to criteria as `grads`, and `square` to `criteria.fisher` as `squared_grads`. With `per_example` the
    gradients are of single examples: `square` is then the diagonal of the empirical Fisher matrix (Theis et al. 2018,
    arXiv 1801.05787). The squared gradients of batches underestimate it. Each shape of batch compiles once. Memory
    holds one gradient and two sums in float32 (float64 for float64 parameters).

    Args:
      loss: `loss(params, batch)` -> scalar, a mean over the batch; with `per_example`, `loss(params, example)`.
      params: any tree; leaves that are not floating are passed to `loss` unchanged.
      batches: an iterable of trees of arrays. Batches of any size have the same weight. A leading axis may be
        sharded over devices.
      per_example: whether to compute one gradient for each example instead of one for each batch. All arrays of a batch
        must then share their leading axis. Default False.

    Returns:
      The means and the number of gradients, as `Gradients`.

    Raises:
      ValueError: there are no batches; with `per_example`, a batch is empty or its arrays share no leading axis; a
        gradient is not finite (the message names the leaves).

    Example:
      >>> loss = lambda w, x: (w * x).sum()
      >>> found = accumulate_gradients(loss, jnp.ones(2), [jnp.array([1.0, 0.0]), jnp.array([3.0, 0.0])])
      >>> found.mean.tolist(), found.square.tolist(), found.samples
      ([2.0, 0.0], [5.0, 0.0], 2)
    """
    loss = _tree.scalar(loss, "loss", "loss(params, batch)")
    _, floating, as_tree = _tree.differentiable(lambda p: p, params)

    @jax.jit
    def step(sums: tuple[list, list], values: list, batch: PyTree) -> tuple[list, list]:
        def add(sums: tuple[list, list], batch: PyTree) -> tuple[tuple[list, list], None]:
            fn, _, _ = _tree.differentiable(lambda p: loss(p, batch), params)
            wide = [g.astype(s.dtype) for g, s in zip(jax.grad(fn)(values), sums[0], strict=True)]
            totals = [s + g for s, g in zip(sums[0], wide, strict=True)]
            return (totals, [s + g * g for s, g in zip(sums[1], wide, strict=True)]), None

        return jax.lax.scan(add, sums, batch)[0] if per_example else add(sums, batch)[0]

    zeros = lambda: [jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)) for x in floating]
    sums, count = (zeros(), zeros()), 0
    _tree.check_batches(batches)
    for batch in batches:
        count += _examples(batch) if per_example else 1
        sums = step(sums, floating, batch)
    if not count:
        raise ValueError("batches is empty: gradients need at least one batch")
    named = [name for name, leaf in _tree.named_leaves(params) if _tree.is_floating(leaf)]
    finite = jax.device_get([jnp.isfinite(x).all() for x in sums[1]])
    bad = [f"  {name}" for name, fine in zip(named, finite, strict=True) if not fine]
    if bad:
        raise ValueError("gradients are not finite for:\n" + "\n".join(bad))
    mean, square = (as_tree([x / count for x in part]) for part in sums)
    return Gradients(mean, square, count)


def _examples(batch: PyTree) -> int:
    sizes = [jnp.shape(x)[:1] for x in jax.tree.leaves(batch)]
    if len(set(sizes)) != 1 or sizes[0] in ((), (0,)):
        raise ValueError(
            f"with per_example the arrays of a batch must share a leading axis that is not empty; got axes {sizes}"
        )
    return sizes[0][0]


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
    # If one weight is multiplied by several entries of x: batch axes of x become samples, contracted axes are summed.
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
