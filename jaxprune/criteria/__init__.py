"""Criteria: functions from parameters and signals to scores, where a larger score means more worth keeping.

A criterion is any function `criterion(params, *, grads=None, stats=None, key=None, **signals)` that returns a tree of
scores with the structure of `params`, each array in the shape of its parameter. A function of your own works as well as
these. In the returned scores:

- leaves that are not floating, and leaves that a criterion has no signal for, score a scalar zero and are not pruned;
- |w| keeps the dtype of the parameter; products are at least float32, because 16 bits under- and overflow.
"""

from jaxprune.criteria._scores import is_within_outputs as is_within_outputs
from jaxprune.criteria._scores import within_outputs as within_outputs
from jaxprune.criteria.activations import activation_mean as activation_mean
from jaxprune.criteria.activations import apoz as apoz
from jaxprune.criteria.activations import ria as ria
from jaxprune.criteria.activations import wanda as wanda
from jaxprune.criteria.flow import Criterion as Criterion
from jaxprune.criteria.flow import grasp as grasp
from jaxprune.criteria.flow import synflow as synflow
from jaxprune.criteria.flow import synflow_masks as synflow_masks
from jaxprune.criteria.gradients import fisher as fisher
from jaxprune.criteria.gradients import gradient as gradient
from jaxprune.criteria.gradients import snip as snip
from jaxprune.criteria.second_order import hessian_diagonal as hessian_diagonal
from jaxprune.criteria.second_order import obd as obd
from jaxprune.criteria.weights import check_key as check_key
from jaxprune.criteria.weights import magnitude as magnitude
from jaxprune.criteria.weights import random as random
