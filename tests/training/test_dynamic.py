from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from jaxprune import allocation, criteria, masks, schedules, training
from jaxprune.training.enforce import zero_removed
from jaxprune.training.growth import drop_and_grow
from tests.cases import few
from tests.training.loops import STEPS, batch, expect_zeros, init_params, loss

KEY = jax.random.key(7)
WHEN = schedules.every(2, 1)
METHODS: dict[str, Any] = {
    "static": lambda key: training.static(0.75, key=key),
    "set": lambda key: training.set_(0.75, key=key, when=WHEN),
    "rigl": lambda key: training.rigl(0.75, 8, key=key, every=2),
    "momentum": lambda key: training.dynamic(
        0.75, key=key, when=WHEN, grow=training.gradient_growth, momentum=0.5, allocation=allocation.uniform
    ),
    "fan-in": lambda key: training.set_(
        0.5, key=key, when=WHEN, pattern=masks.Unstructured(axes=-2), allocation=allocation.uniform
    ),
    "srigl": lambda key: training.srigl(0.5, 8, key=key, every=2, allocation=allocation.uniform),
    "srigl n:m": lambda key: training.srigl(
        0.5, 8, key=key, every=2, allocation=allocation.uniform, pattern={"*": masks.NM(1, 2)}
    ),
    "stacked": lambda key: training.rigl(
        0.5,
        8,
        key=key,
        every=2,
        batch_axes={"second/kernel": 1},
        where=lambda name, leaf: "kernel" in name,
        allocation=allocation.uniform,
    ),
}


def train(method: training.Method, steps: int = STEPS) -> list[tuple[Any, Any]]:
    """Parameters and state after every step, the first ones too."""
    optimizer: Any = jaxprune.sparsify(optax.adam(0.05), method)
    params = init_params()
    state = jax.jit(optimizer.init)(params)
    params = masks.apply(params, state.masks)

    @jax.jit
    def step(params, state, x):
        updates, state = optimizer.update(jax.grad(loss)(params, x), state, params)
        return optax.apply_updates(params, updates), state

    seen = [(params, state)]
    for i in range(steps):
        seen.append(step(*seen[-1], batch(i)))
    return seen


def kernels(state: Any) -> list[np.ndarray]:
    return [np.asarray(state.masks[name]["kernel"]) for name in ("first", "second")]


@pytest.mark.parametrize("name", few(METHODS, "rigl", "srigl"))
def test_each_leaf_keeps_its_exact_number_at_every_step(name):
    seen = train(METHODS[name](KEY))
    start = kernels(seen[0][1])
    axes = {"fan-in": [0, 0], "srigl": [0, 0], "stacked": [None, 1]}.get(name, [None, None])
    removed = {f"{n}/kernel": int((~m).sum()) for n, m in zip(("first", "second"), start, strict=True)}
    assert (
        abs(sum(removed.values()) / 80 - (0.5 if name in ("fan-in", "srigl", "srigl n:m", "stacked") else 0.75))
        <= 1 / 80
    )
    for params, state in seen:
        expect_zeros(params, state.masks, removed)
        for mask, first, axis in zip(kernels(state), start, axes, strict=True):
            np.testing.assert_array_equal(mask.sum(axis), first.sum(axis))
            if name == "srigl n:m":
                assert (mask.reshape(-1, 2, mask.shape[1]).sum(1) == 1).all()
    params, state = seen[-1]
    chex.assert_trees_all_equal(state.inner, zero_removed(state.inner, params, state.masks))
    moved = [any((a != b).any() for a, b in zip(kernels(s), start, strict=True)) for _, s in seen]
    assert any(moved) == (name != "static")


def test_equal_keys_give_equal_masks_and_others_do_not():
    first, again, other = (train(METHODS["set"](jax.random.key(k)), 2)[-1][1].masks for k in (1, 1, 2))
    chex.assert_trees_all_equal(first, again)
    assert not np.array_equal(first["first"]["kernel"], other["first"]["kernel"])


