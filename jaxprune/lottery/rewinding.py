"""Rewinding between rounds: `initial_weights`, `early_weights`, `learning_rate_only` and `fine_tuning`."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxprune import _tree

PyTree = Any
Train = Callable[[PyTree, PyTree, Any], Any]


class Rewinding(NamedTuple):
    """How weights are rewound between rounds. You can make a rewinding from your own functions.

    Attributes:
      anchor: `(params, key) -> params`: returns the weights to rewind to. It is called once, before the first round,
        which also starts from these weights.
      start: `(anchor, trained) -> params`: returns the weights from which the next round starts, before masking.
      later: the train function of all rounds but the first; default None: the same function.
    """

    anchor: Callable[[PyTree, Any], PyTree]
    start: Callable[[PyTree, PyTree], PyTree]
    later: Train | None = None


def initial_weights() -> Rewinding:
    """Rewinds to the initial weights: Frankle and Carbin 2019, arXiv 1803.03635, strategy 1.

    Returns:
      A rewinding: each round starts from the weights passed to `iterative_pruning`.

    Example:
      >>> initial_weights().start('first', 'trained')
      'first'
    """
    return Rewinding(lambda params, key: params, lambda anchor, trained: anchor)


def early_weights(train: Callable[[PyTree, Any], PyTree]) -> Rewinding:
    """Rewinds to the weights at step k (weight rewinding): Frankle et al. 2020, arXiv 1912.05671.

    Args:
      train: `(params, key) -> params`: the first k steps, dense. The train function of `iterative_pruning` runs the
        steps from k on, also in the first round.

    Returns:
      A rewinding.

    Example:
      >>> early_weights(lambda params, key: 0.5 * params).anchor(3.0, None)
      1.5
    """
    _tree.check_function(train, "train", "train(params, key) -> params, which trains for the early steps")
    return Rewinding(train, lambda anchor, trained: anchor)


def learning_rate_only() -> Rewinding:
    """Keeps the trained weights and rewinds the schedule of the learning rate: Renda et al. 2020, arXiv 2003.02389.

    Returns:
      A rewinding: each round starts from the final weights of the last round, under the new masks.

    Example:
      >>> learning_rate_only().start('first', 'trained')
      'trained'
    """
    return Rewinding(lambda params, key: params, lambda anchor, trained: trained)


def fine_tuning(train: Train) -> Rewinding:
    """Does not rewind: keeps the trained weights, and trains them by another function from the second round on.

    Args:
      train: `(params, masks, key) -> params`, such as a training at the final learning rate. The train function of
        `iterative_pruning` is used only in the first round.

    Returns:
      A rewinding.

    Example:
      >>> fine_tuning(lambda params, masks, key: params).start('first', 'trained')
      'trained'
    """
    _tree.check_function(train, "train", "train(params, masks, key) -> params")
    return Rewinding(lambda params, key: params, lambda anchor, trained: trained, train)
