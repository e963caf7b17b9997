"""Parameters that the devices of a `shard_map` share: their masks are those of one device."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune
from benchmarks.collectives import collectives, total
from jaxprune import allocation, criteria, masks, training, tree
from tests.distributed import layouts, problem
from tests.distributed.test_masks import CASES, CRITERIA, QUICK, alone

OWL = {"owl": lambda p: jaxprune.prune(p, 0.7, allocation=allocation.owl, where=layouts.WHERE)}
MORE = {**CASES, **OWL, "lamp stacked": partial(CASES["lamp"])}


def like(tree_: Any, params: Any, specs: Any) -> Any:
    """The spec of each leaf that has a parameter's axes: cut as the parameter, where it is as long."""

    def of(leaf: Any, param: Any, spec: P) -> P:
        parts = [*spec, *[None] * (param.ndim - len(spec))]
        return P(*(part if n == m else None for n, m, part in zip(leaf.shape, param.shape, parts, strict=False)))

    return jax.tree.map(of, tree_, params, specs)


def check_masks(layout: str, kind: str, names: Any, devices: list[Any]) -> None:
    mesh, specs, params = layouts.make_mesh(kind, devices), layouts.LAYOUTS[layout], layouts.init_params()
    expected = alone(names)[0]

    def prune(p: Any) -> Any:
        with masks.sharded(specs):
            return {name: CASES[name](p).masks for name in names}

    places = {name: like(found, params, specs) for name, found in expected.items()}
    mapped = jax.shard_map(prune, mesh=mesh, in_specs=(specs,), out_specs=places)
    found = jax.jit(mapped)(layouts.place(params, mesh, layout))
    layouts.expect_same(found, expected)
    for name in names:
        if "channel" not in name:
            layouts.expect_sharded_like(found[name], layouts.place(params, mesh, layout))


def test_masks_are_those_of_one_device(devices):
    check_masks("mixed", "auto", QUICK, devices)


@pytest.mark.slow
@pytest.mark.parametrize("kind", layouts.KINDS)
@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_masks_are_those_of_one_device_everywhere(layout, kind, devices):
    check_masks(layout, kind, tuple(CASES), devices)
