"""`find_roles`: what each parameter leaf is for and what its axes mean, from the function that uses it."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxprune import _tree
from jaxprune._jaxprs import views as vw
from jaxprune._jaxprs.factors import Factor, Layout, NotFollowed, Site, layout_of
from jaxprune._jaxprs.flops import is_product
from jaxprune._jaxprs.primitives import PRIMITIVES, Convolution, Entrywise, Moves, Pick, Ragged, Write
from jaxprune._jaxprs.views import View, site_of
from jaxprune._jaxprs.walk import Sub, Traced, Values, settle, sub_jaxprs, trace, walk
from jaxprune._tree.roles import LeafRole, Roles, Use

PyTree = Any
Equation = Any


def find_roles(fn: Callable[..., PyTree], params: PyTree, *inputs: Any) -> Roles:
    """Finds the role of every leaf of a function's parameters, and which of its axes are inputs and outputs.

    The function is traced from shapes; nothing is computed. Each leaf is followed through its jaxpr (casts, reshapes,
    transposes, slices, scales and masks, jit, remat, scan, while, cond and shard_map) until an operation combines it
    with data: a matrix product or convolution sums over its input axes; a gather reads entries of an embedding; every
    other operation is elementwise. If two leaves are multiplied before data enter and one of them is repeated along
    an axis (an int8 kernel and its scales), the repeated leaf is elementwise.

    Uncertain roles are marked: a leaf that is combined only with another parameter, or that a nonlinear function
    changes before a product (a packed kernel), has the use "other" and a note.

    Args:
      fn: a function `fn(params, *inputs)`.
      params: any tree of arrays or ShapeDtypeStructs: of Flax linen, NNX, Equinox, Haiku or your own.
      *inputs: arrays or ShapeDtypeStructs in any trees; values that depend on them are data. Other leaves are
        constants.

    Returns:
      The roles; `print` shows a table.

    Raises:
      TypeError: `fn` is not a function, or cannot be called as `fn(params, *inputs)`. Errors of `fn` itself pass on.

    Example:
      >>> params = {'embed': jnp.ones((9, 4)), 'dense': {'kernel': jnp.ones((4, 3)), 'bias': jnp.ones(3)}}
      >>> fn = lambda p, t: p['embed'][t] @ p['dense']['kernel'] + p['dense']['bias']
      >>> print(find_roles(fn, params, jnp.zeros(2, int)))
      leaf          shape  role         axes             note
      dense/bias    3      elementwise  entry
      dense/kernel  4x3    multiplied   input, output
      embed         9x4    embedding    indexed, output
    """
    return roles_of(trace(fn, params, *inputs), leaves_of(params))


def leaves_of(params: PyTree) -> list[LeafRole]:
    """Returns the leaves of a tree, with unknown roles."""
    flat = _tree.with_paths(params)
    shapes = [tuple(leaf.shape) if _tree.is_array(leaf) else () for _, leaf in flat]
    return [
        LeafRole(_tree.name(path), _tree.identity(path), shape, (), ("unknown",) * len(shape))
        for (path, _), shape in zip(flat, shapes, strict=True)
    ]


def roles_of(traced: Traced, leaves: Sequence[LeafRole]) -> Roles:
    """Returns the roles of the leaves of the first argument of a traced function.

    Args:
      traced: from `trace(fn, params, *inputs)`.
      leaves: from `leaves_of(params)`.
    """
    jaxpr, places = traced.closed.jaxpr, traced.inputs[: len(leaves)]
    given: list[_Seen] = [_Seen(data=True) for _ in jaxpr.invars]
    for k, place in enumerate(places):
        if place is not None:
            given[place] = _Seen((vw.whole(k, tuple(jaxpr.invars[place].aval.shape)),), frozenset({k}))
    walker = _Walker([])
    results = walker.run(jaxpr, traced.closed.consts, given, ())
    returned = {leaf for value in results for leaf in value.leaves}
    notes: dict[int, list[_Note]] = {k: [] for k in range(len(leaves))}
    for note in walker.notes:
        notes[note.leaf].append(note)
    return Roles(tuple(_with_role(leaf, notes[k], k in returned) for k, leaf in enumerate(leaves)))


class _Seen(NamedTuple):
    """What the walk records of a value of the jaxpr.

    Attributes:
      views: the parameters that the value consists of, after moves, scales and masks, if it does not depend on data.
      leaves: all parameters from which the value is computed, if it does not depend on data.
      data: whether the value depends on data.
      mask: whether the value is boolean data.
      picked: the parameters whose entries the value has, read at positions that data give.
      number: the number of a literal.
    """

    views: tuple[View, ...] = ()
    leaves: frozenset[int] = frozenset()
    data: bool = False
    mask: bool = False
    picked: tuple[View, ...] = ()
    number: Any = None


class _Note(NamedTuple):
    """One use of a leaf."""

    leaf: int
    use: Use
    view: View | None = None
    site: Site | None = None
    grouped: bool = False
    window: frozenset[int] = frozenset()  # the leaf's axes along the window of a convolution
    indexed: frozenset[int] = frozenset()
    chosen: bool = False  # data choose one of several matrices
    why: str = ""


class _Walker:
    """Walks through a jaxpr and collects the uses of leaves in `notes`."""

    def __init__(self, notes: list[_Note]):
        self.notes = notes

    def run(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[_Seen], path: tuple[int, ...]) -> list[_Seen]:
        step = lambda index, eqn, operands: self._equation(eqn, operands, (*path, index))
        return walk(jaxpr, [*(_Seen() for _ in consts), *inputs], Values[_Seen](lambda x: _Seen(number=x)), step)

    def _equation(self, eqn: Equation, operands: list[_Seen], path: tuple[int, ...]) -> list[_Seen]:
        if not any(v.leaves or v.picked for v in operands):
            data = any(v.data for v in operands)
            moved = isinstance(PRIMITIVES.get(eqn.primitive.name), Moves) and all(v.mask for v in operands if v.data)
            return [_Seen(data=data, mask=data and (moved or _says_yes_or_no(eqn, v))) for v in eqn.outvars]
        subs = sub_jaxprs(eqn)
        if subs and all(sub.role != "unknown" and _is_followed(sub, eqn, operands) for sub in subs):
            return self._enter(eqn, subs, operands, path)
        if is_product(eqn):
            return self._product(eqn, operands)
        if subs:
            part = ", a device holds a part that is not followed" if eqn.primitive.name == "shard_map" else ""
            self._use(operands, "other", f"used inside `{eqn.primitive.name}`{part}")
            return [_unknown(operands)] * len(eqn.outvars)
        return self._meet(eqn, operands) if any(v.data for v in operands) else self._alone(eqn, operands)

    def _alone(self, eqn: Equation, operands: list[_Seen]) -> list[_Seen]:
        """Follows parameters through an equation without data, which moves, scales or masks them."""
        views, scales = self._unspread(eqn, operands)
        leaves = frozenset(leaf for v in operands for leaf in v.leaves) - scales
        try:
            if eqn.primitive.name.startswith("all_gather") and eqn.params.get("tiled"):
                seen = [tuple(_gathered(eqn, view) for view in mine) for mine in views]
            else:
                seen = vw.results(eqn, views, [v.number for v in operands])
        except NotFollowed:
            seen = [()] * len(eqn.outvars)
        return [_Seen(views, leaves) for views in seen]

    def _unspread(self, eqn: Equation, operands: list[_Seen]) -> tuple[list[tuple[View, ...]], frozenset[int]]:
        """Returns the parameters that are not repeated: repeated factors are scales, repeated terms are biases."""
        views = [v.views for v in operands]
        if not isinstance(PRIMITIVES.get(eqn.primitive.name), Entrywise) or sum(map(bool, views)) < 2:
            return views, frozenset()
        shape = tuple(eqn.outvars[0].aval.shape)
        views = [tuple(vw.stretched(view, shape) for view in mine) for mine in views]
        full = [tuple(view for view in mine if not _is_spread(view)) for mine in views]
        if not any(full):
            return views, frozenset()
        scales = [view for mine in views for view in mine if _is_spread(view)]
        self.notes += [_Note(view.leaf, "elementwise", view) for view in scales]
        return full, frozenset(view.leaf for view in scales)

    def _meet(self, eqn: Equation, operands: list[_Seen]) -> list[_Seen]:
        """Notes parameters that an operation other than a product combines with data."""
        what = PRIMITIVES.get(eqn.primitive.name)
        masks = [v.mask for v in operands if v.data]
        if all(masks) and (eqn.primitive.name == "mul" or (eqn.primitive.name == "select_n" and operands[0].mask)):
            return self._alone(eqn, [_Seen() if v.data else v for v in operands])
        if isinstance(what, Pick) and not operands[0].data:
            return [_Seen(data=True, picked=self._pick(eqn, operands))] * len(eqn.outvars)
        if isinstance(what, (Entrywise, Write, Pick)) or (isinstance(what, Moves) and len(operands) > 1):
            self._use(operands, "elementwise", "")
        else:
            self._use(operands, "other", f"`{eqn.primitive.name}` with data")
        picked = self._still_picked(eqn, operands)
        return [_Seen(data=True, picked=views) for views in picked]

    def _still_picked(self, eqn: Equation, operands: list[_Seen]) -> list[tuple[View, ...]]:
        lost = [()] * len(eqn.outvars)
        if any(v.leaves or (v.data and not v.picked) for v in operands) or sum(bool(v.picked) for v in operands) != 1:
            return lost
        try:
            return vw.results(eqn, [v.picked for v in operands], [v.number for v in operands])
        except NotFollowed:
            return lost

    def _pick(self, eqn: Equation, operands: list[_Seen]) -> tuple[View, ...]:
        self._use(operands[1:], "other", "an index")
        shape, out = eqn.invars[0].aval.shape, len(eqn.outvars[0].aval.shape)
        sizes = tuple(eqn.params["slice_sizes"])
        taken = [a for a, (size, n) in enumerate(zip(sizes, shape, strict=True)) if size != n]
        found = []
        for view in operands[0].views:
            indexed = frozenset(f.of.axis for a in taken for f in view.axes[a] if f.of is not None)
            self.notes.append(_Note(view.leaf, "embedding", view, indexed=indexed))
            axes = tuple(() if a in taken else axis for a, axis in enumerate(view.axes))
            if any(view.start) or any(f.of is None for axis in axes for f in axis):
                continue
            if eqn.primitive.name == "gather":
                numbers = eqn.params["dimension_numbers"]
                gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
                window = [axis for a, axis in enumerate(axes) if a not in gone]
                positions = dict(zip(numbers.offset_dims, window, strict=True))
                shape_out = eqn.outvars[0].aval.shape
                axes = tuple(positions.get(i, (Factor(shape_out[i]),) if shape_out[i] != 1 else ()) for i in range(out))
            found.append(view._replace(axes=axes, start=(0,) * len(axes)))
        self._use(
            [v._replace(leaves=v.leaves - {view.leaf for view in v.views}) for v in operands[:1]], "embedding", ""
        )
        return tuple(found)

    def _product(self, eqn: Equation, operands: list[_Seen]) -> list[_Seen]:
        """Notes the role of each leaf in a matrix product or convolution; the result is no longer a view of a leaf."""
        grouped = isinstance(PRIMITIVES[eqn.primitive.name], Convolution)
        spatial = eqn.params["dimension_numbers"].rhs_spec[2:] if grouped else ()
        for k, (mine, other) in enumerate(((operands[0], operands[1]), (operands[1], operands[0]))):
            for view in mine.views:
                if other.views and not other.data:
                    self.notes.append(_Note(view.leaf, "other", view, why="a product with another parameter"))
                    continue
                try:
                    site = site_of(vw.meeting(eqn, view, k))
                    if isinstance(PRIMITIVES[eqn.primitive.name], Ragged):  # one matrix for each group of rows
                        groups = tuple(f for f in view.axes[0] if f.of is not None)
                        outputs = tuple(f for f in site.outputs if f not in groups)
                        site = site._replace(batch=groups, outputs=outputs)
                    window = frozenset(f.of.axis for a in spatial for f in view.axes[a] if f.of is not None)
                    self.notes.append(_Note(view.leaf, "multiplied", view, _stack(view, site), grouped, window))
                except NotFollowed as reason:
                    alone = "no axis of it" in str(reason)
                    self.notes.append(_Note(view.leaf, "elementwise" if alone else "other", view, why=str(reason)))
            hidden = mine.leaves - {view.leaf for view in mine.views}
            if other.data or not other.leaves:
                self._use([_Seen(leaves=hidden)], "other", "passes a nonlinear function before a product")
            # Experts chosen by data: the product's other operand is data, not a chosen parameter.
            for view in mine.picked if not other.picked and not other.leaves else ():
                try:
                    site = site_of(vw.meeting(eqn, view, k))
                except NotFollowed:
                    continue
                if site.outputs:
                    self.notes.append(_Note(view.leaf, "multiplied", view, _stack(view, site), grouped, chosen=True))
        return [_unknown(operands)]

    def _enter(self, eqn: Equation, subs: Sequence[Sub], operands: list[_Seen], path: tuple[int, ...]) -> list[_Seen]:
        """Follows the leaves through the programs of an equation, such as the body of a scan."""
        reached: dict[int, list[_Seen]] = {k: [] for k in range(len(eqn.outvars))}
        for sub in subs:
            inputs = [self._into(sub, k, operands, path) for k in range(len(sub.inputs))]
            shards = _shards(sub, eqn, operands)
            for k, place, cut in shards:
                parts = tuple(view for view in map(cut, operands[place].views) if view is not None)
                inputs[k] = operands[place]._replace(views=parts, picked=())
            inner = _Walker([])

            def once(values: list[_Seen], sub: Sub = sub, inner: _Walker = inner) -> list[_Seen]:
                inner.notes.clear()  # only the last round counts, when the carried values are final
                return inner.run(sub.jaxpr, sub.consts, values, path)

            entered, outs = settle(sub, inputs, once, self._join)
            cuts = [(view, cut(view)) for _, place, cut in shards for view in operands[place].views]
            self.notes += [_of_whole(note, cuts) for note in inner.notes]
            for into in {into for _, into in sub.carried}:
                if entered[into].data:  # a learned initial state
                    self._use([inputs[into]], "elementwise", "")
            for k, place in enumerate(sub.outputs):
                if place is not None:
                    is_whole = k not in sub.stacked_outputs and sub.role != "shard_map"
                    reached[place].append(outs[k] if is_whole else outs[k]._replace(views=(), picked=()))
        results = []
        for values in reached.values():
            value = values[0] if values else _unknown(operands)
            for more in values[1:]:
                value = self._join(value, more)
            results.append(value)
        return results

    def _into(self, sub: Sub, k: int, operands: list[_Seen], path: tuple[int, ...]) -> _Seen:
        place = sub.inputs[k]
        value = _Seen(data=True) if place is None else operands[place]
        if k not in sub.stacked_inputs:
            return value
        kept, lost = vw.of_round(value.views, path, sub.length)
        self.notes += [_Note(view.leaf, "other", view, why=reason) for view, reason in lost]
        return value._replace(views=kept, picked=())

    def _join(self, a: _Seen, b: _Seen) -> _Seen:
        """Returns what is known of a value that is either `a` or `b`."""
        if a == b:
            return a
        if a.data or b.data:
            return _Seen(data=True)
        return _Seen(a.views if a.views == b.views else (), a.leaves | b.leaves)

    def _use(self, operands: Iterable[_Seen], use: Use, why: str) -> None:
        for value in operands:
            seen = {view.leaf: view for view in value.views}
            for leaf in sorted(value.leaves):
                self.notes.append(_Note(leaf, use, seen.get(leaf), why=why))


def _stack(view: View, site: Site) -> Site:
    return site._replace(batch=(*(factor for _, factor in view.scanned), *site.batch))


def _unknown(operands: Sequence[_Seen]) -> _Seen:
    if any(v.data for v in operands):
        return _Seen(data=True)
    return _Seen(leaves=frozenset(leaf for v in operands for leaf in v.leaves))


# A device of a shard_map holds a part of a parameter. The part is followed like a leaf of its shape. Its uses then
# become uses of the whole leaf, whose axes are longer.
Cut = Callable[[View], View | None]


def _is_followed(sub: Sub, eqn: Equation, operands: Sequence[_Seen]) -> bool:
    """Returns whether the uses of parameters in a jaxpr are known: a shard_map may see parts that are not followed."""
    return all(cut(view) is not None for _, place, cut in _shards(sub, eqn, operands) for view in operands[place].views)


def _shards(sub: Sub, eqn: Equation, operands: Sequence[_Seen]) -> list[tuple[int, int, Cut]]:
    """Returns the parameters that a shard_map cuts: (position inside, operand, function: its view -> a part's)."""
    if sub.role != "shard_map":
        return []
    places = [(k, place) for k, place in enumerate(sub.inputs) if place is not None and operands[place].views]
    shapes = [(k, p, tuple(eqn.invars[p].aval.shape), tuple(sub.jaxpr.invars[k].aval.shape)) for k, p in places]
    return [(k, p, lambda view, a=a, b=b: _part(view, a, b)) for k, p, a, b in shapes if a != b]


def _part(view: View, shape: tuple[int, ...], part: tuple[int, ...]) -> View | None:
    """Returns the view of a device's part of a value; None if it cuts anything but whole axes, or to size 1."""
    axes = []
    for axis, start, size, own in zip(view.axes, view.start, shape, part, strict=True):
        if own != size and (start or own == 1 or len(axis) != 1 or axis[0].of is None or axis[0].of.stride != 1):
            return None
        axes.append(axis if own == size else (axis[0]._replace(size=own),))
    return view._replace(axes=tuple(axes))


def _gathered(eqn: Equation, view: View) -> View:
    """Returns the view of parts that devices gather along an axis."""
    at = eqn.params["all_gather_dimension"]
    if len(view.axes[at]) != 1 or view.start[at]:
        raise NotFollowed("all_gather")
    longer = view.axes[at][0]._replace(size=view.axes[at][0].size * eqn.params["axis_size"])
    return view._replace(axes=(*view.axes[:at], (longer,), *view.axes[at + 1 :]))


def _of_whole(note: _Note, cuts: Sequence[tuple[View, View | None]]) -> _Note:
    """Returns the use of a whole leaf, from the use of a device's part of it."""
    sizes = lambda view: {f.of.axis: f.size for axis in view.axes for f in axis if f.of is not None}
    site = note.site
    for whole, part in cuts:
        if site is None or part is None or whole.leaf != note.leaf:
            continue
        for axis, size in sizes(whole).items():
            own = [f for f in (*site.batch, *site.inputs, *site.outputs) if f.of.axis == axis]
            here, held = math.prod(f.size for f in own), sizes(part)[axis]
            if here == size or size == held:
                continue
            if here != held or site.offset[axis]:
                return note._replace(use="other", site=None, why="a part of what a device of a `shard_map` holds")
            slow = max(own, key=lambda f: f.of.stride)
            grown = slow._replace(size=slow.size * size // held)
            longer = lambda factors, slow=slow, grown=grown: tuple(grown if f == slow else f for f in factors)
            site = site._replace(batch=longer(site.batch), inputs=longer(site.inputs), outputs=longer(site.outputs))
    return note._replace(site=site)


def _is_spread(view: View) -> bool:
    return any(f.of is None for axis in view.axes for f in axis)


def _says_yes_or_no(eqn: Equation, var: Any) -> bool:
    dtype = getattr(var.aval, "dtype", None)
    return dtype == np.bool_ or (eqn.primitive.name == "convert_element_type" and eqn.invars[0].aval.dtype == np.bool_)


def _with_role(leaf: LeafRole, notes: list[_Note], returned: bool) -> LeafRole:
    if not notes:
        return dataclasses.replace(leaf, uses=("other",), note="returned as it is") if returned else leaf
    multiplied = [note for note in notes if note.use == "multiplied"]
    if any(note.chosen for note in multiplied):  # experts, not an embedding
        notes = [note for note in notes if note.use != "embedding"]
    uses = tuple(use for use in ("multiplied", "embedding", "elementwise", "other") if use in {n.use for n in notes})
    why = list(dict.fromkeys(note.why for note in notes if note.use == "other"))
    axes, layout = _axes_of(leaf.shape, notes), None
    if multiplied:
        try:
            layout = layout_of(leaf.shape, [note.site for note in multiplied if note.site])[0]
            window = frozenset().union(*(note.window for note in multiplied))
            axes = _axes_in(layout, window, any(note.grouped for note in multiplied))
        except NotFollowed as reason:
            uses, axes, why = tuple(dict.fromkeys((*uses, "other"))), leaf.axes, [*why, str(reason)]
    return dataclasses.replace(leaf, uses=uses, axes=axes, layout=layout, note="; ".join(filter(None, why)))


def _axes_of(shape: tuple[int, ...], notes: list[_Note]) -> tuple[str, ...]:
    """Returns the kinds of axes of a leaf that is not multiplied."""
    kinds = []
    for axis, size in enumerate(shape):
        views = [note.view for note in notes if note.view is not None]
        taken = any(axis in note.indexed for note in notes)
        runs = [{f.of.axis for own in view.axes for f in own if f.of is not None} for view in views]
        if taken:
            kinds.append("indexed")
        elif size != 1 and views and not any(axis in own for own in runs):
            kinds.append("stacked")
        elif any(note.use == "other" or note.view is None for note in notes):
            kinds.append("unknown")
        else:
            kinds.append("output" if any(note.use == "embedding" for note in notes) else "entry")
    return tuple(kinds)


def _axes_in(layout: Layout, window: frozenset[int], grouped: bool) -> tuple[str, ...]:
    """Returns the kinds of axes of a leaf that is multiplied."""
    batch = "group" if grouped else "stacked"
    parts = (
        [(batch, f) for f in layout.batch]
        + [("window" if f.of.axis in window else "input", f) for f in layout.inputs]
        + [("output", f) for f in layout.outputs]
    )
    kinds = []
    for axis in range(len(layout.shape)):
        own = sorted((part for part in parts if part[1].of.axis == axis), key=lambda part: -part[1].of.stride)
        kinds.append("+".join(dict.fromkeys(kind for kind, _ in own)) or "single")
    return tuple(kinds)
