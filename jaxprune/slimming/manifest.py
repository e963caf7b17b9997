"""`Manifest`: the positions of each leaf that stay, as plain data; shrinks and expands trees."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import _tree

PyTree = Any
_VERSION = 2


class Kept(NamedTuple):
    """The positions of one leaf that stay.

    Attributes:
      name: the leaf's path.
      identity: the leaf's path as a tuple.
      shape: the leaf's whole shape; None for a leaf that is not an array.
      axes: the positions that stay, ascending, for each axis that loses positions: (n,), or (layers..., n) if each
        layer of a stacked leaf keeps different positions. Removed layers are not included.
    """

    name: str
    identity: tuple[str, ...]
    shape: tuple[int, ...] | None
    axes: dict[int, np.ndarray]

    @property
    def small(self) -> tuple[int, ...]:
        """The shape of the smaller leaf."""
        return tuple(self.axes[i].shape[-1] if i in self.axes else n for i, n in enumerate(self.shape or ()))

    def stay(self, axis: int) -> np.ndarray:
        """Returns whether each position of an axis that shrinks stays: (n,) bools, or (layers..., n) for all layers.

        A removed layer counts as losing the positions of the first layer that stays: in all layers the same positions
        are removed together.
        """
        positions = self.axes[axis]
        stay = np.zeros((*positions.shape[:-1], (self.shape or ())[axis]), bool)
        np.put_along_axis(stay, positions, True, -1)
        for layers in range(positions.ndim - 1):
            if layers in self.axes:
                left = self.stay(layers)
                source = spread(np.where(left, np.cumsum(left, -1) - 1, 0), layers, stay.ndim)
                stay = np.take_along_axis(stay, source, layers)
        return stay


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Manifest:
    """The positions of each leaf of a tree of parameters that stay.

    Attributes:
      leaves: one entry for each leaf, in the order of `jax.tree.leaves`.
      as_built: None if removing means masking. Otherwise the smaller function is the ordinary smaller architecture, and
        this mapping, which was given to `slim`, replaces ambiguous numbers.

    Example:
      >>> from jaxprune.slimming import slim
      >>> params = {'a': jnp.array([[1.0, 2.0, 3.0]]), 'b': jnp.ones((3, 2))}
      >>> manifest = slim(lambda p, x: x @ p['a'] @ p['b'], params, {'a[1]': [1]}, jnp.ones((5, 1))).manifest
      >>> small = manifest.shrink({'momentum': params})
      >>> small['momentum']['a'].tolist(), manifest.expand(small)['momentum']['a'].tolist()
      ([[1.0, 3.0]], [[1.0, 0.0, 3.0]])
      >>> Manifest.from_json(manifest.to_json())
      Manifest(2 of 2 leaves smaller, 6 of 9 entries kept)
    """

    leaves: tuple[Kept, ...]
    as_built: Mapping[float, float] | None = None

    def __repr__(self) -> str:
        small, whole = entries(self)
        shrunk = sum(bool(kept.axes) for kept in self.leaves)
        return f"Manifest({shrunk} of {len(self.leaves)} leaves smaller, {small:,} of {whole:,} entries kept)"

    def shrink(self, mirror: PyTree) -> PyTree:
        """Makes any tree that mirrors the parameters smaller, in the same way as the parameters.

        Parameters, gradients, masks, ShapeDtypeStructs and the moments in the state of an optimizer mirror the
        parameters: such a subtree has one leaf for each parameter and no other leaves; None or `optax.MaskedNode` may
        replace a leaf. A tree of some of the parameters mirrors them too, if it has each at its whole path, and so does
        a copy of one collection of Flax, such as the moments of `variables["params"]` if `variables` was slimmed. Each
        leaf shrinks in the same way as its parameter, and must have the parameter's shape or broadcast to it. Other
        leaves, and leaves that are not arrays (PartitionSpecs), are returned unchanged.

        Args:
          mirror: the tree.

        Returns:
          The smaller tree, of the same structure.

        Raises:
          ValueError: the path of a leaf ends with the path of a parameter, but the leaf does not mirror the parameter:
            the shapes differ (the row sums of adafactor), or the tree around the leaf lacks some of the parameters; no
            leaf mirrors a parameter, and some leaves are floating arrays.
        """
        return self._convert(mirror, lambda kept: kept.shape or (), _shrink)

    def expand(self, mirror: PyTree, fill: Any = 0) -> PyTree:
        """Puts smaller arrays back into the whole shapes, exactly; the inverse of `shrink`.

        Args:
          mirror: a tree that mirrors the smaller parameters.
          fill: the value of the removed positions. Default: 0.

        Returns:
          The whole tree, of the same structure.

        Raises:
          ValueError: the path of a leaf ends with the path of a parameter, but the leaf does not mirror the parameter.
        """
        return self._convert(mirror, lambda kept: kept.small, lambda x, kept: _expand(x, kept, fill))

    def masks(self) -> list[np.ndarray]:
        """Returns a mask for each leaf, True for the positions that stay, that broadcasts to the leaf."""
        return [_mask(kept) for kept in self.leaves]

    def to_json(self) -> str:
        """Returns JSON: for each leaf its path, its shapes before and after, and the positions that its axes keep."""
        leaves = [
            {
                "path": list(kept.identity),
                "name": kept.name,
                "shape": None if kept.shape is None else list(kept.shape),
                "new_shape": None if kept.shape is None else list(kept.small),
                "axes": {str(axis): positions.tolist() for axis, positions in kept.axes.items()},
            }
            for kept in self.leaves
        ]
        about: dict[str, Any] = {"format": "jaxprune.slimming.manifest", "version": 1, "leaves": leaves}
        if self.as_built is not None:  # a reader that does not know it would compute something else
            about |= {"version": 2, "as_built": [[old, new] for old, new in self.as_built.items()]}
        return json.dumps(about)

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Reads the JSON of `to_json`.

        Args:
          text: the JSON.

        Returns:
          The manifest.

        Raises:
          ValueError: the text is not a manifest, or was written by a later version.
        """
        data = json.loads(text)
        if not isinstance(data, dict) or data.get("format") != "jaxprune.slimming.manifest":
            raise ValueError("the text is not a manifest of jaxprune.slimming")
        if data["version"] > _VERSION:
            raise ValueError(
                f"the manifest has version {data['version']}; this jaxprune reads versions up to {_VERSION}: "
                "install a later one"
            )
        as_built = data.get("as_built")
        return cls(tuple(_read(entry) for entry in data["leaves"]), None if as_built is None else dict(as_built))

    def _convert(self, mirror: PyTree, shape: Callable[[Kept], Any], change: Callable[[Any, Kept], Any]) -> PyTree:
        """Changes each leaf of a mirror by its entry of the manifest; raises if leaves have other shapes."""
        seen, owners = _owners(self.leaves, mirror)
        ends = {(kept.identity[1:], shape(kept)) for kept in self.leaves if kept.axes and len(kept.identity) > 2}
        shrinking = {kept.identity: kept for kept in self.leaves if kept.axes}
        wrong = []
        for leaf, own in zip(seen, owners, strict=True):
            if _is_sized(leaf.array) and (problem := _problem(leaf, own, shape, shrinking, ends)):
                wrong.append(f"  {'/'.join(leaf.identity)}: {tuple(leaf.array.shape)}, {problem}")
        named = {kept.identity for kept in self.leaves}
        if (
            shrinking
            and not wrong
            and not any(owners)
            and named.isdisjoint(end for leaf in seen for end in _ends(leaf))
        ):
            lost = [leaf for leaf in seen if _is_sized(leaf.array) and _tree.is_floating(leaf.array)]
            wrong += [f"  {'/'.join(leaf.identity)}: no path of its tree ends like a parameter's" for leaf in lost]
        if wrong:
            raise ValueError(
                "it is not clear which parameters these leaves mirror. A mirror is a subtree with a leaf for every "
                "parameter (or for every parameter of one collection, such as params) and no others, "
                "each of a shape that broadcasts to its parameter. Convert such subtrees one by one; a part of the "
                "parameters is converted at its whole path, such as {'params': copy}:\n" + "\n".join(wrong[:20])
            )
        each = iter(owners)

        def convert(leaf: Any) -> Any:
            own = next(each)
            if not own or not own[0].axes or not _is_sized(leaf):
                return leaf
            if _tree.at_hand(leaf):  # JAX would compile a program for every shape
                return _tree.put_like(change(np.asarray(leaf), own[0]), leaf)
            return change(leaf, own[0])

        return _tree.map_mirrored(lambda path, leaf, name: convert(leaf), mirror, [])


