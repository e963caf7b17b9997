"""What pruning forgets: `exemplars`, samples that pruned models answer differently, and `recall_by_class`."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune.assess import metrics

Array = jax.Array


class Exemplars(NamedTuple):
    """Pruning identified exemplars.

    Attributes:
      is_exemplar: where dense and pruned models answer differently, bool (n,).
      dense: the answer of most dense models, (n,).
      pruned: the answer of most pruned models, (n,).
    """

    is_exemplar: Any
    dense: Any
    pruned: Any


@dataclass(frozen=True)
class Forgotten:
    """A sample that the reference and most of the other models answer differently.

    Attributes:
      index: its number among the test samples.
      label: the truth.
      reference: the reference's answer.
      others: the answer of most others.
      pixels: its picture, uint8; None without images.
    """

    index: int
    label: int
    reference: int
    others: int
    pixels: np.ndarray | None


def exemplars(dense: Any, pruned: Any) -> Exemplars:
    """Finds the samples on which the modal answers of two populations differ: pruning identified exemplars (PIEs).

    Hooker et al. 2019 (arXiv:1911.05248, section 3). Of equally frequent answers the class of the lowest index
    counts. One model each is a population of one: then these are all samples on which the two disagree.

    Args:
      dense: logits of dense models, (models, n, classes) or (n, classes).
      pruned: logits of pruned models, likewise; their number may differ.

    Returns:
      Which samples, and both answers.

    Raises:
      ValueError: samples or classes differ, or there are none; where values are concrete, NaN.

    Example:
      >>> found = exemplars(jnp.array([[2.0, 1.0], [0.0, 1.0]]), jnp.array([[2.0, 1.0], [1.0, 0.0]]))
      >>> found.is_exemplar.tolist(), found.dense.tolist(), found.pruned.tolist()
      ([False, True], [0, 1], [0, 0])
    """
    populations = [x[None] if x.ndim == 2 else x for x in map(jnp.asarray, (dense, pruned))]
    if any(x.ndim != 3 or not x.size for x in populations) or populations[0].shape[1:] != populations[1].shape[1:]:
        raise ValueError(
            "dense and pruned must be logits (models, n, classes) of the same samples and classes; "
            f"got {populations[0].shape} and {populations[1].shape}"
        )
    for name, x in zip(("dense", "pruned"), populations, strict=True):
        if not isinstance(x, Tracer) and np.isnan(np.asarray(x, np.float64)).any():
            raise ValueError(f"{name} logits hold NaN")
    first, second = map(_modal, populations)
    return Exemplars(first != second, first, second)


def forgotten(
    reference: np.ndarray, others: np.ndarray, labels: np.ndarray, pixels: np.ndarray | None = None
) -> tuple[Forgotten, ...]:
    """Lists the samples that a reference and most of the other models answer differently, with their pictures.

    Args:
      reference: the reference's answers, integers (n,).
      others: the answers of the other models, (models, n). Of equally frequent answers the lowest class counts.
      labels: integers, (n,).
      pixels: uint8 (n, height, width) or (n, height, width, 3); None for none.

    Returns:
      One entry for each such sample.

    Example:
      >>> [found] = forgotten(np.array([0, 1]), np.array([[0, 2], [0, 2], [1, 1]]), np.array([0, 1]))
      >>> found.index, found.reference, found.others
      (1, 1, 2)
    """
    modal = np.asarray(_modal(jax.nn.one_hot(others, int(max(others.max(), reference.max())) + 1)))
    return tuple(
        Forgotten(int(i), int(labels[i]), int(reference[i]), int(modal[i]), None if pixels is None else pixels[i])
        for i in np.flatnonzero(modal != reference)
    )


def agreement(first: Any, second: Any) -> Array:
    """Computes the fraction of samples on which two models, or the majorities of two populations, answer alike.

    Args:
      first: logits (n, classes), or (models, n, classes).
      second: logits, likewise.

    Returns:
      A scalar in [0, 1].

    Raises:
      ValueError: see `exemplars`.
    """
    return 1 - exemplars(first, second).is_exemplar.mean()


def recall_by_class(logits: Any, labels: Any) -> Array:
    """Computes the accuracy within each class; its difference between two models shows which classes lose by pruning.

    Args:
      logits: (n, classes).
      labels: integers, (n,).

    Returns:
      Fractions; NaN for a class without samples, inside jit only.

    Raises:
      TypeError: see `evaluate`.
      ValueError: see `evaluate`; and, where labels are concrete, a class without samples.

    Example:
      >>> recall_by_class(jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), jnp.array([0, 1, 1])).tolist()
      [1.0, 0.5]
    """
    logits, labels = metrics.check(logits, labels)
    classes = logits.shape[1]
    if not isinstance(labels, Tracer):
        empty = np.flatnonzero(np.bincount(np.asarray(labels), minlength=classes) == 0)
        if empty.size:
            raise ValueError(f"no sample of class {', '.join(map(str, empty))}: it has no recall; add samples of it")
    hits = metrics.correct(logits, labels).astype(jnp.float32)
    return jax.ops.segment_sum(hits, labels, classes) / jax.ops.segment_sum(jnp.ones_like(hits), labels, classes)


def _modal(population: Array) -> Array:
    answers = population.argmax(-1)  # (models, n)
    votes = jax.nn.one_hot(answers, population.shape[-1], dtype=jnp.int32).sum(0)
    return votes.argmax(-1)
