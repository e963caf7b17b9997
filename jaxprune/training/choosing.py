"""From scores to masks, as several methods make them anew at every revision."""

from collections.abc import Callable
from typing import Any

from jaxprune import _tree, masks, schedules
from jaxprune import allocation as allocations

PyTree = Any


def chooser(
    allocation: allocations.Allocate, pattern: masks.Patterns, where: _tree.Where, batch_axes: masks.BatchAxes
) -> Callable[[PyTree, Any], PyTree]:
    """`(scores, sparsity) -> masks`: shares the sparsity among the leaves and keeps the highest of each."""
    _tree.check_function(allocation, "allocation", "allocation.erk")

    def choose(scores: PyTree, sparsity: Any) -> PyTree:
        shares = allocation(scores, sparsity, where=where, pattern=pattern, batch_axes=batch_axes)
        return masks.select(scores, shares.sparsities, pattern, where=where, batch_axes=batch_axes)

    return choose


def check_plan(when: Any, criterion: Any = None) -> None:
    """Raises unless a method's `when`, and its criterion if it has one, are functions."""
    _tree.check_function(when, "when", "schedules.every(100)")
    if criterion is not None:
        _tree.check_function(criterion, "criterion", "criteria.magnitude")


def as_schedule(sparsity: float | schedules.Schedule) -> schedules.Schedule:
    """A schedule as it is, and a number, which is checked, as a constant one."""
    if callable(sparsity):
        return sparsity
    masks.check_sparsity(sparsity)
    return lambda _: sparsity
