"""The table of primitives: `PRIMITIVES` says what each one does to the axes and entries of its operands.

A primitive is described once, by a value of one of the kinds below. FLOPs, calibration, roles and slimming read the
description. Add a new primitive here:

    PRIMITIVES["softcap"] = Entrywise(Zero.FIRST)                                  # f(0) = 0, entry by entry
    PRIMITIVES["swap"] = Moves(lambda eqn: [Transpose((1, 0))])                    # moves entries
    PRIMITIVES["my_matmul"] = Product(lambda eqn: (((1,), (0,)), ((), ())))        # sums products over axes

A primitive that only moves entries is described by one move (`Transpose`, `Reshape`, `Slice`, ...) for each result.
Each client implements each move once for its own values: `weights` applies moves to arrays, `views` to factors,
`slimming` to labels. A move that is called with arrays (of NumPy or JAX) moves their entries.

Equations with jaxprs inside are described by `sub_jaxprs` instead. A primitive that neither describes is unknown: FLOPs
list it as uncounted, calibration and roles cannot follow the parameters that enter it, slimming removes nothing that it
uses.
"""

import enum
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np

Equation = Any
Axes = tuple[int, ...]
Shape = tuple[int, ...]


class Same(NamedTuple):
    """Every entry keeps its position."""

    def __call__(self, x: Any) -> Any:
        """Returns the array itself."""
        return x


class Transpose(NamedTuple):
    """Axis i of the result is axis `permutation[i]`."""

    permutation: Shape

    def __call__(self, x: Any) -> Any:
        """Returns the array with its axes in another order."""
        return x.transpose(self.permutation)


class Reshape(NamedTuple):
    """The entries in the same order in another shape; with `order`, the axes are first transposed by it."""

    shape: Shape
    order: Shape | None = None

    def __call__(self, x: Any) -> Any:
        """Returns the array in the new shape."""
        return (x if self.order is None else x.transpose(self.order)).reshape(self.shape)


class Squeeze(NamedTuple):
    """Drops the axes `dimensions`, each of one position."""

    dimensions: Shape

    def __call__(self, x: Any) -> Any:
        """Returns the array without the axes in `dimensions`."""
        return x.reshape([n for a, n in enumerate(x.shape) if a not in self.dimensions])


class Broadcast(NamedTuple):
    """Axis i becomes axis `dimensions[i]` of a result of shape `shape`; entries repeat along all others."""

    shape: Shape
    dimensions: Shape

    def __call__(self, x: Any) -> Any:
        """Returns the broadcast array."""
        kept = [1] * len(self.shape)
        for axis, n in zip(self.dimensions, x.shape, strict=True):
            kept[axis] = n
        return np.broadcast_to(x.reshape(kept), self.shape)


class Slice(NamedTuple):
    """On each axis the positions from `starts` to `limits` in steps of `strides`."""

    starts: Shape
    limits: Shape
    strides: Shape

    def __call__(self, x: Any) -> Any:
        """Returns a part of the array."""
        return x[tuple(slice(*bounds) for bounds in zip(*self, strict=True))]


class Reverse(NamedTuple):
    """Reverses the axes `dimensions`."""

    dimensions: Shape

    def __call__(self, x: Any) -> Any:
        """Returns the array with the axes in `dimensions` reversed."""
        return np.flip(x, self.dimensions)


class Tile(NamedTuple):
    """Axis i is repeated `reps[i]` times, one copy after the other."""

    reps: Shape

    def __call__(self, x: Any) -> Any:
        """Returns the repeated array."""
        return np.tile(x, self.reps)


class Pad(NamedTuple):
    """Puts (low, high, inside) entries of a second operand before, after and between the entries of each axis."""

    config: tuple[tuple[int, int, int], ...]


class Concatenate(NamedTuple):
    """Concatenates all operands along an axis."""

    axis: int

    def __call__(self, *parts: Any) -> Any:
        """Returns the concatenated arrays."""
        return np.concatenate(parts, self.axis)


