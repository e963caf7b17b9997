"""Masks: patterns, exact selection, algebra and counting, packing.

A mask tree has the structure of its parameters. A mask is bool, True = kept, and broadcasts to its parameter: full
shape for single entries, (1, 1, 1, C) for channels, a scalar True for a leaf that is not pruned. Functions that take
masks also take packed masks. Counts are exact, and the bits are the same on any number of devices. If scores are equal,
the lowest index is kept. Under jit, patterns, `where` and `batch_axes` are static.

The algorithm of the selection is explained in `jaxprune.masks._exact`.
"""

from jaxprune.masks._exact.counts import Count
from jaxprune.masks.algebra import (
    Pruned,
    apply,
    count_kept,
    difference,
    intersect,
    invert,
    ones,
    overlap,
    sparsity,
    summary,
    unite,
)
from jaxprune.masks.packing import pack, unpack
from jaxprune.masks.pattern import Leaf, Pattern
from jaxprune.masks.patterns import NM, Block, Channel, Unstructured
from jaxprune.masks.patterns import Patterns as Patterns  # for annotations only: Units documents it
from jaxprune.masks.select import Global, Units, leaves, select, select_global

__all__ = [
    "NM",
    "Block",
    "Channel",
    "Count",
    "Global",
    "Leaf",
    "Pattern",
    "Pruned",
    "Units",
    "Unstructured",
    "apply",
    "count_kept",
    "difference",
    "intersect",
    "invert",
    "leaves",
    "ones",
    "overlap",
    "pack",
    "select",
    "select_global",
    "sparsity",
    "summary",
    "unite",
    "unpack",
]
