"""`follow`: which expert computes each row of a value, from the router to the weighted sum of the experts.

A mixture of experts chooses experts for each token with `top_k`, `argmax` or a sort, and moves rows: by masks in
einsums, by gathers and scatters, or by sorting for `ragged_dot`. This module follows three marks (`Trail`) beside the
arrays:

- `picked`: the value is computed from such a choice (indices, one-hot masks, gates).
- `filled`: a mask of the rows that contain a token; the other rows are empty slots of an expert.
- `routes`: the rows are computed by experts. `Route.owner` contains the number of the expert of each row.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune._jaxprs import primitives as mv
from jaxprune._jaxprs import sub_jaxprs
from jaxprune._jaxprs.primitives import PRIMITIVES, Entrywise, Moves, Product, Reduce
from jaxprune.calibration.values import (
    Combined,
    Equation,
    Marked,
    Route,
    Trail,
    axis_after,
    each_mark,
    flat_after,
    moved,
)

PICKS = frozenset({"top_k", "sort", "argmax", "argmin", "approx_top_k"})


def chooses(jaxpr: Any) -> bool:
    """Returns whether a jaxpr contains a choice that a router may have made."""
    return any(
        eqn.primitive.name in PICKS
        or eqn.primitive.name == "ragged_dot_general"
        or any(chooses(sub.jaxpr) for sub in sub_jaxprs(eqn))
        for eqn in jaxpr.eqns
    )


def mask_of(value: Marked) -> Any:
    """Marks where a chosen value is not zero, or its rows that contain a token; None for a value without a choice."""
    if value.trail.filled is not None:
        return value.trail.filled
    return _thin(value) != 0 if value.trail.picked else None


def _thin(value: Marked) -> Any:
    """Returns the array with a single entry along each axis along which it is constant."""
    return value.array[tuple(slice(0, 1) if a in value.trail.flat else slice(None) for a in range(value.array.ndim))]


def follow(eqn: Equation, operands: Sequence[Marked], results: Sequence[Any]) -> tuple[list[Trail], list[Combined]]:
    """Returns the marks of the results of an equation without jaxprs and without parameters that are products.

    Args:
      eqn: the equation.
      operands: its operands.
      results: the arrays of its results.

    Returns:
      The marks of each result, and the sums over experts that the equation computes.
    """
    name, what = eqn.primitive.name, PRIMITIVES.get(eqn.primitive.name)
    picked = any(v.trail.picked for v in operands) or (name in PICKS and any(v.data for v in operands))
    plain = [Trail(picked)] * len(results)
    if not any(v.trail.picked or v.trail.filled is not None or v.trail.routes or v.trail.flat for v in operands):
        flat = _flat(eqn, what, operands)
        return [Trail(picked, flat=flat)] * len(results), []
    if isinstance(what, Moves):
        return _moves(eqn, what, operands, picked), []
    if isinstance(what, Entrywise):
        trail, combined = _entrywise(eqn, what, operands, results[0], picked)
        return [trail] * len(results), combined
    if isinstance(what, Product):
        return _product(eqn, what, operands, results[0], picked)
    if isinstance(what, Reduce):
        return _reduce(eqn, what, operands[0], picked)
    if name == "gather":
        return [_gather(eqn, operands, picked)], []
    if name.startswith("scatter"):
        return _scatter(eqn, operands, picked)
    return plain, []


def _flat(eqn: Equation, what: Any, operands: Sequence[Marked]) -> frozenset[int]:
    if not isinstance(what, Moves) or what.each:
        return frozenset()
    [move, *_] = what.moves(eqn)
    return flat_after(move, operands[0])


def _moves(eqn: Equation, what: Moves, operands: Sequence[Marked], picked: bool) -> list[Trail]:
    if what.each:
        return [v.trail for v in operands]
    out = []
    value, shape = operands[0], operands[0].array.shape
    for move in what.moves(eqn):
        if isinstance(move, mv.Concatenate | mv.Stack):
            out.append(Trail(picked))
            continue
        change = lambda mark, move=move: moved(move, mark, shape)
        filled = None if value.trail.filled is None else change(value.trail.filled)
        routes = [each_mark(r, change, axis_after(move, r.axis, shape)) for r in value.trail.routes]
        out.append(
            Trail(value.trail.picked, filled, tuple(r for r in routes if r is not None), flat_after(move, value))
        )
    return out


def _entrywise(
    eqn: Equation, what: Entrywise, operands: Sequence[Marked], result: Any, picked: bool
) -> tuple[Trail, list[Combined]]:
    """Returns the marks of an entrywise result, and the sums over experts that end at this equation.

    A route follows the rows of experts through the function. Routes of several operands are joined. A loose operand is
    data without a route: as a factor it becomes the gate of a route; if it is added, the route ends and its rows are
    summed.
    """
    name, rank = eqn.primitive.name, jnp.ndim(result)
    arrays = [v for v in operands if v.array.ndim == rank and rank]
    flat = frozenset(
        a for a in range(rank) if all(a in v.trail.flat or (v.array.shape[a] == 1 != result.shape[a]) for v in arrays)
    )
    if not arrays:
        return Trail(picked), []
    routed = [v for v in arrays if v.trail.routes]
    if not routed:
        return Trail(*_filled(name, arrays, picked), flat=flat), []
    loose = [v for v in arrays if not v.trail.routes and v.data]
    routes: list[Route] = []
    for route in routed[0].trail.routes:
        joined: Route | None = route
        for other in routed[1:]:
            same = [r for r in other.trail.routes if r.axis == route.axis and r.size == route.size]
            joined = _joined(joined, same[0], name) if joined is not None and same else None
        if joined is not None:
            routes.append(joined)
    if not loose:
        linear = len(arrays) == 1 and len(what.linear.indices(1)) and bool(range(*what.linear.indices(1)))
        keep = linear or len(routed) > 1
        return Trail(routes=tuple(r if keep else r._replace(gate=None) for r in routes)), []
    if name in ("mul", "div"):
        return Trail(routes=tuple(_gated(r, loose, name, result.shape) for r in routes)), []
    if name == "select_n":
        return Trail(routes=tuple(routes)), []
    # The rows join other data: a residual stream. The experts' part of the function ends here.
    ends = name in ("add", "sub", "add_any")
    return Trail(), [rows_of(r, routed[0].array) for r in routes if ends and r.axis is None and r.sites and r.chosen]


def _filled(name: str, arrays: Sequence[Marked], picked: bool) -> tuple[bool, Any]:
    """Returns whether the result of an entrywise function is a chosen value, and a mask of its filled rows."""
    masks = [m for v in arrays if (m := mask_of(v)) is not None]
    plain = [v for v in arrays if v.data and mask_of(v) is None]
    if not plain and all(v.trail.filled is None for v in arrays):
        return picked, None
    if name in ("add", "sub", "add_any", "max", "min", "or"):
        if plain or not masks:
            return picked and not plain, None
        total = masks[0]
        for mask in masks[1:]:
            total = (total != 0) | (mask != 0)
        return False, total
    total = masks[0] if masks else None
    for mask in masks[1:]:
        total = (total != 0) & (mask != 0)
    return False, total


def _joined(a: Route, b: Route, name: str) -> Route:
    gate = a.gate if b.gate is None or b.gate is a.gate else b.gate if a.gate is None else None
    if name == "mul" and a.gate is not None and b.gate is not None:
        gate = a.gate * b.gate
    owner = a.owner if a.owner is b.owner else a.owner * (b.owner != 0)
    known = {site[0] for site in a.sites}
    sites = (*a.sites, *(site for site in b.sites if site[0] not in known))
    return Route(a.size, owner, gate, a.axis, sites, a.chosen or b.chosen)


def _gated(route: Route, others: Sequence[Marked], name: str, shape: Sequence[int]) -> Route:
    """Returns the route of rows that are multiplied by the router's gates."""
    for other in others:
        factor = _thin(other)
        features = [a for a, n in enumerate(route.owner.shape) if n == 1 and a != route.axis]
        rowwise = all(n == 1 for a, n in enumerate(factor.shape) if a in features and shape[a] != 1)
        if (rowwise and route.chosen) or _selects(route, other, factor.shape):
            gate = factor if name == "mul" else 1 / factor
            route = _with_gate(route, gate, _is_choice(other))
    return route


