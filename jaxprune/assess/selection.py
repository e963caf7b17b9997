"""Choosing among models: held-out loss, cross-validation, information criteria and the Pareto front."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune import _tree, masks
from jaxprune.assess import formatting
from jaxprune.assess.complexity import complexity
from jaxprune.assess.metrics import evaluate, log_losses

PyTree = Any


class Candidate(NamedTuple):
    """A model to choose from.

    Attributes:
      params: its parameters.
      masks: bool masks (True = kept) in the structure of `params`; None for a dense model.
      apply: `(params, x) -> logits`.
    """

    params: PyTree
    masks: PyTree | None
    apply: Callable[[PyTree, Any], Any]


@dataclass(frozen=True)
class Score:
    """The figures by which one model is compared with others; smaller is better.

    Attributes:
      name: the name of the model.
      kept: the effective number of parameters: kept entries of pruned leaves, and all entries of other leaves.
      total: the number of all parameters.
      train: the mean negative log-likelihood of the training samples, in nats.
      test: the mean negative log-likelihood of the held-out samples, in nats.
      error: the fraction of the held-out samples that are misclassified.
      standard_error: the standard error of `test`.
      flops: the effective FLOPs of one sample.
      aic: Akaike's criterion on the training samples.
      bic: Schwarz's criterion on the training samples.
      bits: the description length of the training labels and the model, in bits.
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
        """The generalisation gap, `test - train`; it is large in an overfitted model."""
        return self.test - self.train


def aic(nll: float, n: int, kept: int) -> float:
    r"""Computes Akaike's information criterion; smaller is better.

        AIC = 2 k + 2 n L

    Akaike 1974, IEEE TAC 19(6). It is derived at a maximum of the likelihood for n far above k. Neither holds for a
    network, where AIC is a rule of thumb.

    Args:
      nll: L, the mean negative log-likelihood of the samples, in nats.
      n: the number of samples.
      kept: k, the effective number of parameters.

    Returns:
      AIC, in nats.

    Example:
      >>> aic(0.5, 100, 10)
      120.0
    """
    return 2.0 * kept + 2.0 * n * nll


def bic(nll: float, n: int, kept: int) -> float:
    r"""Computes Schwarz's Bayesian information criterion; smaller is better.

        BIC = k ln n + 2 n L        Schwarz 1978, Ann. Stat. 6

    Args:
      nll: L, the mean negative log-likelihood of the samples, in nats.
      n: the number of samples.
      kept: k, the effective number of parameters.

    Returns:
      BIC, in nats.

    Example:
      >>> round(bic(0.5, 100, 10), 2)
      146.05
    """
    if n < 1:
        raise ValueError(f"n must be 1 or more, the number of samples; got {n}")
    return kept * math.log(n) + 2.0 * n * nll


def description_length(nll: float, n: int, kept: int, total: int) -> float:
    r"""Returns the number of bits that describe the labels by means of the model, smaller is better.

        n L / ln 2  +  (k/2) log2 n  +  log2 C(N, k)

    The terms are the labels given the model, each kept weight to the precision that n samples determine (Rissanen 1978,
    Automatica 14), and which k of the N weights are kept. The last term is what BIC lacks: a sparse model pays for its
    masks.

    Args:
      nll: L, the mean negative log-likelihood of the samples, in nats.
      n: the number of samples.
      kept: k, the effective number of parameters.
      total: N, the number of all parameters.

    Returns:
      The description length, in bits.

    Raises:
      ValueError: `kept` is negative or above `total`.

    Example:
      >>> round(description_length(0.0, 4, 2, 4), 3)  # 2 weights of 1 bit each, and one of 6 choices
      4.585
    """
    if not 0 <= kept <= total:
        raise ValueError(f"{kept} parameters are kept of {total}; kept must be in 0 to total")
    choices = (math.lgamma(total + 1) - math.lgamma(kept + 1) - math.lgamma(total - kept + 1)) / math.log(2)
    return n * nll / math.log(2) + 0.5 * kept * math.log2(n) + choices


