"""Parameters, FLOPs and memory of a network, dense and pruned, for each leaf and in total: `complexity`."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer

from jaxprune import _jaxprs, _tree
from jaxprune.assess import formatting
from jaxprune.masks import unpack

PyTree = Any


class LeafSize(NamedTuple):
    """One parameter leaf and its mask.

    Attributes:
      name: the path of the leaf.
      shape: its shape.
      dtype: its dtype, as a string.
      pruned: whether the leaf is pruned; a leaf with a scalar mask is not.
      total: the number of entries.
      kept: the number of entries that the mask keeps.
      dense_bytes: the memory of all entries.
      mask_bytes: the memory of the mask at one bit an entry; a mask of channels has one entry a channel.
      kept_bytes: the memory of the kept entries, without their positions.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    pruned: bool
    total: int
    kept: int
    dense_bytes: int
    mask_bytes: int
    kept_bytes: int

    @property
    def density(self) -> float:
        """The fraction of kept entries; 1 for a leaf without entries."""
        return self.kept / self.total if self.total else 1.0

    @property
    def sparsity(self) -> float:
        """The fraction removed."""
        return 1.0 - self.density


@dataclass(frozen=True)
class LeafComplexity:
    """One parameter leaf.

    Attributes:
      size: its entries and its memory.
      flops: the FLOPs that multiply by its entries.
      effective_flops: the FLOPs that multiply by a kept entry.
    """

    size: LeafSize
    flops: int
    effective_flops: int


@dataclass(frozen=True)
class Unattributed:
    """FLOPs with parameters that the analysis could not follow through the program; they count as dense.

    Attributes:
      leaves: the names of the parameters.
      primitive: the primitive at which the analysis lost them.
      flops: the number of FLOPs.
    """

    leaves: tuple[str, ...]
    primitive: str
    flops: int


@dataclass(frozen=True)
class Complexity:
    """Parameters, FLOPs and memory of a network, dense and with its masks.

    Attributes:
      leaves: the floating leaves of the parameters.
      flops: all FLOPs, 2 for each multiply-add of a matrix product or a convolution.
      effective_flops: the FLOPs without the multiply-adds of removed entries.
      activation_flops: the part of `flops` that multiplies activations by activations, as attention does.
      unattributed: FLOPs of parameters that the analysis lost; part of `flops` and of `effective_flops`.
      uncounted: how often each primitive without a count runs, by its name.
      unbounded: the `while` loops whose bodies count as running once.
    """

    leaves: tuple[LeafComplexity, ...]
    flops: int
    effective_flops: int
    activation_flops: int
    unattributed: tuple[Unattributed, ...]
    uncounted: Mapping[str, int]
    unbounded: tuple[str, ...]

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(leaf.size.total for leaf in self.leaves)

    @property
    def kept(self) -> int:
        """The parameters kept."""
        return sum(leaf.size.kept for leaf in self.leaves)

    @property
    def sparsity(self) -> float:
        """The fraction removed of the leaves that have a mask, as `masks.sparsity` computes it; 0 without masks."""
        pruned = [leaf.size for leaf in self.leaves if leaf.size.pruned]
        total = sum(size.total for size in pruned)
        return 1.0 - sum(size.kept for size in pruned) / total if total else 0.0

    @property
    def density(self) -> float:
        """The fraction kept of the leaves that have a mask."""
        return 1.0 - self.sparsity

    @property
    def total_sparsity(self) -> float:
        """The fraction removed of all parameters, including biases and other leaves without masks."""
        return 1.0 - self.kept / self.total if self.total else 0.0

    @property
    def dense_bytes(self) -> int:
        """The memory of all parameters."""
        return sum(leaf.size.dense_bytes for leaf in self.leaves)

    @property
    def mask_bytes(self) -> int:
        """The memory of the masks, at one bit an entry."""
        return sum(leaf.size.mask_bytes for leaf in self.leaves)

    @property
    def kept_bytes(self) -> int:
        """The memory of the kept parameters, without their positions."""
        return sum(leaf.size.kept_bytes for leaf in self.leaves)

    def as_dict(self) -> dict[str, Any]:
        """Returns everything as dicts, lists and numbers, for JSON."""
        totals = ("total", "kept", "sparsity", "density", "total_sparsity", "dense_bytes", "mask_bytes", "kept_bytes")
        flops = ("flops", "effective_flops", "activation_flops")
        return {
            **{key: getattr(self, key) for key in (*totals, *flops)},
            "leaves": [_leaf_dict(leaf) for leaf in self.leaves],
            "unattributed": [vars(u) for u in self.unattributed],
            "uncounted": dict(self.uncounted),
            "unbounded": list(self.unbounded),
        }

    def __str__(self) -> str:
        header = ["parameter", "shape", "total", "kept", "sparsity", "FLOPs", "effective"]
        rows = [
            [leaf.size.name, "x".join(map(str, leaf.size.shape)), *_cells(leaf.size, leaf.size.sparsity, leaf)]
            for leaf in self.leaves
        ]
        rest = self.flops - sum(leaf.flops for leaf in self.leaves)
        if rest:
            cell = formatting.quantity(rest)
            rows.append(["(no parameter)", *[formatting.MISSING] * 4, cell, cell])
        rows.append(["total", "", *_cells(self, self.total_sparsity, self)])
        return "\n".join([_tree.table(header, rows), *self.notes()])

    def notes(self) -> list[str]:
        """Sentences about memory and about what could not be counted."""
        dense, kept, masks = (formatting.memory(n) for n in (self.dense_bytes, self.kept_bytes, self.mask_bytes))
        return [
            f"memory: {dense} dense; {kept} kept values and {masks} masks",
            *(
                f"lost at {lost.primitive}, counted as dense: {formatting.quantity(lost.flops)} FLOPs of "
                + ", ".join(lost.leaves)
                for lost in self.unattributed
            ),
            *(f"not counted: {name}, {n} times" for name, n in sorted(self.uncounted.items())),
            *(f"counted as one round: {path}" for path in self.unbounded),
        ]