def _selects(route: Route, other: Marked, shape: Sequence[int]) -> bool:
    """Returns whether a factor is a router's choice among the experts of a route."""
    return _is_choice(other) and (route.axis is None or shape[route.axis] != 1 or route.size == 1)


def _with_gate(route: Route, gate: Any, choice: bool) -> Route:
    owner = route.owner * (gate != 0) if choice else route.owner
    whole = gate if route.gate is None else route.gate * gate
    return route._replace(owner=owner, gate=whole, chosen=route.chosen or choice)


def _is_choice(value: Marked) -> bool:
    return value.trail.picked or value.trail.filled is not None


def rows_of(route: Route, array: Any, times: Any = None, factor: Any = None) -> Combined:
    """Returns the sum over experts of an array whose rows have owners; `factor` multiplies the rows in the sum."""
    features = tuple(a for a, n in enumerate(route.owner.shape) if n == 1)
    wide = array.astype(jnp.promote_types(array.dtype, jnp.float32))
    norm = jnp.sqrt((wide * wide).sum(features, keepdims=True))
    own = jnp.ones(()) if route.gate is None else jnp.abs(route.gate)
    # The rows are multiplied by the route's gate already.
    bare = norm if route.gate is None else jnp.where(own > 0, norm / jnp.where(own > 0, own, 1), 0.0)
    factor = jnp.ones(()) if factor is None else factor
    times = jnp.ones(()) if times is None else times
    return Combined(route, route.owner, bare, times, own * factor, norm * factor)


