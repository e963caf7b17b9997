"""Ensembles of pruned networks: members as one vmapped model, uncertainty, free tickets, soups and distillation."""

from jaxprune.ensembles.distillation import TopLogits, distillation_loss, hidden_loss
from jaxprune.ensembles.members import (
    Members,
    Updates,
    free_tickets,
    from_stacked,
    kept_weights,
    soup,
    stack,
    take,
)
from jaxprune.ensembles.predictions import (
    disagreement,
    greedy_selection,
    majority,
    mean_logit,
    mean_probability,
    member_logits,
    predictor,
    uncertainty,
)

__all__ = [
    "Members",
    "TopLogits",
    "Updates",
    "disagreement",
    "distillation_loss",
    "free_tickets",
    "from_stacked",
    "greedy_selection",
    "hidden_loss",
    "kept_weights",
    "majority",
    "mean_logit",
    "mean_probability",
    "member_logits",
    "predictor",
    "soup",
    "stack",
    "take",
    "uncertainty",
]