def complexity(
    fn: Callable[..., PyTree], params: PyTree, masks: PyTree | None, *inputs: PyTree, elementwise: bool = False
) -> Complexity:
    """Counts parameters, FLOPs and memory of `fn(params, *inputs)`, dense and with its masks.

    FLOPs come from the jaxpr (see `_jaxprs.count_flops`): matrix products and convolutions, 2 for each multiply-add;
    a scan counts all its iterations, a cond its largest branch, a `while` one iteration. A removed entry saves all
    multiply-adds that use it. Multiply-adds of a convolution with padding do not count. The function is
    traced, not run.

    Args:
      fn: a function of params and inputs.
      params: arrays or ShapeDtypeStructs; leaves that are not floating are left out of the counts.
      masks: concrete bool arrays in the structure of params, True = kept, packed or not; or None for a dense network.
      *inputs: arrays or ShapeDtypeStructs; the FLOPs are counted for this batch.
      elementwise: whether to count other arithmetic too, one FLOP an entry; masks do not reduce it. Default False.

    Returns:
      The counts, and the names of everything that could not be counted or attributed.

    Raises:
      ValueError: masks do not fit params; the message names the leaves.
      TypeError: masks are not bool, or are traced.

    Example:
      >>> masks = {'w': jnp.eye(3, dtype=bool)}
      >>> cost = complexity(lambda p, x: x @ p['w'], {'w': jnp.ones((3, 3))}, masks, jnp.ones((2, 3)))
      >>> cost.kept, cost.flops, cost.effective_flops
      (3, 36, 12)
    """
    if not callable(fn):
        swapped = "; fn and params are swapped" if callable(params) else ""
        raise TypeError(f"fn must be a function fn(params, *inputs); got {_tree.shown(fn)}{swapped}")
    kept = concrete(params, masks)
    named = _tree.named_leaves(params)
    traced = _jaxprs.trace(fn, params, *inputs)
    # Position in the jaxpr -> leaf of params; the leaves of params come first among the arguments.
    places = {place: i for i, place in enumerate(traced.inputs[: len(named)]) if place is not None}
    followed = {place: i for place, i in places.items() if _tree.is_floating(named[i][1])}
    counted = _jaxprs.count_flops(traced.closed, tuple(followed), elementwise=elementwise)
    dense, effective = _by_leaf(counted, followed, [leaf for _, leaf in named], kept)
    measured = leaf_sizes(params, masks)
    floating = [i for i, (_, leaf) in enumerate(named) if _tree.is_floating(leaf)]
    saved = sum(dense.values()) - sum(effective.values())
    return Complexity(
        leaves=tuple(LeafComplexity(size, dense[i], effective[i]) for i, size in zip(floating, measured, strict=True)),
        flops=counted.total,
        effective_flops=counted.total - saved,
        activation_flops=sum(op.flops for op in counted.operations if op.weight is None and op.lost is None),
        unattributed=_unattributed(counted, {place: named[i][0] for place, i in followed.items()}),
        uncounted=counted.uncounted,
        unbounded=counted.unbounded,
    )


