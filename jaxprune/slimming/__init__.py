"""Slimming: coupled channels found in any JAX function, removed, and the smaller function."""

from jaxprune.slimming import costs as costs
from jaxprune.slimming.choice import Choice as Choice
from jaxprune.slimming.choice import choice_from as choice_from
from jaxprune.slimming.choice import choice_from_masks as choice_from_masks
from jaxprune.slimming.choosing import Limits as Limits
from jaxprune.slimming.choosing import Step as Step
from jaxprune.slimming.choosing import choose as choose
from jaxprune.slimming.choosing import choose_budget as choose_budget
from jaxprune.slimming.choosing import removal_order as removal_order
from jaxprune.slimming.distillation import distillation_loss as distillation_loss
from jaxprune.slimming.geometric import geometric_median_scores as geometric_median_scores
from jaxprune.slimming.groups import Frozen as Frozen
from jaxprune.slimming.groups import Group as Group
from jaxprune.slimming.groups import Groups as Groups
from jaxprune.slimming.groups import Member as Member
from jaxprune.slimming.groups import find_groups as find_groups
from jaxprune.slimming.manifest import Kept as Kept
from jaxprune.slimming.manifest import Manifest as Manifest
from jaxprune.slimming.regularise import group_lasso as group_lasso
from jaxprune.slimming.regularise import growing_penalty as growing_penalty
from jaxprune.slimming.regularise import unit_norms as unit_norms
from jaxprune.slimming.regularise import zero_units as zero_units
from jaxprune.slimming.scores import group_scores as group_scores
from jaxprune.slimming.slim import Slimmed as Slimmed
from jaxprune.slimming.slim import slim as slim
from jaxprune.slimming.slim import smaller as smaller
