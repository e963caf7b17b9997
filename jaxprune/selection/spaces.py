"""What a search may draw: widths, depths, rates. A space is a dict of functions from a random generator to a value."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Draw = Callable[[np.random.Generator], Any]


def one_of(values: Sequence[Any]) -> Draw:
    """One of several values, all as likely.

    Args:
      values: one at least.

    Returns:
      A function from a `numpy.random.Generator` to one of them.

    Raises:
      ValueError: there is none.

    Example:
      >>> import numpy as np
      >>> one_of(['relu', 'gelu'])(np.random.default_rng(0)) in ('relu', 'gelu')
      True
    """
    if not len(values):
        raise ValueError("one_of needs a value to choose from")
    return lambda rng: values[int(rng.integers(len(values)))]


def uniform(low: float, high: float) -> Draw:
    """A number between two.

    Args:
      low: the least.
      high: above it; not drawn itself.

    Returns:
      A function from a `numpy.random.Generator` to a float in [low, high).

    Raises:
      ValueError: they are not in order.

    Example:
      >>> import numpy as np
      >>> 0.0 <= uniform(0.0, 0.5)(np.random.default_rng(0)) < 0.5
      True
    """
    if not low < high:
        raise ValueError(f"uniform needs low < high; got {low} and {high}")
    return lambda rng: float(rng.uniform(low, high))


def log_uniform(low: float, high: float) -> Draw:
    """A number between two, each factor as likely: for learning rates and penalties.

    Args:
      low: the least, above 0.
      high: above it; not drawn itself.

    Returns:
      A function from a `numpy.random.Generator` to a float in [low, high).

    Raises:
      ValueError: they are not positive and in order.

    Example:
      >>> import numpy as np
      >>> 1e-4 <= log_uniform(1e-4, 1e-2)(np.random.default_rng(0)) < 1e-2
      True
    """
    if not 0 < low < high:
        raise ValueError(f"log_uniform needs 0 < low < high; got {low} and {high}")
    return lambda rng: float(np.exp(rng.uniform(np.log(low), np.log(high))))


def integers(low: int, high: int) -> Draw:
    """A whole number from low to high, both included.

    Args:
      low: the least.
      high: the largest, not below it.

    Returns:
      A function from a `numpy.random.Generator` to an int.

    Raises:
      ValueError: they are not in order.

    Example:
      >>> import numpy as np
      >>> integers(3, 3)(np.random.default_rng(0))
      3
    """
    if not low <= high:
        raise ValueError(f"integers needs low <= high; got {low} and {high}")
    return lambda rng: int(rng.integers(low, high + 1))


def draw_candidates(space: Mapping[str, Draw], count: int, *, seed: int) -> list[dict[str, Any]]:
    """Draws candidates.

    Args:
      space: by name what to draw: `one_of`, `uniform`, `log_uniform`, `integers`, or any function of a generator.
      count: how many.
      seed: of the generator; the same seed gives the same candidates, and a larger count gives those and more.

    Returns:
      Dicts of values.

    Raises:
      ValueError: an empty space, or a count below 1.

    Example:
      >>> drawn = draw_candidates({'width': one_of([16, 32]), 'rate': log_uniform(1e-4, 1e-2)}, 3, seed=0)
      >>> [c['width'] in (16, 32) and 1e-4 <= c['rate'] <= 1e-2 for c in drawn]
      [True, True, True]
    """
    if not space or count < 1:
        raise ValueError(f"a search needs something to draw and a candidate; got {list(space)} and {count}")
    rng = np.random.default_rng(seed)
    return [{name: draw(rng) for name, draw in space.items()} for _ in range(count)]