class _Seen(NamedTuple):
    """A leaf of a tree, and the path of the parameter that it mirrors within a subtree; None if it mirrors none."""

    identity: tuple[str, ...]
    array: Any
    name: tuple[str, ...] | None


def entries(manifest: Manifest) -> tuple[int, int]:
    """Returns the numbers of entries of the smaller leaves and of the whole leaves."""
    leaves = [kept for kept in manifest.leaves if kept.shape is not None]
    return sum(int(np.prod(kept.small)) for kept in leaves), sum(int(np.prod(kept.shape or ())) for kept in leaves)


def _mirrored(mirror: PyTree, names: Iterable[tuple[str, ...]]) -> list[_Seen]:
    """Returns the leaves of a tree, with what they mirror of a tree that has leaves at these paths."""
    found: list[_Seen] = []

    def see(path: Any, leaf: Any, name: Any) -> Any:
        found.append(_Seen(_tree.identity(path), leaf, name))
        return leaf

    known = set(names)
    _ = _tree.map_mirrored(see, mirror, list(known))
    if not {leaf.identity for leaf in found} <= known:
        return found
    # A tree of some of the parameters, such as one collection of Flax, has no path of another tree.
    return [leaf if leaf.name is not None else leaf._replace(name=leaf.identity) for leaf in found]


