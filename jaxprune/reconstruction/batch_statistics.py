"""`recalibrate_statistics`: running statistics (batch normalisation) of a network whose weights have changed."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import _tree

PyTree = Any


def recalibrate_statistics(
    update: Callable[[PyTree, PyTree], PyTree], statistics: PyTree, batches: Iterable[PyTree]
) -> PyTree:
    r"""Returns the running statistics at which the network's own update would settle: their mean over batches.

    `update` is a forward pass in training mode that returns running averages, each
    $r \leftarrow m r + (1 - m) b$ with a momentum $m$ and the batch's statistic $b$ (BatchNorm in every framework).
    `recalibrate_statistics` runs it once from zeros and once from ones, which yields $m$ and $b$. The caller need not
    know the momentum, and the result does not depend on the old statistics. Variances are means of batch variances, as
    in training.

    Pass batches like the training batches, with the same augmentation: statistics of plain images are narrower than
    statistics of augmented images, and the accuracy falls.

    Args:
      update: `update(statistics, batch) -> statistics`. The old statistics enter only through the running average.
      statistics: the running statistics, any tree. Leaves that are not floating, and leaves that `update` does not
        change, are returned unchanged.
      batches: an iterable of batches, each with the same weight. Each shape compiles once.

    Returns:
      Statistics in the structure and dtypes of the old ones.

    Raises:
      ValueError: there are no batches, or a leaf does not follow a running average.

    Example:
      >>> update = lambda s, x: {'mean': 0.9 * s['mean'] + 0.1 * x.mean()}
      >>> new = recalibrate_statistics(update, {'mean': jnp.array(7.0)}, [jnp.array([1.0, 3.0]), jnp.array([3.0, 5.0])])
      >>> round(float(new['mean']), 4)
      3.0
    """
    form = "update(statistics, batch)"
    if not callable(update):
        raise TypeError(f"update must be a function {form}; got {_tree.shown(update)}")

    @jax.jit
    def step(sums: PyTree, batch: PyTree) -> tuple[PyTree, PyTree]:
        from_zeros, from_ones = (
            _tree.call(update, "update", form, _filled(statistics, value), batch) for value in (0.0, 1.0)
        )
        _tree.check_same(statistics, from_zeros, what="what update returned", of="statistics")
        momentum = jax.tree.map(_momentum, statistics, from_zeros, from_ones)
        return jax.tree.map(_add, statistics, sums, from_zeros, momentum), momentum

    sums = jax.tree.map(lambda x: jnp.zeros(x.shape) if _tree.is_floating(x) else x, statistics)
    count, momentum = 0, None
    _tree.check_batches(batches)
    for batch in batches:
        sums, momentum = step(sums, batch)
        count += 1
    if not count:
        raise ValueError("batches is empty: statistics need at least one batch")
    _check(statistics, momentum)

    def settled(old: Any, total: Any, kept: Any) -> Any:
        if not _tree.is_floating(old):
            return old
        return jnp.where(kept == 1, old, (total / count).astype(old.dtype))

    return jax.tree.map(settled, statistics, sums, momentum)


def _filled(statistics: PyTree, value: float) -> PyTree:
    return jax.tree.map(lambda x: jnp.full_like(x, value) if _tree.is_floating(x) else x, statistics)


def _momentum(old: Any, from_zeros: Any, from_ones: Any) -> Any:
    return from_ones.astype(jnp.float32) - from_zeros.astype(jnp.float32) if _tree.is_floating(old) else jnp.ones(())


def _add(old: Any, total: Any, from_zeros: Any, momentum: Any) -> Any:
    if not _tree.is_floating(old):
        return total
    return total + jnp.where(momentum == 1, 0.0, from_zeros / jnp.where(momentum == 1, 1.0, 1 - momentum))


def _check(statistics: PyTree, momentum: PyTree) -> None:
    outside = jax.device_get(jax.tree.map(lambda m: ~((m >= -1e-3) & (m <= 1)).all(), momentum))
    pairs = zip(_tree.named_leaves(statistics), jax.tree.leaves(outside), strict=True)
    wrong = [f"  {name}" for (name, _), is_outside in pairs if is_outside]
    if wrong:
        raise ValueError("update does not compute running averages of:\n" + "\n".join(wrong))
