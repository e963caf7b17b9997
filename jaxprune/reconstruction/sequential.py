"""`reconstruct_sequential`: prunes layer by layer; each layer is calibrated on the outputs of the pruned layers."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby, islice
from typing import Any, NamedTuple, NoReturn, Unpack

import jax
import jax.numpy as jnp

from jaxprune import _jaxprs, _progress, _tree
from jaxprune._jaxprs.walk import Values, bind, walk
from jaxprune.calibration import Stats, calibrator
from jaxprune.calibration.stats import Inputs
from jaxprune.masks import Pruned
from jaxprune.prune import How
from jaxprune.reconstruction.plan import Leaf, plan, with_statistics
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
    weights on its current inputs (Frantar and Alistarh 2023, section 4). Each stage compiles `fn` anew and runs it over
    all batches, so there is one pass over the data for each stage.

    For layers stacked by `jax.lax.scan` (also through `flax.linen.scan`), this function keeps the hidden states that
    enter the current layer. Each stage then runs one layer and not the whole network, so that the cost is linear in the
    depth, and a stage compiles once for all layers. The scan must be outside other loops, and its layers must be leaves
    of `params` stacked along their first axis; otherwise each stage of each layer runs the whole function.

    Args:
      fn: a function `fn(params, batch)`; its result is not used. Use evaluation mode.
      params: any tree of arrays.
      batches: a list of trees of arrays, or another iterable that can be iterated over once for each stage.
      sparsity: the fraction removed, in [0, 1): a number, a mapping from globs or a tree; see `reconstruct`. Default
        None.
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
    wanted = plan(params, first, sparsity, masks, with_criterion(how, method, masks), method.name)
    if wanted.ranks_all:
        raise ValueError(
            "reconstruct_sequential prunes stage by stage, but allocation.one_ranking ranks all leaves together; pass "
            "an allocation that gives each leaf a sparsity, such as allocation.erk, or pass masks"
        )
    flat, treedef = jax.tree.flatten(params)
    kept = [jnp.ones((), bool)] * len(flat)
    stages = list(rounds(first, wanted.leaves))
    scans = {loop: _Scan.find(fn, params, batches, loop, stages) for loop in {stage.loop for stage in stages} - {None}}
    runs: dict[Any, Callable[..., Stats]] = {}

    def calibrated_on(stage: Stage, scan: "_Scan | None", states: Iterable[Any]) -> tuple[list[Leaf], Stats]:
        """Returns the leaves of a stage with the current sums of their inputs."""
        if stage.names not in runs:
            block, own = (fn, params) if scan is None else (scan.block, scan.own(flat, 0))
            runs[stage.names] = calibrator(block, own, where=_named(stage.names), **options)
        if scan is None or stage.layer is None:
            whole = jax.tree.unflatten(treedef, flat)
            stats = runs[stage.names](whole, states)
            return with_statistics(whole, stats), stats
        stats = runs[stage.names](scan.own(flat, stage.layer), states)
        return scan.as_whole(
            [leaf for leaf in wanted.leaves if leaf.name in stage.names], flat, first, stats, stage.layer
        )

    with _progress.bar(total=len(stages), progress=progress, what="stages") as bar:
        for stage, scan, states in _with_states(stages, scans, flat, batches):
            found, stats = calibrated_on(stage, scan, states)
            for leaf, target in wanted.of(jax.tree.unflatten(treedef, flat), stats, found):
                if target is not None:
                    flat[leaf.position], mask = prune_leaf(leaf, target, method.kernel, stage.layer)
                    kept[leaf.position] = kept[leaf.position] & mask
            check_finite(found, [flat[leaf.position] for leaf in found])
            bar.update()
    return Pruned(treedef.unflatten(flat), treedef.unflatten(kept), *wanted.known)


class Stage(NamedTuple):
    """Leaves that are pruned together.

    Attributes:
      names: the names of the leaves, which are multiplied by the same activation.
      layer: the matrix to prune, a layer of a scan; None for all matrices.
      loop: the place of the scan in the jaxpr, the indices of nested equations; None without a scan.
    """

    names: tuple[str, ...]
    layer: int | None
    loop: tuple[int, ...] | None


def rounds(stats: Stats, leaves: Sequence[Leaf]) -> Iterator[Stage]:
    """Yields the stages in order of execution."""
    chosen = {leaf.name: leaf for leaf in leaves}
    groups = [together._replace(names=tuple(n for n in together.names if n in chosen)) for together in stats.together]
    for loop, members in groupby((g for g in groups if g.names), key=lambda g: g.loop):
        names = [g.names for g in members]
        layers = [None] if loop is None else range(chosen[names[0][0]].inputs.layout.sizes[0])
        yield from (Stage(own, layer, loop) for layer in layers for own in names)


def _with_states(
    stages: Sequence[Stage], scans: dict[Any, "_Scan | None"], flat: list[Any], batches: Iterable[PyTree]
) -> Iterator[tuple[Stage, "_Scan | None", Iterable[Any]]]:
    """Yields each stage with its scan and the states of the batches; `flat` changes in between."""
    for loop, members in groupby(stages, key=lambda stage: stage.loop):
        scan = scans.get(loop)
        if scan is None:
            yield from ((stage, None, batches) for stage in members)
            continue
        states = [scan.enter(flat, batch) for batch in batches]
        for layer, own in groupby(scan.in_order(members), key=lambda stage: stage.layer):
            yield from ((stage, scan, states) for stage in own)
            states = [scan.step(scan.own(flat, layer), state) for state in states]


def _named(names: tuple[str, ...]) -> Callable[[str, Any], bool]:
    return lambda name, leaf: name in names and _tree.is_floating(leaf)


class _Arrived(Exception):
    """Carries the operands of the scan out of the walk over the equations before it."""


class _Scan:
    """A scan over stacked layers, cut out of a function: one layer at a time runs on hidden states that are kept.

    The state of a batch is the list of the scan's operands, None in place of the stacked leaves, and the number of the
    layer that comes next.
    """

    def __init__(self, closed: Any, path: tuple[int, ...], sub: _jaxprs.Sub, leaves: dict[int, tuple[int, str]]):
        """Cuts at the scan `sub`, which is at `path`; `leaves`: operand -> position and name of the stacked leaf."""
        self._closed, self._path, self._sub, self._leaves = closed, path, sub, leaves
        self._enter, self.step = jax.jit(self._operands), jax.jit(self._step)

    @staticmethod
    def find(fn: Callable, params: PyTree, batches: Iterable[PyTree], loop: Any, stages: list[Stage]) -> "_Scan | None":
        """Returns the scan of these stages, or None if it cannot be cut out.

        It can be cut out if only calls such as jit surround it, if each pruned leaf is an unchanged operand of the scan
        and is used nowhere else, and if all batches have the same shapes.
        """
        shapes = {str(jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), batch)) for batch in batches}
        traced = _jaxprs.trace(fn, params, next(iter(batches)))
        position = {p: i for i, p in enumerate(traced.inputs[: len(jax.tree.leaves(params))]) if p is not None}
        uses: dict[int, int] = {}
        reached: list[tuple[_jaxprs.Sub, list[int | None]]] = []

        def visit(jaxpr: Any, given: Sequence[int | None], path: tuple[int, ...]) -> list[int | None]:
            def equation(index: int, eqn: Any, operands: list[int | None]) -> Sequence[int | None]:
                subs = _jaxprs.sub_jaxprs(eqn)
                if subs and subs[0].role == "call":
                    inputs = [None if i is None else operands[i] for i in subs[0].inputs]
                    return visit(subs[0].jaxpr, [*[None] * len(subs[0].consts), *inputs], (*path, index))
                for leaf in operands:
                    if leaf is not None:
                        uses[leaf] = uses.get(leaf, 0) + 1
                if (*path, index) == loop:
                    reached.append((subs[0], operands))
                return [None] * len(eqn.outvars)

            return walk(jaxpr, given, Values[int | None](lambda _: None), equation)

        jaxpr = traced.closed.jaxpr
        inputs = [position.get(i) for i in range(len(jaxpr.invars))]
        _ = visit(jaxpr, [*[None] * len(jaxpr.constvars), *inputs], ())
        if not reached or len(shapes) > 1 or len(traced.closed.consts) != len(jaxpr.constvars):
            return None
        sub, operands = reached[0]
        names = [name for name, _ in _tree.named_leaves(params)]
        leaves = {
            k: (leaf, names[leaf])
            for k, leaf in enumerate(operands)
            if k in sub.stacked_inputs and leaf is not None and uses[leaf] == 1
        }
        pruned = {name for stage in stages if stage.loop == loop for name in stage.names}
        return _Scan(traced.closed, loop, sub, leaves) if pruned <= {name for _, name in leaves.values()} else None

    def enter(self, flat: Sequence[Any], batch: PyTree) -> tuple[jax.Array, list[Any]]:
        """Returns the state of a batch before the first layer."""
        arrays = [x for x in (*flat, *jax.tree.leaves(batch)) if _tree.is_array(x)]
        return jnp.asarray(self.order[0]), self._enter(arrays)

    @property
    def order(self) -> list[int]:
        """The layers in order of execution."""
        layers = range(int(self._sub.length or 0))
        return [*reversed(layers)] if self._sub.reverse else [*layers]

    def in_order(self, stages: Iterable[Stage]) -> list[Stage]:
        """Returns the stages of the scan, layers in order of execution."""
        place = {layer: i for i, layer in enumerate(self.order)}
        return sorted(stages, key=lambda stage: place[stage.layer or 0])

    def own(self, flat: Sequence[Any], layer: int | None) -> dict[str, jax.Array]:
        """Returns the stacked leaves' slices of one layer, by the names of the leaves."""
        return {name: flat[position][layer] for position, name in self._leaves.values()}

    def block(self, own: dict[str, jax.Array], state: tuple[jax.Array, list[Any]]) -> list[jax.Array]:
        """Runs one layer; returns the results of the scan's body."""
        layer, operands = state
        inputs = [
            own[self._leaves[k][1]] if k in self._leaves else x[layer] if k in self._sub.stacked_inputs else x
            for k, x in enumerate(operands)
        ]
        consts = [*map(jnp.asarray, self._sub.consts)]
        return _evaluated(self._sub.jaxpr, [*consts, *inputs])

    def as_whole(
        self, leaves: Sequence[Leaf], flat: Sequence[Any], first: Stats, stats: Stats, layer: int
    ) -> tuple[list[Leaf], Stats]:
        """Returns the whole leaves with the statistics of one layer, as targets and criteria take them.

        Only the layer has Gram matrices; the squares of the other layers are zero.
        """
        found, inputs = [], {}
        for leaf in leaves:
            seen, layout = stats[leaf.name], leaf.inputs.layout
            square = jnp.zeros((layout.sizes[0], layout.sizes[1]), seen.square.dtype).at[layer].set(seen.square[0])
            own = Inputs(layout, leaf.inputs.count, gram=seen.gram, square=square)
            found.append(leaf._replace(array=flat[leaf.position], inputs=own))
            inputs[next(k for k in first.inputs if "/".join(k) == leaf.name)] = own
        return found, replace(first, inputs=inputs)

    def _step(self, own: dict[str, jax.Array], state: tuple[jax.Array, list[Any]]) -> tuple[jax.Array, list[Any]]:
        outs, operands = self.block(own, state), list(state[1])
        for out, into in self._sub.carried:
            operands[into] = outs[out]
        return state[0] + (-1 if self._sub.reverse else 1), operands

    def _operands(self, arrays: Sequence[jax.Array]) -> list[jax.Array | None]:
        """Returns the operands of the scan, None in place of the stacked leaves."""

        def arrive(jaxpr: Any, consts: Sequence[Any], given: Sequence[Any], path: tuple[int, ...]) -> NoReturn:
            def equation(index: int, eqn: Any, operands: list[Any]) -> Sequence[Any]:
                if index != path[0]:
                    return bind(eqn, operands)
                if len(path) == 1:
                    raise _Arrived(operands)
                [sub] = _jaxprs.sub_jaxprs(eqn)
                arrive(sub.jaxpr, sub.consts, [operands[i] for i in sub.inputs if i is not None], path[1:])

            _ = walk(jaxpr, [*consts, *given], Values[Any](jnp.asarray), equation)
            raise AssertionError("the scan is on the path")

        try:
            arrive(self._closed.jaxpr, self._closed.consts, arrays, self._path)
        except _Arrived as arrived:
            return [None if k in self._leaves else x for k, x in enumerate(arrived.args[0])]


def _evaluated(jaxpr: Any, given: Sequence[Any]) -> list[Any]:
    return walk(jaxpr, given, Values[Any](jnp.asarray), lambda _, eqn, operands: bind(eqn, operands))
