"""`Layout`: a parameter leaf as a stack of weight matrices [inputs, outputs], derived from the `Site`s that use it."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxprune._jaxprs.factors import Axis, Factor
from jaxprune._jaxprs.views import Meeting, NotFollowed, run


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
        """The leaf, or an array of its shape such as a mask, as [batch, inputs, outputs].

        Example:
          >>> layout = Layout((2, 3), (), (run(1, 3),), (run(0, 2),))
          >>> layout.matrices(jnp.arange(6).reshape(2, 3))[0].tolist()
          [[0, 3], [1, 4], [2, 5]]
        """
        split = leaf.reshape([f.size for f in self._in_leaf_order()])
        return split.transpose(self._permutation()).reshape(self.sizes)

    def leaf(self, matrices: jax.Array) -> jax.Array:
        """The inverse of `matrices`."""
        split = matrices.reshape([f.size for part in self[1:] for f in part])
        inverse = sorted(range(split.ndim), key=self._permutation().__getitem__)
        return split.transpose(inverse).reshape(self.shape)

    def along_inputs(self, values: jax.Array) -> jax.Array:
        """Values [batch, inputs] in a shape that broadcasts to the leaf.

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
        return sorted((f for part in self[1:] for f in part), key=_position)

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


def site_of(meeting: Meeting) -> Site:
    """The site of a leaf, from the view of it that takes part in a product.

    Raises:
      NotFollowed: no axis of the leaf is summed over.
    """
    view, batch, contract = meeting
    runs = lambda axes: tuple(f for a in axes for f in view.axes[a] if f.of is not None)
    inputs = sorted(runs(mine for mine, _ in contract), key=_position)
    if not inputs:
        raise NotFollowed("a product that sums over no axis of it")
    used = {mine for mine, _ in (*batch, *contract)}
    along_batch = runs(mine for mine, _ in sorted(batch, key=lambda pair: pair[1]))
    outputs = runs(a for a in range(len(view.axes)) if a not in used)
    return Site(view.leaf, along_batch, tuple(inputs), outputs, view.offset)


def layout_of(shape: tuple[int, ...], sites: Sequence[Site]) -> tuple[Layout, list[Place]]:
    """The common layout of all uses of a leaf, and the place of each use.

    Raises:
      NotFollowed: two uses sum over different axes, or over different parts.
    """
    found = [_layout(shape, site) for site in sites]
    first = found[0][0]
    if any(layout != first for layout, _ in found[1:]):
        raise NotFollowed("used in several ways that sum over different axes or take different parts of it")
    return first, [place for _, place in found]


def _layout(shape: tuple[int, ...], site: Site) -> tuple[Layout, Place]:
    roles: dict[str, list[Factor]] = {"batch": [], "inputs": [], "outputs": []}
    chosen: dict[Factor, int] = {}  # batch factors of which the site uses only one entry
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
    batch, inputs, outputs = (tuple(sorted(roles[kind], key=_position)) for kind in ("batch", "inputs", "outputs"))
    wanted = sorted(site.batch, key=_position)
    order = tuple(site.batch.index(f) for f in wanted)
    index = tuple(chosen.get(f, slice(None)) for f in batch)
    return Layout(shape, batch, inputs, outputs), Place(order, index, tuple(spans))


def _own_factors(site: Site, axis: int) -> list[tuple[str, Factor]]:
    """The factors along one axis, the slowest first; raises unless they run over consecutive entries."""
    kinds = (("batch", site.batch), ("inputs", site.inputs), ("outputs", site.outputs))
    own = sorted(((kind, f) for kind, part in kinds for f in part if f.of.axis == axis), key=lambda k: -k[1].of.stride)
    stride = 1
    for _, factor in reversed(own):
        if factor.of.stride != stride:
            raise NotFollowed("a slice with steps")
        stride *= factor.size
    return own


def _position(factor: Factor) -> tuple[int, int]:
    return factor.of.axis, -factor.of.stride
