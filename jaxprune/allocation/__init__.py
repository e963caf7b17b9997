"""Allocations: functions that share a total sparsity among leaves (`uniform`, `erk`, `lamp`, `owl`, `by_path`, ...).

An allocation is any function `allocation(scores, sparsity, **units: Unpack[masks.Units])` that returns an `Allocation`.
Pass its `sparsities` to `masks.select`. `masks.leaves(scores, **units)` lists the leaves that share the total.
"""

from jaxprune.allocation.lamp import lamp
from jaxprune.allocation.owl import owl
from jaxprune.allocation.shares import Allocation, by_path, er, erk, one_ranking, uniform

__all__ = ["Allocation", "by_path", "er", "erk", "lamp", "one_ranking", "owl", "uniform"]
