"""Slimming: finds units of any JAX function that must be removed together, chooses units, and makes it smaller.

    find_groups --> group_scores --> choose --> slim --> Slimmed(fn, params, manifest)

`jaxprune.slim(fn, params, 0.5, x)` does all of it in one call.
"""

from jaxprune.slimming import costs
from jaxprune.slimming.choice import Choice
from jaxprune.slimming.choose import Limits, choose
from jaxprune.slimming.groups import Group, Groups, find_groups
from jaxprune.slimming.hyperparameters import hyperparameters
from jaxprune.slimming.manifest import Manifest
from jaxprune.slimming.permutation import permute_channels
from jaxprune.slimming.regularise import group_lasso, growing_penalty
from jaxprune.slimming.scores import (
    block_influence,
    expert_scores,
    geometric_median_scores,
    group_scores,
    keep_blocks,
    keep_influential,
)
from jaxprune.slimming.slim import Slimmed, slim
from jaxprune.slimming.unstack import unstack

__all__ = [
    "Choice",
    "Group",
    "Groups",
    "Limits",
    "Manifest",
    "Slimmed",
    "block_influence",
    "choose",
    "costs",
    "expert_scores",
    "find_groups",
    "geometric_median_scores",
    "group_lasso",
    "group_scores",
    "growing_penalty",
    "hyperparameters",
    "keep_blocks",
    "keep_influential",
    "permute_channels",
    "slim",
    "unstack",
]
