"""`ticket`: makes a `Ticket` from one round of a search: masks, the weights to train from, and the provenance."""

import importlib
import platform
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune import _tree, masks
from jaxprune.lottery.search import Rounds

PyTree = Any


class Ticket(NamedTuple):
    """A sparse network to train.

    `checkpoints.save(path, *ticket)` writes a ticket, and `Ticket(*checkpoints.load(path, params))` reads it.

    Attributes:
      params: the weights to train from, zero where the masks are False.
      masks: bool masks of the parameters.
      provenance: a JSON value: `method`, `seeds`, `round`, `sparsity`, `metrics`, `versions`, and further notes.
    """

    params: PyTree
    masks: PyTree
    provenance: dict[str, Any]


def ticket(rounds: Rounds, r: int, *, method: str, seeds: dict[str, int] | None = None, **notes: Any) -> Ticket:
    """Makes the ticket of one round of a search.

    Args:
      rounds: the rounds of one search. For a vmapped search pass one member: `jax.tree.map(lambda x: x[i], rounds)`.
      r: the number of the round, 0 for the dense network; negative numbers count from the end.
      method: a description of how the ticket was found.
      seeds: the seeds of the search, by name; default None.
      **notes: further entries of the provenance, anything that JSON can hold.

    Returns:
      The ticket. Its provenance also contains the sparsity of the masks, the metrics of the training, and the versions
      of jaxprune, JAX and Python.

    Raises:
      IndexError: the search has no such round.

    Example:
      >>> from jaxprune.lottery import iterative_pruning
      >>> train = lambda params, masks, key: params
      >>> found = iterative_pruning(train, {'w': jax.numpy.ones((2, 2))}, rounds=[0.5], key=jax.random.key(0))
      >>> ticket(found, -1, method='magnitude', seeds={'search': 0}).provenance['sparsity']
      0.5
    """
    _tree.check_instance(rounds, Rounds, "rounds", "what lottery.iterative_pruning returns")
    size = len(rounds.sparsity)
    if not -size <= r < size:
        raise IndexError(f"round {r} does not exist; the search has {size} rounds, {-size} to {size - 1}")
    held, start, metrics = jax.tree.map(lambda x: x[r], (rounds.ticket.masks, rounds.start, rounds.ticket.metrics))
    provenance = {
        "method": method,
        "seeds": seeds or {},
        "round": range(size)[r],
        "sparsity": float(masks.sparsity(start, held)),
        "metrics": {name: np.asarray(value).tolist() for name, value in metrics.items()},
        "versions": {
            "jaxprune": importlib.import_module("jaxprune").__version__,
            "jax": jax.__version__,
            "python": platform.python_version(),
        },
        **notes,
    }
    return Ticket(start, held, provenance)
