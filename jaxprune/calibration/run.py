"""`calibrate` and `calibrator`: run batches through a function and sum up the activations of each parameter."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import _jaxprs, _progress, _tree
from jaxprune._jaxprs import views
from jaxprune._jaxprs.factors import Layout, NotFollowed, Place, Site, layout_of
from jaxprune.calibration import routing
from jaxprune.calibration.interpreter import SCALED, Interpreter, Sums
from jaxprune.calibration.stats import Experts, Inputs, Moments, Stats, Together
from jaxprune.calibration.values import Key, Value

PyTree = Any
COLLECTABLE = ("gram", "square", "total", "zeros")


def calibrate(
    fn: Callable[[PyTree, PyTree], Any],
    params: PyTree,
    batches: Iterable[PyTree],
    *,
    collect: str | Sequence[str] = "gram",
    where: _tree.Where = None,
    dtype: Any = jnp.float32,
    max_bytes: int = 2**31,
    progress: bool | None = None,
) -> Stats:
    r"""Sums up the activations that each parameter is multiplied by, over batches, for any function.

    Criteria and reconstruction need to know the inputs $x$ of each weight matrix. This function follows each
    parameter to all its matrix products and convolutions, and sums $X^T X$ and other moments over the rows $x$ of the
    other operand. It follows parameters through casts, reshapes, transposes, slices, concatenations,
    broadcasts, masks and scales (any factor or summand that does not depend on data), through jit, remat, custom
    derivatives and vmap, and through scans over layers or over time.

    A parameter that is used several times gets the sum over its uses. If several products use different parts of an
    input axis, the blocks of the Gram matrix between these parts are zero. The rows of a convolution are the patches
    under its kernel. For one batch they take the memory of the input times the number of kernel positions.

    In a mixture of experts that chooses experts for each token (by `top_k`, `argmax` or a sort) the weights of each
    expert get the sums over the tokens that the router sends to it, and `count` is the number of these tokens. This
    holds for experts that compute all tokens before the choice enters, for slots of a capacity (masks in einsums,
    gathers and scatters by the number of the expert), for `ragged_dot`, and for matrices that are gathered for each
    token. `Stats.experts` contains what the scores of experts need, and a warning names the experts with so few tokens
    that their Gram matrices are singular.

    Calibration cannot follow parameters into `while`, `cond` and `shard_map`, through a computed index, or through a
    convolution with batch_group_count. `Stats.uncovered` names the leaves without any sums, with the reason.
    `Stats.partly` names the leaves whose sums miss some uses, and the leaves that are multiplied by a constant or by
    another parameter (learned queries, or `a` and `b` in `x @ (a @ b)`). It also names the leaves that the function
    multiplies by a factor that varies along their inputs, other than a mask: the sums leave this factor out, and a
    warning says so.

    Args:
      fn: a function `fn(params, batch)`; its result is not used. Use evaluation mode: calibration runs dropout and
        batch statistics as `fn` has them.
      params: any tree of arrays.
      batches: an iterable of trees of arrays. A leading axis may be sharded over devices. Shapes may differ between
        batches; each new shape compiles once. Memory holds one batch at a time.
      collect: one or more of "gram" (matrices of inputs x inputs; includes "square"), "square" (sums of squares),
        "total" (sums, for means) and "zeros" (how often an input is exactly zero). Default "gram".
      where: which leaves: a predicate `(name, leaf) -> bool`, a glob or a list of globs; default None: every floating
        leaf with two axes or more, embeddings included.
      dtype: the floating dtype of the sums; default float32. float64 needs
        `jax.config.update("jax_enable_x64", True)`.
      max_bytes: the largest size of the Gram matrices of one leaf, in bytes; default 2 GiB.
      progress: whether to show a progress bar; None (default) shows one if stderr is a terminal.

    Returns:
      The sums of each leaf, as `Stats`.

    Raises:
      TypeError: `batches` is a single batch; `fn` is not a function; `where` has another type or selects a leaf that is
        not floating.
      ValueError: there are no batches; no leaf could be followed; a Gram matrix is larger than `max_bytes` (the message
        names the leaf); activations are not finite; a glob of `where` matches no leaf; `collect` is unknown; `dtype` is
        not floating, or is float64 without x64.
      ImportError: `progress=True` and tqdm is not installed.

    Example:
      >>> params = {'dense': {'kernel': jnp.ones((3, 2)), 'bias': jnp.ones(2)}}
      >>> fn = lambda p, x: x @ p['dense']['kernel'] + p['dense']['bias']
      >>> stats = calibrate(fn, params, [jnp.eye(3), 2 * jnp.eye(3)])
      >>> stats['dense/kernel'].gram[0].diagonal().tolist(), int(stats['dense/kernel'].count[0, 0])
      ([5.0, 5.0, 5.0], 6)
    """
    run = calibrator(fn, params, collect=collect, where=where, dtype=dtype, max_bytes=max_bytes)
    _tree.check_batches(batches)  # before the progress bar wraps them
    return run(params, _progress.bar(batches, progress, what="calibrate"))


def calibrator(
    fn: Callable[[PyTree, PyTree], Any],
    params: PyTree,
    *,
    collect: str | Sequence[str] = "gram",
    where: _tree.Where = None,
    dtype: Any = jnp.float32,
    max_bytes: int = 2**31,
) -> Callable[[PyTree, Iterable[PyTree]], Stats]:
    """Returns a compiled `calibrate` for parameters that change: it compiles once for each shape of batch.

    Args:
      fn: a function `fn(params, batch)`; its result is not used.
      params: the parameters as arrays or ShapeDtypeStructs; only their shapes matter here.
      collect: one or more of "gram" (default), "square", "total" and "zeros"; see `calibrate`.
      where: which leaves: a predicate `(name, leaf) -> bool`, a glob or a list of globs; default None: every floating
        leaf with two axes or more, embeddings included.
      dtype: the floating dtype of the sums; default float32.
      max_bytes: the largest size of the Gram matrices of one leaf, in bytes; default 2 GiB.

    Returns:
      A function `(params, batches) -> Stats`.

    Raises:
      ValueError: `collect` is unknown, or `dtype` is not floating. The returned function raises what `calibrate` does.

    Example:
      >>> run = calibrator(lambda w, x: x @ w, jax.ShapeDtypeStruct((3, 2), jnp.float32))
      >>> run(jnp.ones((3, 2)), [jnp.eye(3)])[""].square.tolist()
      [[1.0, 1.0, 1.0]]
    """
    wanted = _wanted(collect)
    _check_dtype(dtype)
    if not callable(fn):
        swapped = ": fn and params are swapped" if callable(params) else ""
        raise TypeError(f"fn must be a function fn(params, batch); got {_tree.shown(fn)}{swapped}")
    tracing = _Run(fn, params, _tree.has_two_axes(params, where), wanted, dtype, max_bytes)
    steps: dict[Any, tuple[Callable, _Plan]] = {}

    def run(params: PyTree, batches: Iterable[PyTree]) -> Stats:
        tracing.check(params)
        arrays = [leaf for leaf in jax.tree.leaves(params) if _tree.is_array(leaf)]
        plan, sums = None, {}
        counts: dict[int, Any] = {}
        _tree.check_batches(batches)
        for batch in batches:
            shapes = _shapes(batch)
            if shapes not in steps:
                steps[shapes] = tracing.compile(batch)
            step, here = steps[shapes]
            if plan is None:
                sums, counts = here.zeros(dtype), dict.fromkeys(here.layouts, 0)
            elif (plan.layouts, plan.of) != (here.layouts, here.of):
                raise ValueError(
                    "batches of different shapes use the parameters in different ways; calibrate them separately"
                )
            plan = here
            sums = step(sums, arrays, [leaf for leaf in jax.tree.leaves(batch) if _tree.is_array(leaf)])
            counts = {leaf: counts[leaf] + n for leaf, n in plan.counts.items()}
        if plan is None:
            raise ValueError("batches is empty: calibration needs at least one batch")
        return _collected(params, plan, sums, counts)

    return run


class _Plan(NamedTuple):
    """The layout and the number of samples of each leaf, which are known once a function is traced.

    `collected` names the sums of each leaf, and `experts` the leaves of each sum over experts, with its shapes. Leaves
    that are multiplied by the same activation have the same sums, which are stored once, under the number of the first
    of these leaves; `of` maps the number of each leaf to it. The k-th sum over experts is stored under -1 - k.
    """

    layouts: dict[int, Layout]
    of: dict[int, int]
    collected: dict[int, frozenset[str]]
    experts: dict[Key, tuple[tuple[tuple[str, int | None], ...], dict[str, tuple[int, ...]]]]
    counts: dict[int, np.ndarray]
    uncovered: tuple[tuple[str, str], ...]
    partly: tuple[tuple[str, str], ...]
    together: tuple[Together, ...]
    roles: _tree.Roles

    def zeros(self, dtype: Any) -> dict[int, Moments]:
        """Returns zeros in the shapes of the sums, made by one program."""
        shapes: dict[int, dict[str, Any]] = {}
        for leaf in set(self.of.values()):
            batch, inputs = ([f.size for f in axes] for axes in (self.layouts[leaf].batch, self.layouts[leaf].inputs))
            shapes[leaf] = {
                what: ((*batch, *inputs, *(inputs if what == "gram" else ())), jnp.int32 if what == "count" else dtype)
                for what in self.collected[leaf]
            }
        for k, (_, own) in enumerate(self.experts.values()):
            shapes[-1 - k] = {what: (shape, dtype) for what, shape in own.items()}
        numbers, sums = zip(*shapes.items(), strict=True)
        made = _zeros(tuple(tuple(own.values()) for own in sums))
        return {k: dict(zip(own, new, strict=True)) for k, own, new in zip(numbers, sums, made, strict=True)}


class _Run(NamedTuple):
    fn: Callable
    params: PyTree
    chosen: PyTree
    collect: frozenset[str]
    dtype: Any
    max_bytes: int

    def check(self, params: PyTree) -> None:
        """Raises unless these are parameters of the shapes that the function was made for."""
        own, given = _shapes(self.params), _shapes(params)
        if own[1] != given[1]:
            _tree.check_same(self.params, params, what="these params", of="the params of calibrator")
            lines = [
                f"  {name}: {_tree.shown(new)}, expected {_tree.shown(old)}"
                for (name, new), old in zip(_tree.named_leaves(params), jax.tree.leaves(self.params), strict=True)
            ]
            raise ValueError("params must have the shapes that calibrator was made for:\n" + "\n".join(lines))

    def compile(self, batch: PyTree) -> tuple[Callable, _Plan]:
        """Returns a jitted function that adds the sums of one batch of this shape, and the plan of the sums."""
        traced = _jaxprs.trace(self.fn, self.params, batch)
        n_params = len(jax.tree.leaves(self.params))
        leaf_at = {p: leaf for leaf, p in enumerate(traced.inputs[:n_params]) if p is not None}
        chosen = jax.tree.leaves(self.chosen)
        roles = _jaxprs.roles_of(traced, _jaxprs.leaves_of(self.params))

        routed = routing.chooses(traced.closed.jaxpr)

        def interpret(arrays: Sequence[Any]) -> tuple[Interpreter, Sums]:
            machine = Interpreter(self.collect, self.dtype, routed=routed)
            values = []
            for i, x in enumerate(arrays):
                leaf = leaf_at.get(i)
                # Tokens also pass through weights of experts that `where` leaves out.
                seen = (views.whole(leaf, x.shape),) if leaf is not None and (chosen[leaf] or routed) else ()
                values.append(Value(x, seen, leaf is None, ("in", i)))
            return machine, machine.run_whole(traced.closed.jaxpr, traced.closed.consts, values)[1]

        planned: list[tuple[_Plan, dict[int, list[tuple[Any, Place]]]]] = []

        def shapes_of(arrays: Sequence[Any]) -> int:
            planned.append(self._plan(*interpret(arrays), roles))
            return 0

        inputs = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in traced.closed.jaxpr.invars]
        _ = jax.eval_shape(shapes_of, inputs)
        plan, places = planned[0]
        scaled = [name for name, why in plan.partly if SCALED in why]
        if scaled:
            warnings.warn(
                f"the function multiplies {', '.join(scaled)} by {SCALED}, and the sums leave the factor out: multiply "
                "the inputs by the factor instead, or multiply the weights by it once and calibrate them without it; "
                "if the factor is a mask, make it boolean",
                stacklevel=2,
            )

        def step(sums: dict[int, Moments], params: Sequence[Any], data: Sequence[Any]) -> dict[int, Moments]:
            found = interpret([*params, *data])[1]
            add = lambda leaf: _add(
                sums[leaf], [(found[key], place) for key, place in places[leaf]], plan.layouts[leaf]
            )
            experts = {-1 - k: jax.tree.map(jnp.add, sums[-1 - k], found[key]) for k, key in enumerate(plan.experts)}
            return {leaf: add(leaf) for leaf in set(plan.of.values())} | experts

        return jax.jit(step, donate_argnums=0), plan

    def _plan(
        self, machine: Interpreter, sums: Sums, roles: _tree.Roles
    ) -> tuple[_Plan, dict[int, list[tuple[Any, Place]]]]:
        """Returns which sums belong to which leaf, and where in the leaf. Raises if no leaf has sums."""
        named = _tree.named_leaves(self.params)
        chosen = [i for i, picked in enumerate(jax.tree.leaves(self.chosen)) if picked]
        found: dict[int, Layout] = {}
        places: dict[int, list[tuple[Any, Place]]] = {}
        lost = {leaf: list(reasons) for leaf, reasons in machine.lost.items()}
        for leaf in dict.fromkeys(site.leaf for site in machine.sites.values() if site.leaf in chosen):
            keys = [key for key, site in machine.sites.items() if site.leaf == leaf]
            try:
                layout, where = layout_of(tuple(named[leaf][1].shape), [machine.sites[k] for k in keys])
            except NotFollowed as reason:
                lost.setdefault(leaf, []).append(str(reason))
                continue
            found[leaf], places[leaf] = layout, list(zip(keys, where, strict=True))
        self._check_size({_tree.label(named[leaf][0]): layout for leaf, layout in found.items()})
        tell = lambda leaf: ", ".join(lost[leaf]) if leaf in lost else "enters no matrix product or convolution"
        uncovered = tuple((named[leaf][0], tell(leaf)) for leaf in chosen if leaf not in found)
        if not found:
            lines = "\n".join(f"  {_tree.label(name)}: {why}" for name, why in uncovered) or "  (where selects nothing)"
            raise ValueError(f"no parameter could be followed to a matrix product or convolution:\n{lines}")
        partly = tuple((named[leaf][0], tell(leaf)) for leaf in found if leaf in lost)
        counts = {leaf: _counts(found[leaf], [(machine.sites[k], p) for k, p in places[leaf]]) for leaf in found}
        groups: dict[Any, list[str]] = {}
        for leaf, layout in found.items():
            key = places[leaf][0][0]
            groups.setdefault((machine.sites[key].met, machine.loop(key, layout)), []).append(named[leaf][0])
        together = tuple(Together(tuple(names), loop) for (_, loop), names in groups.items())
        collected = {leaf: frozenset(what for key, _ in places[leaf] for what in sums[key]) for leaf in found}
        first: dict[Any, int] = {}
        alike = lambda leaf: (found[leaf].batch, found[leaf].inputs, *((id(sums[k]), str(p)) for k, p in places[leaf]))
        of = {leaf: first.setdefault(alike(leaf), leaf) for leaf in found}
        experts = {
            key: (
                tuple((named[machine.sites[k].leaf][0], machine.axis_of_experts(k)) for k in sites),
                {what: x.shape for what, x in sums[key].items()},
            )
            for key, sites in machine.experts.items()
        }
        return _Plan(found, of, collected, experts, counts, uncovered, partly, together, roles), places

    def _check_size(self, found: dict[str, Layout]) -> None:
        if "gram" not in self.collect:
            return
        size = lambda layout: layout.sizes[0] * layout.sizes[1] ** 2 * jnp.dtype(self.dtype).itemsize
        large = {name: layout for name, layout in found.items() if size(layout) > self.max_bytes}
        if large:
            lines = [
                f"  {name}: {x.sizes[0]} of {x.sizes[1]} x {x.sizes[1]}, {size(x):,} bytes" for name, x in large.items()
            ]
            raise ValueError(
                f"Gram matrices larger than max_bytes = {self.max_bytes:,}; pass collect='square' (the diagonal only), "
                "a `where` without these leaves, or a larger max_bytes:\n" + "\n".join(lines)
            )


def _add(sums: Moments, found: Sequence[tuple[Moments, Place]], layout: Layout) -> Moments:
    """Adds the sums of all sites of a leaf."""
    out = {}
    for what, before in sums.items():
        total, twice = before, 2 if what == "gram" else 1
        for moments, place in found:
            if what not in moments:  # all rows reach this product
                continue
            at, shape = _index(layout, place, twice)
            n_batch = len(place.order)
            part = moments[what]
            part = part.transpose(*place.order, *range(n_batch, part.ndim)).reshape(shape)
            # A reshape of the total between here and the donated argument would make XLA copy it.
            total = total + part if shape == total.shape else total.at[at].add(part)
        out[what] = total
    return out


def _index(layout: Layout, place: Place, twice: int) -> tuple[tuple[int | slice, ...], tuple[int, ...]]:
    batch = tuple(f.size for f, i in zip(layout.batch, place.batch, strict=True) if isinstance(i, slice))
    if len(place.inputs) != len(layout.inputs):
        return (), (*batch, *[f.size for f in layout.inputs] * twice)
    spans = tuple(slice(start, start + n) for start, n in place.inputs)
    return (*place.batch, *spans * twice), (*batch, *[n for _, n in place.inputs] * twice)


def _counts(layout: Layout, sites: Sequence[tuple[Site, Place]]) -> np.ndarray:
    """Returns the number of samples of each input of each matrix, [batch, inputs]."""
    batch, inputs, _ = layout.sizes
    out = np.zeros([f.size for f in (*layout.batch, *layout.inputs)])
    for site, place in sites:
        out[_index(layout, place, 1)[0] or ...] += site.samples
    return out.reshape(batch, inputs)


def _collected(params: PyTree, plan: _Plan, sums: dict[int, Moments], counts: dict[int, np.ndarray]) -> Stats:
    """Returns the statistics of the leaves from the sums of all batches, as arrays; raises if a sum is not finite."""
    flat = _tree.with_paths(params)
    # Leaves keep the order in which the function uses them.
    sizes = tuple((leaf, plan.layouts[leaf].sizes[:2]) for leaf in set(plan.of.values()))
    found, matrices = _as_matrices(sums, sizes)
    finite = jax.device_get(found)
    bad = [_tree.label(_tree.name(flat[leaf][0])) for leaf in plan.layouts if not finite[plan.of[leaf]]]
    if bad:
        raise ValueError(
            "activations are not finite (NaN or inf in the data or the parameters, or an overflow); the first leaves:\n"
            + "\n".join(f"  {name}" for name in bad[:10])
        )
    inputs = {}
    for leaf, layout in plan.layouts.items():
        moments = dict(matrices[plan.of[leaf]])
        count = counts[leaf] + np.asarray(moments.pop("count", 0), np.float64)
        inputs[_tree.identity(flat[leaf][0])] = Inputs(layout=layout, count=count, **moments)
    experts = tuple(Experts(leaves, **matrices[-1 - k]) for k, (leaves, _) in enumerate(plan.experts.values()))
    few = _few_tokens(plan, inputs, [_tree.identity(path) for path, _ in flat])
    if few:
        warnings.warn(
            "experts with fewer tokens than inputs: their Gram matrices are singular and their scores uncertain; "
            "calibrate more data:\n" + "\n".join(few[:10]),
            UserWarning,
            stacklevel=4,
        )
    return Stats(inputs, plan.uncovered, plan.partly, plan.together, plan.roles, experts)


@partial(jax.jit, static_argnums=0)
def _zeros(shapes: tuple[tuple[tuple[tuple[int, ...], Any], ...], ...]) -> list[list[jax.Array]]:
    return [[jnp.zeros(*x) for x in own] for own in shapes]


@partial(jax.jit, static_argnums=1, donate_argnums=0)
def _as_matrices(
    sums: dict[int, Moments], sizes: tuple[tuple[int, tuple[int, int]], ...]
) -> tuple[dict[int, jax.Array], dict[int, Moments]]:
    """Returns whether sums are finite, and the sums of leaves in the shapes of `Inputs`, in place of the old arrays."""
    finite = {k: jnp.stack([jnp.isfinite(x).all() for x in own.values()]).all() for k, own in sums.items()}
    new = dict(sums)
    for leaf, (batch, size) in sizes:
        shape = lambda what, batch=batch, size=size: (batch, size, size) if what == "gram" else (batch, size)
        new[leaf] = {what: x.reshape(shape(what)) for what, x in sums[leaf].items()}
        if "gram" in new[leaf]:
            new[leaf]["square"] = jnp.diagonal(new[leaf]["gram"], axis1=1, axis2=2)
    return finite, new


def _few_tokens(plan: _Plan, inputs: dict[Any, Inputs], names: Sequence[Any]) -> list[str]:
    lines = []
    for leaf, collected in plan.collected.items():
        if "count" not in collected:
            continue
        tokens = np.asarray(inputs[names[leaf]].count).max(-1)
        few = np.flatnonzero(tokens < (plan.layouts[leaf].sizes[1] if "gram" in collected else 1))
        shown = ", ".join(f"{j} ({tokens[j]:.0f})" for j in few[:8]) + (", ..." if few.size > 8 else "")
        if few.size:
            lines.append(f"  {'/'.join(names[leaf])}: {few.size} of {tokens.size} matrices; number (tokens): {shown}")
    return lines


def _wanted(collect: str | Sequence[str]) -> frozenset[str]:
    wanted = frozenset([collect] if isinstance(collect, str) else collect)
    if not wanted or not wanted <= set(COLLECTABLE):
        raise ValueError(f"collect must be one or more of {', '.join(COLLECTABLE)}, got {collect!r}")
    return wanted - {"square"} if "gram" in wanted else wanted


def _check_dtype(dtype: Any) -> None:
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype must be a floating type, got {jnp.dtype(dtype)}")
    if jnp.dtype(dtype) == jnp.float64 and not jax.config.read("jax_enable_x64"):
        raise ValueError('sums in float64 need jax.config.update("jax_enable_x64", True) before arrays are made')


def _shapes(batch: PyTree) -> Any:
    leaves, treedef = jax.tree.flatten(batch)
    return treedef, tuple((x.shape, str(x.dtype)) if _tree.is_array(x) else repr(x) for x in leaves)
