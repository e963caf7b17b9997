"""Selection as NumPy would do it, slowly: by sorting, with everything spelt out."""

import math
from typing import Any

import numpy as np


def order(scores: Any) -> np.ndarray:
    """Flat indices from the most to the least worth keeping: NaN last, -0.0 equal to 0.0, then the lowest index."""
    flat = np.asarray(scores).astype(np.float64).ravel()
    nan = np.isnan(flat)
    return np.lexsort((np.arange(flat.size), -np.where(nan, 0, flat), nan))


def keep(scores: Any, sparsity: float) -> np.ndarray:
    """The mask of one array, all entries ranked together."""
    scores = np.asarray(scores)
    mask = np.ones(scores.size, bool)
    gone = math.floor(sparsity * scores.size + 0.5)
    mask[order(scores)[scores.size - gone :]] = False
    return mask.reshape(scores.shape)


def keep_globally(scores: list[Any], sparsity: float) -> list[np.ndarray]:
    """The masks of several arrays ranked together."""
    flat = keep(np.concatenate([np.asarray(x).astype(np.float64).ravel() for x in scores]), sparsity)
    ends = np.cumsum([np.asarray(x).size for x in scores])
    return [flat[end - np.asarray(x).size : end].reshape(np.shape(x)) for x, end in zip(scores, ends, strict=True)]


def keep_n_of_m(scores: Any, n: int, m: int) -> np.ndarray:
    """n of every m along the flattened axes before the last."""
    scores = np.asarray(scores)
    rows = scores.reshape(-1, scores.shape[-1])
    mask = np.zeros(rows.shape, bool)
    for column in range(rows.shape[1]):
        for start in range(0, len(rows), m):
            mask[start + order(rows[start : start + m, column])[:n], column] = True
    return mask.reshape(scores.shape)


def keep_blocks(scores: Any, size: tuple[int, int], sparsity: float) -> np.ndarray:
    """Blocks of a matrix, ranked by their sums."""
    scores = np.asarray(scores, np.float64)
    rows, columns = scores.shape[0] // size[0], scores.shape[1] // size[1]
    sums = scores.reshape(rows, size[0], columns, size[1]).sum((1, 3))
    return np.repeat(np.repeat(keep(sums, sparsity), size[0], 0), size[1], 1)


def keep_channels(scores: Any, axis: int, sparsity: float) -> np.ndarray:
    """Positions along one axis, ranked by their sums; the other axes have size 1."""
    scores = np.asarray(scores, np.float64)
    axis = axis % scores.ndim
    sums = scores.sum(tuple(a for a in range(scores.ndim) if a != axis))
    return keep(sums, sparsity).reshape([-1 if a == axis else 1 for a in range(scores.ndim)])
