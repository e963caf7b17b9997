"""Features by mutual information and by the F test: what scikit-learn does well, called from here."""

from typing import Any

import numpy as np

from jaxprune.selection import checks


def mutual_information(x: Any, y: Any, *, seed: int, neighbours: int = 3, discrete: bool | None = None) -> np.ndarray:
    """The mutual information of each feature with the target, in nats, by scikit-learn's nearest-neighbour estimate.

    Kraskov et al. 2004, and Ross 2014 for classes. It sees one feature at a time: of a target that is the exclusive or
    of two features each alone says nothing.

    Args:
      x: (n, features), numbers.
      y: (n,); integers are classes, floats numbers.
      seed: for the little noise that the estimate adds to features.
      neighbours: k of the estimate, 1 or more.
      discrete: whether the features are classes themselves; None for numbers.

    Returns:
      (features,) float64 scores, 0 or more.

    Raises:
      ImportError: scikit-learn is missing.
      ValueError: shapes do not fit, NaN or infinite values.
    """
    selection = _sklearn()
    x, y, classes = _arrays(x, y)
    estimate = selection.mutual_info_classif if classes else selection.mutual_info_regression
    return estimate(x, y, discrete_features=bool(discrete), n_neighbors=neighbours, random_state=seed)


def anova_f(x: Any, y: Any) -> np.ndarray:
    """The F statistic of each feature: variance between the classes over variance within; for a number, of its slope.

    For two classes it orders features as `pearson` does.

    Args:
      x: (n, features), numbers.
      y: (n,); integers are classes, floats numbers.

    Returns:
      (features,) float64 scores, 0 or more; 0 for a feature that does not vary, infinite for one that varies only
      between classes.

    Raises:
      ImportError: scikit-learn is missing.
      ValueError: shapes do not fit, NaN or infinite values.
    """
    selection = _sklearn()
    x, y, classes = _arrays(x, y)
    varies = x.max(0) > x.min(0)
    found = np.zeros(x.shape[1])
    if varies.any():
        with np.errstate(divide="ignore"):
            found[varies] = (selection.f_classif if classes else selection.f_regression)(x[:, varies], y)[0]
    return found


def _arrays(x: Any, y: Any) -> tuple[np.ndarray, np.ndarray, bool]:
    x = np.asarray(checks.samples(x), np.float64)
    found = np.asarray(y)
    if found.shape != x.shape[:1]:
        raise ValueError(f"y must have shape ({len(x)},), classes as integers; got {found.shape}")
    classes = not np.issubdtype(found.dtype, np.floating)
    return x, found if classes else np.asarray(checks.targets(found, len(x)), np.float64)[:, 0], classes


def _sklearn() -> Any:
    try:
        from sklearn import feature_selection
    except ImportError as error:
        raise ImportError(
            'this score is scikit-learn\'s: pip install "jaxprune[examples]" or scikit-learn itself'
        ) from error
    return feature_selection
