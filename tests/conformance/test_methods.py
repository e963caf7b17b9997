"""What every method must do inside every jitted loop; a new method is one more line in METHODS."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import jaxprune
from jaxprune import allocation, criteria, masks, schedules, training
from tests.cases import few
from tests.training.loops import batch, init_params, loss

WHEN = schedules.every(2, 1, 5)
CUBIC = schedules.cubic(1, 5, 0.75)


def fixed() -> training.Method:
    return training.fixed(jaxprune.prune(init_params(), 0.5).masks)


METHODS: dict[str, Any] = {
    "fixed": fixed,
    "one_shot": lambda: training.one_shot(0.5, step=1),
    "one_shot snip": lambda: training.one_shot(0.5, criterion=criteria.snip),
    "one_shot random": lambda: training.one_shot(0.5, criterion=criteria.random, key=jax.random.key(0)),
    "gradual": lambda: training.gradual(CUBIC, when=WHEN),
    "gradual erk": lambda: training.gradual(CUBIC, when=WHEN, allocation=allocation.erk),
    "gradual global": lambda: training.gradual(CUBIC, when=WHEN, allocation=allocation.one_ranking),
    "gradual channels": lambda: training.gradual(CUBIC, when=WHEN, pattern=masks.Channel()),
    "static": lambda: training.static(0.5, key=jax.random.key(0)),
    "rigl": lambda: training.rigl(0.5, 8, key=jax.random.key(0), every=2),
    "acdc": lambda: training.acdc(0.5, begin=1, end=6, compressed=1, dense=1),
    "straight_through": lambda: training.straight_through(0.5, when=WHEN),
    "srigl": lambda: training.srigl(0.5, 8, key=jax.random.key(0), every=2, where="second/kernel"),
    "movement": lambda: training.movement(CUBIC, when=WHEN),
    "gradual stacked": lambda: training.gradual(
        CUBIC, when=WHEN, batch_axes={"first/kernel": 1}, where=lambda name, leaf: "kernel" in name
    ),
}


@pytest.fixture(params=few(METHODS, "one_shot snip", "gradual global", "rigl", "straight_through"))
def optimizer(request: pytest.FixtureRequest) -> Any:
    """The method around Adam, which records the extra arguments it was given."""
    return jaxprune.sparsify(optax.adam(0.1), METHODS[request.param]())


def make_step(optimizer: Any) -> tuple[Any, list[int]]:
    """A step of training, and a list that grows with every trace."""
    traces: list[int] = []

    def step(params: Any, state: Any, x: jax.Array) -> tuple[Any, Any]:
        traces.append(1)
        updates, state = optimizer.update(jax.grad(loss)(params, x), state, params, unused=1)
        return optax.apply_updates(params, updates), state

    return step, traces


def train(step: Any, params: Any, state: Any, first: int, last: int) -> tuple[Any, Any]:
    for i in range(first, last):
        params, state = step(params, state, batch(i))
    return params, state


def plain(tree: Any) -> Any:
    """Keys as their data, and copies, which a donated buffer does not reach."""
    return jax.tree.map(
        lambda x: np.array(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x), tree
    )


def test_it_conforms(optimizer, tmp_path):
    params = init_params()
    state = optimizer.init(params)
    shapes = jax.eval_shape(optimizer.init, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(plain(state), jax.tree.map(_of, shapes))

    # Jitted and donated, it is compiled once for the whole run.
    eager_step, traces = make_step(optimizer)
    step = jax.jit(eager_step, donate_argnums=(0, 1))
    early = train(step, jax.tree.map(jnp.copy, params), optimizer.init(params), 0, 2)
    early = plain(early[0]), plain(early[1].masks), early
    middle = train(step, *early[2], 2, 4)
    saved = plain(middle)
    end = train(step, *middle, 4, 7)
    assert len(traces) == 1
    chex.assert_trees_all_equal_shapes_and_dtypes(plain(end[1]), plain(state))

    # Saved in mid-run and restored, it ends in the same bits.
    path = tmp_path / "checkpoint"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, {"params": saved[0], "state": saved[1]})
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(path, {"params": saved[0], "state": saved[1]})
    resumed: Any = jax.tree.map(_as, (restored["params"], restored["state"]), (params, state))
    chex.assert_trees_all_equal(plain(train(step, resumed[0], resumed[1], 4, 7)), plain(end))

    # Without jit: the same masks, and the same numbers up to the order of float operations.
    eager = train(eager_step, params, state, 0, 2)
    chex.assert_trees_all_equal(plain(eager[1].masks), early[1])
    chex.assert_trees_all_close(plain(eager[0]), early[0], rtol=1e-4, atol=1e-6)

    # Two members in one vmapped program are the two members.
    members = jax.tree.map(lambda x: jnp.stack([x, x[::-1]]), params)
    many = jax.vmap(optimizer.init)(members)
    many = jax.jit(jax.vmap(eager_step, in_axes=(0, 0, None)))(members, many, batch(0))
    second = jax.tree.map(lambda x: x[1], members)
    alone = step(second, optimizer.init(second), batch(0))
    chex.assert_trees_all_equal(jax.tree.map(lambda x: np.asarray(x[1]), many[1].masks), plain(alone[1].masks))


def _of(shape: Any) -> Any:
    return plain(jnp.zeros(shape.shape, shape.dtype) if not _is_key(shape) else jax.random.key(0))


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _as(restored: Any, like: Any) -> Any:
    return jax.random.wrap_key_data(jnp.asarray(restored)) if _is_key(like) else jnp.asarray(restored)
