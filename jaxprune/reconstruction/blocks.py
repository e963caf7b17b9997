"""`reconstruct_blocks` prunes block after block and keeps the hidden states: each block runs twice."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Unpack

import jax
import jax.numpy as jnp

from jaxprune import _progress, _tree
from jaxprune.calibration import Stats, calibrator
from jaxprune.masks import Pruned
from jaxprune.reconstruction.reconstruct import method_of, reconstruct
from jaxprune.reconstruction.sequential import Repair

PyTree = Any
Block = Callable[[PyTree, PyTree], PyTree]


class BlockRunner:
    """A block function `(params, hidden) -> hidden`, compiled once for each shape of its arrays."""

    def __init__(self, block: Block) -> None:
        self._block, self._forward = block, jax.jit(block)
        self._calibrators: dict[Any, Callable[..., Stats]] = {}

    def forward(self, params: PyTree, hidden: Iterable[PyTree]) -> Iterator[PyTree]:
        """Yields the hidden states after the block, a batch at a time."""
        return (self._forward(params, x) for x in hidden)

    def calibrate(self, params: PyTree, hidden: Iterable[PyTree], where: Any = None, collect: str = "gram") -> Stats:
        """Returns the statistics of the block's leaves on the block's input hidden states; see `calibrate`."""
        chosen = tuple(jax.tree.leaves(_tree.has_two_axes(params, where)))
        # Shapes, not arrays: a calibrator must not keep the arrays of a block, and must not change if the caller
        # changes its tree.
        own = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if _tree.is_array(x) else x, params)
        key = jax.tree.structure(own), tuple(map(str, jax.tree.leaves(own))), chosen, collect
        if key not in self._calibrators:
            self._calibrators[key] = calibrator(self._block, own, collect=collect, where=where)
        return self._calibrators[key](params, hidden)

    def prune(self, params: PyTree, hidden: Iterable[PyTree], sparsity: Any, **how: Unpack[Repair]) -> Pruned:
        """Calibrates the block on its input hidden states, and prunes it by `reconstruct`."""
        needs = method_of(how.get("method", "sparsegpt")).needs
        stats = self.calibrate(params, hidden, how.get("where"), "gram" if needs == "gram" else "square")
        return reconstruct(params, stats, sparsity, **how)


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

    Use it for deep networks of equal blocks, such as transformers, whose function is a Python loop over the blocks: it
    keeps the hidden states that enter the current block, and runs each block twice: to calibrate it, and pruned.
    `reconstruct_sequential` finds the blocks of a `jax.lax.scan` itself and calibrates each layer within a block on the
    layers before it. For a language model on disk see `jaxprune.models.prune_folder`. Frantar and Alistarh 2023, arXiv
    2301.00774, section 4.

    Args:
      block: `(params of one block, hidden) -> hidden`, traced by jit.
      params: the blocks' parameters: a list or tuple with a tree for each block, or one tree whose leaves are stacked
        along a leading axis, as `jax.lax.scan` takes them.
      batches: the inputs of the first block: a list of trees of arrays (hidden states, after the embedding).
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
        new = run.prune(own, hidden, sparsity, **how)
        hidden = list(run.forward(new.params, hidden))
        pruned.append(new)
    if is_stacked:
        new = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(p.params for p in pruned))
        masks = jax.tree.map(lambda *leaves: _stacked(leaves), *(p.masks for p in pruned))
        known = [replace(r, axes=("stacked", *r.axes), layout=None) for r in pruned[0].roles]
        return Pruned(new, masks, _renamed(params, known), (), pruned[0].reasons)
    together = lambda each: tuple(x for own in each for x in own)
    return Pruned(
        type(params)(p.params for p in pruned),
        type(params)(p.masks for p in pruned),
        _renamed(params, together(p.roles for p in pruned)),
        together(p.patterns or (None,) * len(p.roles) for p in pruned),
        together(p.reasons for p in pruned),
    )


def _renamed(params: PyTree, roles: Sequence[_tree.LeafRole]) -> tuple[_tree.LeafRole, ...]:
    """Returns the roles of the blocks' leaves, with the names and shapes of the leaves of `params`."""
    flat = zip(_tree.with_paths(params), roles, strict=True)
    return tuple(
        replace(role, name=_tree.name(path), identity=_tree.identity(path), shape=tuple(jnp.shape(leaf)))
        for (path, leaf), role in flat
    )


def _stacked(masks: Sequence[jax.Array]) -> jax.Array:
    """Returns the masks of all blocks; a scalar True if no block has a mask for the leaf."""
    shape = jnp.broadcast_shapes(*(mask.shape for mask in masks))
    return jnp.stack([jnp.broadcast_to(mask, shape) for mask in masks]) if shape else jnp.ones((), bool)


def _unstacked(params: PyTree) -> list[PyTree]:
    sizes = {name: (jnp.shape(leaf) or (0,))[0] for name, leaf in _tree.named_leaves(params)}
    if len(set(sizes.values())) > 1:
        lines = "\n".join(f"  {name}: {size}" for name, size in sizes.items())
        raise ValueError(f"stacked params must have as many blocks in each leaf, along the leading axis; got:\n{lines}")
    count = next(iter(sizes.values()), 0)
    return [jax.tree.map(lambda x, i=i: x[i], params) for i in range(count)]
