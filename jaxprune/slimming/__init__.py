"""Slimming: coupled channels found in any JAX function, removed, and the smaller function."""

from jaxprune.slimming.choice import Choice as Choice
from jaxprune.slimming.choice import choice_from as choice_from
from jaxprune.slimming.choice import choice_from_masks as choice_from_masks
from jaxprune.slimming.groups import Group as Group
from jaxprune.slimming.groups import Groups as Groups
from jaxprune.slimming.groups import find_groups as find_groups
from jaxprune.slimming.manifest import Manifest as Manifest
from jaxprune.slimming.slim import Slimmed as Slimmed
from jaxprune.slimming.slim import slim as slim
