"""`find_counts`: the numbers of a program that count the positions of an axis, which a smaller architecture changes.

A mean divides a sum by the number of its terms; attention divides its logits by the root of the number of dimensions.
In a jaxpr both are plain numbers. A network that is built with the smaller width has other numbers in their place.
`find_counts` finds the numbers, and `numbers_after` computes what they become, or raises where it cannot know.

A number c that multiplies or divides a value counts n positions in three cases:

1. The value is a sum over n positions, perhaps moved and scaled, and c is n or n - 1, or one divided by it: a mean, a
   variance.
2. The value is a product of two activations that sums over n positions, or enters such a product, and c is n to the
   power of 1/4, 1/2 or 1, or one divided by it: the scale of attention, of its logits or of its queries.
3. The value, or the product that makes it, has or sums over n >= 8 positions, n is no square, and c is the root of n or
   one divided by it: the scale of an embedding. Hardly any other number equals the root of 768.

A number that equals n, or the root of a square or of a small n, in another place is ambiguous.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import export
from jax.core import Tracer
from jax.extend import source_info_util

from jaxprune._jaxprs import Sub, is_product, sub_jaxprs
from jaxprune._jaxprs.primitives import PRIMITIVES, PSUM, Convolution, Entrywise, Moves, Product, Reduce, Zero
from jaxprune._jaxprs.walk import Values, walk
from jaxprune.slimming._labels import axes as ax
from jaxprune.slimming._labels.axes import Axis
from jaxprune.slimming._labels.evaluate import Decision, Numbers
from jaxprune.slimming._labels.frames import Frame, Shards


class Use(NamedTuple):
    """A number that multiplies or divides a value: operand `operand` of an equation."""

    frame: Frame
    equation: int
    operand: int
    number: float
    tolerance: float

    @property
    def eqn(self) -> Any:
        """The equation."""
        return self.frame.jaxpr.eqns[self.equation]


class Count(NamedTuple):
    """A number that is (n - offset) ** power, where n is the number of positions of some axes together.

    Attributes:
      use: the number.
      axes: the axes.
      offset: 0 or 1.
      power: the power.
      case: why the number is a count: 1 to 3 as above; 4 if it is ambiguous.
    """

    use: Use
    axes: tuple[Axis, ...]
    offset: int
    power: float
    case: int


class _Known(NamedTuple):
    """What is known of a value.

    Attributes:
      number: the number that the value has everywhere.
      active: whether the value is more than a moved, scaled or masked parameter.
      summed: for a sum that was only moved or scaled afterwards: the axes it sums over, one tuple for each sum in turn.
      products: for a product of two activations: the axes it sums over.
      made: for any sum or product: the axes it sums over.
      scales: the numbers that multiply or divide the value.
    """

    number: float | None = None
    active: bool = False
    summed: tuple[tuple[Axis, ...], ...] = ()
    products: tuple[tuple[Axis, ...], ...] = ()
    made: tuple[Axis, ...] = ()
    scales: tuple[Use, ...] = ()


def find_counts(frame: Frame, leaves: Sequence[int | None]) -> list[Count]:
    """Finds the numbers of a followed program that count positions, or may count them.

    Args:
      frame: the program, with its axes.
      leaves: the inputs of its jaxpr that are parameters.

    Returns:
      The counts. A number that counts in an earlier case is left out of later cases.
    """
    counts: list[Count] = []
    inputs = [_Known(active=i not in leaves) for i in range(len(frame.jaxpr.invars))]
    _ = _follow(frame, inputs, counts)
    first: dict[tuple[int, int, int], int] = {}
    for count in counts:
        first[_place(count.use)] = min(count.case, first.get(_place(count.use), count.case))
    return [count for count in counts if count.case == first[_place(count.use)]]


def numbers_after(decision: Decision, frame: Frame, counts: Sequence[Count], given: Mapping[float, float]) -> Numbers:
    """Returns the numbers of the smaller architecture.

    Args:
      decision: the labels to remove.
      frame: the program.
      counts: `find_counts(frame, ...)`.
      given: for ambiguous numbers what they become.

    Returns:
      For each equation (the id of its frame, its index) the new numbers of the operands that change. An equation whose
      inner jaxprs contain such an equation has an entry too, which is empty.

    Raises:
      ValueError: an ambiguous number may count positions that are removed, the function makes numbers along an axis
        that shrinks, or a function with a custom derivative contains counts that change.
    """
    found: Numbers = {}
    ambiguous: list[str] = []
    of_use: dict[tuple[int, int, int], list[Count]] = {}
    for count in counts:
        of_use.setdefault(_place(count.use), []).append(count)
    for (frame_id, index, operand), same in of_use.items():
        use, becomes = same[0].use, {}
        for count in same:
            keeps = [(ax.size(axis), decision.keep(axis)) for axis in count.axes]
            old, new = math.prod(n for n, _ in keeps), math.prod(n if k is None else k.size for n, k in keeps)
            ratio = (new - count.offset) / (old - count.offset)
            becomes[use.number * ratio**count.power if new != old else use.number] = f"from {old} to {new}"
        if list(becomes) == [use.number]:
            continue
        [*numbers] = becomes
        if len(numbers) > 1 or same[0].case == 4:
            name = next((g for g in given if math.isclose(g, use.number, rel_tol=1e-6)), None)
            if name is None:
                where, axes = source_info_util.summarize(use.eqn.source_info), ", ".join(becomes.values())
                ambiguous.append(f"  {use.number:.8g} at {where}: an axis shrinks {axes}")
                continue
            numbers = [float(given[name])]
        found.setdefault((frame_id, index), {})[operand] = numbers[0]
    problems = list(_made_along(decision, frame))
    if ambiguous:
        raise ValueError(
            "as_built: these numbers may count positions that are removed. Say what the smaller architecture has in "
            "their place, as_built={number: number}, the same number where it stays:\n"
            + "\n".join(list(dict.fromkeys(ambiguous))[:20])
        )
    _ = _enclosing(frame, found)
    problems += [f"  {name}: a custom derivative of a function with such numbers" for name in _custom(frame, found)]
    if problems:
        raise ValueError(
            "as_built: the smaller architecture has other numbers in places that the traced function does not tell; "
            "protect these groups, or write the numbers as parameters:\n" + "\n".join(dict.fromkeys(problems))
        )
    return found


def _place(use: Use) -> tuple[int, int, int]:
    return id(use.frame), use.equation, use.operand


def _enclosing(frame: Frame, found: Numbers) -> bool:
    """Marks the equations whose inner frames have changed numbers; returns whether this frame has any."""
    for index, children in frame.children.items():
        changed = [_enclosing(child, found) for child in children]
        if any(changed):
            found.setdefault((id(frame), index), {})
    return any(place == id(frame) for place, _ in found)


def _custom(frame: Frame, found: Numbers) -> Iterator[str]:
    for index, children in frame.children.items():
        eqn = frame.jaxpr.eqns[index]
        if (id(frame), index) in found and eqn.primitive.name.startswith("custom_"):
            yield source_info_util.summarize(eqn.source_info)
        for child in children:
            yield from _custom(child, found)


def _made_along(decision: Decision, frame: Frame) -> Iterator[str]:
    """Yields the places where a function makes different numbers along an axis that shrinks."""
    for var, const in zip(frame.jaxpr.constvars, frame.consts, strict=True):
        for axis, of in enumerate(frame.read(var)):
            if decision.keep(of) is not None and not _uniform(const, axis):
                yield f"  a constant of shape {tuple(np.shape(const))}: axis {axis} shrinks"
    for index, eqn in enumerate(frame.jaxpr.eqns):
        if eqn.primitive.name == "iota":
            axis = frame.read(eqn.outvars[0])[eqn.params["dimension"]]
            if decision.keep(axis) is not None:
                where = source_info_util.summarize(eqn.source_info)
                yield f"  {where}: positions are numbered along an axis of {ax.size(axis)} that shrinks"
        for child in frame.children.get(index, []):
            yield from _made_along(decision, child)


def _uniform(const: Any, axis: int) -> bool:
    """Returns whether a constant is known and equal along an axis."""
    if isinstance(const, Tracer) or not np.issubdtype(np.asarray(const).dtype, np.number):
        return False
    values = np.asarray(const)
    return bool((values == np.take(values, [0], axis)).all())


def _follow(frame: Frame, inputs: Sequence[_Known], counts: list[Count]) -> list[_Known]:
    """Returns what is known of the outputs of a frame: constants and counts; adds the counts to `counts`."""

    def equation(index: int, eqn: Any, known: list[_Known]) -> list[_Known]:
        children = frame.children.get(index)
        if children:
            return _enter(eqn, children, known, counts)
        results = len(eqn.outvars)
        if known and all(k.number is not None for k in known):
            number = _computed(eqn, [k.number for k in known if k.number is not None])
            if number is not None:
                return [_Known(number)] * results
        what = PRIMITIVES.get(eqn.primitive.name)
        if isinstance(what, Moves):
            if what.each:
                return known
            alone = len(known) == 1 or all(k.number is not None for k in known[1:])
            return [known[0] if alone else _joined(known)] * results
        if is_product(eqn):
            return [_product(frame, eqn, known, counts)]
        summed = _summed(frame, eqn, known)
        if summed is not None:
            return [summed]
        if isinstance(what, Entrywise):
            return [_entrywise(Use(frame, index, 0, 0.0, 0.0), what, known, counts)] * results
        return [_Known(active=any(k.active for k in known) or what is None)] * results

    consts = [_constant(const) for const in frame.consts]
    return walk(frame.jaxpr, [*consts, *inputs], Values[_Known](_constant), equation)


def _summed(frame: Frame, eqn: Any, operands: Sequence[_Known]) -> _Known | None:
    """Returns what is known of a sum over axes or over devices; None for any other equation."""
    what, known = PRIMITIVES.get(eqn.primitive.name), operands[0] if operands else _Known()
    if isinstance(what, Reduce) and what.sums:
        block = tuple(frame.read(eqn.invars[0])[i] for i in what.axes(eqn))
        return _Known(None, known.active, (*known.summed, block), made=block)
    if eqn.primitive.name not in PSUM or len(operands) != 1:
        return None
    # A sum over devices completes sums and products over axes that its mesh axes cut.
    blocks = [*known.summed, *known.products]
    completed = [axes for axes in blocks if _shards(frame, axes, eqn.params["axes"]) > 1]
    return known if blocks and len(completed) == len(blocks) else _Known(active=known.active)


def _shards(frame: Frame, axes: Sequence[Axis], names: Sequence[Any] | None = None) -> int:
    """Returns the number of shards into which mesh axes (default: all) cut some axes inside a shard_map."""
    found = 1
    for k, layer in enumerate(frame.layers):
        if isinstance(layer, Shards) and (names is None or layer.name in names):
            back = len(frame.layers) - k + 1  # layers are the axes before the last
            all_ids = [factor.of for axis in axes for factor in axis if factor.of is not None]
            found *= layer if any(ids.ndim >= back and ids.shape[-back] > 1 for ids in all_ids) else 1
    return found


def _constant(value: Any) -> _Known:
    """Returns what is known of a constant: its number, if it has one entry."""
    if isinstance(value, Tracer) or np.size(value) != 1 or not np.issubdtype(np.asarray(value).dtype, np.number):
        return _Known()
    return _Known(float(np.real(np.asarray(value).ravel()[0])))


def _computed(eqn: Any, numbers: Sequence[float]) -> float | None:
    """Returns the number that an equation computes from numbers, or moves; None for any other equation."""
    name, params = eqn.primitive.name, eqn.params
    if name in _SAME or isinstance(PRIMITIVES.get(name), Moves):
        return numbers[0]
    if name in ("integer_pow", "pow") and numbers[0] > 0:
        return numbers[0] ** (params["y"] if name == "integer_pow" else numbers[1])
    if name in ("div", "sqrt", "rsqrt") and numbers[-1] <= 0:
        return None
    return _ARITHMETIC[name](*numbers) if name in _ARITHMETIC else None


_SAME = ("convert_element_type", "copy", "stop_gradient", "reduce_precision")
_ARITHMETIC: dict[str, Callable[..., float]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "neg": lambda a: -a,
    "square": lambda a: a * a,
    "sqrt": math.sqrt,
    "rsqrt": lambda a: 1 / math.sqrt(a),
}


def _joined(known: Sequence[_Known]) -> _Known:
    """Returns what is known of a sum, a concatenation or a selection of several values."""
    products = {tuple(map(id, axes)): axes for k in known for axes in k.products}
    made = {id(axis): axis for k in known for axis in k.made}
    scales = {_place(use): use for k in known for use in k.scales}
    active = any(k.active for k in known)
    return _Known(None, active, (), tuple(products.values()), tuple(made.values()), tuple(scales.values()))


def _enter(eqn: Any, children: Sequence[Frame], known: list[_Known], counts: list[Count]) -> list[_Known]:
    reached: list[list[_Known]] = [[] for _ in eqn.outvars]
    for sub, child in zip(sub_jaxprs(eqn), children, strict=True):
        outs = _follow(child, _inside(sub, known), counts)
        for out, place in zip(outs, sub.outputs, strict=True):
            if place is not None:
                reached[place].append(out)
    return [found[0] if len(found) == 1 else _joined(found) for found in reached]


def _inside(sub: Sub, known: Sequence[_Known]) -> list[_Known]:
    """Returns what is known of the inputs of an inner jaxpr; a carried value may differ in every turn."""
    carried = {into for _, into in sub.carried}
    return [
        _Known(active=True) if place is None or k in carried else known[place] for k, place in enumerate(sub.inputs)
    ]


def _product(frame: Frame, eqn: Any, known: Sequence[_Known], counts: list[Count]) -> _Known:
    """Returns what is known of a product or convolution, and adds the scales of its operands that are counts."""
    what, lhs = PRIMITIVES[eqn.primitive.name], frame.read(eqn.invars[0])
    if not isinstance(what, Product):
        assert isinstance(what, Convolution)
        return _Known(active=True, made=(lhs[eqn.params["dimension_numbers"].lhs_spec[1]],))
    axes = tuple(lhs[i] for i in what.numbers(eqn)[0][0])
    if not all(k.active for k in known):
        return _Known(active=True, made=axes)
    for use in (*known[0].scales, *known[1].scales):
        _match(use, axes, (0.5, 0.25, 1.0), counts, 2)
    return _Known(active=True, products=(axes,), made=axes)


def _entrywise(use: Use, what: Entrywise, known: list[_Known], counts: list[Count]) -> _Known:
    """Returns what is known of the result of an entrywise equation, and adds the number in it if that is a count."""
    name, eqn = use.eqn.primitive.name, use.eqn
    numbers = [k for k, one in enumerate(known) if one.number is not None]
    if name in ("mul", "div") and len(numbers) == 1 and (name == "mul" or numbers == [1]):
        [k] = numbers
        dtype = eqn.outvars[0].aval.dtype
        if not jnp.issubdtype(dtype, jnp.floating):
            return known[1 - k]
        use = use._replace(operand=k, number=known[k].number, tolerance=4 * float(jnp.finfo(dtype).eps))
        return _scaled(use, known[1 - k], counts)
    others = [one for one in known if one.number is None]
    if what.zero in (Zero.SAME, Zero.FIRST) and what.linear.stop == 1 and len(known) == 1:
        return known[0]
    linear = name in ("add", "add_any", "sub", "select_n") or (
        name in ("mul", "div") and sum(one.active for one in others) <= 1
    )
    if linear and others and not (name == "div" and others[-1].active and known[0].number is not None):
        return _joined(others)
    return _Known(active=any(one.active for one in known))


def _scaled(use: Use, base: _Known, counts: list[Count]) -> _Known:
    """Adds what a number counts that multiplies or divides a value, and returns what is known of the result."""
    for first in range(len(base.summed)):
        axes = tuple(axis for block in base.summed[first:] for axis in block)
        certain = math.prod(ax.size(axis) for axis in axes) >= 8
        if _match(use, axes, (1.0,), counts, 1) or _match(use, axes, (1.0,), counts, 1 if certain else 4, offset=1):
            return base._replace(summed=base.summed[:first])
    scale_of = [_match(use, axes, (0.5, 0.25, 1.0), counts, 2) for axes in base.products]
    if any(scale_of):
        return base
    own = use.frame.read(use.eqn.invars[1 - use.operand])
    for axis in {id(axis): axis for axis in (*own, *base.made)}.values():
        for part in [axis] if len(axis) == 1 else [axis, *((factor,) for factor in axis)]:
            n = ax.size(part)
            fine = use.tolerance < 1e-4  # in 16 bits several numbers are rounded to one
            likely = not ax.is_fixed(part) and n >= 8 and math.isqrt(n) ** 2 != n and fine
            if not _match(use, (part,), (0.5,), counts, 3 if likely else 4):
                _ = _match(use, (part,), (1.0,), counts, 4)
    return base._replace(scales=(*base.scales, use))


def _match(
    use: Use, axes: tuple[Axis, ...], powers: Sequence[float], counts: list[Count], case: int, *, offset: int = 0
) -> bool:
    """Returns whether a number is a power of the number of positions of some axes, and adds the count if so."""
    if all(ax.is_fixed(axis) for axis in axes):
        return False
    if any(export.is_symbolic_dim(ax.size(axis)) for axis in axes):
        raise ValueError("as_built: a sum over a symbolic dimension and an axis that may shrink; give a fixed size")
    shards = _shards(use.frame, axes)
    of_all_devices = [(*axes, ax.fixed(shards))] if shards > 1 else []
    for counted in [axes, *of_all_devices]:
        n = math.prod(ax.size(axis) for axis in counted) - offset
        for power in [p for p in (*powers, *(-p for p in powers)) if n > 1]:
            if abs(use.number - n**power) <= use.tolerance * n**power:
                counts.append(Count(use, counted, offset, power, case))
                return True
    return False
