"""Lottery tickets: iterative pruning with rewinding, control experiments, tickets with their provenance."""

from jaxprune.lottery.controls import Control as Control
from jaxprune.lottery.controls import random_masks as random_masks
from jaxprune.lottery.controls import reinitialised as reinitialised
from jaxprune.lottery.controls import shuffle as shuffle
from jaxprune.lottery.controls import shuffled_masks as shuffled_masks
from jaxprune.lottery.records import Rounds as Rounds
from jaxprune.lottery.records import Trained as Trained
from jaxprune.lottery.rewinding import Rewinding as Rewinding
from jaxprune.lottery.rewinding import continued as continued
from jaxprune.lottery.rewinding import early as early
from jaxprune.lottery.rewinding import initial as initial
from jaxprune.lottery.rewinding import learning_rate as learning_rate
from jaxprune.lottery.rounds import iterative_pruning as iterative_pruning
from jaxprune.lottery.stability import Line as Line
from jaxprune.lottery.stability import error_barrier as error_barrier
from jaxprune.lottery.stability import instability as instability
from jaxprune.lottery.stability import interpolate as interpolate
from jaxprune.lottery.tickets import Ticket as Ticket
from jaxprune.lottery.tickets import check as check
from jaxprune.lottery.tickets import load as load
from jaxprune.lottery.tickets import save as save
from jaxprune.lottery.tickets import ticket as ticket
