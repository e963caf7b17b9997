"""Lottery tickets: iterative pruning with rewinding, control experiments, stability, and tickets with provenance.

train --> score --> prune --> rewind --> train --> ...      Rounds --ticket--> Ticket --checkpoints.save--> a file
"""

from jaxprune.lottery.controls import random_masks, reinitialised, shuffle, shuffled_masks
from jaxprune.lottery.rewinding import Rewinding, early_weights, fine_tuning, initial_weights, learning_rate_only
from jaxprune.lottery.search import Rounds, Trained, Training, iterative_pruning
from jaxprune.lottery.stability import Line, error_barrier, instability, interpolate
from jaxprune.lottery.tickets import Ticket, ticket

__all__ = [
    "Line",
    "Rewinding",
    "Rounds",
    "Ticket",
    "Trained",
    "Training",
    "early_weights",
    "error_barrier",
    "fine_tuning",
    "initial_weights",
    "instability",
    "interpolate",
    "iterative_pruning",
    "learning_rate_only",
    "random_masks",
    "reinitialised",
    "shuffle",
    "shuffled_masks",
    "ticket",
]
