"""`reconstruct_sequential` and `reconstruct_blocks`: each part is calibrated on the outputs of the pruned parts before.

`reconstruct_sequential` prunes layer by layer and runs the whole network for each. `reconstruct_blocks` prunes block
after block and keeps the hidden states: two runs a block, whatever the depth.
"""

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
from jaxprune.reconstruction.reconstruct import (
    Kernel,
    check_finite,
    method_of,
    prune_leaf,
    reconstruct,
    with_criterion,
)

PyTree = Any
Block = Callable[[PyTree, PyTree], PyTree]


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


class BlockRunner:
    """A block function `(params, hidden) -> hidden`, compiled once for each shape of its arrays.

    Args:
      block: the function.
      collect: what `prune` sums to calibrate, "gram" or "square"; None for what the method needs.
    """

    def __init__(self, block: Block, collect: str | None = None) -> None:
        self._block, self._forward, self._collect = block, jax.jit(block), collect
        self._calibrators: dict[Any, Callable[..., Stats]] = {}

    def forward(self, params: PyTree, hidden: Sequence[PyTree]) -> list[PyTree]:
        """Returns the hidden states after the block, a batch at a time."""
        return [self._forward(params, x) for x in hidden]

    def calibrate(self, params: PyTree, hidden: Sequence[PyTree], where: Any = None, collect: str = "gram") -> Stats:
        """Returns the statistics of the block's leaves on the hidden states that go into it; see `calibrate`."""
        chosen = tuple(jax.tree.leaves(_tree.prunable(params, where)))
        key = jax.tree.structure(params), tuple(jnp.shape(x) for x in jax.tree.leaves(params)), chosen, collect
        if key not in self._calibrators:
            self._calibrators[key] = calibrator(self._block, params, collect=collect, where=where)
        return self._calibrators[key](params, hidden)

    def prune(
        self, params: PyTree, hidden: Sequence[PyTree], sparsity: Any, **how: Unpack[Repair]
    ) -> tuple[Pruned, Stats]:
        """Calibrates the block on the hidden states that go into it, and prunes it by `reconstruct`."""
        needs = method_of(how.get("method", "sparsegpt")).needs
        collect = self._collect or ("gram" if needs == "gram" else "square")
        stats = self.calibrate(params, hidden, how.get("where"), collect)
        return reconstruct(params, stats, sparsity, **how), stats


def reconstruct_blocks(
    block: Block,
    params: PyTree,
    batches: Sequence[PyTree],
    sparsity: Any = None,
    *,
    progress: bool | None = None,
    **how: Unpack[Repair],
) -> Pruned:
    """Prunes a stack of blocks one after the other, each calibrated on the outputs of the blocks already pruned.

    Use it for deep networks of equal blocks, such as transformers: it keeps the hidden states of the current block, so
    each block runs once to be calibrated and once more, pruned. `reconstruct_sequential` needs no cut into blocks and
    calibrates each layer within a block on the layers before it, but runs the whole network for every stage. For a
    language model on disk see `jaxprune.models.prune_folder`. Frantar and Alistarh 2023, arXiv 2301.00774, section 4.

    Args:
      block: `(params of one block, hidden) -> hidden`, traced by jit.
      params: the blocks' parameters: a list or tuple with a tree for each block, or one tree whose leaves are stacked
        along a leading axis, as `jax.lax.scan` takes them.
      batches: what goes into the first block: a list of trees of arrays (hidden states, after the embedding).
      sparsity: the fraction removed from each leaf of each block, in [0, 1): a number or a mapping from globs over the
        names inside a block; see `reconstruct`. None for a pattern of n of m.
      progress: True shows a progress bar, False does not, None shows it on a terminal and in a notebook.
      **how: method and masks (which must be None), and how weights are chosen; see `reconstruct`.

    Returns:
      `Pruned(params, masks)` in the structure of `params`.

    Raises:
      ValueError: what `calibrate` and `reconstruct` raise; there is no block; the stacked leaves differ in their number
        of blocks.
      TypeError: one batch was passed for a list of batches.

    Example:
      >>> block = lambda w, x: x + jnp.tanh(x @ w)
      >>> params = jax.random.normal(jax.random.key(0), (3, 8, 8)) / 3
      >>> new = reconstruct_blocks(block, params, [jax.random.normal(jax.random.key(1), (50, 8))], 0.5)
      >>> new.masks.sum((1, 2)).tolist()
      [32, 32, 32]
    """
    _tree.check_batches(batches)
    is_stacked = not isinstance(params, list | tuple)
    blocks = _unstacked(params) if is_stacked else list(params)
    if not blocks:
        raise ValueError("params holds no block: pass a list of trees, or a tree stacked along a leading axis")
    run, hidden, pruned = BlockRunner(block), list(batches), []
    for own in _progress.bar(blocks, progress, what="blocks"):
        new, _ = run.prune(own, hidden, sparsity, **how)
        hidden = run.forward(new.params, hidden)
        pruned.append(new)
    if is_stacked:
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *pruned)
    return Pruned(type(params)(p.params for p in pruned), type(params)(p.masks for p in pruned))


def _unstacked(params: PyTree) -> list[PyTree]:
    sizes = {name: (jnp.shape(leaf) or (0,))[0] for name, leaf in _tree.named_leaves(params)}
    if len(set(sizes.values())) > 1:
        lines = "\n".join(f"  {name}: {size}" for name, size in sizes.items())
        raise ValueError(f"stacked params must have as many blocks in each leaf, along the leading axis; got:\n{lines}")
    count = next(iter(sizes.values()), 0)
    return [jax.tree.map(lambda x, i=i: x[i], params) for i in range(count)]
