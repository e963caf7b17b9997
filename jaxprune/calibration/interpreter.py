"""`Interpreter`: runs a jaxpr and sums up the activations that parameters are multiplied by.

The interpreter computes every value as the function does. For each value it records the views of parameters and whether
the value depends on data; it follows a parameter until data enter. It interprets the bodies of calls (jit, remat,
custom derivatives). It runs a scan with the sums as an additional carry, or stacks the sums if the scan runs over the
parameter. It runs `while`, `cond` and `shard_map` unchanged, and reports the parameters that they use.

In a function that chooses experts (`routing`), each expert's weights get the sums over the tokens that the router sends
to it. Where all experts compute all tokens and the choice enters later, the sums wait for it.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer

from jaxprune._jaxprs import Sub, factors, is_product, sub_jaxprs, views
from jaxprune._jaxprs.factors import Factor, Layout, NotFollowed, Site
from jaxprune._jaxprs.primitives import PRIMITIVES, Convolution, Entrywise, Moves, Ragged
from jaxprune._jaxprs.views import View
from jaxprune._jaxprs.walk import Values, bind, scan_again, walk
from jaxprune.calibration import routing
from jaxprune.calibration import values as marks
from jaxprune.calibration.stats import Moments, Samples, expert_moments, moments, patches, samples_of
from jaxprune.calibration.values import Combined, Equation, Key, Marked, Meet, Route, Trail, Value, one_trail

Sums = dict[Key, Moments]
SCALED = "a factor that varies along its inputs"


class Interpreter:
    """One run of a jaxpr. The object is mutable and lives only while a function is traced.

    Attributes:
      sites: every product of a parameter with an activation, in order of execution.
      lost: for each leaf, the operations through which it cannot be followed.
      experts: every sum over experts, with the products by their weights.
    """

    def __init__(self, collect: frozenset[str], dtype: Any, *, routed: bool = False):
        """Sums the moments named in `collect`, in `dtype`; `routed` follows the choice of experts too."""
        self.sites: dict[Key, Site] = {}
        self.lost: dict[int, list[str]] = {}
        self.experts: dict[Key, tuple[Key, ...]] = {}
        self._scans: dict[Key, tuple[tuple[Key, Factor], ...]] = {}
        self._collect, self._dtype, self._routed = collect, dtype, routed
        self._waiting: dict[Key, Samples] = {}  # products whose experts are chosen later
        self._reached: dict[Key, tuple[Factor, Any]] = {}
        # The moments by the id of an array and how it is cut; the array itself, so that no other array gets its id.
        self._summed: dict[Any, tuple[Any, Moments]] = {}

    def run_whole(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Value]) -> tuple[list[Value], Sums]:
        """Runs the jaxpr of the whole function; returns its results and the sums of its sites."""
        outs, sums = self.run(jaxpr, consts, inputs)
        return outs, sums | self._settle()

    def run(
        self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Value], path: Key = ()
    ) -> tuple[list[Value], Sums]:
        """Runs a jaxpr; returns its results and the sums of its sites."""
        sums: Sums = {}

        def equation(index: int, eqn: Equation, operands: list[Value]) -> list[Value]:
            results, more = self._equation(eqn, operands, (*path, index))
            sums.update(more)
            return results

        given = [Value(c, name=(path, "c", i), mask=marks.is_mask(c)) for i, c in enumerate(consts)]
        return walk(jaxpr, [*given, *inputs], Values[Value](Value), equation), sums

    def loop(self, key: Key, layout: Layout) -> Key | None:
        """Returns the scan that stacks the matrices of a leaf; None without a scan or with further batch axes."""
        scans = self._scans[key]
        return scans[0][0] if len(scans) == 1 and layout.batch == (scans[0][1],) else None

    def axis_of_experts(self, key: Key) -> int | None:
        """Returns the axis of a leaf that runs over the experts of a product; None for a single expert."""
        inner = [f for f in self.sites[key].batch if all(f != scan for _, scan in self._scans[key])]
        return inner[0].of.axis if inner else None

    def _equation(self, eqn: Equation, operands: list[Value], path: Key) -> tuple[list[Value], Sums]:
        followed, subs = any(v.views for v in operands), sub_jaxprs(eqn)
        if subs and subs[0].role == "call" and (followed or self._routed):
            return self.run(subs[0].jaxpr, subs[0].consts, [operands[i] for i in _all(subs[0].inputs)], path)
        if followed:
            if subs and subs[0].role == "scan":
                return self._scan(subs[0], operands, path)
            if is_product(eqn):
                results = self._results(eqn, operands, path, None)
                trail, sums = self._product(eqn, operands, path, results[0].array)
                return [results[0]._replace(trail=trail)], sums
            if not subs:
                chosen = self._choose_matrices(eqn, operands) if self._routed else None
                if chosen is not None:
                    [result] = self._results(eqn, operands, path, [chosen[0]])
                    return [result._replace(chosen=chosen[1])], {}
                results = self._results(eqn, operands, path, self._follow(eqn, operands))
                scaled = marks.scaled_after(eqn, operands)
                results = [v._replace(scaled=scaled) if v.views else v for v in results]
                return self._mark(eqn, operands, results, path, self._move_choice(eqn, operands))
            self._lose(operands, f"`{eqn.primitive.name}`")
        results = self._results(eqn, operands, path, None)
        if subs:
            picked = any(v.trail.picked for v in operands)
            return [v._replace(trail=Trail(picked)) for v in results], {}
        mask = marks.is_mask_after(eqn, operands)
        return self._mark(eqn, operands, [v._replace(mask=mask) for v in results], path, None)

    def _mark(
        self, eqn: Equation, operands: list[Value], results: list[Value], path: Key, chosen: Any
    ) -> tuple[list[Value], Sums]:
        """Follows the choice of experts through an equation, and the axes along which constants do not vary."""
        if not self._routed and any(v.data or v.views for v in operands):
            return results, {}
        given = [Marked(v.array, v.trail, v.data or bool(v.views)) for v in operands]
        trails, combined = routing.follow(eqn, given, [v.array for v in results])
        found = [v._replace(trail=trail, chosen=chosen) for v, trail in zip(results, trails, strict=True)]
        return found, self._combine(combined, path)

    def _combine(self, combined: Sequence[Combined], path: Key) -> Sums:
        """Computes the sums of each expert where the function adds up the rows of the experts."""
        sums: Sums = {}
        for k, found in enumerate(combined):
            for site, rows, factor in found.route.sites:
                if rows is None or site not in self._waiting:
                    continue
                reached = routing.samples_of_experts(found, rows, self._waiting[site].number)
                before = self._reached.get(site)
                self._reached[site] = (factor, reached if before is None else before[1] | reached)
            sites = tuple(site for site, _, _ in found.route.sites)
            key = (*path, -1, k)
            self.experts[key], self._scans[key] = sites, self._scans[sites[0]]
            sums[key] = routing.sums(found, self._dtype)
        return sums

    def _settle(self) -> Sums:
        """Computes the sums of the products that waited for a choice of experts."""
        sums: Sums = {}
        for key, samples in self._waiting.items():
            site = self.sites[key]
            if key not in self._reached:
                sums[key] = moments(samples, self._collect, self._dtype)
                continue
            factor, reached = self._reached[key]
            shape = samples.values.shape[samples.batch : samples.values.ndim - samples.inputs]
            times = reached.reshape(-1, *shape)
            if site.batch:
                sums[key] = moments(samples, self._collect, self._dtype, times)
            else:
                sums[key] = expert_moments(samples, self._collect, self._dtype, times)
                site = site._replace(batch=(factor,), outputs=tuple(f for f in site.outputs if f != factor))
            self.sites[key] = site._replace(samples=0)
        self._waiting, self._reached = {}, {}
        return sums

    def _results(self, eqn: Equation, operands: list[Value], path: Key, found: list[tuple] | None) -> list[Value]:
        out = bind(eqn, [v.array for v in operands])
        data = any(v.data for v in operands)
        found = [()] * len(out) if found is None else found
        return [Value(x, seen, data, (path, k)) for k, (x, seen) in enumerate(zip(out, found, strict=True))]

    def _follow(self, eqn: Equation, operands: list[Value]) -> list[tuple] | None:
        if any(v.data for v in operands):
            self._lose(operands, f"`{eqn.primitive.name}` with data")
            return None
        try:
            numbers = [None if isinstance(v.array, Tracer) else v.array for v in operands]
            return views.results(eqn, [v.views for v in operands], numbers)
        except NotFollowed as reason:
            self._lose(operands, str(reason) if " " in str(reason) else f"`{reason}`")
            return None

    def _product(self, eqn: Equation, operands: list[Value], path: Key, result: Any) -> tuple[Trail, Sums]:
        """Returns the mark of a product, and the sums of the activations that each parameter in it is multiplied by."""
        sums: Sums = {}
        trails: list[Trail] = []
        for mine in (0, 1):
            other = operands[1 - mine]
            for k, view in enumerate(operands[mine].views):
                key, kernel = (*path, mine, k), isinstance(PRIMITIVES[eqn.primitive.name], Convolution)
                try:
                    if jnp.iscomplexobj(other.array):
                        raise NotFollowed("complex inputs")
                    meeting = views.meeting(eqn, view, mine)
                    site = views.site_of(meeting)
                except NotFollowed as reason:
                    self._lose(operands[mine : mine + 1], str(reason))
                    continue
                met = samples_of(meeting, patches(eqn, other.array) if kernel else other.array)
                name = (other.name, eqn.primitive.name, *([str(eqn.params)] if kernel else []))
                self.sites[key] = site._replace(samples=met.number, met=name)
                self._scans[key] = view.scanned
                if operands[mine].scaled.get(view.leaf, frozenset()) & set(views.contracted(eqn, mine)):
                    self._lose([operands[mine]._replace(views=(view,))], SCALED)
                if not other.data:  # a constant activation, or a product of two weights
                    self._lose(operands[mine : mine + 1], f"`{eqn.primitive.name}` with an operand without data")
                if self._routed and not kernel and other.data:
                    meet = Meet(eqn, operands, mine, meeting, met, key, result)
                    trail, own = self._by_expert(meet)
                    trails.append(trail)
                    sums |= own
                else:
                    cut = [(yours, view.axes[a], view.start[a]) for a, yours in (*meeting.batch, *meeting.contract)]
                    how = (id(other.array), name[1:], len(meeting.batch), tuple(cut))
                    if how not in self._summed:
                        self._summed[how] = other.array, moments(met, self._collect, self._dtype)
                    sums[key] = self._summed[how][1]
        return one_trail(trails), sums

    def _by_expert(self, meet: Meet) -> tuple[Trail, Sums]:
        """Returns the experts that compute the result of a product, and the sums of the product."""
        if isinstance(PRIMITIVES[meet.eqn.primitive.name], Ragged):
            return self._sorted_rows(meet)
        if meet.weight.chosen is not None:
            return self._matrix_each_row(meet)
        joint = next((r for r in meet.other.trail.routes if r.chosen and r.axis in meet.inputs_of_experts()), None)
        if joint is not None:
            return self._summed_over_experts(meet, joint)
        pairs = meet.meeting.batch
        own = [(a, b) for a, b in pairs if meet.is_whole(a) or meet.is_part_of_stack(a)]
        if len(own) == 1 and all(meet.is_free(a) for a, _ in pairs if (a, _) not in own):
            return self._matrix_each_expert(meet, own[0])
        return self._all_experts(meet)

    def _sorted_rows(self, meet: Meet) -> tuple[Trail, Sums]:
        """Handles a ragged product, whose rows are sorted by expert, with a number of rows for each expert."""
        sizes, rows = meet.operands[2].array, meet.other.array.shape[0]
        ends = jnp.cumsum(sizes)
        owner = jnp.searchsorted(ends, jnp.arange(rows), side="right").astype(jnp.int32) + 1
        owner = jnp.where(owner > sizes.shape[0], 0, owner)
        times = owner[None] == jnp.arange(1, sizes.shape[0] + 1)[:, None]
        site, groups = self.sites[meet.key], meet.meeting.view.axes[0]
        if not meet.is_whole(0):
            self._lose([meet.weight], "a ragged product by a part of it")
            del self.sites[meet.key]
            return Trail(), {}
        outputs = tuple(f for f in site.outputs if f not in groups)
        self.sites[meet.key] = site._replace(batch=groups, outputs=outputs)
        sums = self._known(meet, expert_moments(meet.samples, self._collect, self._dtype, times))
        before = meet.other.trail.routes[:1]
        sites = (*(before[0].sites if before else ()), (meet.key, None, None))
        gate = before[0].gate if before else None
        return Trail(routes=(Route(sizes.shape[0], owner[:, None], gate, None, sites, True),)), sums

    def _known(self, meet: Meet, sums: Moments) -> Sums:
        """Stores the sums of a product that knows the samples of each expert."""
        self.sites[meet.key] = self.sites[meet.key]._replace(samples=0)
        return {meet.key: sums}

    def _matrix_each_row(self, meet: Meet) -> tuple[Trail, Sums]:
        """Handles a product of rows with matrices that data choose for each row."""
        assert meet.weight.chosen is not None
        factor, numbers = meet.weight.chosen
        pairs = dict(meet.meeting.batch)
        free = [a for a in range(numbers.ndim) if a not in pairs]
        owner = marks.placed(numbers, meet.weight_axes(), meet.result.ndim)
        shape = [meet.other.array.shape[a] if a in pairs.values() else 1 for a in range(meet.other.array.ndim)]
        one = numbers[..., None] == jnp.arange(1, factor.size + 1)
        times = one.sum(free) if free else one.astype(jnp.int32)  # of each row, how often by each expert
        order = sorted(range(len(pairs)), key=lambda i: pairs[sorted(pairs)[i]])
        times = jnp.moveaxis(times, -1, 0).transpose(0, *(i + 1 for i in order)).reshape(-1, *shape)
        spread = jnp.broadcast_to(times, (factor.size, *meet.other.array.shape))
        aligned = jax.vmap(lambda x: _first_input(samples_of(meet.meeting, x)))(spread)
        sums = expert_moments(meet.samples, self._collect, self._dtype, aligned)
        site = self.sites[meet.key]
        self.sites[meet.key] = site._replace(batch=(factor, *site.batch))
        sites = ((meet.key, None, None),)
        for route in meet.other.trail.routes[:1]:
            sites = (*route.sites, *sites)
        return Trail(routes=(Route(factor.size, owner, None, None, sites, True),)), self._known(meet, sums)

    def _summed_over_experts(self, meet: Meet, route: Route) -> tuple[Trail, Sums]:
        """Handles a product that sums over the experts and over the units of each expert."""
        [(mine, yours)] = [(a, b) for a, b in meet.meeting.contract if b == route.axis]
        batch, contract = meet.meeting.batch, [pair for pair in meet.meeting.contract if pair != (mine, yours)]
        meeting = meet.meeting._replace(batch=[*batch, (mine, yours)], contract=contract)
        samples = samples_of(meeting, meet.other.array)
        times = _first_input(samples_of(meeting, jnp.broadcast_to(route.owner != 0, meet.other.array.shape)))
        site = views.site_of(meeting)
        self.sites[meet.key] = site._replace(met=self.sites[meet.key].met)
        # The outputs of single experts, which the function itself does not compute.
        weight = meet.weight.array.astype(jnp.promote_types(meet.weight.array.dtype, jnp.float32))
        summed, kept = tuple(b for _, b in contract), tuple(b for _, b in meeting.batch)
        axes = (summed, tuple(a for a, _ in contract)), (kept, tuple(a for a, _ in meeting.batch))
        each = lax.dot_general(meet.other.array.astype(weight.dtype), weight, axes)
        rest = (b for b in range(meet.other.array.ndim) if b not in (*summed, *kept))
        places = {b: i for i, b in enumerate((*kept, *rest))}
        change = lambda mark: marks.placed(mark, places, each.ndim)
        moved = marks.each_mark(route, change, places[yours])
        assert moved is not None
        moved = moved._replace(sites=(*moved.sites, (meet.key, None, None)))
        sums = self._known(meet, moments(samples, self._collect, self._dtype, times))
        return Trail(), sums | self._combine([routing.rows_of(moved, each)], meet.key)

    def _matrix_each_expert(self, meet: Meet, pair: tuple[int, int]) -> tuple[Trail, Sums]:
        """Handles a product with one matrix for each expert, where each expert has its own rows."""
        mine, yours = pair
        trail, size = meet.other.trail, meet.other.array.shape[yours]
        places = meet.other_axes()
        same = [r for r in trail.routes if r.axis == yours and r.size == size]
        if same:
            route = same[0]
        else:
            route = Route(size, marks.numbers(size, meet.other.array.ndim, yours), None, yours, (), False)
            if trail.filled is not None:
                route = route._replace(owner=route.owner * (trail.filled != 0), chosen=True)
        factor = next((f for f in meet.meeting.view.axes[mine] if f.of is not None), None)
        known = route.chosen
        rows = None if known else meet.row_numbers({yours})
        change = lambda mark: marks.placed(mark, places, meet.result.ndim)
        after = marks.each_mark(route, change, places[yours])
        new = (meet.key, None if rows is None else change(rows), factor)
        routes = () if after is None else (after._replace(sites=(*after.sites, new)),)
        if known:
            owners = jnp.broadcast_to(route.owner != 0, meet.other.array.shape)
            times = _first_input(samples_of(meet.meeting, owners))
            return Trail(routes=routes), self._known(meet, moments(meet.samples, self._collect, self._dtype, times))
        if factor is None:  # one of several leaves that are stacked
            return Trail(routes=routes), {meet.key: moments(meet.samples, self._collect, self._dtype)}
        self._waiting[meet.key] = meet.samples
        return Trail(routes=routes), {}

    def _all_experts(self, meet: Meet) -> tuple[Trail, Sums]:
        """Handles a product of rows with the matrices of all experts: one axis of the outputs may run over experts."""
        used = {a for a, _ in (*meet.meeting.batch, *meet.meeting.contract)}
        outputs = [a for a in range(len(meet.meeting.view.axes)) if a not in used and meet.meeting.view.axes[a]]
        experts = [a for a in outputs if meet.is_whole(a)]
        rowwise = not any(meet.meeting.view.axes[a] for a, _ in meet.meeting.batch)
        if len(outputs) < 2 or not experts or not rowwise or meet.other.trail.routes:
            return Trail(), {meet.key: moments(meet.samples, self._collect, self._dtype)}
        rows = marks.placed(meet.row_numbers(set()), meet.other_axes(), meet.result.ndim)
        routes = []
        for axis in experts:
            [factor] = meet.meeting.view.axes[axis]
            at = meet.weight_axes()[axis]
            owner = marks.numbers(factor.size, meet.result.ndim, at)
            routes.append(Route(factor.size, owner, None, at, ((meet.key, rows, factor),), False))
        self._waiting[meet.key] = meet.samples
        return Trail(routes=tuple(routes)), {}

    def _choose_matrices(self, eqn: Equation, operands: list[Value]) -> tuple[tuple[View, ...], Any] | None:
        """Returns the views of a gather of matrices by data, and the choice; None for another equation."""
        if eqn.primitive.name != "gather" or not operands[1].data or len(operands[0].views) != 1:
            return None
        value, view = operands[0], operands[0].views[0]
        numbers, sizes, shape = eqn.params["dimension_numbers"], eqn.params["slice_sizes"], value.array.shape
        axis = numbers.start_index_map[0]
        whole = all(n == m for a, (n, m) in enumerate(zip(sizes, shape, strict=True)) if a != axis)
        single = tuple(numbers.start_index_map) == tuple(numbers.collapsed_slice_dims) and len(view.axes[axis]) == 1
        if not (whole and single) or numbers.operand_batching_dims or view.axes[axis][0].of is None:
            return None
        if factors.size(view.axes[axis]) != shape[axis]:
            return None
        out = eqn.outvars[0].aval.shape
        kept = iter(a for a in range(len(shape)) if a != axis)
        source = [next(kept) if a in numbers.offset_dims else None for a in range(len(out))]
        axes = tuple(
            ((Factor(n),) if n != 1 else ()) if s is None else view.axes[s] for s, n in zip(source, out, strict=True)
        )
        start = tuple(0 if s is None else view.start[s] for s in source)
        index = operands[1].array[..., 0].astype(jnp.int32) + 1
        index = index.reshape([n if s is None else 1 for s, n in zip(source, out, strict=True)])
        return (view._replace(axes=axes, start=start),), (view.axes[axis][0], index)

    def _move_choice(self, eqn: Equation, operands: list[Value]) -> Any:
        chosen = operands[0].chosen if operands else None
        what = PRIMITIVES.get(eqn.primitive.name)
        if chosen is None:
            if any(v.chosen is not None for v in operands):
                self._lose(operands, f"`{eqn.primitive.name}` of matrices that data choose")
            return None
        if isinstance(what, Moves) and not what.each:
            [move, *_] = what.moves(eqn)
            index = marks.moved(move, chosen[1], operands[0].array.shape)
            if index is not None:
                return chosen[0], index
        if isinstance(what, Entrywise) and len(operands) == 1:
            return chosen
        self._lose(operands, f"`{eqn.primitive.name}` of matrices that data choose")
        return None

    def _lose(self, operands: Sequence[Value], reason: str) -> None:
        for leaf in sorted({view.leaf for v in operands for view in v.views}):
            if reason not in self.lost.setdefault(leaf, []):
                self.lost[leaf].append(reason)

    def _scan(self, sub: Sub, operands: list[Value], path: Key) -> tuple[list[Value], Sums]:
        """Returns the results of a scan, and the sums of its body over all its steps."""
        data = any(v.data for v in operands)
        inputs = [self._into(sub, k, operands, data, path) for k in range(len(sub.inputs))]

        def one(arrays: Sequence[Any]) -> tuple[list[Value], Sums]:
            values = [v._replace(array=x, trail=Trail(v.trail.picked)) for v, x in zip(inputs, arrays, strict=True)]
            waiting, reached = self._waiting, self._reached
            self._waiting, self._reached = {}, {}
            outs, sums = self.run(sub.jaxpr, sub.consts, values, path)
            sums |= self._settle()
            self._waiting, self._reached = waiting, reached
            return outs, sums

        arrays = [v.array for v in inputs]
        first = [jax.eval_shape(lambda y: y[0], x) if k in sub.stacked_inputs else x for k, x in enumerate(arrays)]
        shapes = jax.eval_shape(lambda xs: one(xs)[1], first)
        ours = [key for key in shapes if any(loop == path for loop, _ in self._scans[key])]
        start = {
            key: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes[key]) for key in shapes if key not in ours
        }

        def body(arrays: list[Any], total: Sums) -> tuple[list[Any], Sums, Sums]:
            outs, sums = one(arrays)
            total = {key: jax.tree.map(jnp.add, total[key], sums[key]) for key in total}
            return [v.array for v in outs], total, {key: sums[key] for key in ours}

        results, total, each = scan_again(sub, arrays, body, start, length=sub.length)
        self._leave(path, ours, list(start), sub.length or 1)
        kept = {out: self._carried_views(sub, into, operands) for out, into in sub.carried}
        return [Value(x, kept.get(k, ()), data, (path, k)) for k, x in enumerate(results)], total | each

    def _into(self, sub: Sub, k: int, operands: list[Value], data: bool, path: Key) -> Value:
        """Returns an input of a scan's body: the array of the whole operand, and the views of one entry of it."""
        value = operands[_all(sub.inputs)[k]]._replace(name=(path, "in", k))
        if k in {i for _, i in sub.carried}:
            kept = self._carried_views(sub, k, operands)
            if value.views and not kept:
                self._lose([value], "the carry of a scan")
            return value._replace(views=kept, data=data and not kept)
        if k not in sub.stacked_inputs or not value.views:
            return value
        kept, lost = views.of_round(value.views, path, sub.length)
        for _, reason in lost:
            self._lose([value], reason)
        scaled = {leaf: frozenset(a - 1 for a in axes if a) for leaf, axes in value.scaled.items()}
        return value._replace(views=kept, scaled=scaled)

    def _carried_views(self, sub: Sub, k: int, operands: list[Value]) -> tuple[View, ...]:
        # A parameter in the carry is followed only if every round returns it unchanged.
        out = next((o for o, i in sub.carried if i == k), None)
        same = out is not None and sub.jaxpr.outvars[out] is sub.jaxpr.invars[k]
        return operands[_all(sub.inputs)[k]].views if same else ()

    def _leave(self, path: Key, ours: Sequence[Key], summed: Sequence[Key], length: int) -> None:
        for key in (key for key in ours if key in self.sites):
            [factor] = [f for loop, f in self._scans[key] if loop == path]
            self.sites[key] = self.sites[key]._replace(batch=(factor, *self.sites[key].batch))
        for key in (key for key in summed if key in self.sites):
            self.sites[key] = self.sites[key]._replace(samples=self.sites[key].samples * length)


def _all(positions: Sequence[int | None]) -> list[int]:
    return [p for p in positions if p is not None]


def _first_input(samples: Samples) -> Any:
    """Returns the first input of an array [*batch, *samples, *inputs]."""
    return samples.values[(..., *[0] * samples.inputs)] if samples.inputs else samples.values
