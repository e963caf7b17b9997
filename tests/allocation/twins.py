"""LAMP by sorting, in NumPy: once to the last bit of what the library ranks, once as the paper has it."""

import numpy as np

from jaxprune.allocation import _levels

_NORMAL, _LARGEST = np.finfo(np.float32).tiny, np.finfo(np.float32).max


def lamp_kept(rows, kept):
    """How many of the first `kept` entries each row holds: float32 quotients, ties by score, then by row."""
    ranked = [_ranked(np.asarray(row, np.float32)) for row in rows]
    level = np.concatenate([level for level, _ in ranked]).astype(np.float64)
    key = np.concatenate([key for _, key in ranked]).astype(np.int64)
    row = np.repeat(np.arange(len(rows)), [len(key) for _, key in ranked])
    order = np.lexsort((row, -key, -level))
    return np.bincount(row[order[:kept]], minlength=len(rows))


def _ranked(scores):
    """The levels and keys of a row, largest first."""
    flat = scores.ravel()
    flat = np.where(flat >= _NORMAL, np.minimum(flat, _LARGEST), 0).astype(np.float32)
    key = np.sort(flat.view(np.int32))[::-1]
    exponent = max(int(key[0]) >> 23, 1) - 126
    scaled = _flushed(np.ldexp(key.view(np.float32), -exponent))
    square = _flushed(scaled * scaled)
    # Entries of equal score are in the sum of each of them.
    last = np.searchsorted(-key.astype(np.int64), -key.astype(np.int64), side="right") - 1
    _, bits = _levels.plan(scores.shape)
    total, rest = np.zeros(len(key), np.float32), square.astype(np.float64)
    digits = []
    for i, bit in enumerate(bits):
        rest = rest * 2.0**bit
        digit = np.round(rest) if i == len(bits) - 1 else np.floor(rest)
        digits.append(np.cumsum(digit.astype(np.int64))[last])
        rest = rest - digit
    for i in reversed(range(len(bits))):
        high, low = np.float32(digits[i] >> 16), np.float32(digits[i] & 65535)
        total = (total + (high * np.float32(65536) + low) * np.float32(2.0 ** -sum(bits[: i + 1]))).astype(np.float32)
    level = np.divide(square, total, out=np.zeros_like(square), where=square > 0)
    return level, key


def _flushed(x):
    return np.where(np.abs(x) < _NORMAL, 0, x).astype(np.float32)


def paper_kept(rows, kept):
    """Lee et al. 2021, in float64: for rows without ties."""
    values, row = [], []
    for i, scores in enumerate(rows):
        squares = np.sort(np.asarray(scores, np.float64).ravel() ** 2)[::-1]
        values.append(squares / np.cumsum(squares))
        row.append(np.full(len(squares), i))
    order = np.argsort(-np.concatenate(values), kind="stable")
    return np.bincount(np.concatenate(row)[order[:kept]], minlength=len(rows))