def _place(pairs: Sequence[tuple[int, int]], array: Any, rank: int) -> Any:
    """Sums an operand of a product over its free axes and moves its other axes to the places of the rows' axes."""
    mine = [b for _, b in pairs]
    free = tuple(a for a in range(array.ndim) if a not in mine)
    array = array.sum(free)
    left = sorted(mine)
    target = [a for a, _ in sorted(pairs)]
    order = [left.index(b) for _, b in sorted(pairs)]
    shape = [1] * rank
    array = array.transpose(order)
    for axis, n in zip(target, array.shape, strict=True):
        shape[axis] = n
    return array.reshape(shape)


def _product(
    eqn: Equation, what: Product, operands: Sequence[Marked], result: Any, picked: bool
) -> tuple[list[Trail], list[Combined]]:
    """Returns the marks of a product of which one operand has routes, and the sums over experts that end in it."""
    (lc, rc), (lb, rb) = what.numbers(eqn)
    for me, other, contract, batch in (
        (0, 1, list(zip(lc, rc, strict=True)), list(zip(lb, rb, strict=True))),
        (1, 0, list(zip(rc, lc, strict=True)), list(zip(rb, lb, strict=True))),
    ):
        rows, mask = operands[me], operands[other]
        if not rows.trail.routes or mask.trail.routes:
            continue
        combined, routes = [], []
        for route in rows.trail.routes:
            at = [a for a, _ in contract]
            ends = route.axis in at if route.axis is not None else any(route.owner.shape[a] != 1 for a in at)
            if ends and route.sites and (route.chosen or _is_choice(mask)):
                pairs = [*contract, *batch]
                size = jnp.abs(mask.array.astype(jnp.promote_types(mask.array.dtype, jnp.float32)))
                times, gate = (_place(pairs, x, rows.array.ndim) for x in ((size != 0).astype(size.dtype), size))
                owner = route.owner * (times != 0)
                combined.append(rows_of(route._replace(owner=owner), rows.array, times, gate))
            elif not contract and not ends:
                kept = _gate_of_product(route, batch, mask, rows.array.ndim)
                routes += [] if kept is None else [kept]
        return [Trail(routes=tuple(routes))], combined
    masks = [mask_of(v) for v in operands]
    if all(v.trail.routes for v in operands) or all(m is None for m in masks):
        return [Trail()], []
    if all(m is not None for m in masks):
        return [Trail(picked)], []
    k = 0 if masks[0] is not None else 1
    mask, contract, batch = masks[k], (lc, rc)[k], (lb, rb)[k]
    found = (mask != 0).any(contract, keepdims=True)
    free = [a for a in range(mask.ndim) if a not in (*contract, *batch)]
    others = result.ndim - len(batch) - len(free)
    kept = found.transpose(*batch, *free, *contract).reshape([found.shape[a] for a in (*batch, *free)])
    lead = kept.shape[: len(batch)]
    shape = (
        (*lead, *kept.shape[len(batch) :], *[1] * others)
        if k == 0
        else (*lead, *[1] * others, *kept.shape[len(batch) :])
    )
    return [Trail(filled=kept.reshape(shape))], []


