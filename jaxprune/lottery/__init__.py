"""Lottery tickets: iterative pruning with rewinding, control experiments, stability, and tickets with provenance.

train --> score --> prune --> rewind --> train --> ...      Rounds --ticket--> Ticket --checkpoints.save--> a file
"""

from jaxprune.lottery.experiments import error_barrier, instability, random_masks, reinitialised, shuffled_masks
from jaxprune.lottery.search import (
    Rewinding,
    Ticket,
    Training,
    early_weights,
    fine_tuning,
    initial_weights,
    iterative_pruning,
    learning_rate_only,
    ticket,
)

__all__ = [
    "Rewinding",
    "Ticket",
    "Training",
    "early_weights",
    "error_barrier",
    "fine_tuning",
    "initial_weights",
    "instability",
    "iterative_pruning",
    "learning_rate_only",
    "random_masks",
    "reinitialised",
    "shuffled_masks",
    "ticket",
]
