"""Where a round starts from: the first weights, early ones, or those just trained."""

from collections.abc import Callable
from typing import Any, NamedTuple

PyTree = Any
Train = Callable[[PyTree, PyTree, Any], Any]


class Rewinding(NamedTuple):
    """How weights are rewound. Any such functions are one.

    Attributes:
      anchor: `(params, key) -> params`: the weights to go back to, made once before the first round, which starts from
        them too.
      start: `(anchor, trained) -> params`: the weights that the next round starts from, before its masks.
      later: the train function of all rounds but the first; None for the same.
    """

    anchor: Callable[[PyTree, Any], PyTree]
    start: Callable[[PyTree, PyTree], PyTree]
    later: Train | None = None


def initial() -> Rewinding:
    """Back to the first weights: Frankle and Carbin 2019, arXiv 1803.03635, strategy 1.

    Returns:
      A rewinding: each round starts from the weights that the search was given.
    """
    return Rewinding(lambda params, key: params, lambda anchor, trained: anchor)


def early(train: Callable[[PyTree, Any], PyTree]) -> Rewinding:
    """Back to the weights at step k: Frankle et al. 2020, arXiv 1912.05671 (late or weight rewinding).

    Args:
      train: `(params, key) -> params`: the first k steps, dense. The train function of the rounds does the others, from
        step k on, in the first round too.

    Returns:
      A rewinding.

    Example:
      >>> rewinding = early(lambda params, key: jax.tree.map(lambda w: 0.9 * w, params))
    """
    return Rewinding(train, lambda anchor, trained: anchor)


def learning_rate() -> Rewinding:
    """On from the trained weights, with the schedule from its start: Renda et al. 2020, arXiv 2003.02389.

    Returns:
      A rewinding: each round starts from the weights that the last one ended with, under the new masks.
    """
    return Rewinding(lambda params, key: params, lambda anchor, trained: trained)


def continued(finetune: Train) -> Rewinding:
    """On from the trained weights with another train function: fine-tuning at the last learning rate, say.

    Args:
      finetune: `(params, masks, key) -> params`, as the train function of the rounds, which only the first round uses.

    Returns:
      A rewinding.

    Example:
      >>> rewinding = continued(lambda params, masks, key: params)
    """
    return Rewinding(lambda params, key: params, lambda anchor, trained: trained, finetune)
