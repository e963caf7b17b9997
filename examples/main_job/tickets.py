"""A lottery ticket: train, prune, back to the first weights, and again; the best round by the validation images."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import allocation, lottery

from .experiment import Network
from .fitting import Trainer, predict
from .models import Model

TICKET = "ticket"
SPARSITIES = 0.6, 0.84, 0.936

CHOICE = (
    "The ticket is the sparsest of one search (60, 84 and 94 %) whose accuracy on the validation images is within one"
    " standard error of the best of them; each of its rounds starts from the first weights."
)


def steps_of_search(steps: int) -> int:
    """How many training steps a search takes."""
    return steps * (len(SPARSITIES) + 1)


def best(
    model: Model,
    trainer: Trainer,
    initial: Any,
    batches: Callable[[], Iterator[tuple]],
    validation: tuple[np.ndarray, np.ndarray],
    *,
    steps: int,
    key: jax.Array,
    tick: Callable[[float], None],
) -> Network:
    """Search for a ticket.

    Args:
        model: The model.
        trainer: Trains under fixed masks.
        initial: The first weights.
        batches: The batches of a training, from the first.
        validation: Images and labels that train nothing.
        steps: How many batches that are.
        key: Of the search.
        tick: Called with the loss after each step.

    Returns:
        The network that is chosen; `steps` are those of its own round, `seconds` those of all rounds.
    """
    images, labels = validation
    began = time.perf_counter()
    found = lottery.iterative_pruning(
        lottery.Training(
            lambda params, held, key: trainer.run(params, held, batches(), tick).params,
            evaluate=lambda params, held: {"right": (predict(model, params, images).argmax(1) == labels).mean()},
            traceable=False,
        ),
        initial,
        rounds=SPARSITIES,
        key=key,
        allocation=allocation.erk,
        progress=False,
    )
    number = _sparsest_good(np.asarray(found.ticket.metrics["right"]), len(labels))
    take = lambda leaf: jnp.asarray(leaf[number])
    params, masks = jax.tree.map(take, (found.ticket.params, found.ticket.masks))
    return Network(TICKET, float(found.sparsity[number]), params, masks, steps, time.perf_counter() - began)


def _sparsest_good(right: np.ndarray, images: int) -> int:
    """The last round after the dense one that is within one standard error of the best of them."""
    best = right[1:].max()
    error = (best * (1 - best) / images) ** 0.5
    return 1 + int(np.flatnonzero(right[1:] >= best - error)[-1])
