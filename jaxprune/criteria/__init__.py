"""Criteria: functions from parameters and signals to scores, where a larger score means more worth keeping.

A criterion is any function `criterion(params, *, grads=None, stats=None, key=None, **signals)` that returns a tree of
scores with the structure of `params`, each array in the shape of its parameter. You can pass your own function
wherever a criterion is accepted. In the returned scores:

- leaves that are not floating, and leaves without a signal, have a scalar zero and are not pruned;
- |w| keeps the dtype of the parameter; products are at least float32, because 16 bits under- and overflow.
"""

from jaxprune.criteria._scores import within_outputs
from jaxprune.criteria.activations import activation_mean, apoz, ria, wanda
from jaxprune.criteria.gradients import (
    Criterion,
    fisher,
    gradient,
    grasp,
    hessian_diagonal,
    obd,
    snip,
    synflow,
    synflow_masks,
)
from jaxprune.criteria.weights import magnitude, random

__all__ = [
    "Criterion",
    "activation_mean",
    "apoz",
    "fisher",
    "gradient",
    "grasp",
    "hessian_diagonal",
    "magnitude",
    "obd",
    "random",
    "ria",
    "snip",
    "synflow",
    "synflow_masks",
    "wanda",
    "within_outputs",
]
