import itertools
import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from jaxprune import criteria, masks, schedules, training
from tests.cases import few
from tests.training.loops import REMOVED, STEPS, batch, expect_zeros, gradual, init_params, loss


def run(optimizer: Any, params: Any, steps=STEPS, dtype: Any = jnp.float32) -> tuple[Any, Any]:
    state = jax.jit(optimizer.init)(params)
    traced = []

    @jax.jit
    def step(params, state, x):
        traced.append(1)
        grads = jax.grad(loss)(params, x)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for i in range(steps):
        params, state = step(params, state, batch(i, dtype))
    assert len(traced) == 1
    return params, state


DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]


@pytest.mark.parametrize(
    ("dtype", "narrow"), few(itertools.product(DTYPES, [False, True]), (jnp.float32, True), (jnp.float16, False))
)
def test_zeros_are_exact_in_every_dtype(dtype, narrow):
    cast = optax.stateless(lambda u, _: jax.tree.map(lambda x: x.astype(jnp.bfloat16), u))
    inner = optax.chain(optax.sgd(0.05, 0.9), cast) if narrow else optax.sgd(0.05, 0.9)
    params, state = run(jaxprune.sparsify(inner, gradual()), init_params(dtype), dtype=dtype)
    expect_zeros(params, jaxprune.get_masks(state), REMOVED)
    assert params["first"]["kernel"].dtype == dtype


def test_moments_mirror_the_masks_at_every_step():
    optimizer: Any = jaxprune.sparsify(optax.adam(0.1), gradual())
    params, state = init_params(), None
    state = optimizer.init(params)
    step = jax.jit(lambda p, s, x: optimizer.update(jax.grad(loss)(p, x), s, p))
    seen = []
    for i in range(STEPS):
        updates, state = step(params, state, batch(i))
        params = optax.apply_updates(params, updates)
        kernel = state.masks["first"]["kernel"]
        for moment in (state.inner[0].mu, state.inner[0].nu):
            removed = np.asarray(moment["first"]["kernel"])[~np.asarray(kernel)]
            assert np.count_nonzero(removed) == 0
        seen.append(int((~kernel).sum()))
    # floor(s n + 1/2) at cubic progress 0, 1/2 and 1 of 75 % of 48.
    assert seen == [0, 0, 0, 32, 32, 36, 36]


def test_masks_are_nested_while_the_sparsity_rises():
    optimizer: Any = jaxprune.sparsify(optax.sgd(0.5), gradual())
    params = init_params()
    state = optimizer.init(params)
    before = state.masks
    step = jax.jit(lambda p, s, x: optimizer.update(jax.grad(loss)(p, x), s, p))
    for i in range(STEPS):
        updates, state = step(params, state, batch(i))
        params = optax.apply_updates(params, updates)
        regrown = jax.tree.map(lambda new, old: jnp.any(new & ~old), state.masks, before)
        assert not any(bool(x) for x in jax.tree.leaves(regrown))
        before = state.masks


def test_fixed_masks_hold_from_the_first_update_and_are_the_users():
    params = init_params()
    pruned = jaxprune.prune(params, 0.5)
    tuned, state = run(jaxprune.sparsify(optax.adamw(0.1), training.fixed(pruned.masks)), params)
    chex.assert_trees_all_equal(jaxprune.get_masks(state), pruned.masks)
    expect_zeros(tuned, pruned.masks, {"first/kernel": 24, "second/kernel": 16})


def test_one_shot_prunes_what_it_sees_at_its_step():
    optimizer: Any = jaxprune.sparsify(optax.sgd(0.1), training.one_shot(0.5, step=2))
    before, _ = run(optimizer, init_params(), steps=2)
    assert np.count_nonzero(before["first"]["kernel"]) == 48
    _, state = run(optimizer, init_params(), steps=3)
    chex.assert_trees_all_equal(jaxprune.get_masks(state), jaxprune.prune(before, 0.5).masks)


@pytest.mark.parametrize(
    ("pattern", "sparsity"),
    [(masks.NM(2, 4), 0.5), (masks.Block((2, 2)), 0.5), (masks.Channel(-1), 0.5), ({"first/*": masks.Channel()}, 0.5)],
    ids=str,
)
def test_every_pattern(pattern, sparsity):
    # 6 is no multiple of 4: n of m along the inputs goes to the second layer alone.
    where = "second/kernel" if isinstance(pattern, masks.NM) else None
    method = training.one_shot(sparsity, pattern=pattern, where=where, step=1)
    params, state = run(jaxprune.sparsify(optax.adam(0.1), method), init_params())
    expected = {"second/kernel": 16} | ({} if where else {"first/kernel": 24})
    expect_zeros(params, jaxprune.get_masks(state), expected)


