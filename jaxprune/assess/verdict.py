"""A verdict in words: what the figures say, and only as far as they say it beyond noise."""

import math
from collections.abc import Mapping

from jaxprune.assess import formatting
from jaxprune.assess.intervals import Interval
from jaxprune.assess.paired import Changes
from jaxprune.assess.risk import Risk

FITTED = 0.95
SHARE = 0.5


def verdict(
    risk: Risk, changes: Changes | None = None, *, fitted: float = FITTED, share: float = SHARE
) -> dict[str, str]:
    """Says in sentences how a model is fitted, how sure it is of itself, and what it changed.

    - Overfitted: test NLL exceeds training NLL with the whole interval, and by `share` of the test NLL at least: that
      much of the loss is not there where it was trained. A smaller gap beyond noise is named as such.
    - Underfitted: the accuracy on training samples lies below `fitted` with its whole interval. Both may hold.
    - Over- or underconfident: the mean confidence lies above or below the accuracy with the whole interval.
    - Changed: an interval of differences that excludes 0; a class, one of the intervals for all classes together.

    Args:
      risk: the model's.
      changes: against a reference; None for none.
      fitted: the accuracy on training samples that a fitted model should have, in (0, 1]: it depends on the task.
      share: the share of the test NLL that counts as overfitted, in [0, 1].

    Returns:
      Sentences under `fit`, `confidence`, and with changes `changes` and `classes`; without training samples no `fit`.

    Raises:
      ValueError: `fitted` or `share` out of range.
    """
    if not 0 < fitted <= 1 or not 0 <= share <= 1:
        raise ValueError(f"fitted must be in (0, 1] and share in [0, 1]; got {fitted} and {share}")
    words = {}
    if "nll_gap" in risk.figures:
        words["fit"] = _fit(risk.figures, fitted, share)
    words["confidence"] = _confidence(risk.figures["overconfidence"])
    if changes is not None:
        words |= {"changes": _changes(changes), "classes": _classes(changes)}
    return words


def _fit(figures: Mapping[str, Interval], fitted: float, share: float) -> str:
    gap, accuracy, test = figures["nll_gap"], figures["train_accuracy"], figures["nll"]
    found = []
    if gap.low > 0 and gap.estimate >= share * test.estimate:
        found.append(f"overfitted: {_part(gap, test)} of its test NLL is not there on training samples")
    if accuracy.high < fitted:
        found.append(f"underfitted: {formatting.percent(accuracy.estimate)} accuracy on training samples")
    if found:
        return "; ".join(found)
    if gap.low > 0:
        return f"neither over- nor underfitted: a gap beyond noise, but only {_part(gap, test)} of its test NLL"
    return "neither over- nor underfitted: no gap beyond noise"


def _part(gap: Interval, test: Interval) -> str:
    if not math.isfinite(gap.estimate):  # a test sample to which the model gave probability 0
        return "an infinite part"
    return f"{gap.estimate / test.estimate:.0%}" if test.estimate else "none"


def _confidence(difference: Interval) -> str:
    points = f"{100 * abs(difference.estimate):.2f} points"
    ends = f"{100 * difference.low:+.2f} to {100 * difference.high:+.2f}"
    if difference.low > 0:
        return f"overconfident by {points} ({ends})"
    if difference.high < 0:
        return f"underconfident by {points} ({ends})"
    return f"as confident as it is accurate, within noise ({ends} points)"


def _changes(changes: Changes) -> str:
    beyond = [_change(name, changes) for name in changes.figures if excludes_zero(changes.figures[name])]
    alike = f"answers {formatting.percent(changes.agreement.estimate)} of the samples alike"
    if not beyond:
        return f"nothing changed beyond noise in accuracy, NLL and Brier score; {alike}"
    return f"changed beyond noise: {'; '.join(beyond)}; {alike}"


def _change(name: str, changes: Changes) -> str:
    interval = changes.figures[name]
    unit, scale = (" points", 100) if name == "accuracy" else ("", 1)
    p = f", p = {changes.p_values[name]:.2g}" if name in changes.p_values else ""
    words = {"accuracy": "accuracy", "nll": "NLL", "brier": "Brier score"}[name]
    digits = 2 if scale == 100 else 4
    ends = f"{scale * interval.low:+.{digits}f} to {scale * interval.high:+.{digits}f}"
    return f"{words} {scale * interval.estimate:+.{digits}f}{unit} ({ends}{p})"


def _classes(changes: Changes) -> str:
    worse = [_class(k, r) for k, r in enumerate(changes.recall) if r.high < 0]
    better = [_class(k, r) for k, r in enumerate(changes.recall) if r.low > 0]
    parts = [f"worse in class {', '.join(worse)}"] if worse else []
    parts += [f"better in class {', '.join(better)}"] if better else []
    told = "; ".join(parts) if parts else "no class changed beyond noise"
    return f"{told}; {changes.regressions} samples lost that the reference had right, {changes.gains} won"


def _class(number: int, interval: Interval) -> str:
    return f"{number} ({100 * interval.estimate:+.1f} points)"


def excludes_zero(interval: Interval) -> bool:
    """Whether an interval lies wholly on one side of 0.

    Args:
      interval: of a difference; a bound at 0 does not exclude it.

    Returns:
      A Python bool.

    Example:
      >>> excludes_zero(Interval(1.0, 0.5, 2.0)), excludes_zero(Interval(1.0, 0.0, 2.0))
      (True, False)
    """
    return bool(interval.low > 0 or interval.high < 0)