def test_rigl_drops_the_smallest_and_grows_the_largest_gradients():
    method = training.rigl(0.5, 8, key=KEY, every=2, fraction=0.4, allocation=allocation.uniform)
    seen = train(method, 3)
    params, state = seen[2]
    held, dense = kernels(state)[0], np.abs(jax.grad(loss)(params, batch(2))["first"]["kernel"])
    assert np.count_nonzero(dense[~held]) > 0  # gradients are dense
    # 24 of 48 kept; at step 2 of T_end = 6 the fraction is 0.2 (1 + cos(pi / 3)) = 0.3: floor(7.2 + 1/2).
    k = 7
    size = np.abs(params["first"]["kernel"])
    dropped = np.argsort(np.where(held, size, np.inf).ravel(), kind="stable")[:k]
    grown = np.argsort(-np.where(held, -1, dense).ravel(), kind="stable")[:k]
    expected = held.ravel().copy()
    expected[dropped], expected[grown] = False, True
    np.testing.assert_array_equal(kernels(seen[3][1])[0].ravel(), expected)
    # No step but the first of Adam moves what was grown: it had neither a value nor moments.
    moment = np.asarray(seen[3][1].inner[0].mu["first"]["kernel"]).ravel()[grown]
    np.testing.assert_allclose(np.abs(moment), 0.1 * dense.ravel()[grown], rtol=1e-4)


def test_what_was_dropped_is_not_grown_again_at_once():
    held = {"w": jnp.array([[True, True, False, False]])}
    scores = {"w": jnp.array([[5.0, 1.0, 0.0, 0.0]])}
    grow = {"w": jnp.array([[0.0, jnp.inf, jnp.nan, 1.0]])}
    assert drop_and_grow(held, scores, grow, 0.5)["w"].tolist() == [[True, False, False, True]]


