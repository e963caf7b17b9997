"""Sensitivity: how much the loss rises when each leaf or group is pruned alone, and the best sparsities for a budget.

leaf_sensitivity --changes--> cheapest_loss(changes, leaf_costs, budget) --sparsities--> prune or select
group_sensitivity --changes--> choose_levels --a Choice--> slim
evolve_levels(loss, costs, budget) searches by the loss of the whole network, where losses do not add up.
"""

from jaxprune.sensitivity.evolution import evolve_levels
from jaxprune.sensitivity.levels import cheapest_loss, choose_levels, greedy_levels, leaf_costs
from jaxprune.sensitivity.losses import group_sensitivity, leaf_sensitivity, sensitivity_curves

__all__ = [
    "cheapest_loss",
    "choose_levels",
    "evolve_levels",
    "greedy_levels",
    "group_sensitivity",
    "leaf_costs",
    "leaf_sensitivity",
    "sensitivity_curves",
]
