"""Axes as products of factors (`Factor`, `split`, `merge`, `blocks`), and leaves as matrices (`Layout`).

An axis is a tuple of factors, from the slowest to the fastest; its length is the product of their sizes. An axis of
heads times dimensions has two factors, so a reshape that separates them needs no other information. The client decides
what a factor stores about its positions: `views` stores the `Run` along a leaf's axis, `slimming` stores labels.

The runs of a product's operand say which axes of the leaf are summed over. From all such uses of a leaf (`Site`),
`layout_of` derives its `Layout`: a stack of weight matrices [inputs, outputs].
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp


class Factor(NamedTuple):
    """Part of an axis.

    Attributes:
      size: the number of positions; a symbolic dimension (for jax.export) if `of` is None.
      of: what the positions are, in the client's terms; None if all positions are equal.
    """

    size: int
    of: Any = None


Axis: TypeAlias = tuple[Factor, ...]
Cut = Callable[[Factor, int], tuple[Factor, Factor]]


def size(axis: Sequence[Factor]) -> int:
    """Returns the number of positions of an axis."""
    total = 1
    for factor in axis:
        total *= factor.size
    return total


def merge(axes: Sequence[Axis]) -> Axis:
    """Merges axes into one, the last axis fastest; joins factors without `of`, and drops them if their size is 1.

    Example:
      >>> merge([(Factor(2), Factor(1)), (Factor(3),), (Factor(4, "x"),)])
      (Factor(size=6, of=None), Factor(size=4, of='x'))
    """
    factors: list[Factor] = []
    for factor in (f for axis in axes for f in axis):
        if factor.of is None and factors and factors[-1].of is None:
            factors[-1] = Factor(factors[-1].size * factor.size)
        elif factor.size != 1 or factor.of is not None:
            factors.append(factor)
    return tuple(factors)


def split(axis: Axis, sizes: Sequence[int], cut: Cut) -> list[Axis] | None:
    """Distributes the factors of an axis over several axes, the last axis fastest.

    Args:
      axis: the axis.
      sizes: the sizes of the new axes; their product is the size of the axis.
      cut: `cut(factor, fast)` returns two factors of sizes (factor.size / fast, fast), whose product is the factor.

    Returns:
      One axis for each size; None where a factor would have to be cut unevenly.

    Example:
      >>> split((Factor(6),), [2, 3], lambda factor, fast: (Factor(factor.size // fast), Factor(fast)))
      [(Factor(size=2, of=None),), (Factor(size=3, of=None),)]
    """
    rest, found = list(axis), []
    for wanted in reversed(sizes):
        taken: list[Factor] = []
        count = wanted
        while count != 1 or (rest and rest[-1].size == 1):
            factor = rest.pop()
            if count % factor.size == 0:
                taken.insert(0, factor)
                count //= factor.size
            elif factor.size % count == 0:
                slow, fast = cut(factor, count)
                rest.append(slow)
                taken.insert(0, fast)
                count = 1
            else:
                return None
        found.insert(0, merge([tuple(taken)]))
    return found


def blocks(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Returns the smallest runs of axes of two shapes that have the same number of positions.

    Args:
      old: a shape without zeros.
      new: another shape with the same number of entries.

    Returns:
      Pairs (axes of `old`, axes of `new`), in order. One of them is empty where the other has axes of size 1.

    Example:
      >>> blocks((4, 6, 5), (24, 5, 1))
      [([0, 1], [0]), ([2], [1]), ([], [2])]
    """
    out, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        mine, other = [i] if i < len(old) else [], [j] if j < len(new) else []
        a, b = (old[i] if mine else 1), (new[j] if other else 1)
        i, j = i + len(mine), j + len(other)
        while a != b:
            if a < b:
                a, i = a * old[i], i + 1
                mine.append(i - 1)
            else:
                b, j = b * new[j], j + 1
                other.append(j - 1)
        out.append((mine, other))
    return out


class Run(NamedTuple):
    """Entries of a leaf at distances of `stride` along one of its axes."""

    axis: int
    stride: int = 1


class NotFollowed(Exception):
    """A view cannot express what happens to a parameter; the message names the operation."""


def run(axis: int, size: int, stride: int = 1) -> Factor:
    """Returns the factor of `size` entries of a leaf at distances of `stride` along an axis."""
    return Factor(size, Run(axis, stride))


def position(factor: Factor) -> tuple[int, int]:
    """Returns a key that sorts runs in the order of the leaf: by axis, the slowest first."""
    return factor.of.axis, -factor.of.stride


class Layout(NamedTuple):
    """A leaf as a stack of `batch` matrices (scanned layers, groups of a convolution), each inputs by outputs.

    Every axis of the leaf is one factor or is split into several (the output axis of a grouped convolution is split
    into groups and the outputs of a group). Inputs have the order of the leaf's axes, so the inputs of a convolution
    are (height, width, channel) for HWIO kernels.

    A factor's `of` is a `Run`, which gives the axis of the leaf and the stride along it.

    Attributes:
      shape: the leaf's shape.
      batch: the factors with one matrix for each position.
      inputs: the factors that are summed over.
      outputs: the other factors.
    """

    shape: tuple[int, ...]
    batch: Axis
    inputs: Axis
    outputs: Axis

    @property
    def sizes(self) -> tuple[int, int, int]:
        """The numbers of matrices, inputs and outputs."""
        batch, inputs, outputs = (math.prod(f.size for f in part) for part in self[1:])
        return batch, inputs, outputs

    @property
    def input_axes(self) -> tuple[int, ...]:
        """The axes of the leaf that are summed over."""
        return tuple(f.of.axis for f in self.inputs)

    def matrices(self, leaf: jax.Array) -> jax.Array:
        """Returns the leaf, or an array of its shape such as a mask, as [batch, inputs, outputs].

        Example:
          >>> layout = Layout((2, 3), (), (run(1, 3),), (run(0, 2),))
          >>> layout.matrices(jnp.arange(6).reshape(2, 3))[0].tolist()
          [[0, 3], [1, 4], [2, 5]]
        """
        split = leaf.reshape([f.size for f in self._in_leaf_order()])
        return split.transpose(self._permutation()).reshape(self.sizes)

    def leaf(self, matrices: jax.Array) -> jax.Array:
        """Returns an array in the shape of the leaf, from [batch, inputs, outputs]: the inverse of `matrices`."""
        split = matrices.reshape([f.size for part in self[1:] for f in part])
        inverse = sorted(range(split.ndim), key=self._permutation().__getitem__)
        return split.transpose(inverse).reshape(self.shape)

    def along_inputs(self, values: jax.Array) -> jax.Array:
        """Returns values [batch, inputs] in a shape that broadcasts to the leaf.

        If an axis is partly an output (a grouped convolution), the result has the full shape of the leaf.

        Example:
          >>> layout = Layout((2, 3), (), (run(1, 3),), (run(0, 2),))
          >>> layout.along_inputs(jnp.arange(3.0)[None]).tolist()
          [[0.0, 1.0, 2.0]]
        """
        mixed = {f.of.axis for f in self.outputs} & {f.of.axis for f in (*self.batch, *self.inputs)}
        full = jnp.broadcast_to(values[:, :, None], self.sizes)
        if mixed:
            return self.leaf(full)
        return self.leaf(full)[tuple(slice(0, 1) if self._is_output(a) else slice(None) for a in self._axes())]

    def _is_output(self, axis: int) -> bool:
        return axis in {f.of.axis for f in self.outputs}

    def _axes(self) -> range:
        return range(len(self.shape))

    def _in_leaf_order(self) -> list[Factor]:
        return sorted((f for part in self[1:] for f in part), key=position)

    def _permutation(self) -> list[int]:
        order = self._in_leaf_order()
        return [order.index(f) for part in self[1:] for f in part]


class Site(NamedTuple):
    """One product that multiplies a leaf by an activation.

    Attributes:
      leaf: the number of the leaf.
      batch: the leading axes of the sums, in order.
      inputs: the input factors, in the order of the leaf.
      outputs: the other factors of the leaf.
      offset: for each axis of the leaf, where the used part starts.
      samples: the number of samples (rows of X) in a batch.
      met: identifies the activation; leaves multiplied by the same activation have the same value.
    """

    leaf: int
    batch: Axis
    inputs: Axis
    outputs: Axis
    offset: tuple[int, ...]
    samples: int = 1
    met: tuple[object, ...] = ()


class Place(NamedTuple):
    """The place of a site's sums within the sums of its leaf.

    Attributes:
      order: the permutation of the site's batch axes.
      batch: for each batch factor of the layout, an index or a whole slice.
      inputs: for each input axis, the start and the number of the site's inputs.
    """

    order: tuple[int, ...]
    batch: tuple[int | slice, ...]
    inputs: tuple[tuple[int, int], ...]


def layout_of(shape: tuple[int, ...], sites: Sequence[Site]) -> tuple[Layout, list[Place]]:
    """Returns the common layout of all uses of a leaf, and the place of each use.

    Raises:
      NotFollowed: two uses sum over different axes, or over different parts.
    """
    found = [_layout(shape, site) for site in sites]
    first = found[0][0]
    if any(layout != first for layout, _ in found[1:]):
        raise NotFollowed("used in several ways that sum over different axes or take different parts of it")
    return first, [place for _, place in found]


def _layout(shape: tuple[int, ...], site: Site) -> tuple[Layout, Place]:
    """Returns how one product uses a leaf: which factors of its axes are batch, inputs and outputs, and which part."""
    roles: dict[str, list[Factor]] = {"batch": [], "inputs": [], "outputs": []}
    chosen: dict[Factor, int] = {}  # for each batch factor of which the site uses a single entry, that entry
    spans: list[tuple[int, int]] = []
    for axis, size in enumerate(shape):
        own = _own_factors(site, axis)
        here = math.prod(f.size for _, f in own)
        offset = site.offset[axis]
        kinds = {kind for kind, _ in own}
        if size == 1:
            continue
        if kinds == {"inputs"}:
            roles["inputs"].append(run(axis, size))
            spans.append((offset, here))
            continue
        if here != size:
            if size % here or offset % here:
                raise NotFollowed("a part of it that is not one of several equal parts")
            part = run(axis, size // here, here)
            roles["batch"].append(part)
            chosen[part] = offset // here
        if len(kinds) == 1:
            roles[kinds.pop()].append(run(axis, here))
        else:
            for kind, factor in own:
                roles[kind].append(factor)
    batch, inputs, outputs = (tuple(sorted(roles[kind], key=position)) for kind in ("batch", "inputs", "outputs"))
    wanted = sorted(site.batch, key=position)
    order = tuple(site.batch.index(f) for f in wanted)
    index = tuple(chosen.get(f, slice(None)) for f in batch)
    return Layout(shape, batch, inputs, outputs), Place(order, index, tuple(spans))


def _own_factors(site: Site, axis: int) -> list[tuple[str, Factor]]:
    """Returns the factors along one axis, the slowest first; raises unless they run over consecutive entries."""
    kinds = (("batch", site.batch), ("inputs", site.inputs), ("outputs", site.outputs))
    own = sorted(((kind, f) for kind, part in kinds for f in part if f.of.axis == axis), key=lambda k: -k[1].of.stride)
    stride = 1
    for _, factor in reversed(own):
        if factor.of.stride != stride:
            raise NotFollowed("a slice with steps")
        stride *= factor.size
    return own
