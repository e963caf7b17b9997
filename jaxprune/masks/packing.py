"""`pack` and `unpack`: masks with one bit for each weight."""

import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import _tree
from jaxprune.masks._exact import shards

PyTree = Any


@partial(jax.tree_util.register_dataclass, data_fields=["bits"], meta_fields=["width"])
@dataclass(frozen=True)
class Packed:
    """A mask in which eight neighbours along the last axis share a byte; the first is the lowest bit.

    Every function of jaxprune that takes masks takes packed masks too. The other axes are unchanged, so a packed mask
    is sharded along them like its parameter. `flax.serialization`, if imported before packing, saves and restores it.

    Attributes:
      bits: uint8[..., ceil(width / 8)].
      width: the size of the mask's last axis.
    """

    bits: jax.Array
    width: int

    def __post_init__(self) -> None:
        # Registered here and not on import, which would load Flax for users who do not use it.
        if "flax.serialization" in sys.modules and not _REGISTERED:
            _register_with_flax()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the mask."""
        return (*self.bits.shape[:-1], self.width)

    @property
    def ndim(self) -> int:
        """The number of axes of the mask."""
        return self.bits.ndim

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the mask, bool."""
        return np.dtype(bool)


def pack(masks: PyTree) -> PyTree:
    """Packs every mask that has axes; `unpack` is the inverse.

    Args:
      masks: bool masks; masks that are already packed stay.

    Returns:
      A tree with `Packed` in place of each mask with axes; a scalar stays.

    Raises:
      TypeError: a leaf is not bool.

    Example:
      >>> pack({'w': jnp.ones((2, 16), bool)})['w'].bits.tolist()
      [[255, 255], [255, 255]]
    """
    _tree.check_bool(masks)
    return jax.tree.map(_pack, masks, is_leaf=is_packed)


def unpack(masks: PyTree, like: PyTree = None) -> PyTree:
    """Returns bool arrays in place of packed masks; other masks stay unchanged.

    Args:
      masks: bool or packed masks.
      like: the parameters, in the structure of the masks; see `as_bool`. Default None.

    Returns:
      bool masks.

    Example:
      >>> unpack(pack(jnp.array([True, False, True]))).tolist()
      [True, False, True]
    """
    if like is None:
        return jax.tree.map(as_bool, masks, is_leaf=is_packed)
    try:
        return jax.tree.map(as_bool, masks, like, is_leaf=is_packed)
    except ValueError:
        _tree.check_same(like, masks, what="masks", of="like")
        raise


def is_packed(node: Any) -> bool:
    """Returns whether a node of a mask tree is a packed mask; use it as `is_leaf` to traverse mask trees.

    Args:
      node: anything.

    Returns:
      A Python bool.

    Example:
      >>> len(jax.tree.leaves(pack({'w': jnp.ones((2, 16), bool)}), is_leaf=is_packed))
      1
    """
    return isinstance(node, Packed)


def as_bool(mask: Any, like: Any = None) -> Any:
    """Returns one mask as a bool array.

    Args:
      mask: a packed mask, or a bool array or scalar.
      like: the parameter. If its type names its devices, a packed mask is unpacked onto these devices. A mask with too
        few entries to share bytes among devices is stored on all of them. Default None.

    Returns:
      bool in the shape of the mask.

    Example:
      >>> as_bool(pack(jnp.array([True, False, True]))).tolist()
      [True, False, True]
    """
    if not isinstance(mask, Packed):
        return mask
    shifts = jnp.arange(8, dtype=jnp.uint8)
    bits = (mask.bits[..., None] >> shifts) & np.uint8(1)
    *outer, bytes_ = mask.bits.shape  # not -1, which an empty mask leaves open
    found = (bits != 0).reshape(*outer, 8 * bytes_)[..., : mask.width]
    return found if like is None or found.shape != np.shape(like) else shards.place_like(found, like)


def _pack(mask: Any) -> Any:
    if isinstance(mask, Packed) or not jnp.ndim(mask):
        return mask
    width = mask.shape[-1]
    padded = jnp.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(0, -width % 8)])
    cut = shards.split(padded, (1,) * (mask.ndim - 1) + (8,))
    bytes_ = cut.squeeze(tuple(range(1, 2 * mask.ndim - 1, 2))).astype(jnp.uint8)
    weights = jnp.left_shift(jnp.uint8(1), jnp.arange(8, dtype=jnp.uint8))
    return Packed((bytes_ * weights).sum(-1, dtype=jnp.uint8), width)


_REGISTERED: list[bool] = []


def _register_with_flax() -> None:
    serialization = sys.modules["flax.serialization"]

    def restore(mask: Packed, state: dict[str, Any]) -> Packed:
        if state["width"] != mask.width:
            raise ValueError(
                f"{serialization.current_path()}: the packed mask was saved with rows of {state['width']} entries, but "
                f"rows of {mask.width} are expected; restore it into the state of a network with the saved shapes"
            )
        return Packed(serialization.from_state_dict(mask.bits, state["bits"]), mask.width)

    save = lambda mask: {"bits": mask.bits, "width": mask.width}
    serialization.register_serialization_state(Packed, save, restore, override=True)
    _REGISTERED.append(True)
