"""Packed masks in the files of Flax."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization

from jaxprune import masks
from jaxprune.masks.packing import Packed


def test_flax_saves_and_restores_packed_masks():
    packed = masks.pack({"w": jnp.arange(22).reshape(2, 11) % 3 == 0, "b": jnp.array(True)})
    data = serialization.to_bytes(packed)
    found = serialization.from_bytes(masks.pack({"w": jnp.zeros((2, 11), bool), "b": jnp.array(True)}), data)
    assert isinstance(found["w"], Packed)
    np.testing.assert_array_equal(masks.unpack(found["w"]), masks.unpack(packed["w"]))
    with pytest.raises(ValueError, match="w: the packed mask was saved with rows of 11 entries, but rows of 12"):
        _ = serialization.from_bytes(masks.pack({"w": jnp.zeros((2, 12), bool), "b": jnp.array(True)}), data)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0, 8), (2, 0)])
def test_empty_masks_are_packed_and_unpacked(shape):
    assert masks.unpack(masks.pack(jnp.ones(shape, bool))).shape == shape
