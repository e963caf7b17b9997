"""What a trained network makes of its inputs: against NumPy twins and known answers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxprune import features

GATES = features.StochasticGates()


def predict(params, x):
    return jnp.tanh(x @ params["first"]) @ params["second"]


def squares(out, y):
    return ((out - y) ** 2).sum(-1)


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    params = {"first": rng.normal(size=(5, 4)).astype(np.float32), "second": rng.normal(size=(4, 2)).astype(np.float32)}
    params["first"][3] = 0
    x = rng.normal(size=(30, 5)).astype(np.float32)
    return jax.tree.map(jnp.asarray, params), x, rng.normal(size=(30, 2)).astype(np.float32)


def test_gradient_is_the_slope_of_each_samples_loss(problem):
    params, x, y = problem
    p, x64, y64 = jax.tree.map(lambda w: np.asarray(w, np.float64), params), x.astype(np.float64), y.astype(np.float64)
    value = lambda x: ((np.tanh(x @ p["first"]) @ p["second"] - y64) ** 2).sum(-1)
    expected = []
    for j in range(5):
        step = np.zeros(5)
        step[j] = 1e-5
        expected.append(np.abs((value(x64 + step) - value(x64 - step)) / 2e-5).mean())
    np.testing.assert_allclose(
        features.gradient_saliency(predict, params, x, y, squares), expected, rtol=1e-4, atol=1e-7
    )
    assert expected[3] == 0


def test_permutation_is_the_loop_over_features_and_orders(problem):
    params, x, y = problem
    key = jax.random.key(3)
    whole = float(squares(predict(params, x), y).mean())
    expected = np.zeros(5)
    for k in jax.random.split(key, 4):
        order = np.asarray(jax.random.permutation(k, 30))
        for j in range(5):
            dealt = x.copy()
            dealt[:, j] = x[order, j]
            expected[j] += (float(squares(predict(params, dealt), y).mean()) - whole) / 4
    found = features.permutation(predict, params, x, y, squares, key=key, repeats=4, batch=2)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert abs(float(found[3])) < 1e-6
    whole_batch = features.permutation(predict, params, x, y, squares, key=key, repeats=4, batch=100)
    np.testing.assert_allclose(found, whole_batch, rtol=1e-5, atol=1e-6)


def test_norms_of_any_axis(problem):
    first = problem[0]["first"]
    np.testing.assert_allclose(features.input_norms(first), np.linalg.norm(first, axis=1), rtol=1e-6)
    kernel = jnp.arange(24.0).reshape(2, 3, 4)
    np.testing.assert_allclose(
        features.input_norms(kernel, axis=1), np.sqrt((np.asarray(kernel) ** 2).sum((0, 2))), rtol=1e-6
    )


def test_elimination_scores_again_what_is_left():
    seen = []

    def score(mask, key):
        seen.append((int(mask.sum()), jax.random.key_data(key).tolist()))
        # The best feature hides until few are left.
        return jnp.where(mask, jnp.arange(10.0), jnp.nan).at[0].set(jnp.where(mask.sum() <= 5, 100.0, 5.5))

    mask, rounds = features.eliminate(score, 10, 2, key=jax.random.key(1), sparsity=0.5)
    assert mask.nonzero()[0].tolist() == [0, 9]
    assert [n for n, _ in seen] == [10, 5, 3]
    assert len({str(key) for _, key in seen}) == 3
    assert np.isnan(rounds[1].scores).sum() == 5
    alone, none = features.eliminate(score, 10, 10, key=jax.random.key(1))
    assert alone.all()
    assert none == []


def test_gates_find_the_features_that_matter_and_the_lasso_drives_the_others_to_zero():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 6)).astype(np.float32)
    y = (x[:, 1] * x[:, 4] > 0).astype(np.int32)  # neither is correlated with the target alone
    start = {
        "first": jnp.asarray(0.5 * rng.normal(size=(6, 16)), jnp.float32),
        "second": jnp.asarray(0.3 * rng.normal(size=(16, 2)), jnp.float32),
    }

    def train(params, optimizer, gated):
        def loss(p, key):
            z = GATES.draw(p["gates"], key, 256) if gated else 1.0
            logits = jax.nn.relu((x * z) @ p["first"]) @ p["second"]
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        def step(carry, key):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params, key), state, params)
            return (optax.apply_updates(params, updates), state), None

        carry = (params, optimizer.init(params))
        return jax.jit(lambda c: jax.lax.scan(step, c, jax.random.split(jax.random.key(0), 600))[0][0])(carry)

    gated = optax.chain(GATES.add_penalty(0.05, "gates"), optax.adam(0.02))
    gates = train({**start, "gates": GATES.start(6)}, gated, True)["gates"]
    assert features.top(gates, 2).nonzero()[0].tolist() == [1, 4]
    assert (np.asarray(GATES.through(gates)) > 0).nonzero()[0].tolist() == [1, 4]
    adam = optax.adam(optax.cosine_decay_schedule(0.02, 600))
    lasso = optax.chain(adam, features.input_lasso(optax.constant_schedule(0.004), "first"))
    first = np.asarray(train(start, lasso, False)["first"])
    assert (first != 0).any(1).nonzero()[0].tolist() == [1, 4]


def test_the_penalty_adds_the_gradient_of_the_open_gates():
    mu = jnp.array([-0.7, 0.0, 0.4])
    params = {"gates": mu, "w": jnp.ones(2)}
    gates = features.StochasticGates(sigma=0.3)
    penalty = gates.add_penalty(lambda step: 2.0 + step, "gates")
    state = penalty.init(params)
    zero = jax.tree.map(jnp.zeros_like, params)
    for factor in (2.0, 3.0):
        grads: Any
        grads, state = penalty.update(zero, state, params)
        expected = factor * jax.grad(gates.expected_open)(mu)
        np.testing.assert_allclose(grads["gates"], expected, rtol=1e-5)
        assert not grads["w"].any()


def test_open_gates_counts_what_is_drawn_open():
    mu = jnp.array([-0.5, 0.0, 0.8])
    drawn = GATES.draw(mu, jax.random.key(0), 20_000)
    assert float((drawn > 0).mean(0).sum()) == pytest.approx(float(GATES.expected_open(mu)), abs=0.02)
    assert float(drawn.min()) == 0
    assert float(drawn.max()) == 1


def test_the_lasso_step_is_the_proximal_one_and_zeros_are_exact():
    rng = np.random.default_rng(4)
    w, update = rng.normal(size=(5, 3)).astype(np.float32), 0.1 * rng.normal(size=(5, 3)).astype(np.float32)
    w[1] *= 0.1
    params = {"k": jnp.asarray(w.T), "b": jnp.ones(3)}
    lasso = features.input_lasso(0.8, "k", axis=-1)
    new, _ = lasso.update({"k": jnp.asarray(update.T), "b": jnp.ones(3)}, lasso.init(params), params)
    moved: Any = optax.apply_updates(params, new)
    found = np.asarray(moved["k"]).T
    stepped = w.astype(np.float64) + update
    factor = np.maximum(0, 1 - 0.8 * 3**0.5 / np.linalg.norm(stepped, axis=1, keepdims=True))
    np.testing.assert_allclose(found, stepped * factor, atol=1e-6)
    gone = (factor == 0)[:, 0]
    assert 0 < gone.sum() < 5
    assert (found[gone] == 0).all()


_X, _Y = np.ones((4, 2), np.float32), np.ones(4, np.float32)
_W = jnp.ones((2, 1))


_STATE: Any = optax.MaskedState(optax.ScaleByScheduleState(jnp.zeros((), jnp.int32)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: features.gradient_saliency(lambda w, x: x @ w, _W, _X, _Y[:3], lambda o, y: o[:, 0]),
            "each of the 4 samples",
        ),
        (
            lambda: features.gradient_saliency(lambda w, x: x @ w, _W, _X, _Y, lambda o, y: o.mean()),
            "one loss for each sample",
        ),
        (
            lambda: features.permutation(
                lambda w, x: x @ w, _W, _X, _Y, lambda o, y: o[:, 0], key=jax.random.key(0), repeats=0
            ),
            "must be 1 or more",
        ),
        (lambda: features.input_norms(_W, axis=2), "no axis 2"),
        (lambda: features.eliminate(lambda m, k: m, 3, 4, key=jax.random.key(0)), "keep must be in 1 to 3"),
        (
            lambda: features.eliminate(lambda m, k: m, 3, 1, key=jax.random.key(0), sparsity=1),
            "sparsity must be in",
        ),
        (lambda: features.eliminate(lambda m, k: m[:2], 3, 1, key=jax.random.key(0)), "one number for each feature"),
        (lambda: features.top([1.0, np.nan], 1), "one number for each feature, not NaN"),
        (lambda: features.top([1.0, 2.0], 0), "count must be in 1 to 2"),
        (lambda: GATES.start(0), "features must be 1 or more"),
        (lambda: features.StochasticGates(sigma=0.0), "sigma must be above 0"),
        (lambda: features.input_lasso(0.1, "w").init({"v": _W}), "no leaf matches 'w'"),
        (lambda: features.input_lasso(0.1, None), "where must name the leaf"),
        (lambda: features.input_lasso(0.1, "w").update({"w": _W}, _STATE), "needs params"),
        (
            lambda: features.input_lasso(0.1, "w", axis=2).update({"w": _W}, _STATE, {"w": _W}),
            "has no axis 2",
        ),
    ],
)
def test_errors_say_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
