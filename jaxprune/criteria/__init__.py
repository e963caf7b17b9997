"""Criteria: from parameters and signals to scores, of which the larger are more worth keeping.

A criterion is any function `criterion(params, *, grads=None, stats=None, key=None, **signals)` that returns a tree of
scores with the structure of `params`, each array in the shape of its parameter. A user's own is as good as these.
"""

from jaxprune.criteria.activation import activation_mean as activation_mean
from jaxprune.criteria.activation import apoz as apoz
from jaxprune.criteria.activation import ria as ria
from jaxprune.criteria.activation import wanda as wanda
from jaxprune.criteria.draw import check_key as check_key
from jaxprune.criteria.draw import random as random
from jaxprune.criteria.first_order import fisher as fisher
from jaxprune.criteria.first_order import gradient as gradient
from jaxprune.criteria.first_order import mean_squared_grads as mean_squared_grads
from jaxprune.criteria.first_order import snip as snip
from jaxprune.criteria.flow import Criterion as Criterion
from jaxprune.criteria.flow import grasp as grasp
from jaxprune.criteria.flow import synflow as synflow
from jaxprune.criteria.iterative import synflow_masks as synflow_masks
from jaxprune.criteria.second_order import hessian_diagonal as hessian_diagonal
from jaxprune.criteria.second_order import obd as obd
from jaxprune.criteria.weights import magnitude as magnitude
