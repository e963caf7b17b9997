from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import checkpoints, lottery, masks
from jaxprune.lottery.search import Rounds


def params(dtype: Any = jnp.float32) -> Any:
    return {"w": jnp.arange(15.0).reshape(3, 5).astype(dtype), "bias": jnp.ones(5)}


def search(dtype: Any = jnp.float32) -> Rounds:
    training = lottery.Training(
        lambda p, held, key: jax.tree.map(lambda w: w + 1, p), evaluate=lambda p, held: {"accuracy": 0.5}
    )
    return lottery.iterative_pruning(training, params(dtype), rounds=[0.5, 0.75], key=jax.random.key(0))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=lambda d: d.__name__)
def test_a_ticket_comes_back_as_it_was(dtype, tmp_path: Path):
    found = lottery.ticket(search(dtype), 1, method="magnitude", seeds={"search": 0}, data="none")
    assert found.provenance["sparsity"] == float(np.float32(8 / 15))
    assert found.provenance["metrics"] == {"accuracy": 0.5}
    assert found.provenance["versions"]["jax"] == jax.__version__
    chex.assert_trees_all_equal(found.params, masks.apply(params(dtype), found.masks))
    _ = checkpoints.save(tmp_path / "ticket", *found)
    back = lottery.Ticket(*checkpoints.load(tmp_path / "ticket", jax.eval_shape(lambda: params(dtype))))
    chex.assert_trees_all_equal((back.masks, back.params), (found.masks, found.params))
    chex.assert_trees_all_equal_shapes_and_dtypes(back.params, found.params)
    assert back.provenance == found.provenance


def test_nothing_is_overwritten_and_damage_is_seen(tmp_path: Path):
    found, path = lottery.ticket(search(), -1, method="magnitude"), tmp_path / "ticket"
    _ = checkpoints.save(path, *found)
    with pytest.raises(FileExistsError):
        _ = checkpoints.save(path, *found)
    data = path.read_bytes()
    _ = (tmp_path / "short").write_bytes(data[:-1])
    with pytest.raises(ValueError, match="short is damaged"):
        _ = checkpoints.load(tmp_path / "short", params())
    _ = (tmp_path / "other").write_bytes(b"PK" + data)
    with pytest.raises(ValueError, match="not a safetensors file"):
        _ = checkpoints.load(tmp_path / "other", params())


def test_another_network_is_named_leaf_by_leaf(tmp_path: Path):
    found, path = lottery.ticket(search(), 2, method="magnitude"), tmp_path / "ticket"
    _ = checkpoints.save(path, *found)
    with pytest.raises(ValueError, match=r"w: saved float32\[3, 5\], expected float32\[5, 3\]"):
        _ = checkpoints.load(path, params() | {"w": jnp.ones((5, 3))})
    with pytest.raises(
        ValueError, match=r"v: saved nothing, expected float32\[3, 5\]\n  w: saved float32\[3, 5\], expected nothing"
    ):
        _ = checkpoints.load(path, {"v": jnp.ones((3, 5)), "bias": jnp.ones(5)})
    with pytest.raises(IndexError, match="round 3 does not exist; the search has 3 rounds"):
        _ = lottery.ticket(search(), 3, method="magnitude")