def _gate_of_product(route: Route, batch: Sequence[tuple[int, int]], mask: Marked, rank: int) -> Any:
    """Returns the route of rows that a product without contraction multiplies by gates."""
    if mask.array.ndim != len(batch):
        return None
    first = [a for a, _ in batch]
    order = [*first, *(a for a in range(rank) if a not in first)]
    moved = each_mark(route, lambda x: x.transpose(order), None if route.axis is None else order.index(route.axis))
    assert moved is not None
    route = moved
    gate = mask.array.transpose([b for _, b in batch]).reshape(
        [mask.array.shape[b] for _, b in batch] + [1] * (rank - len(batch))
    )
    if not (route.chosen or _selects(route, mask, gate.shape)):
        return route
    return _with_gate(route, gate, _is_choice(mask))


def _reduce(eqn: Equation, what: Reduce, value: Marked, picked: bool) -> tuple[list[Trail], list[Combined]]:
    axes = tuple(what.axes(eqn))
    combined, routes = [], []
    for route in value.trail.routes:
        ends = route.axis in axes or any(route.owner.shape[a] != 1 for a in axes)
        if ends:
            combined += [rows_of(route, value.array)] if what.sums and route.sites and route.chosen else []
            continue
        axis = None if route.axis is None else route.axis - sum(a < route.axis for a in axes)
        left = each_mark(route, lambda x: x.reshape([n for a, n in enumerate(x.shape) if a not in axes]), axis)
        routes += [] if left is None else [left._replace(gate=None)]
    filled = value.trail.filled
    filled = None if filled is None or value.trail.routes else (filled != 0).any(axes)
    flat = frozenset(a - sum(b < a for b in axes) for a in value.trail.flat if a not in axes)
    kept = picked and not value.trail.routes
    count = len(eqn.outvars)
    return [Trail(kept, filled, tuple(routes), flat)] * count, combined


def _gather(eqn: Equation, operands: Sequence[Marked], picked: bool) -> Trail:
    value, indices = operands[0], operands[1]
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    indexed = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    cut = {a for a, n in enumerate(sizes) if n != value.array.shape[a]} - indexed
    if cut:
        return Trail(picked)

    def change(mark: Any) -> Any:
        shape = [value.array.shape[a] if a in indexed else n for a, n in enumerate(mark.shape)]
        own = [1 if a in indexed else n for a, n in enumerate(shape)]
        params = {**eqn.params, "slice_sizes": tuple(own), "fill_value": 0}
        return eqn.primitive.bind(
            jnp.broadcast_to(mark, shape).astype(jnp.promote_types(mark.dtype, jnp.int32)), indices.array, **params
        )

    routes = [each_mark(r, change, None) for r in value.trail.routes]
    mask = None if routes or not value.trail.filled is not None else change(value.trail.filled)
    return Trail(picked and not routes, mask, tuple(r for r in routes if r is not None))


