"""Allocations: from a total sparsity to one for each leaf.

An allocation is any function `allocation(scores, sparsity, **units: Unpack[masks.Units])` that returns an `Allocation`,
whose `sparsities` are those that `masks.select` takes. `masks.leaves(scores, **units)` lists the leaves that share.
"""

from jaxprune.allocation.erdos_renyi import er as er
from jaxprune.allocation.erdos_renyi import erk as erk
from jaxprune.allocation.even import one_ranking as one_ranking
from jaxprune.allocation.even import uniform as uniform
from jaxprune.allocation.layer_adaptive import lamp as lamp
from jaxprune.allocation.leaves import Allocate as Allocate
from jaxprune.allocation.leaves import Allocation as Allocation
from jaxprune.allocation.owl import owl as owl
from jaxprune.allocation.rules import by_path as by_path
