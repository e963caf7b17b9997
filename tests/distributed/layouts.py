"""A tree of parameters as a sharded model has them, and the ways it may lie on eight devices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

PyTree = Any
SHAPES = {
    "embed": {"table": (64, 32)},
    "head": {"bias": (32,), "kernel": (64, 32)},
    "layers": {"down": (2, 64, 32), "scale": (2, 16), "up": (2, 32, 64)},
}
WHERE = ("embed/*", "head/*", "layers/down", "layers/up")
# Each tree of specs has the structure of SHAPES; the mesh has axes x of 4 and y of 2.
LAYOUTS: dict[str, Any] = {
    "replicated": jax.tree.map(lambda shape: P(), SHAPES, is_leaf=lambda s: isinstance(s, tuple)),
    "fully sharded": {
        "embed": {"table": P(("x", "y"), None)},
        "head": {"bias": P(("x", "y")), "kernel": P(("x", "y"), None)},
        "layers": {"down": P(None, ("x", "y"), None), "scale": P(None, ("x", "y")), "up": P(None, ("x", "y"), None)},
    },
    "tensor": {
        "embed": {"table": P("y", None)},
        "head": {"bias": P("y"), "kernel": P(None, "y")},
        "layers": {"down": P(None, "y", None), "scale": P(), "up": P(None, None, "y")},
    },
    "mixed": {
        "embed": {"table": P("x", "y")},
        "head": {"bias": P(), "kernel": P(None, "x")},
        "layers": {"down": P("y", "x", None), "scale": P(), "up": P(None, "x", "y")},
    },
}
KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}


def init_params(seed: int = 0) -> PyTree:
    """Normal weights, rounded so that many tie."""
    rng = np.random.default_rng(seed)
    draw = lambda shape: jnp.asarray(np.round(rng.normal(size=shape), 1), jnp.float32)
    return jax.tree.map(draw, SHAPES, is_leaf=lambda s: isinstance(s, tuple))


def make_mesh(kind: str, devices: list[Any]) -> Mesh:
    """Four by two devices."""
    return jax.make_mesh((4, 2), ("x", "y"), axis_types=(KINDS[kind],) * 2, devices=devices)


def shardings(mesh: Mesh, layout: str) -> PyTree:
    """Where each leaf lies."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), LAYOUTS[layout], is_leaf=lambda s: isinstance(s, P))


def place(tree: PyTree, mesh: Mesh, layout: str) -> PyTree:
    """The tree on eight devices."""
    return jax.tree.map(jax.device_put, tree, shardings(mesh, layout))


def expect_same(found: PyTree, expected: PyTree) -> None:
    """Fails unless the arrays have the same bits, wherever they lie."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=jax.tree_util.keystr(path))


def expect_sharded_like(masks: PyTree, params: PyTree) -> None:
    """Fails unless every mask of a parameter's full shape lies where the parameter does."""
    compared = 0
    for (path, mask), param in zip(jax.tree.leaves_with_path(masks), jax.tree.leaves(params), strict=True):
        if mask.ndim and mask.shape == param.shape:
            compared += 1
            assert mask.sharding.is_equivalent_to(param.sharding, mask.ndim), jax.tree_util.keystr(path)
    assert compared