def test_a_schedule_thins_groups_of_m_down_to_n():
    method = training.gradual(
        schedules.cubic(1, 5, 0.5), when=schedules.every(2, 1, 5), pattern=masks.NM(2, 4), where="second/kernel"
    )
    params, state = run(jaxprune.sparsify(optax.sgd(0.1), method), init_params())
    kept = np.asarray(jaxprune.get_masks(state)["second"]["kernel"]).reshape(2, 4, 4).sum(1)
    assert (kept == 2).all()
    expect_zeros(params, jaxprune.get_masks(state), {"second/kernel": 16})


def test_criteria_see_raw_gradients_and_keys():
    params = init_params()
    grads = jax.grad(loss)(params, batch(0))
    optimizer: Any = jaxprune.sparsify(optax.sgd(0.1), training.one_shot(0.5, criterion=criteria.snip))
    _, state = optimizer.update(grads, optimizer.init(params), params)
    expected = jaxprune.prune(params, 0.5, criterion=criteria.snip, grads=grads).masks
    chex.assert_trees_all_equal(state.masks, expected)
    key = jax.random.key(3)
    optimizer: Any = jaxprune.sparsify(optax.sgd(0.1), training.one_shot(0.5, criterion=criteria.random, key=key))
    _, state = optimizer.update(grads, optimizer.init(params), params)
    chex.assert_trees_all_equal(state.masks, jaxprune.prune(params, 0.5, criterion=criteria.random, key=key).masks)


def test_extra_arguments_reach_the_optimizer():
    seen = {}

    def update(updates: Any, state: Any, params: Any = None, *, value: float = 0.0, **extra: Any):
        seen.update(value=value, extra=extra)
        return updates, state

    inner = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    optimizer: Any = jaxprune.sparsify(inner, training.one_shot(0.5))
    params = init_params()
    result = optimizer.update(params, optimizer.init(params), params, value=3.0, other=4)
    assert len(result) == 2
    assert seen == {"value": 3.0, "extra": {"other": 4}}


def test_gradients_of_removed_weights_do_not_reach_the_optimizer():
    params, mask = {"w": jnp.ones((1, 4))}, {"w": jnp.array([[True, False, True, False]])}
    optimizer: Any = jaxprune.sparsify(optax.clip_by_global_norm(1.0), training.fixed(mask))
    updates, _ = optimizer.update({"w": jnp.array([[3.0, 1e6, 4.0, jnp.nan]])}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["w"], [[0.6, -1.0, 0.8, -1.0]], rtol=1e-6)


def test_without_params_there_is_a_way_out():
    optimizer: Any = jaxprune.sparsify(optax.sgd(0.1), training.one_shot(0.5))
    params = init_params()
    with pytest.raises(ValueError, match=r"needs the parameters.*update\(grads, state, params\)"):
        _ = optimizer.update(params, optimizer.init(params))


def test_wrong_arguments_are_named():
    with pytest.raises(TypeError, match=r"method must be a training\.Method"):
        _ = jaxprune.sparsify(optax.sgd(0.1), 0.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="optimizer must be"):
        _ = jaxprune.sparsify(0.5, training.one_shot(0.5))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"must be in \[0, 1\), got 1.5"):
        _ = training.one_shot(1.5)
    with pytest.raises(ValueError, match="one sparsify"):
        _ = jaxprune.get_masks(optax.adam(0.1).init(init_params()))


