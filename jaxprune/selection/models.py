"""Which of several models: by what they do on rows they have not seen, and by how complex they are."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxprune import assess, masks
from jaxprune.assess import formatting

PyTree = Any
Losses = Callable[[PyTree, Any], Any]


class Candidate(NamedTuple):
    """A model to choose from.

    Attributes:
      params: its parameters.
      masks: bool, True is kept, in their structure; None for a dense model.
      apply: `(params, x) -> logits`.
    """

    params: PyTree
    masks: PyTree | None
    apply: Callable[[PyTree, Any], Any]


@dataclass(frozen=True)
class Score:
    """What one model is worth.

    Attributes:
      name: its name.
      kept: its effective number of parameters: those that masks keep, and all of leaves that are not pruned.
      total: all of them.
      train: the mean negative log-likelihood on the training rows, in nats.
      test: that on the held-out rows.
      error: the fraction of the held-out rows that it gets wrong.
      standard_error: of `test`.
      flops: effective FLOPs of one row.
      aic: Akaike's criterion, on the training rows.
      bic: Schwarz's criterion, on the training rows.
      bits: the length of a description of the labels of the training rows and of the model, in bits.
    """

    name: str
    kept: int
    total: int
    train: float
    test: float
    error: float
    standard_error: float
    flops: int
    aic: float
    bic: float
    bits: float

    @property
    def gap(self) -> float:
        """The generalisation gap, `test - train`: large in an overfitted model."""
        return self.test - self.train


def aic(nll: float, n: int, kept: int) -> float:
    r"""Akaike's information criterion, smaller is better.

        AIC = 2 k + 2 n L

    Akaike 1974, IEEE TAC 19(6). L is the mean negative log-likelihood over n rows, k the parameters. Derived for a
    maximum of the likelihood and n far above k; for networks it orders models by the same trade, and no more.

    Args:
      nll: L, in nats.
      n: rows.
      kept: k, the effective number of parameters.

    Returns:
      AIC, in nats.

    Example:
      >>> aic(0.5, 100, 10)
      120.0
    """
    return 2.0 * kept + 2.0 * n * nll


def bic(nll: float, n: int, kept: int) -> float:
    r"""Schwarz's Bayesian information criterion, smaller is better: BIC = k ln n + 2 n L (Schwarz 1978, Ann. Stat. 6).

    Args:
      nll: L, the mean negative log-likelihood, in nats.
      n: rows.
      kept: k, the effective number of parameters.

    Returns:
      BIC, in nats.

    Example:
      >>> round(bic(0.5, 100, 10), 2)
      146.05
    """
    return kept * math.log(n) + 2.0 * n * nll


def description_length(nll: float, n: int, kept: int, total: int) -> float:
    r"""The bits that describe the labels by way of the model, smaller is better.

        n L / ln 2  +  (k/2) log2 n  +  log2 C(N, k)

    The labels given the model, each kept weight to the precision that n rows can tell (Rissanen 1978, Automatica 14),
    and which k of the N weights are kept: that a sparse model pays for its masks sets it apart from BIC.

    Args:
      nll: L, the mean negative log-likelihood, in nats.
      n: rows.
      kept: k, the effective number of parameters.
      total: N, all of them.

    Raises:
      ValueError: more are kept than there are.

    Example:
      >>> round(description_length(0.0, 4, 2, 4), 3)  # 2 weights of 1 bit each, and one of 6 choices
      4.585
    """
    if not 0 <= kept <= total:
        raise ValueError(f"{kept} parameters are kept of {total}")
    choices = (math.lgamma(total + 1) - math.lgamma(kept + 1) - math.lgamma(total - kept + 1)) / math.log(2)
    return n * nll / math.log(2) + 0.5 * kept * math.log2(n) + choices


def hold_out(
    candidates: Mapping[str, Candidate], train: tuple[Any, Any], test: tuple[Any, Any], *, batch: int = 1000
) -> list[Score]:
    """Scores models by rows they were trained on and rows they were not.

    Where rows are no more than parameters, believe the held-out loss: AIC, BIC and the description length then charge a
    weight more than it can explain, and point to the smallest model whatever it does.

    Args:
      candidates: by name.
      train: (x, labels) the rows that they were trained on.
      test: (x, labels) others, two at least.
      batch: how many rows are put through at once.

    Returns:
      A score for each, in their order. Print `model_table` of them.

    Raises:
      ValueError: no candidate, or what `assess.evaluate` and `assess.complexity` raise.
    """
    if not candidates:
        raise ValueError("there is no candidate to choose from")
    return [_score(name, candidate, train, test, batch) for name, candidate in candidates.items()]


class Folds(NamedTuple):
    """What cross-validation found.

    Attributes:
      loss: the mean over all rows.
      standard_error: of the means of the folds, sd / sqrt(folds).
      means: (folds,) their means.
    """

    loss: float
    standard_error: float
    means: np.ndarray


def k_fold(fit: Callable[[np.ndarray, np.ndarray, int], Any], rows: int, folds: int, *, seed: int) -> Folds:
    """Cross-validation: the mean loss of rows that were not trained on, and its standard error.

    Args:
      fit: `(train, test, fold) -> losses`: trains on the rows of the first array, prunes as it likes on them alone, and
        gives a loss for each row of the second.
      rows: how many there are.
      folds: into how many parts they are shuffled; sizes differ by one at most.
      seed: of the shuffle: models that are compared should share it.

    Returns:
      The mean over rows, its standard error, and the means of the folds.

    Raises:
      ValueError: fewer than two folds or more than rows, or losses of another length.

    Example:
      >>> mean, error, of_folds = k_fold(lambda train, test, fold: test * 1.0, 6, 3, seed=0)
      >>> mean, len(of_folds)
      (2.5, 3)
    """
    if not 2 <= folds <= rows:
        raise ValueError(f"folds must be in 2 to {rows}, the rows; got {folds}")
    parts = np.array_split(np.random.default_rng(seed).permutation(rows), folds)
    losses = []
    for fold, part in enumerate(parts):
        test = np.sort(part)
        train = np.sort(np.concatenate([p for k, p in enumerate(parts) if k != fold]))
        found = np.asarray(fit(train, test, fold), np.float64)
        if found.shape != test.shape:
            raise ValueError(f"fit must give a loss for each of the {len(test)} rows of a fold; got {found.shape}")
        losses.append(found)
    means = np.asarray([found.mean() for found in losses])
    return Folds(float(np.concatenate(losses).mean()), float(means.std(ddof=1) / folds**0.5), means)


def one_standard_error(losses: Sequence[float], errors: Sequence[float], complexity: Sequence[float]) -> int:
    """The simplest model that is no worse than the best by more than the best one's standard error.

    Breiman et al. 1984, Classification and Regression Trees, section 3.4.3.

    Args:
      losses: of each model, smaller is better.
      errors: the standard error of each.
      complexity: of each, such as the number of kept parameters.

    Returns:
      Which model. Of equally simple ones the better, then the first.

    Raises:
      ValueError: different lengths, none, or NaN.

    Example:
      >>> one_standard_error([0.30, 0.28, 0.40], [0.03, 0.03, 0.03], [10, 100, 1])
      0
    """
    table = np.asarray([losses, errors, complexity], np.float64)
    if table.ndim != 2 or not table.shape[1] or np.isnan(table).any():
        raise ValueError("losses, errors and complexity must be numbers, one a model, none of them NaN")
    best = int(np.argmin(table[0]))
    within = np.flatnonzero(table[0] <= table[0, best] + table[1, best])
    return int(within[np.lexsort((table[0, within], table[2, within]))[0]])


def model_table(scores: Sequence[Score]) -> str:
    """Scores as text; `*` at the least of each criterion, and `1se` where the one-standard-error rule points.

    Args:
      scores: what `hold_out` returned, one at least; of equal ones the first gets the `*`.

    Returns:
      A table of a line a model.
    """
    simplest = one_standard_error(
        [s.test for s in scores], [s.standard_error for s in scores], [s.kept for s in scores]
    )
    columns = {"test": "test", "error": "error", "AIC": "aic", "BIC": "bic", "bits": "bits"}
    least = {name: min(range(len(scores)), key=lambda i: getattr(scores[i], field)) for name, field in columns.items()}
    rows = []
    for i, s in enumerate(scores):
        cells = [s.name, f"{s.kept:,}", formatting.quantity(s.flops), f"{s.train:.4f}", f"{s.gap:+.4f}"]
        for name, field in columns.items():
            value = getattr(s, field)
            text = (
                formatting.percent(value)
                if field == "error"
                else f"{value:.4f}"
                if field == "test"
                else f"{value:,.0f}"
            )
            cells.append(text + (" *" if least[name] == i else "  "))
        rows.append([*cells, "1se" if i == simplest else ""])
    return formatting.table(["model", "kept", "FLOPs", "train", "gap", *(f"{name}  " for name in columns), ""], rows)


def _score(name: str, candidate: Candidate, train: Any, test: Any, batch: int) -> Score:
    shown = train[0][:1]
    cost = assess.complexity(candidate.apply, candidate.params, candidate.masks, shown)
    seen = assess.evaluate(_logits(candidate, train[0], batch), train[1])
    logits = _logits(candidate, test[0], batch)
    losses = np.asarray(assess.log_losses(logits, test[1]), np.float64)
    if len(losses) < 2:
        raise ValueError(f"the held-out rows must be two or more for a standard error; got {len(losses)}")
    n, nll = len(train[1]), float(seen.nll)
    return Score(
        name,
        cost.kept,
        cost.total,
        nll,
        float(losses.mean()),
        1.0 - float(assess.evaluate(logits, test[1]).accuracy),
        float(losses.std(ddof=1) / len(losses) ** 0.5),
        cost.effective_flops,
        aic(nll, n, cost.kept),
        bic(nll, n, cost.kept),
        description_length(nll, n, cost.kept, cost.total),
    )


def _logits(candidate: Candidate, x: Any, batch: int) -> np.ndarray:
    masked = candidate.params if candidate.masks is None else masks.apply(candidate.params, candidate.masks)
    return np.concatenate([np.asarray(candidate.apply(masked, x[i : i + batch])) for i in range(0, len(x), batch)])
