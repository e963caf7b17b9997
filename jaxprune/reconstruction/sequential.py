"""Layer after layer, each calibrated on the outputs of the layers already pruned."""

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune import _tree
from jaxprune.calibration import Stats, calibrator
from jaxprune.masks import Pruned
from jaxprune.reconstruction import asked, matrices, trees

PyTree = Any


def reconstruct_sequential(
    fn: Callable[[PyTree, PyTree], Any],
    params: PyTree,
    batches: Iterable[PyTree],
    sparsity: Any = None,
    *,
    method: str | matrices.Kernel = "sparsegpt",
    pattern: Any = None,
    masks: PyTree | None = None,
    where: _tree.Where = None,
    damping: float | None = None,
    block: int = 128,
    dtype: Any = jnp.float32,
    max_bytes: int = 2**31,
    on_stage: Callable[[tuple[str, ...]], None] | None = None,
) -> Pruned:
    """`reconstruct`, one stage at a time: each is calibrated on what the stages before it make of the data.

    A stage is the leaves that meet the same activation (query, key and value, say), in the order of execution; of
    layers that are scanned over, one layer at a time. Targets stay the dense weights' outputs on the inputs that are
    now seen, as in Frantar and Alistarh 2023, section 4. Each stage runs `fn` over all batches and compiles it anew
    (a scan's stages once for all its layers), so this takes as many passes over the data as there are stages.

    Args:
      fn: `fn(params, batch)`, as for `calibrate`.
      params: any tree.
      batches: gone through once for each stage: a list, or anything else that can be iterated over again.
      sparsity: as for `reconstruct`, and so the others.
      method: how to prune.
      pattern: n of m, or None, as for `reconstruct`.
      masks: masks to use as they are.
      where: which leaves; by default all that can be followed.
      damping: of the Gram matrices.
      block: of "sparsegpt".
      dtype: in which to sum, as for `calibrate`.
      max_bytes: of the Gram matrices of one leaf, as for `calibrate`.
      on_stage: called before each stage with its leaves' names, for a progress bar.

    Returns:
      `Pruned(params, masks)`.

    Raises:
      ValueError: as `calibrate` and `reconstruct` do; or `batches` is an iterator, which is used up after one pass.

    Example:
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> params = {'a': jax.random.normal(keys[0], (8, 8)), 'b': jax.random.normal(keys[1], (8, 4))}
      >>> fn = lambda p, x: jnp.tanh(x @ p['a']) @ p['b']
      >>> new = reconstruct_sequential(fn, params, [jax.random.normal(keys[2], (50, 8))], 0.5)
      >>> int(new.masks['a'].sum()), int(new.masks['b'].sum())
      (32, 16)
    """
    _tree.check_batches(batches)
    if isinstance(batches, Iterator):
        raise ValueError("batches is gone through once for each stage, and an iterator only once: pass a list")
    kernel = matrices.kernel_of(method, damping, block)
    collect = "gram" if matrices.needs(method) == "gram" else "square"
    options = {"collect": collect, "dtype": dtype, "max_bytes": max_bytes}
    # Which leaves meet what is known after one batch; sums of squares are the cheapest to ask for.
    first = calibrator(fn, params, collect="square", where=where)(params, islice(batches, 1))
    leaves = asked.leaves_of(params, first, "layout", where)
    wanted = dict(
        zip([x.position for x in leaves], asked.targets_of(params, leaves, sparsity, pattern, masks), strict=True)
    )
    current = _Current(params, [jnp.ones((), bool)] * len(jax.tree.leaves(params)))
    for stages, rounds in _stages(first, leaves):
        runs = [calibrator(fn, params, where=_among(names), **options) for names in stages]
        for batch in rounds:
            for names, run in zip(stages, runs, strict=True):
                if on_stage is not None:
                    on_stage(names)
                current = _prune(current, run(current.params, batches), wanted, kernel, batch)
    return Pruned(current.params, jax.tree.unflatten(jax.tree.structure(params), current.masks))


class _Current(NamedTuple):
    params: PyTree
    masks: list[jax.Array]


def _stages(stats: Stats, leaves: list[asked.Leaf]) -> Iterator[tuple[list[tuple[str, ...]], list[int | None]]]:
    """Groups of leaves, those of one scan together, and which of its rounds to go through (None: no scan)."""
    chosen = {leaf.name: leaf for leaf in leaves}
    groups = [together._replace(names=tuple(n for n in together.names if n in chosen)) for together in stats.together]
    for loop, members in groupby((g for g in groups if g.names), key=lambda g: g.loop):
        names = [g.names for g in members]
        if loop is None:
            for group in names:
                yield [group], [None]
        else:
            yield names, list(range(chosen[names[0][0]].inputs.layout.sizes[0]))


def _among(names: tuple[str, ...]) -> Callable[[str, Any], bool]:
    return lambda name, leaf: name in names and _tree.is_floating(leaf)


def _prune(current: _Current, stats: Stats, wanted: dict[int, Any], kernel: Callable, batch: int | None) -> _Current:
    leaves, treedef = jax.tree.flatten(current.params)
    masks = list(current.masks)
    found = asked.leaves_of(current.params, stats, "layout", None)
    for leaf in found:
        if wanted[leaf.position] is None:
            continue
        new, mask = matrices.prune_leaf(leaf, wanted[leaf.position], kernel, batch)
        leaves[leaf.position] = new
        masks[leaf.position] = mask & masks[leaf.position]
    trees.check_finite(found, [leaves[leaf.position] for leaf in found])
    return _Current(jax.tree.unflatten(treedef, leaves), masks)