class Stack(NamedTuple):
    """Stacks all operands along a new axis."""

    axis: int

    def __call__(self, *parts: Any) -> Any:
        """Returns the stacked arrays."""
        return np.stack(parts, self.axis)


Move: TypeAlias = Same | Transpose | Reshape | Squeeze | Broadcast | Slice | Reverse | Tile | Pad | Concatenate | Stack


class Flops(enum.Enum):
    """The cost of an equation that is not a product."""

    NONE = enum.auto()  # nothing
    RESULT = enum.auto()  # one for each entry of the result
    OPERAND = enum.auto()  # one for each entry of the operand
    WINDOW = enum.auto()  # one for each entry of each window
    UNKNOWN = enum.auto()  # not known; the primitive is reported


class Zero(enum.Enum):
    """Where the result of an entrywise function is zero because its operands are zero."""

    SAME = enum.auto()  # the result is the operand, up to precision and placement
    FIRST = enum.auto()  # where the first operand is zero
    ANY = enum.auto()  # where one operand is zero
    ALL = enum.auto()  # where all operands are zero
    CASES = enum.auto()  # where all operands but the first are zero
    NEVER = enum.auto()  # unknown
    POLE = enum.auto()  # nowhere: the result is infinite where the operand is zero
    DIVIDE = enum.auto()  # where the first operand is zero and the second is not
    POWER = enum.auto()  # where the first operand is zero, if the exponent is positive
    LARGER = enum.auto()  # where all operands are zero, except a constant of at most zero
    SMALLER = enum.auto()  # where all operands are zero, except a constant of at least zero
    CLAMP = enum.auto()  # where the second operand is zero, if zero is within the bounds


class Entrywise(NamedTuple):
    """Each entry of the result depends on the operands' entries at the same position, and on scalar operands.

    Attributes:
      zero: where the result is zero.
      linear: the operands that the result depends on linearly, each while the others are constant; may be empty.
      flops: the cost.
    """

    zero: Zero
    linear: slice = slice(0)
    flops: Flops = Flops.RESULT


class Moves(NamedTuple):
    """Entries are moved, repeated and dropped, but not changed.

    Attributes:
      moves: from an equation to one move for each result. It applies to the first operand; Concatenate and Stack apply
        to all operands.
      each: whether result k is made from operand k instead.
    """

    moves: Callable[[Equation], list[Move]]
    each: bool = False


class Product(NamedTuple):
    """A sum of products of two operands; the result has the batch axes, then the left's axes, then the right's.

    Attributes:
      numbers: from an equation to ((contracted axes of the left, of the right), (batch axes of the left, of the
        right)).
    """

    numbers: Callable[[Equation], tuple[tuple[Axes, Axes], tuple[Axes, Axes]]]


class Ragged(NamedTuple):
    """A product of rows that are sorted into groups with one matrix for each group: `ragged_dot`.

    The operands are the rows [rows, inputs], the matrices [groups, inputs, outputs] and the numbers of rows [groups].
    """


class Convolution(NamedTuple):
    """A convolution with the parameters of `conv_general_dilated`."""


class Reduce(NamedTuple):
    """Drops some axes of the operands; each entry of the result depends on all entries along these axes.

    Attributes:
      axes: from an equation to these axes.
      sums: whether zero entries do not change the result.
      keeps_zero: whether the result is zero where all entries are zero.
      flops: the cost.
    """

    axes: Callable[[Equation], Axes]
    sums: bool = False
    keeps_zero: bool = True
    flops: Flops = Flops.OPERAND


class Mix(NamedTuple):
    """Along some axes each entry of the result depends on several entries, along the other axes on one entry.

    Attributes:
      axes: from an equation to these axes.
      keeps_zero: whether the result is zero where all entries along these axes are zero.
      flops: the cost.
    """

    axes: Callable[[Equation], Axes]
    keeps_zero: bool = True
    flops: Flops = Flops.OPERAND