WRONG: Any = {
    "schedule": lambda: training.gradual(0.9),  # pyright: ignore[reportArgumentType]
    "when": lambda: training.gradual(schedules.cubic(0, 9, 0.9), when=100),  # pyright: ignore[reportArgumentType]
    "criterion": lambda: training.one_shot(0.5, criterion="snip"),  # pyright: ignore[reportArgumentType]
    "allocation": lambda: training.static(0.5, key=jax.random.key(0), allocation="erk"),  # pyright: ignore
    "grow": lambda: training.dynamic(0.5, key=jax.random.key(0), grow="random"),  # pyright: ignore
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_function_is_named(what):
    with pytest.raises(TypeError, match=f"{what} must be a function, such as "):
        _ = WRONG[what]()


def test_a_seed_is_no_key():
    makers = (lambda: training.rigl(0.5, 1000, key=0), lambda: training.one_shot(0.5, criterion=criteria.random, key=0))
    for make in makers:
        with pytest.raises(TypeError, match=r"pass jax\.random\.key\(seed\); got 0"):
            _ = make()


def test_nothing_to_prune_is_named_at_init():
    biases = {"bias": jnp.ones(3)}
    for method in (gradual(), training.static(0.5, key=jax.random.key(0)), training.straight_through(0.5)):
        with pytest.raises(ValueError, match=r"nothing to prune.*\n  bias: float32\[3\]"):
            _ = jaxprune.sparsify(optax.sgd(0.1), method).init(biases)


def _update(optimizer: Any, grads: Any, state: Any) -> Any:
    return optimizer.update(grads, state, init_params())


def test_gradients_of_another_network_are_named():
    params = init_params()
    optimizer: Any = jaxprune.sparsify(optax.adam(0.1), training.one_shot(0.5))
    state = optimizer.init(params)
    other = params | {"first": params["first"] | {"kernel": jnp.ones((6, 9))}}
    with pytest.raises(ValueError, match=r"gradients do not belong .*\n  first/kernel: expected .*6, 8.*got .*6, 9"):
        _ = _update(optimizer, other, state)
    with pytest.raises(ValueError, match="kernel: expected nothing, got"):
        _ = _update(optimizer, params["first"], state)


@pytest.mark.parametrize(
    ("made", "used", "message"),
    [
        (lambda: jaxprune.sparsify(optax.sgd(0.1), gradual()), None, "inner/0/mu/first/kernel: .*got nothing"),
        (lambda: jaxprune.sparsify(optax.adam(0.1), gradual(), packed=True), None, r"pass sparsify\(.*packed=True\)"),
        (lambda: jaxprune.sparsify(optax.adam(0.1), gradual()), training.top_kast(0.5, 0.2), "method/first/kernel"),
        (
            lambda: jaxprune.sparsify(optax.adam(0.1), training.static(0.5, key=jax.random.key(0))),
            training.rigl(0.5, 1000, key=jax.random.key(0)),
            "method/0: expected uint32",
        ),
        (
            lambda: jaxprune.sparsify(optax.adam(0.1), training.rigl(0.5, 1000, key=jax.random.key(0))),
            gradual(),
            r"training\.phases\(.*\n  method/0: expected nothing, got uint32",
        ),
    ],
)
def test_the_state_of_another_optimizer_or_method_is_named(made, used, message):
    optimizer = jaxprune.sparsify(optax.adam(0.1), used or gradual())
    with pytest.raises(ValueError, match=message):
        _ = _update(optimizer, init_params(), made().init(init_params()))


def test_the_state_without_masks_is_named():
    optimizer = jaxprune.sparsify(optax.adam(0.1), gradual())
    with pytest.raises(TypeError, match=r"must be a training\.SparsifyState.*got tuple"):
        _ = _update(optimizer, init_params(), optax.adam(0.1).init(init_params()))


def test_an_error_of_the_optimizer_stays_what_it_is():
    def fail(*_: Any) -> Any:
        raise ValueError("of its own")

    optimizer: Any = jaxprune.sparsify(optax.stateless(fail), gradual())
    with pytest.raises(ValueError, match=r"^of its own$"):
        _ = _update(optimizer, init_params(), optimizer.init(init_params()))


def test_masks_within_masks_are_not_chosen_between():
    inner = jaxprune.sparsify(optax.sgd(0.1), gradual())
    with pytest.raises(ValueError, match=r"one sparsify.*found 2"):
        _ = jaxprune.get_masks(jaxprune.sparsify(inner, gradual()).init(init_params()))
    groups: Any = {"a": jaxprune.sparsify(optax.sgd(0.1), gradual()), "b": jaxprune.sparsify(optax.sgd(0.1), gradual())}
    params = init_params()
    state: Any = optax.partition(groups, {"first": "a", "second": "b"}).init(params)
    with pytest.raises(ValueError, match=r"found 2; pass the part .*inner_states\[label\]"):
        _ = jaxprune.get_masks(state)
    found = jaxprune.get_masks(state.inner_states["a"])
    assert found["first"]["kernel"].shape == params["first"]["kernel"].shape


def test_masks_of_other_params_are_named_leaf_by_leaf():
    other = {"first": {"kernel": jnp.ones((6, 8), bool)}}
    with pytest.raises(ValueError, match="second/bias: in params, not in masks"):
        _ = jaxprune.sparsify(optax.sgd(0.1), training.fixed(other)).init(init_params())
    found = masks.ones(init_params())
    found["first"]["kernel"] = jnp.ones((8, 6), bool)
    with pytest.raises(ValueError, match=r"first/kernel: mask \(8, 6\), parameter \(6, 8\)"):
        _ = jaxprune.sparsify(optax.sgd(0.1), training.fixed(found)).init(init_params())


def test_init_from_shapes_and_into_shardings(devices):
    optimizer: Any = jaxprune.sparsify(optax.adam(0.1), gradual())
    shapes = jax.eval_shape(optimizer.init, init_params())
    mesh = jax.sharding.Mesh(np.array(devices[:2]), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shardings = jax.tree.map(lambda x: rows if len(x.shape) == 2 else whole, shapes)
    state = jax.jit(optimizer.init, out_shardings=shardings)(init_params())
    assert state.masks["first"]["kernel"].sharding == rows
    assert state.inner[0].mu["first"]["kernel"].sharding == rows
    chex.assert_trees_all_equal(jax.tree.map(jnp.asarray, state), optimizer.init(init_params()))


def test_a_donated_state_leaves_the_users_masks_alone():
    params = init_params()
    pruned = jaxprune.prune(params, 0.5)
    optimizer: Any = jaxprune.sparsify(optax.sgd(0.1), training.fixed(pruned.masks))
    step = jax.jit(optimizer.update, donate_argnums=1)
    _, state = step(params, optimizer.init(params), params)
    chex.assert_trees_all_equal(state.masks, pruned.masks)


def test_a_step_keeps_no_copy_of_a_large_buffer():
    params = {"w": jnp.ones((256, 256))}
    optimizer: Any = jaxprune.sparsify(optax.adam(0.1), gradual())

    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    compiled: Any = jax.jit(step, donate_argnums=(0, 1)).lower(params, optimizer.init(params), params).compile()
    copies = re.findall(r"= \w+\[256,256\]\S* copy\(", compiled.as_text())
    assert copies == []
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= 3 * params["w"].nbytes + params["w"].size
    # The scores, on the steps that need them.
    assert memory.temp_size_in_bytes < params["w"].nbytes * 1.1


def test_inside_scan_and_vmap_it_is_the_same():
    optimizer: Any = jaxprune.sparsify(optax.adam(0.1), gradual())
    batches = jnp.stack([batch(i) for i in range(STEPS)])

    def train(params: Any) -> Any:
        def step(carry, x):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params, x), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), batches)[0]

    params, state = jax.jit(train)(init_params())
    expect_zeros(params, state.masks, REMOVED)
    members = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), init_params())
    many, many_state = jax.jit(jax.vmap(train))(members)
    first: Any = jax.tree.map(lambda x: x[0], (many, many_state.masks))
    chex.assert_trees_all_equal(first[1], state.masks)
    chex.assert_trees_all_close(first[0], params, rtol=1e-4, atol=1e-6)
    second: Any = jax.tree.map(lambda x: x[1], (many, many_state.masks))
    expect_zeros(second[0], second[1], REMOVED)