def _owners(leaves: Sequence[Kept], mirror: PyTree) -> tuple[list[_Seen], list[list[Kept]]]:
    """Returns the leaves of a tree, and for each the parameters that it may mirror: none, one, or several if unclear.

    A subtree mirrors all parameters, or else everything below one first component of their paths if these are the
    collections of Flax, or if there is only one.
    """
    by_path = {kept.identity: kept for kept in leaves}
    seen = _mirrored(mirror, by_path)
    owners = [[by_path[leaf.name]] if leaf.name is not None else [] for leaf in seen]
    if all(own or not _is_sized(leaf.array) for leaf, own in zip(seen, owners, strict=True)):
        return seen, owners
    firsts = dict.fromkeys(identity[0] for identity in by_path if len(identity) > 1)
    for first in firsts if "params" in firsts or len(firsts) == 1 else ():
        part = {identity[1:]: kept for identity, kept in by_path.items() if identity[0] == first}
        for leaf, whole, own in zip(_mirrored(mirror, part), seen, owners, strict=True):
            if leaf.name is not None and whole.name is None and not any(end in by_path for end in _ends(leaf)):
                own.append(part[leaf.name])
    return seen, owners


def _ends(leaf: _Seen) -> Iterator[tuple[str, ...]]:
    """Returns the ends of the path of a leaf, the longest first."""
    return (leaf.identity[i:] for i in range(len(leaf.identity) + 1))


def _problem(
    leaf: _Seen, own: list[Kept], shape: Callable[[Kept], Any], shrinking: dict[Any, Kept], ends: set[Any]
) -> str | None:
    """Returns why a leaf of a copy of the parameters cannot be converted; None if it can, or belongs to no copy.

    Args:
      leaf: the leaf.
      own: the parameters that it may mirror.
      shape: the shape that a leaf must have, from its parameter.
      shrinking: the parameters that shrink, by path.
      ends: for each parameter that shrinks, its path without the first component, and its shape.
    """
    around = "the tree around it lacks parameters or has other leaves"
    if len(own) > 1:
        return f"it may mirror {' and '.join(kept.name for kept in own)}"
    if own:
        wrong = own[0].axes and not _broadcasts(leaf.array.shape, shape(own[0]))
        return f"the parameter {tuple(shape(own[0]))}" if wrong else None
    if kept := next((shrinking[end] for end in _ends(leaf) if end in shrinking), None):
        fits = _broadcasts(leaf.array.shape, shape(kept))
        return f"the parameter {tuple(shape(kept))}{'; ' + around if fits else ''}"
    return around if any((end, tuple(leaf.array.shape)) in ends for end in _ends(leaf)) else None


