"""Targets, the entries that a method removes from a matrix: `Entries`, `Grouped` or `Given`; and exact selection.

`target_of` gives a leaf's matrices their shares of the entries that the leaf loses.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune import _tree, masks
from jaxprune.masks._exact import counts, ranking
from jaxprune.masks._exact.rows import keep_in_groups

_INPUTS = 46_340  # 2 * _INPUTS**2 < 2**32
_LARGE = 1 << 17


class Entries(NamedTuple):
    """Removes a number of entries of the whole matrix.

    Attributes:
      removed: how many entries are removed: a Python integer, or an int32 scalar, which may be traced.
    """

    removed: jax.Array | int


class Grouped(NamedTuple):
    """Keeps n of each m consecutive inputs, in every output. Both numbers are static.

    Attributes:
      n: how many inputs of a group are kept, 1 to m - 1.
      m: how many inputs a group has; m must divide the number of inputs.
    """

    n: int
    m: int


class Given(NamedTuple):
    """Removes the entries where a mask is False; the method changes only the kept weights.

    Attributes:
      mask: bool[inputs, outputs], True = kept.
    """

    mask: jax.Array


Target = Entries | Grouped | Given


def target_of(leaf: masks.Leaf, sparsity: Any, matrices: int) -> Target | None:
    """Returns the target for all matrices of a leaf, with stacked fields; None if nothing is removed.

    Raises:
      ValueError: the sparsity is not the sparsity of the leaf's pattern, or is a `masks.Count` of slices that do not
        consist of whole matrices.
    """
    if group := leaf.group:
        fixed = 1 - group.kept / group.size
        if isinstance(sparsity, masks.Count) or np.ndim(sparsity) or not abs(float(sparsity) - fixed) < 1e-6:
            raise ValueError(
                f"{_tree.label(leaf.name)}: {group.kept} of {group.size} has the sparsity {fixed}, but sparsity is "
                f"{sparsity!r}; pass sparsity=None"
            )
        return None if group.kept == group.size else Grouped(group.kept, group.size)
    each = _removed_from_each(leaf, sparsity, matrices)
    return Entries(jnp.asarray(each.astype(np.int32))) if each.any() else None


def by_slice(sparsities: list[Any], pruned: Mapping[int, masks.Leaf]) -> list[Any]:
    """Returns the sparsities of all leaves, with a `masks.Count` for each slice in place of the Count of a leaf."""
    found = list(sparsities)
    for place, leaf in pruned.items():
        if isinstance(found[place], masks.Count):
            each = _removed_from_each(leaf, found[place], leaf.slices)
            found[place] = masks.Count(*(jnp.asarray(x, jnp.int32) for x in (each >> 16, each & 0xFFFF)))
    return found


def _removed_from_each(leaf: masks.Leaf, sparsity: Any, parts: int) -> np.ndarray:
    """Returns how many entries each of the equal parts of a leaf loses: the leaf's number, spread evenly."""
    spread = lambda total, parts: np.diff([(2 * total * i + parts) // (2 * parts) for i in range(parts + 1)])
    if not isinstance(sparsity, masks.Count):
        return spread(int(counts.removed(sparsity, leaf.entries)), parts)
    if not np.ndim(sparsity.low):
        return spread(int(sparsity), parts)
    each = np.asarray(sparsity.high, np.int64) * 2**16 + np.asarray(sparsity.low)
    if parts % len(each):
        name = _tree.label(leaf.name)
        raise ValueError(f"{name}: the Count has {len(each)} slices, but the leaf has {parts} matrices")
    return np.concatenate([spread(int(k), parts // len(each)) for k in each])


def check(weight: jax.Array, gram_matrix: jax.Array, target: Target) -> None:
    """Raises unless a weight matrix, its Gram matrix and the target fit together.

    Raises:
      ValueError: a shape does not fit, n is not below m, or m does not divide the inputs.
    """
    if weight.ndim != 2 or gram_matrix.shape != (weight.shape[0],) * 2:
        raise ValueError(
            f"expected weights [inputs, outputs] and a Gram matrix [inputs, inputs], got {weight.shape} and "
            f"{gram_matrix.shape}"
        )
    if not isinstance(target, Target):
        raise TypeError(
            "target must say what is removed: reconstruction.Entries(removed), Grouped(n, m) or Given(mask); got "
            f"{_tree.shown(target)}"
        )
    if isinstance(target, Given) and target.mask.shape != weight.shape:
        raise ValueError(f"the mask must have the shape of the weights, got {target.mask.shape} and {weight.shape}")
    if isinstance(target, Grouped):
        if not 0 < target.n < target.m:
            raise ValueError(f"n of m needs 0 < n < m, got n = {target.n}, m = {target.m}")
        if weight.shape[0] % target.m:
            raise ValueError(
                f"groups of m = {target.m} do not divide {weight.shape[0]} inputs; choose an m that divides them, or "
                "exclude this leaf"
            )


def keep(saliency: jax.Array, target: Target) -> jax.Array:
    """Returns the mask that keeps the most salient entries of a matrix, as many as the target says.

    Args:
      saliency: float[inputs, outputs], larger = more worth keeping; NaN ranks lowest.
      target: what to remove; for `Given` the saliencies are ignored.

    Returns:
      bool of the same shape. If saliencies are equal, the lowest index is kept.

    Example:
      >>> keep(jnp.array([[3.0], [1.0], [1.0], [2.0]]), Grouped(1, 2))[:, 0].tolist()
      [True, False, False, True]
    """
    if isinstance(target, Given):
        return target.mask
    if isinstance(target, Grouped):
        groups = saliency.reshape(-1, target.m, saliency.shape[1])
        return keep_in_groups(groups, target.n, axis=1).reshape(saliency.shape)
    return keep_largest(saliency, saliency.size - jnp.asarray(target.removed))


def keep_largest(saliency: jax.Array, kept: jax.Array | int) -> jax.Array:
    """Returns the mask of the largest entries of a matrix; if entries are equal, the lowest index is kept.

    In a small matrix a bisection over the bits of the keys finds the threshold, with one counting pass for each bit.
    The search of `masks.select` takes a tenth of the time in a large matrix, but compiles for a second.

    Args:
      saliency: float[rows, columns], fewer than 2^31 entries. NaN ranks lowest.
      kept: how many entries are kept: an integer or an int32 scalar, which may be traced.

    Returns:
      bool of the same shape.

    Example:
      >>> keep_largest(jnp.array([[1.0, 3.0], [1.0, 2.0]]), 3).tolist()
      [[True, True], [False, True]]
    """
    if saliency.size >= _LARGE:
        kept = jnp.asarray(kept, jnp.int32)[None]
        return ranking.keep_largest(
            [saliency], counts.normalise(counts.Count(kept * 0, kept)), batch_axes=[0], shared=False
        )[0]
    signed = counts.ordered(saliency)
    bits = signed.dtype.itemsize * 8
    unsigned = jnp.dtype(f"uint{bits}")
    key = lax.bitcast_convert_type(signed, unsigned) ^ jnp.array(1 << (bits - 1), unsigned)
    one = jnp.array(1, unsigned)

    def refine_threshold(i: jax.Array, threshold: jax.Array) -> jax.Array:
        probe = threshold | (one << (bits - 1 - i).astype(unsigned))
        return jnp.where((key >= probe).sum() >= kept, probe, threshold)

    threshold = lax.fori_loop(0, bits, refine_threshold, jnp.array(0, unsigned))
    above, tied = key > threshold, key == threshold
    wanted = kept - above.sum()
    rows, columns = (lax.broadcasted_iota(jnp.int32, key.shape, axis) for axis in (0, 1))
    index = rows * key.shape[1] + columns

    # Finds the largest flat index with at most `wanted` ties before it. No search is needed if all ties are kept.
    def refine_cut(i: jax.Array, cut: jax.Array) -> jax.Array:
        probe = cut | (jnp.int32(1) << (30 - i))
        return jnp.where((tied & (index < probe)).sum() <= wanted, probe, cut)

    turns = jnp.where(tied.sum() == wanted, 0, 31)
    cut = lax.fori_loop(0, turns, refine_cut, jnp.where(turns == 0, jnp.int32(2**31 - 1), 0))
    return above | (tied & (index < cut))


def kept_by_block(removed: jax.Array | int, inputs: int, outputs: int, block: int) -> jax.Array:
    r"""Returns how many entries each block of inputs keeps, so that all blocks together lose exactly `removed`.

    After a block that ends at row $r$, $\lfloor k r / \text{inputs} + 1/2 \rfloor$ entries are removed.

    Args:
      removed: $k$, at most inputs times outputs; an int32 scalar may be traced.
      inputs: the number of rows of the matrix, at most 46,340.
      outputs: the number of columns; the matrix has fewer than 2^31 entries.
      block: the number of rows of a block. The last block counts as full: its missing rows count as kept, because their
        saliencies are infinite.

    Returns:
      int32[blocks].

    Raises:
      ValueError: the matrix is too large for exact 32-bit arithmetic.

    Example:
      >>> kept_by_block(5, 5, 2, 2).tolist()
      [2, 2, 3]
    """
    if inputs > _INPUTS or inputs * outputs >= 2**31:
        raise ValueError(
            f"a matrix of {inputs} x {outputs} is too large to be counted exactly: at most {_INPUTS} inputs and fewer "
            "than 2^31 entries"
        )
    ends = np.minimum(np.arange(block, inputs + block, block), inputs).astype(np.uint32)
    # k = q inputs + rest, so k r / inputs = q r + rest r / inputs, and 2 rest r < 2^32.
    k = jnp.asarray(removed).astype(jnp.uint32)
    quotient, rest = k // np.uint32(inputs), k % np.uint32(inputs)
    upto = quotient * ends + (2 * rest * ends + np.uint32(inputs)) // np.uint32(2 * inputs)
    return (np.uint32(block * outputs) - jnp.diff(upto, prepend=jnp.zeros(1, jnp.uint32))).astype(jnp.int32)