def _scatter(eqn: Equation, operands: Sequence[Marked], picked: bool) -> tuple[list[Trail], list[Combined]]:
    """Returns the marks of a scatter: tokens written into slots of experts, or rows of experts written back."""
    base, indices, updates = operands
    numbers = eqn.params["dimension_numbers"]
    window = [
        a for a in range(base.array.ndim) if a not in (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    ]
    whole = all(
        base.array.shape[a] == updates.array.shape[u] for a, u in zip(window, numbers.update_window_dims, strict=True)
    )
    if base.data or not whole or eqn.primitive.name not in ("scatter", "scatter-add", "scatter_add"):
        return [Trail(picked and not updates.trail.routes)], []

    def change(mark: Any) -> Any:
        thin = [n if u in numbers.update_window_dims else updates.array.shape[u] for u, n in enumerate(mark.shape)]
        shape = list(base.array.shape)
        for a, u in zip(window, numbers.update_window_dims, strict=True):
            shape[a] = thin[u]
        mark = jnp.broadcast_to(mark, thin)
        mark = mark.astype(jnp.promote_types(mark.dtype, jnp.int32))
        return eqn.primitive.bind(jnp.zeros(shape, mark.dtype), indices.array, mark, **eqn.params)

    if updates.trail.routes:
        rows = updates.array.size // max(1, _sizes(updates.array.shape, numbers.update_window_dims))
        places = base.array.size // max(1, _sizes(base.array.shape, window))
        if rows > places:  # several rows are added up in one place
            return [Trail()], [rows_of(r, updates.array) for r in updates.trail.routes if r.sites and r.chosen]
        moved = [each_mark(r, change, None) for r in updates.trail.routes]
        return [Trail(routes=tuple(r for r in moved if r is not None))], []
    if not indices.trail.picked:
        return [Trail(picked)], []
    if updates.trail.picked or not updates.data:
        return [Trail(True)], []
    tokens = mask_of(updates)
    if tokens is None:
        over = tuple(numbers.update_window_dims)
        tokens = (updates.array != 0).any(over, keepdims=True) if over else updates.array != 0
    return [Trail(filled=change((tokens != 0).astype(jnp.int32)))], []


def _sizes(shape: Sequence[int], axes: Sequence[int]) -> int:
    size = 1
    for axis in axes:
        size *= shape[axis]
    return size


def sums(found: Combined, dtype: Any) -> dict[str, jax.Array]:
    """Sums over the tokens of each expert.

    Args:
      found: a sum over the experts.
      dtype: the dtype of the sums.

    Returns:
      [experts] arrays: "tokens", "gate", "norm", "square" (of norms) and "weighted" (gates times norms).
    """
    parts = {
        "tokens": found.times,
        "gate": found.gate,
        "norm": found.norm * found.times,
        "square": found.norm**2 * found.times,
        "weighted": found.weighted,
    }
    shape = jnp.broadcast_shapes(found.owner.shape, *(jnp.shape(x) for x in parts.values()))
    owner = jnp.broadcast_to(found.owner, shape).ravel()
    add = lambda x: (
        jnp.zeros(found.route.size + 1, dtype).at[owner].add(jnp.broadcast_to(x, shape).ravel().astype(dtype))
    )
    return {name: add(x)[1:] for name, x in parts.items()}


def samples_of_experts(found: Combined, rows: Any, count: int) -> jax.Array:
    """Returns the samples of a product that reach a sum over the experts.

    Args:
      found: the sum.
      rows: the number of the sample of each row plus 1.
      count: the number of samples.

    Returns:
      [experts, samples] ones and zeros.
    """
    shape = jnp.broadcast_shapes(found.owner.shape, rows.shape)
    at = (jnp.broadcast_to(found.owner, shape).ravel(), jnp.broadcast_to(rows, shape).ravel())
    return jnp.zeros((found.route.size + 1, count + 1), bool).at[at].set(True)[1:, 1:]
