"""Comparing models on the same samples: `changes` tests the differences of two, `exemplars` lists changed samples.

`comparison_table` shows several models (`ModelResult`) side by side, as text, HTML and JSON.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jax.core import Tracer

from jaxprune import _tree
from jaxprune.assess import formatting, intervals, metrics
from jaxprune.assess.complexity import Complexity
from jaxprune.assess.intervals import Interval
from jaxprune.assess.metrics import Metrics, Samples

Array = jax.Array


class Exemplars(NamedTuple):
    """Pruning identified exemplars (PIEs).

    Attributes:
      is_exemplar: whether dense and pruned models predict different classes for a sample, bool (n,).
      dense: the class that the dense models predict most often, integers (n,).
      pruned: the class that the pruned models predict most often, integers (n,).
    """

    is_exemplar: Any
    dense: Any
    pruned: Any


@dataclass(frozen=True)
class Changes:
    """A model compared with its reference on the same samples.

    Accuracy, NLL, Brier score and the accuracy within each class are tested together. For each sample the
    predictions of the two models are exchanged at random, many times. An `adjusted` p-value compares the deviation of
    one test with the largest deviation of all tests in each exchange (max-T). If the models are equally good, at most a
    fraction a of comparisons has any adjusted p-value of a or less.

    Attributes:
      figures: the differences, model less reference, of accuracy, nll and brier, each with its own interval.
      p_values: the p-value of each figure alone, from the same test as its interval; NaN if a loss is infinite.
      adjusted: the p-value of each figure, adjusted for all tests.
      recall: the difference of the accuracy within each class, each with its own interval; NaN for a class
        without test samples.
      recall_adjusted: the p-value of each class, adjusted for all tests; NaN for a class without test samples.
      agreement: the fraction of samples for which both models predict the same class, with its interval.
      exemplars: the samples for which the two models predict different classes.
      regressions: the number of samples that only the reference classifies correctly.
      gains: the number of samples that only the model classifies correctly.
      detectable: the smallest change of the accuracy that this number of samples would detect with a power of 80 %.
      confidence: the confidence of the intervals.
    """

    figures: Mapping[str, Interval]
    p_values: Mapping[str, float]
    adjusted: Mapping[str, float]
    recall: tuple[Interval, ...]
    recall_adjusted: tuple[float, ...]
    agreement: Interval
    exemplars: Exemplars
    regressions: int
    gains: int
    detectable: float
    confidence: float

    def beyond_noise(self, which: str | int) -> bool:
        """Returns whether a figure, by name, or the accuracy within a class, by number, changed beyond noise.

        A change is beyond noise if its own interval excludes 0 and its adjusted p-value is at most 1 - confidence.
        """
        interval, p = (
            (self.figures[which], self.adjusted[which])
            if isinstance(which, str)
            else (self.recall[which], self.recall_adjusted[which])
        )
        return bool(p <= 1 - self.confidence + 1e-12 and (interval.low > 0 or interval.high < 0))


def changes(
    reference: Any, model: Any, labels: Any, *, key: Array, flips: int = 1999, confidence: float = 0.95
) -> Changes:
    """Compares a model with its reference, such as a pruned network with the dense one.

    McNemar's mid-p test with Tango's interval compares the accuracies, and a bootstrap of Student's t compares the
    losses. A permutation test that exchanges the two models' predictions at random corrects the p-values for multiple
    testing (max-T, Westfall and Young 1993).

    Args:
      reference: logits (n, classes).
      model: logits (n, classes) of the same samples.
      labels: integers, (n,). A class without samples has no recall; all other figures are compared.
      key: a JAX key for the random exchanges.
      flips: the number of random exchanges, and of resamples up to 999; the smallest possible adjusted p-value is
        1 / (1 + flips). Default 1999.
      confidence: the confidence of the intervals and of `beyond_noise`, in (0, 1); default 0.95.

    Returns:
      The changes, on the host.

    Raises:
      TypeError: logits are not floating, or labels are not integers.
      ValueError: shapes do not fit, or logits or labels are out of range; see `evaluate`.

    Example:
      >>> dense, pruned = jnp.array([[1.0, 0.0], [0.0, 1.0]] * 9), jnp.array([[1.0, 0.0], [1.0, 0.0]] * 9)
      >>> found = changes(dense, pruned, jnp.array([0, 1] * 9), key=jax.random.key(0))
      >>> found.figures['accuracy'].estimate, found.regressions, [r.estimate for r in found.recall]
      (-0.5, 9, [0.0, -1.0])
      >>> found.beyond_noise('accuracy'), found.beyond_noise(0), found.beyond_noise(1)
      (True, False, True)
    """
    if jnp.shape(reference) != jnp.shape(model):
        raise ValueError(f"both models need logits of one shape; got {jnp.shape(reference)} and {jnp.shape(model)}")
    a, b = metrics.samples(reference, labels), metrics.samples(model, labels)
    return compare(a, b, jnp.shape(model)[1], key, flips, confidence)


def compare(a: Samples, b: Samples, classes: int, key: Array, flips: int, confidence: float) -> Changes:
    """Computes `changes` from the judged samples of the reference `a` and of the model `b`."""
    n, rng = a.labels.size, intervals.generator(key)
    lost, won = a.correct & ~b.correct, b.correct & ~a.correct
    found = {
        "accuracy": intervals.paired_difference(int(won.sum()), int(lost.sum()), n, confidence),
        "nll": intervals.mean_difference(a.nll, b.nll, rng, confidence, min(flips, 999)),
        "brier": intervals.mean_difference(a.brier, b.brier, rng, confidence, min(flips, 999)),
    }
    counts, losses, gains = (np.bincount(x, minlength=classes) for x in (a.labels, a.labels[lost], a.labels[won]))
    recall = tuple(
        intervals.paired_difference(int(gain), int(loss), int(count), confidence).interval
        if count
        else Interval(np.nan, np.nan, np.nan)
        for gain, loss, count in zip(gains, losses, counts, strict=True)
    )
    adjusted, of_classes, critical = _adjusted(a, b, classes, rng, flips, confidence)
    return Changes(
        figures={name: each.interval for name, each in found.items()},
        p_values={name: each.p_value for name, each in found.items()},
        adjusted=adjusted,
        recall=recall,
        recall_adjusted=tuple(np.where(counts > 0, of_classes, np.nan).tolist()),
        agreement=intervals.proportion(float((a.answers == b.answers).mean()), n, confidence),
        exemplars=Exemplars(a.answers != b.answers, a.answers, b.answers),
        regressions=int(lost.sum()),
        gains=int(won.sum()),
        detectable=float((critical + scipy.special.ndtri(0.8)) * np.sqrt(max(1, (lost | won).sum())) / n),
        confidence=confidence,
    )


def _adjusted(
    a: Samples, b: Samples, classes: int, rng: np.random.Generator, flips: int, confidence: float
) -> tuple[dict[str, float], np.ndarray, float]:
    """Returns max-T p-values of figures and classes under random signs, and the critical value of the maximum.

    Each question's sum of differences is divided by the root of its sum of squares, which does not depend on the signs.
    """
    n = a.labels.size
    hits = b.correct.astype(np.float32) - a.correct
    with np.errstate(invalid="ignore"):
        differences = np.stack([hits, b.nll - a.nll, b.brier - a.brier], 1)
    finite = np.isfinite(differences).all(0)
    columns = np.where(finite, differences, 0)
    columns = (columns / np.maximum(np.sqrt((columns**2).sum(0)), 1e-30)).astype(np.float32)
    unequal = np.flatnonzero(hits)
    unequal = unequal[np.argsort(a.labels[unequal], kind="stable")]  # class by class
    present, starts, sizes = np.unique(a.labels[unequal], return_index=True, return_counts=True)
    signed = hits[unequal] / np.repeat(np.sqrt(sizes), sizes).astype(np.float32)

    def deviations(signs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        of_classes = np.add.reduceat(signs[:, unequal] * signed, starts, axis=1) if unequal.size else signs[:, :0]
        return np.abs(signs @ columns), np.abs(of_classes)

    figures, of_present = deviations(np.ones((1, n), np.float32))
    rows = max(1, min(flips, 4_000_000 // n))
    largest = []
    for start in range(0, flips, rows):
        bits = rng.integers(0, 2, (min(rows, flips - start), n), dtype=np.int8)
        drawn = np.concatenate(deviations(2 * bits.astype(np.float32) - 1), axis=1)
        largest.append(drawn.max(1))
    maxima = np.concatenate(largest)
    p = lambda seen: (1 + (maxima[:, None] >= seen * (1 - 1e-5)).sum(0)) / (1 + flips)
    of_classes = np.ones(classes)
    of_classes[present] = p(of_present[0])
    names: tuple[str, ...] = ("accuracy", "nll", "brier")
    by_name = {name: float(x) for name, x in zip(names, np.where(finite, p(figures[0]), np.nan), strict=True)}
    return by_name, of_classes, float(np.quantile(maxima, confidence))


def exemplars(dense: Any, pruned: Any) -> Exemplars:
    """Finds the samples on which the modal answers of two populations differ: pruning identified exemplars (PIEs).

    Hooker et al. 2019 (arXiv:1911.05248, section 3). If several answers are equally frequent, the lowest class counts.
    Two single models are two populations of one model each: their exemplars are all samples on which they disagree.

    Args:
      dense: logits of dense models, (models, n, classes) or (n, classes).
      pruned: logits of pruned models, of the same samples; the number of models may differ.

    Returns:
      `Exemplars`: which samples differ, and both answers.

    Raises:
      ValueError: samples or classes differ, an array is empty, or concrete logits have NaN.

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


