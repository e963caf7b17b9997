"""`Interpreter`: runs a jaxpr and sums up the activations that parameters are multiplied by.

The interpreter computes every value as the function does. For each value it records the views of parameters and whether
the value depends on data; it follows a parameter until data enter. It interprets the bodies of calls (jit, remat,
custom derivatives). It runs a scan with the sums as an additional carry, or stacks the sums if the scan runs over the
parameter. It runs `while`, `cond` and `shard_map` unchanged, and reports the parameters that they use.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxprune._jaxprs import Sub, is_product, sub_jaxprs, views
from jaxprune._jaxprs.factors import Factor, Layout, NotFollowed, Site
from jaxprune._jaxprs.primitives import PRIMITIVES, Convolution
from jaxprune._jaxprs.views import View
from jaxprune._jaxprs.walk import Values, scan_again, walk
from jaxprune.calibration.moments import Moments, moments, patches, samples_of

Equation = Any
Key = tuple[int, ...]
Sums = dict[Key, Moments]


class Value(NamedTuple):
    """A value of the jaxpr.

    Attributes:
      array: the computed value.
      views: the views of parameters that the value consists of.
      data: whether the value depends on data.
      name: identifies the computation; two values with the same name are equal.
    """

    array: Any
    views: tuple[View, ...] = ()
    data: bool = False
    name: tuple[object, ...] = ()


class Interpreter:
    """One run of a jaxpr. The object is mutable and lives only while a function is traced.

    Attributes:
      sites: every product of a parameter with an activation, in order of execution.
      lost: for each leaf, the operations through which it cannot be followed.
    """

    def __init__(self, collect: frozenset[str], dtype: Any):
        """Sums the moments named in `collect`, in `dtype`."""
        self.sites: dict[Key, Site] = {}
        self.lost: dict[int, list[str]] = {}
        self._scans: dict[Key, tuple[tuple[Key, Factor], ...]] = {}
        self._collect, self._dtype = collect, dtype

    def run(
        self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Value], path: Key = ()
    ) -> tuple[list[Value], Sums]:
        """Runs a jaxpr; returns its results and the sums of its sites."""
        sums: Sums = {}

        def equation(index: int, eqn: Equation, operands: list[Value]) -> list[Value]:
            results, more = self._equation(eqn, operands, (*path, index))
            sums.update(more)
            return results

        given = [Value(c, name=(path, "c", i)) for i, c in enumerate(consts)]
        return walk(jaxpr, [*given, *inputs], Values[Value](Value), equation), sums

    def loop(self, key: Key, layout: Layout) -> Key | None:
        """Returns the scan that stacks the matrices of a leaf; None without a scan or with further batch axes."""
        scans = self._scans[key]
        return scans[0][0] if len(scans) == 1 and layout.batch == (scans[0][1],) else None

    def _equation(self, eqn: Equation, operands: list[Value], path: Key) -> tuple[list[Value], Sums]:
        if any(v.views for v in operands):
            subs = sub_jaxprs(eqn)
            if subs and subs[0].role == "call":
                return self.run(subs[0].jaxpr, subs[0].consts, [operands[i] for i in _all(subs[0].inputs)], path)
            if subs and subs[0].role == "scan":
                return self._scan(subs[0], operands, path)
            if is_product(eqn):
                return self._results(eqn, operands, path, None), self._product(eqn, operands, path)
            if not subs:
                return self._results(eqn, operands, path, self._follow(eqn, operands)), {}
            self._lose(operands, f"`{eqn.primitive.name}`")
        return self._results(eqn, operands, path, None), {}

    def _results(self, eqn: Equation, operands: list[Value], path: Key, found: list[tuple] | None) -> list[Value]:
        out = eqn.primitive.bind(*(v.array for v in operands), **eqn.primitive.get_bind_params(eqn.params))
        out = out if eqn.primitive.multiple_results else [out]
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

    def _product(self, eqn: Equation, operands: list[Value], path: Key) -> Sums:
        sums: Sums = {}
        for mine in (0, 1):
            other = operands[1 - mine]
            for k, view in enumerate(operands[mine].views):
                key, kernel = (*path, mine, k), isinstance(PRIMITIVES[eqn.primitive.name], Convolution)
                try:
                    meeting = views.meeting(eqn, view, mine)
                    site = views.site_of(meeting)
                except NotFollowed as reason:
                    self._lose(operands[mine : mine + 1], str(reason))
                    continue
                met = samples_of(meeting, patches(eqn, other.array) if kernel else other.array)
                name = (other.name, eqn.primitive.name, *([str(eqn.params)] if kernel else []))
                self.sites[key] = site._replace(samples=met.number, met=name)
                self._scans[key] = view.scanned
                if not other.data:  # a constant activation, or a product of two weights
                    self._lose(operands[mine : mine + 1], f"`{eqn.primitive.name}` with an operand without data")
                sums[key] = moments(met, self._collect, self._dtype)
        return sums

    def _lose(self, operands: Sequence[Value], reason: str) -> None:
        for leaf in sorted({view.leaf for v in operands for view in v.views}):
            if reason not in self.lost.setdefault(leaf, []):
                self.lost[leaf].append(reason)

    def _scan(self, sub: Sub, operands: list[Value], path: Key) -> tuple[list[Value], Sums]:
        data = any(v.data for v in operands)
        inputs = [self._into(sub, k, operands, data, path) for k in range(len(sub.inputs))]

        def one(arrays: Sequence[Any]) -> tuple[list[Value], Sums]:
            values = [v._replace(array=x) for v, x in zip(inputs, arrays, strict=True)]
            return self.run(sub.jaxpr, sub.consts, values, path)

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
        """An input of a scan's body: the array of the whole operand, and the views of one entry of it."""
        value = operands[_all(sub.inputs)[k]]._replace(name=(path, "in", k))
        if k in {i for _, i in sub.carried}:
            kept = self._carried_views(sub, k, operands)
            if value.views and not kept:
                self._lose([value], "the carry of a scan")
            return value._replace(views=kept, data=data and not kept)
        if k not in sub.stacked_inputs or not value.views:
            return value
        entries = []
        for view in value.views:
            try:
                entries.append(views.one_of(view, path, sub.length))
            except NotFollowed as reason:
                self._lose([value], str(reason))
        return value._replace(views=tuple(entries))

    def _carried_views(self, sub: Sub, k: int, operands: list[Value]) -> tuple[View, ...]:
        # A parameter in the carry is followed only if every round returns it unchanged.
        out = next((o for o, i in sub.carried if i == k), None)
        same = out is not None and sub.jaxpr.outvars[out] is sub.jaxpr.invars[k]
        return operands[_all(sub.inputs)[k]].views if same else ()

    def _leave(self, path: Key, ours: Sequence[Key], summed: Sequence[Key], length: int) -> None:
        for key in ours:
            [factor] = [f for loop, f in self._scans[key] if loop == path]
            self.sites[key] = self.sites[key]._replace(batch=(factor, *self.sites[key].batch))
        for key in summed:
            self.sites[key] = self.sites[key]._replace(samples=self.sites[key].samples * length)


def _all(positions: Sequence[int | None]) -> list[int]:
    return [p for p in positions if p is not None]