def test_multi_steps_around_it_too():
    params, state = run(optax.MultiSteps(jaxprune.sparsify(optax.adam(0.1), gradual()), 2), init_params(), 2 * STEPS)
    expect_zeros(params, jaxprune.get_masks(state), REMOVED)


def test_the_evaluation_parameters_of_schedule_free_are_sparse_too():
    optimizer: Any = jaxprune.sparsify(optax.contrib.schedule_free_adamw(0.1), gradual())
    params, state = run(optimizer, init_params())
    evaluated = optax.contrib.schedule_free_eval_params(state.inner, params)
    expect_zeros(evaluated, jaxprune.get_masks(state), REMOVED)


LINKS = {"norm": optax.clip_by_global_norm(1.0), "rms": optax.clip_by_block_rms(1.0)}


@pytest.mark.slow
@pytest.mark.parametrize("link", few(LINKS, "norm"))
def test_an_optimizer_that_computes_nan_in_float16_is_refused_at_init(link):
    params = init_params(jnp.float16)
    chain = lambda eps: optax.chain(optax.scale_by_adam(eps=eps), LINKS[link], optax.scale(-0.01))
    # Where no gradient is zero, the dense network trains with either.
    updates: Any
    updates, _ = chain(1e-8).update(jax.tree.map(jnp.ones_like, params), chain(1e-8).init(params), params)
    assert np.isfinite(updates["first"]["kernel"]).all()
    with pytest.raises(ValueError, match=r"(?s)float16.*an eps of 1e-7 or more:.*\n  first/kernel"):
        _ = jax.eval_shape(jaxprune.sparsify(chain(1e-8), gradual()).init, params)
    optimizer = jaxprune.sparsify(chain(1e-7), gradual())
    params, state = run(optimizer, params, dtype=jnp.float16)
    expect_zeros(params, jaxprune.get_masks(state), REMOVED)


def test_in_float16_an_optimizer_without_norms_needs_no_other_eps():
    # Gradients of one: smaller ones underflow when they are squared, with or without pruning.
    params = init_params(jnp.float16)
    optimizer = jaxprune.sparsify(optax.adam(0.01), training.one_shot(0.5))
    state = optimizer.init(params)
    for _ in range(3):
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
        params = optax.apply_updates(params, updates)
    expect_zeros(params, jaxprune.get_masks(state), {"first/kernel": 24, "second/kernel": 16})
