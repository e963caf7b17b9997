"""The Pareto front: the models that no other beats in error and in cost both."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxprune.assess import formatting


def pareto_front(errors: Any, costs: Any) -> np.ndarray:
    """Which models no other beats: none has a smaller error at no greater cost, or a smaller cost at no greater error.

    Args:
      errors: (models,) smaller is better: an error rate, a loss.
      costs: (models,) smaller is better: effective FLOPs, bytes, kept parameters.

    Returns:
      (models,) bools. Models equal in both are on the front together.

    Raises:
      ValueError: different lengths, no model, or NaN.

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
    """The models by rising cost, `*` at those on the front.

    Args:
      names: of the models.
      errors: as for `pareto_front`.
      costs: as for `pareto_front`.
      cost: what the costs are.

    Returns:
      Text.

    Raises:
      ValueError: as `pareto_front` does, or not as many names.

    Example:
      >>> print(pareto_table(['dense', '90 %'], [0.1, 0.12], [2000, 200]))
      model   FLOPs    error  front
      -----  ------  -------  -----
      90 %      200  12.00 %      *
      dense  2.00 k  10.00 %      *
    """
    front = pareto_front(errors, costs)
    if len(names) != len(front):
        raise ValueError(f"there are {len(front)} models and {len(names)} names")
    order = np.lexsort((errors, costs))
    rows = [
        [names[i], formatting.quantity(float(costs[i])), formatting.percent(float(errors[i])), "*" if front[i] else ""]
        for i in order
    ]
    return formatting.table(["model", cost, "error", "front"], rows)