def _by_leaf(
    counted: _jaxprs.Flops, followed: Mapping[int, int], leaves: Sequence[Any], kept: Sequence[np.ndarray]
) -> tuple[dict[int, int], dict[int, int]]:
    shapes = {place: tuple(leaves[i].shape) for place, i in followed.items()}
    masks = {place: kept[i] for place, i in followed.items() if not kept[i].all()}
    dense: dict[int, int] = defaultdict(int)
    effective: dict[int, int] = defaultdict(int)
    for operation in counted.operations:
        for share in _jaxprs.shares(operation, shapes, masks):
            dense[followed[share.leaf]] += share.dense
            effective[followed[share.leaf]] += share.effective
    return dense, effective


def _unattributed(counted: _jaxprs.Flops, names: Mapping[int, str]) -> tuple[Unattributed, ...]:
    lost: dict[tuple[tuple[str, ...], str], int] = defaultdict(int)
    for operation in counted.operations:
        if operation.weight is None and operation.lost is not None:
            leaves = tuple(names[leaf] for leaf in sorted(operation.lost.leaves))
            lost[leaves, operation.lost.primitive] += operation.flops
    return tuple(Unattributed(leaves, primitive, flops) for (leaves, primitive), flops in lost.items())


def _cells(size: Any, sparsity: float, cost: Any) -> list[str]:
    flops = [formatting.quantity(cost.flops), formatting.quantity(cost.effective_flops)]
    return [f"{size.total:,}", f"{size.kept:,}", formatting.percent(sparsity), *flops]


def _leaf_dict(leaf: LeafComplexity) -> dict[str, Any]:
    values = {key: value for key, value in leaf.size._asdict().items() if key != "shape"}
    derived = {"shape": list(leaf.size.shape), "sparsity": leaf.size.sparsity, "density": leaf.size.density}
    return {**values, **derived, "flops": leaf.flops, "effective_flops": leaf.effective_flops}


def leaf_sizes(params: PyTree, masks: PyTree | None = None) -> tuple[LeafSize, ...]:
    """Returns the sizes of the floating leaves of `params`; integers, keys and static leaves are not parameters.

    Args:
      params: arrays or ShapeDtypeStructs.
      masks: bool, True = kept, each broadcasting to its parameter, packed or not; None (default) for a dense network.

    Returns:
      One entry for each floating leaf, in the order of the leaves.

    Raises:
      TypeError: masks are traced; the counts are Python integers, which need concrete masks.

    Example:
      >>> [leaf] = leaf_sizes({'w': jnp.ones((2, 3))}, {'w': jnp.array([[True, False, True]])})
      >>> leaf.kept, leaf.dense_bytes, leaf.kept_bytes, leaf.mask_bytes
      (4, 24, 16, 1)
    """
    named = _tree.named_leaves(params)
    found = zip(named, concrete(params, masks), strict=True)
    return tuple(_size(name, leaf, mask) for (name, leaf), mask in found if _tree.is_floating(leaf))


def concrete(params: PyTree, masks: PyTree | None) -> list[np.ndarray]:
    """Checks masks, and returns them as NumPy arrays, one for each leaf of params.

    Args:
      params: the parameters.
      masks: the masks, or None for a scalar True everywhere.

    Returns:
      Bool arrays that broadcast to the leaves.

    Raises:
      TypeError: a mask is traced.
    """
    if masks is None:
        return [np.array(True)] * len(jax.tree.leaves(params))
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(masks)):
        raise TypeError(
            "masks are traced, but this function counts them on the host; call it outside jit, vmap and grad"
        )
    aligned = _tree.align(params, unpack(masks), what="masks")
    _tree.check_masks(params, aligned)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(aligned)]


def _size(name: str, leaf: Any, mask: np.ndarray) -> LeafSize:
    total, itemsize = math.prod(leaf.shape), np.dtype(leaf.dtype).itemsize
    # Each entry of a mask that broadcasts represents the same number of parameters.
    kept = int(np.count_nonzero(mask)) * total // mask.size if mask.size else total
    pruned = mask.ndim > 0
    mask_bytes = -(-mask.size // 8) if pruned else 0
    return LeafSize(
        name, tuple(leaf.shape), str(leaf.dtype), pruned, total, kept, total * itemsize, mask_bytes, kept * itemsize
    )
