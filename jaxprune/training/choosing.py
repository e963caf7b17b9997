"""What several methods ask of their arguments: a criterion that is a function, a schedule made of a number."""

from typing import Any

from jaxprune import _tree, masks, schedules

PyTree = Any


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