class Pick(NamedTuple):
    """Reads entries of the first operand at positions that other operands give."""


class Write(NamedTuple):
    """Writes other operands into the first operand at positions that further operands give."""


class Make(NamedTuple):
    """The result has no axes of the operands: each position gets its own value."""


class Other(NamedTuple):
    """An operation that costs no FLOPs; nothing else is known."""


Primitive: TypeAlias = Entrywise | Moves | Product | Ragged | Convolution | Reduce | Mix | Pick | Write | Make | Other

_FIRST, _ALL, _CASES = slice(1), slice(None), slice(1, None)


def _named(names: str, primitive: Primitive) -> dict[str, Primitive]:
    return dict.fromkeys(names.split(), primitive)


def _slices(eqn: Equation) -> list[Move]:
    starts = tuple(eqn.params["start_indices"])
    return [Slice(starts, tuple(eqn.params["limit_indices"]), tuple(eqn.params["strides"] or (1,) * len(starts)))]


def _parts(eqn: Equation) -> list[Move]:
    axis, shape = eqn.params["axis"], eqn.invars[0].aval.shape
    ends = list(itertools.accumulate(eqn.params["sizes"]))
    bounds = [(end - size, end) for end, size in zip(ends, eqn.params["sizes"], strict=True)]
    ones = (1,) * len(shape)
    starts = [tuple(a if k == axis else 0 for k in range(len(shape))) for a, _ in bounds]
    limits = [tuple(b if k == axis else n for k, n in enumerate(shape)) for _, b in bounds]
    return [Slice(a, b, ones) for a, b in zip(starts, limits, strict=True)]


def _reshape(eqn: Equation) -> list[Move]:
    order = eqn.params.get("dimensions")
    return [Reshape(tuple(eqn.outvars[0].aval.shape), None if order is None else tuple(order))]


def _broadcast(eqn: Equation) -> list[Move]:
    return [Broadcast(tuple(eqn.outvars[0].aval.shape), tuple(eqn.params["broadcast_dimensions"]))]


def _axes(eqn: Equation) -> Axes:
    return tuple(eqn.params["axes"])


def _along(eqn: Equation) -> Axes:
    axis = eqn.params.get("axis", eqn.params.get("dimension", -1))
    return (axis % len(eqn.invars[0].aval.shape),)


def _window(eqn: Equation) -> Axes:
    params, ones = eqn.params, ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
    alone = lambda i: all((params.get(key) or {i: 1})[i] == 1 for key in ones)
    rank = len(eqn.invars[0].aval.shape)
    return tuple(i for i in range(rank) if not (alone(i) and tuple(params["padding"][i]) == (0, 0)))


def _fft(eqn: Equation) -> Axes:
    rank = len(eqn.invars[0].aval.shape)
    return tuple(range(rank - len(eqn.params["fft_lengths"]), rank))


# The names of a sum over devices: by JAX version, and by what is known of the axes of the mesh.
PSUM = ("psum", "psum2", "psum_invariant")