def hold_out(
    candidates: Mapping[str, Candidate], train: tuple[Any, Any], test: tuple[Any, Any], *, batch: int = 1000
) -> list[Score]:
    """Scores models by their training samples and by held-out samples.

    Where there are no more samples than parameters, trust the held-out loss: AIC, BIC and the description length then
    penalise each weight more than it can explain, and prefer the smallest model even if it predicts badly.

    Args:
      candidates: the models by name.
      train: (x, labels), the samples that the models were trained on: x with the samples on its first axis, labels
        integers (n,) in [0, classes).
      test: (x, labels), other samples in the same form, two or more.
      batch: the number of samples in one forward pass, 1 or more; default 1000.

    Returns:
      One `Score` per model, in their order. `model_table` prints them.

    Raises:
      ValueError: there is no candidate, fewer than two held-out samples, or logits and labels do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> x, labels = jnp.array([[1.0], [-1.0], [2.0], [-2.0]]), np.array([1, 0, 1, 0])
      >>> apply = lambda w, x: jnp.concatenate([-w * x, w * x], 1)
      >>> [dense] = hold_out({'dense': Candidate(jnp.ones((1, 1)), None, apply)}, (x, labels), (x, labels))
      >>> dense.kept, dense.error, round(dense.test, 3)
      (1, 0.0, 0.073)
    """
    _tree.check_instance(candidates, Mapping, "candidates", "a mapping from names to assess.Candidate")
    if not candidates:
        raise ValueError("there is no candidate to choose from")
    return [_score(name, candidate, train, test, batch) for name, candidate in candidates.items()]


class Folds(NamedTuple):
    """The result of a cross-validation.

    Attributes:
      loss: the mean loss over all samples.
      standard_error: the standard error of the fold means, sd / sqrt(folds).
      means: (folds,) the mean loss of each fold.
    """

    loss: float
    standard_error: float
    means: np.ndarray


def k_fold(fit: Callable[[np.ndarray, np.ndarray, int], Any], n: int, folds: int, *, key: Any) -> Folds:
    """Computes the mean loss of held-out samples and its standard error by cross-validation.

    Args:
      fit: `(train, test, fold) -> losses`. It gets the numbers of the training samples and of the test samples, trains
        and prunes on the training samples alone, and returns one loss per test sample.
      n: the number of samples.
      folds: the number of folds, 2 to `n`; their sizes differ by at most one.
      key: a JAX key for the shuffle. Models that are compared should share it.

    Returns:
      The mean over samples, its standard error, and the means of the folds.

    Raises:
      ValueError: `folds` is out of range, or `fit` returns another number of losses.

    Example:
      >>> mean, error, means = k_fold(lambda train, test, fold: test * 1.0, 6, 3, key=jax.random.key(0))
      >>> mean, len(means)
      (2.5, 3)
    """
    _tree.check_instance(n, int | np.integer, "n", "the number of samples")
    _tree.check_function(fit, "fit", "fit(train, test, fold) -> losses")
    _tree.check_key(key, needed_by="k_fold")
    if not 2 <= folds <= n:
        raise ValueError(f"folds must be in 2 to {n}, the number of samples; got {folds}")
    parts = np.array_split(np.asarray(jax.random.permutation(key, n)), folds)
    losses = []
    for fold, part in enumerate(parts):
        test = np.sort(part)
        train = np.sort(np.concatenate([p for k, p in enumerate(parts) if k != fold]))
        found = np.asarray(fit(train, test, fold), np.float64)
        if found.shape != test.shape:
            raise ValueError(f"fit must return a loss for each of the {len(test)} samples of a fold; got {found.shape}")
        losses.append(found)
    means = np.asarray([found.mean() for found in losses])
    return Folds(float(np.concatenate(losses).mean()), float(means.std(ddof=1) / folds**0.5), means)


def one_standard_error(losses: Sequence[float], errors: Sequence[float], complexity: Sequence[float]) -> int:
    """Returns the simplest model whose loss is within one standard error of the best model's loss.

    Breiman et al. 1984, Classification and Regression Trees, section 3.4.3.

    Args:
      losses: (models,) the loss of each model, smaller is better.
      errors: (models,) the standard error of each loss; only the error of the best model counts.
      complexity: (models,) the complexity of each model, such as its number of kept parameters.

    Returns:
      The index of the model. If models are equally simple, the model with the lower loss is chosen, then the first.

    Raises:
      ValueError: the arguments differ in length, are empty, or have NaN.

    Example:
      >>> one_standard_error([0.30, 0.28, 0.40], [0.03, 0.03, 0.03], [10, 100, 1])
      0
    """
    lengths = [len(losses), len(errors), len(complexity)]
    if len(set(lengths)) > 1:
        raise ValueError(f"losses, errors and complexity must have one number a model; their lengths are {lengths}")
    table = np.asarray([losses, errors, complexity], np.float64)
    if table.ndim != 2 or not table.shape[1] or np.isnan(table).any():
        raise ValueError("losses, errors and complexity must be numbers, one a model, none of them NaN")
    best = int(np.argmin(table[0]))
    within = np.flatnonzero(table[0] <= table[0, best] + table[1, best])
    return int(within[np.lexsort((table[0, within], table[2, within]))[0]])