def _modal(population: Array) -> Array:
    answers = population.argmax(-1)  # (models, n)
    votes = jax.nn.one_hot(answers, population.shape[-1], dtype=jnp.int32).sum(0)
    return votes.argmax(-1)


@dataclass(frozen=True)
class Forgotten:
    """A sample that the other models, by their most frequent class, classify otherwise than the reference.

    Attributes:
      index: the sample's index among the test samples.
      label: the true class.
      reference: the class that the reference predicts.
      others: the class that the other models predict most often; of equally frequent classes the lowest.
      pixels: the picture, uint8; None without images.
    """

    index: int
    label: int
    reference: int
    others: int
    pixels: np.ndarray | None


def forgotten(
    reference: np.ndarray, others: np.ndarray, labels: np.ndarray, pixels: np.ndarray | None = None
) -> tuple[Forgotten, ...]:
    """Lists the samples for which the most frequent class of the other models is not the class of the reference.

    Args:
      reference: the classes that the reference predicts, integers (n,).
      others: the classes that the other models predict, integers (models, n). If classes are equally frequent, the
        lowest counts.
      labels: the true classes, integers (n,).
      pixels: uint8 (n, height, width) or (n, height, width, 3); None (default) without pictures.

    Returns:
      One entry for each forgotten sample.

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


@dataclass(frozen=True)
class ModelResult:
    """One model of a comparison.

    Attributes:
      name: the name of the model in the table; unique.
      metrics: the quality of the model, from `evaluate`; default None.
      complexity: the cost of the model, from `complexity`; default None.
      extra: further values by the name of their column: numbers, strings, None.
    """

    name: str
    metrics: Metrics | None = None
    complexity: Complexity | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ComparisonTable:
    """A comparison: columns and rows of plain values, and sentences to read with them. Notebooks show it as a table.

    Attributes:
      columns: the keys of the values, in order.
      rows: the name of each model and its values by column; a value may be missing.
      notes: sentences on the data, the seeds and operations that were not counted.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, Mapping[str, Any]], ...]
    notes: tuple[str, ...] = ()

    def to_text(self) -> str:
        """Returns the table with its notes below."""
        return "\n".join([_tree.table(*self._cells()), *self.notes])

    def _repr_html_(self) -> str:
        return formatting.html_table(*self._cells(), notes=self.notes)

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        header = ["model", *(_LABELS.get(key, key) for key in self.columns)]
        return header, [[name, *(_cell(key, values.get(key)) for key in self.columns)] for name, values in self.rows]

    def to_json(self) -> str:
        """Returns every value in full precision as JSON; missing, infinite and NaN values are null."""
        models = [
            {"name": name, **{key: _number(values.get(key)) for key in self.columns}} for name, values in self.rows
        ]
        content = {"columns": list(self.columns), "models": models, "notes": list(self.notes)}
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)

    def __str__(self) -> str:
        return self.to_text()


