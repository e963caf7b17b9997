"""How many multiplications an equation makes, and how many each entry of an operand takes part in."""

import math
from typing import Any, NamedTuple

import numpy as np

Equation = Any
PRIMITIVES = frozenset({"dot_general", "conv_general_dilated"})


class MultiplyAdds(NamedTuple):
    """The multiply-adds of one run of an equation.

    Attributes:
      total: all of them.
      per_entry: for each of the two operands an int64 array that broadcasts to its shape: how many each entry
        takes part in. Over the whole operand these sum up to `total`.
    """

    total: int
    per_entry: tuple[np.ndarray, np.ndarray]


def multiply_adds(eqn: Equation) -> MultiplyAdds:
    """Counts exactly.

    A dot_general meets every entry of an operand equally often. In a convolution an entry of the kernel is met once
    for each output position at which it falls on an entry of the input: not on padding and not into the holes of
    a dilated input, so that the taps at the border of a SAME convolution count less often. That is what XLA's own
    cost analysis counts. Zero times a number counts; complex numbers count as one.

    Args:
      eqn: a dot_general or a conv_general_dilated.

    Returns:
      The counts.

    Example:
      >>> import jax
      >>> eqn = jax.make_jaxpr(jnp.dot)(jnp.ones((2, 3)), jnp.ones((3, 5))).jaxpr.eqns[0]
      >>> counted = multiply_adds(eqn)
      >>> counted.total, counted.per_entry[0].item(), counted.per_entry[1].item()
      (30, 5, 2)
    """
    if eqn.primitive.name == "dot_general":
        return _dot_general(eqn)
    return _conv(eqn)


def _dot_general(eqn: Equation) -> MultiplyAdds:
    lhs, rhs = (v.aval.shape for v in eqn.invars)
    (contract_l, contract_r), (batch_l, batch_r) = eqn.params["dimension_numbers"]
    free_l = _product(lhs, {*range(len(lhs))} - {*contract_l} - {*batch_l})
    free_r = _product(rhs, {*range(len(rhs))} - {*contract_r} - {*batch_r})
    total = free_l * free_r * _product(lhs, {*contract_l}) * _product(lhs, {*batch_l})
    return MultiplyAdds(total, (_filled(len(lhs), free_r), _filled(len(rhs), free_l)))


def _conv(eqn: Equation) -> MultiplyAdds:
    lhs, rhs = (v.aval.shape for v in eqn.invars)
    out = eqn.outvars[0].aval.shape
    p = eqn.params
    lhs_spec, rhs_spec, out_spec = p["dimension_numbers"]
    met = []
    for d in range(len(lhs) - 2):
        sizes = lhs[lhs_spec[2 + d]], rhs[rhs_spec[2 + d]], out[out_spec[2 + d]]
        steps = p["window_strides"][d], p["padding"][d][0], p["lhs_dilation"][d], p["rhs_dilation"][d]
        met.append(met_1d(*sizes, *steps))
    # Every kernel entry meets its input feature in each sample of its batch group; every input entry meets all
    # the output features of its feature group and batch group.
    samples = lhs[lhs_spec[0]] // p["batch_group_count"]
    features = rhs[rhs_spec[0]] // (p["feature_group_count"] * p["batch_group_count"])
    per_lhs = _outer(len(lhs), [(lhs_spec[2 + d], m.sum(0)) for d, m in enumerate(met)], features)
    per_rhs = _outer(len(rhs), [(rhs_spec[2 + d], m.sum(1)) for d, m in enumerate(met)], samples)
    pairs = math.prod(int(m.sum()) for m in met)
    return MultiplyAdds(pairs * samples * rhs[rhs_spec[0]] * rhs[rhs_spec[1]], (per_lhs, per_rhs))


def met_1d(
    size: int, taps: int, positions: int, stride: int, pad: int, lhs_dilation: int, rhs_dilation: int
) -> np.ndarray:
    """How often each tap meets each input entry along one axis, (taps, size) of int64.

    Output position o puts tap k on place o * stride + k * rhs_dilation - pad of the dilated input, of which only
    the multiples of lhs_dilation hold entries.
    """
    place = np.arange(positions)[:, None] * stride + np.arange(taps) * rhs_dilation - pad  # (positions, taps)
    entry, hole = np.divmod(place, lhs_dilation)
    real = (hole == 0) & (entry >= 0) & (entry < size)
    met = np.zeros((taps, size), np.int64)
    np.add.at(met, (np.broadcast_to(np.arange(taps), place.shape)[real], entry[real]), 1)
    return met


def _product(shape: tuple[int, ...], axes: set[int]) -> int:
    return math.prod(shape[axis] for axis in axes)


def _filled(ndim: int, value: int) -> np.ndarray:
    return np.full((1,) * ndim, value, np.int64)


def _outer(ndim: int, factors: list[tuple[int, np.ndarray]], scale: int) -> np.ndarray:
    result = _filled(ndim, scale)
    for axis, factor in factors:
        result = result * np.expand_dims(factor, [a for a in range(ndim) if a != axis])
    return result
