"""Slimming: finds units of any JAX function that must be removed together, chooses units, and makes it smaller.

    find_groups --> group_scores --> choose --> slim --> Slimmed(fn, params, manifest)

`jaxprune.slim(fn, params, 0.5, x)` does all of it in one call.
"""

from jaxprune.slimming import costs
from jaxprune.slimming.choice import Choice
from jaxprune.slimming.choose import Limits, Removal, choose, removal_order
from jaxprune.slimming.depth import block_influence, keep_blocks, keep_influential
from jaxprune.slimming.groups import Frozen, Group, Groups, Member, find_groups
from jaxprune.slimming.hyperparameters import Rebuilt, hyperparameters
from jaxprune.slimming.manifest import Kept, Manifest
from jaxprune.slimming.permutation import permute_channels
from jaxprune.slimming.regularise import group_lasso, growing_penalty, unit_norms, zero_units
from jaxprune.slimming.scores import expert_scores, geometric_median_scores, group_scores, unit_scores
from jaxprune.slimming.slim import Slimmed, slim

__all__ = [
    "Choice",
    "Frozen",
    "Group",
    "Groups",
    "Kept",
    "Limits",
    "Manifest",
    "Member",
    "Rebuilt",
    "Removal",
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
    "removal_order",
    "slim",
    "unit_norms",
    "unit_scores",
    "zero_units",
]