def model_table(scores: Sequence[Score]) -> str:
    """Returns scores as a text table: `*` marks the best value of a column, `1se` the choice of `one_standard_error`.

    Args:
      scores: the scores that `hold_out` returned, one or more. If values are equal, the first gets the `*`.

    Returns:
      A table with one line per model.

    Example:
      >>> print(model_table([Score('90 %', 5, 10, 0.5, 0.6, 0.2, 0.1, 20, 10.0, 12.0, 30.0)]))
      model  kept  FLOPs   train      gap    test      error    AIC    BIC    bits
      -----  ----  -----  ------  -------  --------  ---------  -----  -----  ------  ---
      90 %      5     20  0.5000  +0.1000  0.6000 *  20.00 % *   10 *   12 *    30 *  1se
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
            plain = f"{value:.4f}" if field == "test" else f"{value:,.0f}"
            text = formatting.percent(value) if field == "error" else plain
            cells.append(text + (" *" if least[name] == i else "  "))
        rows.append([*cells, "1se" if i == simplest else ""])
    return _tree.table(["model", "kept", "FLOPs", "train", "gap", *(f"{name}  " for name in columns), ""], rows)


def pareto_front(errors: Any, costs: Any) -> np.ndarray:
    """Returns the models that no other model beats in error and cost: none is better in one and no worse in the other.

    Args:
      errors: (models,) smaller is better: an error rate or a loss.
      costs: (models,) smaller is better: effective FLOPs, bytes or kept parameters.

    Returns:
      (models,) bool, True = on the front. Models with equal errors and costs are on the front together.

    Raises:
      ValueError: the arguments differ in length, are empty, or have NaN.

    Example:
      >>> pareto_front([0.1, 0.2, 0.2, 0.3], [9, 5, 6, 1]).tolist()
      [True, True, False, True]
    """
    errors, costs = np.asarray(errors, np.float64), np.asarray(costs, np.float64)
    if errors.ndim != 1 or errors.shape != costs.shape or not errors.size or np.isnan(errors + costs).any():
        raise ValueError(f"errors and costs must be one number a model, none NaN; got {errors.shape} and {costs.shape}")
    no_worse = (errors[:, None] >= errors) & (costs[:, None] >= costs)
    better = (errors[:, None] > errors) | (costs[:, None] > costs)
    return ~(no_worse & better).any(1)


def pareto_table(names: Sequence[str], errors: Any, costs: Any, *, cost: str = "FLOPs") -> str:
    """Returns the models as a text table in order of rising cost; `*` marks the Pareto front.

    Args:
      names: the names of the models.
      errors: (models,) numbers, fractions in [0, 1]; smaller is better. The table shows them in per cent.
      costs: (models,) numbers; smaller is better. The table shows them as quantities, such as 2.00 k for 2000.
      cost: the title of the column of costs, with the unit if there is one; default "FLOPs".

    Returns:
      A table with one line per model.

    Raises:
      ValueError: the arguments differ in length, are empty, or have NaN.

    Example:
      >>> print(pareto_table(['dense', '90 %'], [0.1, 0.12], [2000, 200]))
      model   FLOPs    error  front
      -----  ------  -------  -----
      90 %      200  12.00 %      *
      dense  2.00 k  10.00 %      *
    """
    front = pareto_front(errors, costs)
    if len(names) != len(front):
        raise ValueError(f"names must have one entry for each of the {len(front)} models; got {len(names)}")
    order = np.lexsort((errors, costs))
    rows = [
        [names[i], formatting.quantity(float(costs[i])), formatting.percent(float(errors[i])), "*" if front[i] else ""]
        for i in order
    ]
    return _tree.table(["model", cost, "error", "front"], rows)


def _score(name: str, candidate: Candidate, train: Any, test: Any, batch: int) -> Score:
    shown = train[0][:1]
    cost = complexity(candidate.apply, candidate.params, candidate.masks, shown)
    seen = evaluate(_logits(candidate, train[0], batch), train[1])
    logits = _logits(candidate, test[0], batch)
    losses = np.asarray(log_losses(logits, test[1]), np.float64)
    if len(losses) < 2:
        raise ValueError(f"test must have two or more samples, because it gives a standard error; got {len(losses)}")
    n, nll = len(train[1]), float(seen.nll)
    return Score(
        name,
        cost.kept,
        cost.total,
        nll,
        float(losses.mean()),
        1.0 - float(evaluate(logits, test[1]).accuracy),
        float(losses.std(ddof=1) / len(losses) ** 0.5),
        cost.effective_flops,
        aic(nll, n, cost.kept),
        bic(nll, n, cost.kept),
        description_length(nll, n, cost.kept, cost.total),
    )


def _logits(candidate: Candidate, x: Any, batch: int) -> np.ndarray:
    masked = candidate.params if candidate.masks is None else masks.apply(candidate.params, candidate.masks)
    return np.concatenate([np.asarray(candidate.apply(masked, x[i : i + batch])) for i in range(0, len(x), batch)])