def comparison_table(results: Sequence[ModelResult], *, notes: Sequence[str] = ()) -> ComparisonTable:
    """Puts the results of several models side by side.

    Args:
      results: the models, in the order of the rows.
      notes: sentences to print below the table; default none.

    Returns:
      A table with the columns for which any result has a value: sparsity, parameters, effective FLOPs, accuracy, NLL,
      Brier score, ECE, and then the columns of `extra` in the order of their first appearance. `print(table)` and
      `table.to_json()` show it.

    Raises:
      ValueError: there are no results, two results share a name, or an extra column has the name of a standard column.

    Example:
      >>> results = [ModelResult('dense', extra={'seconds': 1.5}), ModelResult('pruned', extra={'seconds': 2})]
      >>> print(comparison_table(results))
      model   seconds
      ------  -------
      dense       1.5
      pruned        2
    """
    results = list(results)
    for result in results:
        if not isinstance(result, ModelResult) or not isinstance(result.name, str):
            raise TypeError(
                "results must be a list of assess.ModelResult(name, metrics, complexity); got "
                f"{_tree.shown(result.name if isinstance(result, ModelResult) else result)}"
            )
    names = [result.name for result in results]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice:
        raise ValueError(
            f"each row needs its own name; these names occur twice: {', '.join(twice)}"
            if twice
            else "no results: pass a list of assess.ModelResult"
        )
    extra = dict.fromkeys(key for result in results for key in result.extra)
    taken = [key for key in extra if key in _LABELS]
    if taken:
        raise ValueError(
            f"extra columns must not be called {', '.join(taken)}, because metrics and complexity have these columns"
        )
    rows = tuple((result.name, _values(result)) for result in results)
    columns = [key for key in (*_LABELS, *extra) if any(key in values for _, values in rows)]
    return ComparisonTable(tuple(columns), rows, tuple(notes))


_LABELS = {
    "sparsity": "sparsity",
    "kept": "kept",
    "effective_flops": "FLOPs",
    "accuracy": "accuracy",
    "nll": "NLL",
    "brier": "Brier",
    "ece": "ECE",
}
_FORMATS: dict[str, Callable[[Any], str]] = {
    "sparsity": formatting.percent,
    "kept": formatting.quantity,
    "effective_flops": formatting.quantity,
    "accuracy": formatting.percent,
    **dict.fromkeys(("nll", "brier", "ece"), lambda value: f"{value:.4f}"),
}


def _values(result: ModelResult) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if result.complexity is not None:
        values.update({key: getattr(result.complexity, key) for key in ("sparsity", "kept", "effective_flops")})
    if result.metrics is not None:
        values.update(result.metrics.as_dict())
    return {**values, **{key: _plain(value) for key, value in result.extra.items()}}


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _cell(key: str, value: Any) -> str:
    return formatting.MISSING if value is None else _FORMATS.get(key, formatting.plain)(value)


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