PRIMITIVES: dict[str, Primitive] = {
    # The value itself, up to precision and place.
    **_named(
        "convert_element_type copy copy_p stop_gradient reduce_precision name sharding_constraint mesh_cast reshard "
        "pvary pcast layout_constraint",
        Entrywise(Zero.SAME, _FIRST, Flops.NONE),
    ),
    **_named("real conj", Entrywise(Zero.FIRST, _FIRST, Flops.NONE)),
    "neg": Entrywise(Zero.FIRST, _FIRST),
    **_named("optimization_barrier device_put", Moves(lambda eqn: [Same()] * len(eqn.outvars), each=True)),
    # Entry by entry.
    **_named("add add_any sub", Entrywise(Zero.ALL, _ALL)),
    "mul": Entrywise(Zero.ANY, _ALL),
    "div": Entrywise(Zero.DIVIDE, _FIRST),
    "select_n": Entrywise(Zero.CASES, _CASES, Flops.NONE),
    **_named(
        "abs asin asinh atan atanh bessel_i1e cbrt ceil erf erf_inv expm1 floor log1p rem round sign sin sinh sqrt "
        "square tan tanh",
        Entrywise(Zero.FIRST),
    ),
    **_named(
        "imag population_count shift_left shift_right_arithmetic shift_right_logical",
        Entrywise(Zero.FIRST, flops=Flops.NONE),
    ),
    **_named("log rsqrt", Entrywise(Zero.POLE)),
    **_named("pow integer_pow", Entrywise(Zero.POWER)),
    "max": Entrywise(Zero.LARGER),
    "min": Entrywise(Zero.SMALLER),
    "clamp": Entrywise(Zero.CLAMP),
    **_named("atan2 nextafter", Entrywise(Zero.ALL)),
    **_named("complex or xor", Entrywise(Zero.ALL, flops=Flops.NONE)),
    "and": Entrywise(Zero.ANY, flops=Flops.NONE),
    **_named(
        "acos acosh bessel_i0e cos cosh digamma erfc exp exp2 igamma igammac lgamma logistic polygamma "
        "regularized_incomplete_beta zeta",
        Entrywise(Zero.NEVER),
    ),
    **_named("bitcast_convert_type clz is_finite not eq ne ge gt le lt", Entrywise(Zero.NEVER, flops=Flops.NONE)),
    # Moving entries.
    "reshape": Moves(_reshape),
    "squeeze": Moves(lambda eqn: [Squeeze(tuple(eqn.params["dimensions"]))]),
    "transpose": Moves(lambda eqn: [Transpose(tuple(eqn.params["permutation"]))]),
    "broadcast_in_dim": Moves(_broadcast),
    "slice": Moves(_slices),
    "split": Moves(_parts),
    "rev": Moves(lambda eqn: [Reverse(tuple(eqn.params["dimensions"]))]),
    "tile": Moves(lambda eqn: [Tile(tuple(eqn.params["reps"]))]),
    "pad": Moves(lambda eqn: [Pad(tuple(eqn.params["padding_config"]))]),
    "concatenate": Moves(lambda eqn: [Concatenate(eqn.params["dimension"])]),
    "stack": Moves(lambda eqn: [Stack(eqn.params["axis"])]),
    # Sums of products.
    "dot_general": Product(lambda eqn: eqn.params["dimension_numbers"]),
    "ragged_dot_general": Ragged(),
    "conv_general_dilated": Convolution(),
    # Over axes.
    "reduce_sum": Reduce(_axes, sums=True),
    **_named("reduce_max reduce_min reduce_prod", Reduce(_axes)),
    **_named("reduce_and reduce_or reduce_xor", Reduce(_axes, flops=Flops.NONE)),
    **_named("argmax argmin", Reduce(_axes, keeps_zero=False, flops=Flops.NONE)),
    **_named("cumsum cumprod cummax cummin", Mix(_along)),
    "cumlogsumexp": Mix(_along, keeps_zero=False),
    **_named("sort top_k", Mix(_along, keeps_zero=False, flops=Flops.NONE)),
    **_named("reduce_window_sum reduce_window_max reduce_window_min", Mix(_window, flops=Flops.WINDOW)),
    "reduce_window": Mix(_window, keeps_zero=False, flops=Flops.UNKNOWN),
    "fft": Mix(_fft, flops=Flops.UNKNOWN),
    # By index.
    **_named("gather dynamic_slice", Pick()),
    **_named(
        "dynamic_update_slice scatter scatter-add scatter-sub scatter-mul scatter-min scatter-max scatter_add "
        "scatter_sub scatter_mul scatter_min scatter_max",
        Write(),
    ),
    **_named("iota random_bits", Make()),
    **_named(
        "axis_index all_gather all_to_all create_token debug_callback debug_print empty eq_to le_to lt_to ppermute "
        "random_clone random_fold_in random_seed random_split random_unwrap random_wrap threefry2x32",
        Other(),
    ),
}
