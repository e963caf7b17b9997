"""`reconstruct_sequential`: prunes layer by layer; each layer is calibrated on the outputs of the pruned layers."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, islice
from typing import Any, Unpack

import jax
import jax.numpy as jnp

from jaxprune import _progress, _tree
from jaxprune.calibration import Stats, calibrator
from jaxprune.masks import Pruned
from jaxprune.prune import How
from jaxprune.reconstruction.plan import Leaf, calibrated, plan
from jaxprune.reconstruction.reconstruct import Kernel, check_finite, method_of, prune_leaf, with_criterion

PyTree = Any


class Repair(How, total=False):
    """The keyword arguments of `reconstruct`: how weights are chosen and repaired.

    Attributes:
      method: how the kept weights are repaired; default "sparsegpt"; see `reconstruct`.
      masks: masks to use unchanged, or None (default); see `reconstruct`.
    """

    method: str | Kernel
    masks: PyTree


def reconstruct_sequential(
    fn: Callable[[PyTree, PyTree], Any],
    params: PyTree,
    batches: Iterable[PyTree],
    sparsity: Any = None,
    *,
    dtype: Any = jnp.float32,
    max_bytes: int = 2**31,
    progress: bool | None = None,
    **how: Unpack[Repair],
) -> Pruned:
    """Runs `reconstruct` in stages: each stage is calibrated on the outputs of the stages that are already pruned.

    A stage is a set of leaves that are multiplied by the same activation (query, key and value, for instance), in order
    of execution. Scanned layers are pruned one layer at a time. The target of each stage is the output of its dense
    weights on its current inputs (Frantar and Alistarh 2023, section 4). Each stage compiles `fn` anew (a scan's stages
    compile once for all its layers) and runs it over all batches, so there is one pass over the data for each stage.

    Args:
      fn: a function `fn(params, batch)`; its result is not used. Use evaluation mode.
      params: any tree of arrays.
      batches: a list of trees of arrays, or another iterable that can be iterated over once for each stage.
      sparsity: the fraction removed, in [0, 1): a number, a mapping from globs or a tree; see `reconstruct`.
      dtype: the floating dtype of the Gram matrices; default float32.
      max_bytes: the largest size of the Gram matrices of one leaf, in bytes; default 2 GiB.
      progress: True shows a progress bar, False does not, None shows it on a terminal and in a notebook.
      **how: method, masks, and how weights are chosen: criterion, allocation, pattern, where, batch_axes, key; see
        `reconstruct`. The allocation reads scores from the first batch and must give each leaf a sparsity.

    Returns:
      `Pruned(params, masks)`.

    Raises:
      ValueError: `batches` is an iterator, which is used up after one pass; the allocation ranks all leaves together;
        or an error of `calibrate` or `reconstruct`.
      ImportError: `progress=True` and tqdm is not installed.

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
        raise ValueError("batches is iterated over once for each stage, but an iterator allows one pass: pass a list")
    method, masks, where = method_of(how.pop("method", "sparsegpt")), how.pop("masks", None), how.get("where")
    options: dict[str, Any] = {
        "collect": "gram" if method.needs == "gram" else "square",
        "dtype": dtype,
        "max_bytes": max_bytes,
    }
    # One batch shows which leaves share an activation; sums of squares are the cheapest statistics to collect.
    first = calibrator(fn, params, collect="square", where=where)(params, islice(batches, 1))
    leaves = calibrated(params, first, where)
    wanted = plan(params, first, leaves, sparsity, masks, with_criterion(how, method, masks), method.name)
    if wanted.ranks_all:
        raise ValueError(
            "reconstruct_sequential prunes stage by stage, but allocation.one_ranking ranks all leaves together; pass "
            "an allocation that gives each leaf a sparsity, such as allocation.erk, or pass masks"
        )
    flat, treedef = jax.tree.flatten(params)
    kept = [jnp.ones((), bool)] * len(flat)
    stages = list(rounds(first, leaves))
    runs = {names: calibrator(fn, params, where=_named(names), **options) for names, _ in stages}
    for names, layer in _progress.bar(stages, progress, what="stages"):
        stats = runs[names](jax.tree.unflatten(treedef, flat), batches)
        found = calibrated(jax.tree.unflatten(treedef, flat), stats, None)
        targets = wanted.of(jax.tree.unflatten(treedef, flat), stats, found)
        for leaf, target in zip(found, targets, strict=True):
            if target is not None:
                flat[leaf.position], mask = prune_leaf(leaf, target, method.kernel, layer)
                kept[leaf.position] = kept[leaf.position] & mask
        check_finite(found, [flat[leaf.position] for leaf in found])
    return Pruned(jax.tree.unflatten(treedef, flat), jax.tree.unflatten(treedef, kept))


def rounds(stats: Stats, leaves: Sequence[Leaf]) -> Iterator[tuple[tuple[str, ...], int | None]]:
    """Yields the leaves of each stage and the matrix to prune: a layer of a scan, or None for all matrices."""
    chosen = {leaf.name: leaf for leaf in leaves}
    groups = [together._replace(names=tuple(n for n in together.names if n in chosen)) for together in stats.together]
    for loop, members in groupby((g for g in groups if g.names), key=lambda g: g.loop):
        names = [g.names for g in members]
        layers = [None] if loop is None else range(chosen[names[0][0]].inputs.layout.sizes[0])
        yield from ((own, layer) for layer in layers for own in names)


def _named(names: tuple[str, ...]) -> Callable[[str, Any], bool]:
    return lambda name, leaf: name in names and _tree.is_floating(leaf)
