"""Sharded arrays: the masks of one device, and no parameter gathered."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxprune import masks
from tests.cases import few

# Values that tie, so that the search for the index runs too. What is sampled does not grow with the leaf; these
# leaves are large enough to tell it from the leaf.
_RNG = np.random.default_rng(0)
SCORES = {
    "w": jnp.asarray(np.abs(np.round(_RNG.normal(size=(512, 256)), 2)), jnp.float32),
    "v": jnp.asarray(np.abs(_RNG.normal(size=(256, 256))), jnp.bfloat16),
}
SPECS = {"rows": P("x", None), "columns": P(None, "y"), "both": P("x", "y")}
CASES = {
    "leaf": lambda s: masks.select(s, 0.9),
    "global": lambda s: masks.select_global(s, 0.9),
    "nm": lambda s: masks.select(s, 0.5, masks.NM(2, 4, axis=0)),
    "nm-last": lambda s: masks.select(s, 0.5, masks.NM(2, 4, axis=-1)),
    "block": lambda s: masks.select(s, 0.5, masks.Block((4, 8), (0, 1))),
    "channel": lambda s: masks.select(s, 0.5, masks.Channel(-1)),
    "batch": lambda s: masks.select({"v": s["v"].reshape(256, 16, 16)}, 0.5, batch_axes={"v": 1}),
}
KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
ALL = [(case, spec, kind) for case in CASES for spec in SPECS for kind in KINDS]
QUICK = [
    ("leaf", "both", "explicit"),
    ("global", "columns", "auto"),
    ("nm", "rows", "explicit"),
    ("channel", "rows", "auto"),
]


@pytest.mark.parametrize(("case", "spec", "kind"), few(ALL, *QUICK))
def test_masks_are_those_of_one_device(case, spec, kind, devices):
    if kind == "explicit" and case == "batch":
        pytest.skip("the test's own reshape would need a sharding")
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=2 * (KINDS[kind],), devices=devices)
    placed = {k: jax.device_put(v, NamedSharding(mesh, SPECS[spec])) for k, v in SCORES.items()}
    with jax.set_mesh(mesh):
        compiled = jax.jit(CASES[case]).lower(placed).compile()
    text = compiled.as_text()
    assert text is not None
    found, expected = compiled(placed), CASES[case](SCORES)
    for name, mask in expected.items():
        np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(mask))
    moved = re.findall(r"\[([\d,]*)\]\S* (?:all-gather|all-to-all|collective-permute)\(", text)
    largest = max((math.prod(int(n) for n in shape.split(",") if n) for shape in moved), default=0)
    assert largest <= 8192