def _is_sized(leaf: Any) -> bool:
    return _tree.is_array(leaf) and leaf.shape != ()


def _read(entry: dict[str, Any]) -> Kept:
    shape = None if entry["shape"] is None else tuple(entry["shape"])
    axes = {int(axis): np.asarray(positions, int) for axis, positions in entry["axes"].items()}
    for axis, positions in axes.items():
        if shape is None or not 0 <= axis < len(shape) or (positions >= shape[axis]).any() or (positions < 0).any():
            raise ValueError(f"{entry['name']}: positions of axis {axis} are out of range of the shape {shape}")
    return Kept(entry["name"], tuple(entry["path"]), shape, axes)


def _broadcasts(shape: Any, to: tuple[int, ...]) -> bool:
    return len(shape) == len(to) and all(a in (1, b) for a, b in zip(shape, to, strict=True))


def _shrink(leaf: Any, kept: Kept) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        small = tuple(min(n, m) if n == 1 else m for n, m in zip(leaf.shape, kept.small, strict=True))
        return jax.ShapeDtypeStruct(small, leaf.dtype)
    for axis, positions in kept.axes.items():
        if leaf.shape[axis] == 1 and (kept.shape or ())[axis] != 1:
            continue
        xp = _module(leaf)
        if positions.ndim > 1:
            lead = positions.shape[:-1]  # a mask may have one entry for all layers
            leaf = xp.broadcast_to(leaf, (*lead, *leaf.shape[len(lead) :]))
            leaf = xp.take_along_axis(leaf, xp.asarray(spread(positions, axis, leaf.ndim)), axis=axis)
        else:
            leaf = xp.take(leaf, positions, axis=axis)
    return leaf


def _module(leaf: Any) -> Any:
    # NumPy arrays stay NumPy arrays, and cost no compilation.
    return np if isinstance(leaf, np.ndarray) else jnp


def _expand(leaf: Any, kept: Kept, fill: Any) -> Any:
    xp = _module(leaf)
    for axis, positions in reversed(kept.axes.items()):
        full, small = (kept.shape or ())[axis], kept.small[axis]
        if leaf.shape[axis] == 1 and small != 1:
            continue
        # Maps each position of the whole axis to its position in the smaller axis, or to `small` if it gets `fill`.
        source = np.full((*positions.shape[:-1], full), small)
        np.put_along_axis(source, positions, np.broadcast_to(np.arange(small), positions.shape), -1)
        index = spread(source, axis, leaf.ndim)
        lead = source.shape[:-1]
        leaf = xp.broadcast_to(leaf, (*lead, *leaf.shape[len(lead) :]))
        if small == 0:  # the whole branch was removed, so there is nothing to take
            leaf = xp.full((*leaf.shape[:axis], full, *leaf.shape[axis + 1 :]), fill, leaf.dtype)
            continue
        here = xp.asarray(np.minimum(index, small - 1))
        taken = xp.take_along_axis(leaf, here, axis=axis) if lead else xp.take(leaf, here.ravel(), axis=axis)
        leaf = xp.where(index < small, taken, xp.asarray(fill, leaf.dtype))
    return leaf


def spread(values: Any, axis: int, rank: int) -> Any:
    """Returns (layers..., n) values of an axis' positions in a shape of `rank` axes that broadcasts to the array."""
    shape = [1] * rank
    for i in range(values.ndim - 1):
        shape[i] = values.shape[i]
    shape[axis] = values.shape[-1]
    return values.reshape(shape)


def _mask(kept: Kept) -> np.ndarray:
    mask = np.ones((), bool)
    for axis in kept.axes:
        mask = mask & spread(kept.stay(axis), axis, len(kept.shape or ()))
    return mask
