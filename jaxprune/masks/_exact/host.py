"""`keep_largest` for arrays on one CPU device, outside of jit: by NumPy, without compiling anything.

A program for many leaves takes seconds to compile, and a call outside of jit often happens once. NumPy reads an array
on one CPU device in place, and finds a threshold by partitioning a copy of the keys. The masks have the same bits as
those of `ranking.keep_largest`, because keys are exact, and ties fall to the lowest index.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import _tree
from jaxprune.masks._exact.counts import Count

_LARGE = 1 << 24  # entries of an array from which a compiled search is faster, its compilation included
_MOST = 1 << 25  # entries ranked together, of which two copies are made; the compiled search makes none


def suits(scores: Sequence[jax.Array], kept: Count, *, shared: bool) -> bool:
    """Returns whether `keep_largest` can rank these arrays, and needs little memory beside them."""
    sizes = [math.prod(x.shape) for x in scores]
    few = max(sizes) <= _LARGE and (not shared or sum(sizes) <= _MOST)
    return few and _tree.at_hand(*scores, *kept)


def keep_largest(
    scores: Sequence[jax.Array], kept: Count, *, batch_axes: Sequence[int], shared: bool
) -> list[np.ndarray]:
    """Returns the masks of `ranking.keep_largest`, which documents the arguments; no array may be sharded or traced."""
    common = jnp.result_type(*scores)
    slices = [math.prod(x.shape[:axes]) for x, axes in zip(scores, batch_axes, strict=True)]
    rows = [np.asarray(x).reshape(n, -1) for x, n in zip(scores, slices, strict=True)]
    number = np.asarray(kept.high, np.int64) * (1 << 16) + np.asarray(kept.low)
    if shared:
        together = _keep(np.concatenate([_keys(x.astype(common, copy=False)) for x in rows], axis=1), number)
        masks = np.split(together, np.cumsum([x.shape[1] for x in rows])[:-1], axis=1)
    else:
        own = np.split(number, np.cumsum(slices)[:-1])
        masks = [_keep(_keys(x), n) for x, n in zip(rows, own, strict=True)]
    return [mask.reshape(x.shape) for mask, x in zip(masks, scores, strict=True)]


def _keys(scores: np.ndarray) -> np.ndarray:
    """Returns integers in the order of the scores: NaN lowest, -0.0 equal to 0.0, and denormals distinct."""
    scores = scores if scores.dtype == np.float64 else scores.astype(np.float32, copy=False)  # narrower floats fit
    bits = scores.view(np.dtype(f"i{scores.itemsize}"))
    infinity = np.array(np.inf, scores.dtype).view(bits.dtype)
    if bits.view(np.dtype(f"u{scores.itemsize}")).max() <= infinity:
        return bits  # no sign and no NaN: in order already
    limits = np.iinfo(bits.dtype)
    # Sign and magnitude become two's complement: 0.0 has the key 0 and -0.0 the key -1, which nothing else has.
    key = bits >> (limits.bits - 1)
    key &= limits.max
    key ^= bits
    if (minus_zero := key == -1).any():
        key[minus_zero] = 0
    if key.max() > infinity or key.min() < ~infinity:
        key[np.isnan(scores)] = limits.min
    return key


def _keep(keys: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Returns the mask of the `kept[i]` largest keys of each row, the lowest index first where keys tie."""
    last = keys.shape[1] - 1
    place = np.minimum(last + 1 - kept, last)
    threshold = np.take_along_axis(np.partition(keys, np.unique(place), axis=1), place[:, None], axis=1)
    mask = keys >= threshold
    surplus = np.array([np.count_nonzero(row) for row in mask]) - kept
    for row in np.flatnonzero(surplus):
        tied = np.flatnonzero(keys[row] == threshold[row])
        mask[row, tied[-surplus[row] :]] = False
    return mask