def slow_srigl(held: np.ndarray, drop: np.ndarray, grow: np.ndarray, fraction: float, size: int) -> np.ndarray:
    """The worst of the whole kernel leave, one by one, while their group of `size` inputs can grow another instead."""
    found, wanted = held.copy(), int(np.floor(fraction * held.sum() + 0.5))
    rows, columns = held.shape
    group = lambda i, j: (slice(i // size * size, i // size * size + size), j)
    room = {(i // size, j): int((~held[group(i, j)]).sum()) for i in range(rows) for j in range(columns)}
    lost = dict.fromkeys(room, 0)
    for i, j in sorted(np.argwhere(held).tolist(), key=lambda place: (drop[tuple(place)], [-p for p in place])):
        if sum(lost.values()) < wanted and lost[i // size, j] < room[i // size, j]:
            found[i, j] = False
            lost[i // size, j] += 1
    for (part, j), number in lost.items():
        free = [i for i in range(part * size, part * size + size) if not held[i, j]]
        for i in sorted(free, key=lambda i: (-grow[i, j], i))[:number]:
            found[i, j] = True
    return found


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    ("pattern", "size"), [(masks.Unstructured(axes=-2), 8), (masks.NM(2, 4), 4), (masks.NM(3, 4), 4)]
)
def test_srigl_drops_over_the_leaf_and_grows_in_each_part(pattern, size, fraction):
    keys = jax.random.split(KEY, 3)
    start, drop, grow = ({"w": jax.random.uniform(key, (8, 6))} for key in keys)
    drop["w"] = jnp.round(8 * drop["w"])  # with ties
    sparsity = 1 - pattern.n / 4 if isinstance(pattern, masks.NM) else 0.5
    held = masks.select(start, sparsity, pattern)
    found = drop_and_grow(held, drop, grow, fraction, pattern=pattern, whole_leaf=True)["w"]
    before, dropping, growing = (np.asarray(tree["w"]) for tree in (held, drop, grow))
    np.testing.assert_array_equal(found, slow_srigl(before, dropping, growing, fraction, size))
    assert int(found.sum()) == int(held["w"].sum())


@pytest.mark.parametrize(
    ("held", "fraction", "expected"),
    [
        ([1, 1, 1, 0], 1.0, [1, 1, 0, 1]),  # one place to grow, so one is dropped: of equal ones not the first
        ([0, 0, 1, 1], 1.0, [1, 1, 0, 0]),
        ([1, 1, 1, 1], 0.5, [1, 1, 1, 1]),
        ([0, 0, 0, 0], 0.5, [0, 0, 0, 0]),
        ([0, 0, 1, 1], 0.0, [0, 0, 1, 1]),
        ([0, 0, 1, 1], 0.25, [1, 0, 1, 0]),  # floor(0.5 + 0.5) = 1
    ],
)
def test_edges_and_ties(held, fraction, expected):
    same = {"w": jnp.ones((1, 4))}
    found = drop_and_grow({"w": jnp.array([held], bool)}, same, same, fraction)
    assert found["w"].astype(int).tolist() == [expected]


def test_nan_and_infinite_scores_conserve_the_number():
    held = {"w": jnp.arange(64).reshape(8, 8) % 3 == 0}
    bad = jnp.array([jnp.nan, jnp.inf, -jnp.inf, 0.0, 1.0])[jnp.arange(64).reshape(8, 8) % 5]
    for dtype in (jnp.float32, jnp.bfloat16):
        scores = {"w": bad.astype(dtype)}
        found = drop_and_grow(held, scores, scores, 0.5)["w"]
        assert int(found.sum()) == 22
        assert int((found & ~held["w"]).sum()) == 11


@pytest.mark.slow
def test_members_of_an_ensemble_are_what_they_are_alone():
    def masks_of(key: Any) -> Any:
        method = training.set_(0.75, key=key, when=lambda step: step == 0)
        optimizer: Any = jaxprune.sparsify(optax.sgd(0.1), method)
        params = init_params()
        return optimizer.update(params, optimizer.init(params), params)[1].masks

    keys = jax.random.split(KEY, 2)
    many, alone = jax.jit(jax.vmap(masks_of))(keys), jax.jit(masks_of)
    for i in range(2):
        chex.assert_trees_all_equal(jax.tree.map(lambda x, i=i: x[i], many), alone(keys[i]))


@pytest.mark.parametrize("typed", [True, False], ids=["typed", "raw"])
def test_a_donated_state_leaves_the_users_key_alone(typed):
    key = jax.random.key(4) if typed else jax.random.PRNGKey(4)
    params = {"w": jnp.ones((4, 4))}
    optimizer: Any = jaxprune.sparsify(optax.sgd(0.1), training.set_(0.5, key=key))
    _, state = jax.jit(optimizer.update, donate_argnums=1)(params, optimizer.init(params), params)
    assert int(state.step) == 1
    assert np.shape(jax.random.key_data(jax.random.fold_in(key, 1))) == (2,)


@pytest.mark.parametrize("name", few(METHODS, "srigl"))
def test_a_leaf_without_entries_stays_as_it_is(name):
    params: Any = {"first": {"kernel": jnp.ones((4, 0))}, "second": {"kernel": jnp.arange(16.0).reshape(4, 4)}}
    optimizer: Any = jaxprune.sparsify(optax.sgd(0.1), METHODS[name](KEY))
    state = optimizer.init(params)
    kept = int(state.masks["second"]["kernel"].sum())
    for _ in range(3):
        updates, state = optimizer.update(params, state, params)
        params = optax.apply_updates(params, updates)
    assert params["first"]["kernel"].shape == (4, 0)
    assert int(state.masks["second"]["kernel"].sum()) == kept


def test_what_is_not_covered_is_named():
    with pytest.raises(ValueError, match=r"second/kernel: NM"):
        _ = training.set_(0.5, key=KEY, pattern={"second/*": masks.NM(2, 4)}).init(init_params())
    with pytest.raises(ValueError, match=r"for N:M training.srigl or sr_ste:\n  first/kernel: Block"):
        _ = training.srigl(0.5, 8, every=2, key=KEY, pattern=masks.Block((2, 2))).init(init_params())
    with pytest.raises(ValueError, match="must be in"):
        _ = training.set_(0.5, key=KEY, fraction=1.5)
    with pytest.raises(ValueError, match="momentum"):
        _ = training.dynamic(0.5, key=KEY, momentum=1.0)
    with pytest.raises(ValueError, match="end is a fraction"):
        _ = training.rigl(0.5, 100, key=KEY, end=75)
    with pytest.raises(ValueError, match="must be in"):
        _ = training.static(1.5, key=KEY)
    with pytest.raises(ValueError, match="needs grads"):
        _ = training.gradient_growth(init_params())
    with pytest.raises(ValueError, match="needs key"):
        _ = training.dynamic(0.5, key=None, grow=criteria.random).init(init_params())
    kept, scores = {"w": jnp.ones((2, 2), bool)}, {"w": jnp.ones((2, 2))}
    with pytest.raises(TypeError, match="masks must be bool"):
        _ = drop_and_grow(scores, scores, scores, 0.3)
    with pytest.raises(ValueError, match="grow must have the structure"):
        _ = drop_and_grow(kept, scores, {"v": scores["w"]}, 0.3)
    with pytest.raises(ValueError, match=r"fraction must be in \[0, 1\], .*got 30"):
        _ = drop_and_grow(kept, scores, scores, 30)
