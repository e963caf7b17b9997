"""Runs a jaxpr and, on the way, sums up what parameters meet.

Values are computed as the function computes them. Beside them go the views of parameters and a mark on what depends
on data: a parameter is followed only until data come in. Calls are entered (jit, remat, custom derivatives), scans
are run with the sums as a further carry, or stacked where the parameter itself is scanned over. `while`, `cond` and
`shard_map` run as they are; parameters that go into them are noted.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jec
import jax.numpy as jnp
from jax import lax

from jaxprune._jaxprs import Sub, sub_jaxprs
from jaxprune.calibration import meeting, rules, views
from jaxprune.calibration.layouts import Layout, Site
from jaxprune.calibration.meeting import Moments
from jaxprune.calibration.views import NotFollowed, View

Equation = Any
Key = tuple[int, ...]
Sums = dict[Key, Moments]


class Value(NamedTuple):
    """A value of the jaxpr.

    Attributes:
      array: the value itself.
      views: the parts of it that are parameters.
      data: whether it depends on data.
      name: where it was made; the same for the same value.
    """

    array: Any
    views: tuple[View, ...] = ()
    data: bool = False
    name: tuple[object, ...] = ()


class Interpreter:
    """One run of a jaxpr; the only thing with state in this room, and it lives while a function is traced.

    Attributes:
      sites: every place where a parameter met an activation, in order.
      lost: for each leaf, what it went into and could not be followed through.
    """

    def __init__(self, collect: frozenset[str], dtype: Any):
        """Sums up what `collect` says, in `dtype`."""
        self.sites: dict[Key, Site] = {}
        self.lost: dict[int, list[str]] = {}
        self._scans: dict[Key, tuple[tuple[Key, views.Factor], ...]] = {}
        self._collect, self._dtype = collect, dtype

    def run(
        self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Value], path: Key = ()
    ) -> tuple[list[Value], Sums]:
        """The results of a jaxpr and the sums of the sites in it."""
        env: dict[Any, Value] = {
            v: Value(c, name=(path, "c", i)) for i, (v, c) in enumerate(zip(jaxpr.constvars, consts, strict=True))
        }
        env.update(zip(jaxpr.invars, inputs, strict=True))
        read = lambda v: Value(v.val) if isinstance(v, jec.Literal) else env[v]
        sums: Sums = {}
        for i, eqn in enumerate(jaxpr.eqns):
            results, more = self._equation(eqn, [read(v) for v in eqn.invars], (*path, i))
            sums |= more
            env.update(zip(eqn.outvars, results, strict=True))
        return [read(v) for v in jaxpr.outvars], sums

    def loop(self, key: Key, layout: Layout) -> Key | None:
        """The scan over whose rounds the matrices of a leaf are stacked, if they are and nothing else is."""
        scans = self._scans[key]
        return scans[0][0] if len(scans) == 1 and layout.batch == (scans[0][1],) else None

    def _equation(self, eqn: Equation, operands: list[Value], path: Key) -> tuple[list[Value], Sums]:
        name = eqn.primitive.name
        if any(v.views for v in operands):
            subs = sub_jaxprs(eqn)
            if subs and subs[0].role == "call":
                return self.run(subs[0].jaxpr, subs[0].consts, [operands[i] for i in _all(subs[0].inputs)], path)
            if subs and subs[0].role == "scan":
                return self._scan(subs[0], operands, path)
            if name in ("dot_general", "conv_general_dilated"):
                return self._results(eqn, operands, path, None), self._product(eqn, operands, path)
            if not subs:
                return self._results(eqn, operands, path, self._follow(eqn, operands)), {}
            self._lose(operands, f"`{name}`")
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
            return rules.follow(eqn, [v.views for v in operands], [v.array for v in operands])
        except NotFollowed as reason:
            self._lose(operands, str(reason) if " " in str(reason) else f"`{reason}`")
            return None

    def _product(self, eqn: Equation, operands: list[Value], path: Key) -> Sums:
        sums: Sums = {}
        dot = eqn.primitive.name == "dot_general"
        if not dot:
            self._lose(operands[:1], "a convolution as its image")
        for mine in (0, 1) if dot else (1,):
            other = operands[1 - mine]
            for k, view in enumerate(operands[mine].views):
                key, met = (*path, mine, k), (other.name, eqn.primitive.name)
                try:
                    if dot:
                        site, samples = meeting.dot(eqn, view, mine, other.array, met)
                    else:
                        site, samples = meeting.convolution(eqn, view, other.array, (*met, str(eqn.params)))
                except NotFollowed as reason:
                    self._lose(operands[mine : mine + 1], str(reason))
                    continue
                self.sites[key], self._scans[key] = site, view.scanned
                if not other.data:  # an activation that is the same for all data, or half of a product of weights
                    self._lose(operands[mine : mine + 1], f"`{eqn.primitive.name}` with what holds no data")
                sums[key] = meeting.moments(samples, self._collect, self._dtype)
        return sums

    def _lose(self, operands: Sequence[Value], reason: str) -> None:
        for leaf in sorted({view.leaf for v in operands for view in v.views}):
            if reason not in self.lost.setdefault(leaf, []):
                self.lost[leaf].append(reason)

    def _scan(self, sub: Sub, operands: list[Value], path: Key) -> tuple[list[Value], Sums]:
        data = any(v.data for v in operands)
        inputs = [self._into(sub, k, operands, data, path) for k in range(len(sub.inputs))]
        round_ = {i: o for o, i in sub.carried}
        carried = sorted(round_)
        stacked_in, stacked_out = sorted(sub.stacked_inputs), sorted(sub.stacked_outputs)

        def one(carry: list[Any], xs: list[Any]) -> tuple[list[Value], Sums]:
            arrays = dict(zip(carried, carry, strict=True)) | dict(zip(stacked_in, xs, strict=True))
            values = [v._replace(array=arrays.get(k, v.array)) for k, v in enumerate(inputs)]
            return self.run(sub.jaxpr, sub.consts, values, path)

        first = [inputs[k].array for k in carried]
        xs = [inputs[k].array for k in stacked_in]
        shapes = jax.eval_shape(lambda c, x: one(c, x)[1], first, [jax.eval_shape(lambda y: y[0], x) for x in xs])
        ours = [key for key in shapes if any(loop == path for loop, _ in self._scans[key])]
        start = {
            key: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes[key]) for key in shapes if key not in ours
        }

        def body(state: tuple[list[Any], Sums], x: list[Any]) -> tuple[tuple[list[Any], Sums], tuple[list[Any], Sums]]:
            outs, sums = one(state[0], x)
            total = {key: jax.tree.map(jnp.add, state[1][key], sums[key]) for key in state[1]}
            return ([outs[round_[k]].array for k in carried], total), (
                [outs[k].array for k in stacked_out],
                {key: sums[key] for key in ours},
            )

        (last, total), (ys, each) = lax.scan(body, (first, start), xs, length=sub.length, reverse=sub.reverse)
        self._leave(path, ours, list(start), sub.length or 1)
        final = {round_[k]: (x, self._carried_views(sub, k, operands)) for k, x in zip(carried, last, strict=True)}
        final |= {k: (x, ()) for k, x in zip(stacked_out, ys, strict=True)}
        return [Value(*final[k], data, (path, k)) for k in range(len(final))], total | each

    def _into(self, sub: Sub, k: int, operands: list[Value], data: bool, path: Key) -> Value:
        """An input of a scan's body; of a scanned operand the whole array, but the views of one entry."""
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
            outer = view.axes[0]
            if views.length(outer) != sub.length or len(outer) > 1:
                self._lose([value], "a scan over a part of it")
                continue
            loops = tuple((path, f) for f in outer if f.axis != views.SPREAD)
            entries.append(view._replace(axes=view.axes[1:], start=view.start[1:], scanned=(*view.scanned, *loops)))
        return value._replace(views=tuple(entries))

    def _carried_views(self, sub: Sub, k: int, operands: list[Value]) -> tuple[View, ...]:
        # A parameter in the carry is followed if every round hands it on as it is.
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
