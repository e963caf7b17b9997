"""Soups, free tickets and students."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from jaxprune import allocation, ensembles, lottery, masks, training
from jaxprune.ensembles.distillation import softened
from tests.cases import normal

KEY = jax.random.key(0)


def test_a_soup_is_the_mean_and_as_sparse_as_each():
    params = {"w": normal(3, 8, 8), "b": jnp.arange(3.0)[:, None] * jnp.ones(8), "n": jnp.arange(3)}
    held = {"w": jnp.stack([jnp.eye(8, dtype=bool)] * 3), "b": jnp.ones(3, bool), "n": jnp.ones(3, bool)}
    members = ensembles.from_stacked(params, held)
    got = ensembles.soup(members)
    np.testing.assert_allclose(got.params["w"], np.where(np.eye(8), np.mean(params["w"], 0), 0), rtol=1e-6)
    np.testing.assert_allclose(got.params["b"], np.ones(8))
    assert got.params["n"] == 0
    assert float(masks.sparsity(got.params, got.masks)) == pytest.approx(1 - 1 / 8)
    weighted = ensembles.soup(members, [0, 1, 3])
    np.testing.assert_allclose(weighted.params["b"], np.full(8, 1.75))
    half = ensembles.soup(ensembles.from_stacked({"w": jnp.ones((2, 4), jnp.bfloat16)}))
    assert half.params["w"].dtype == jnp.bfloat16


@pytest.mark.slow
def test_soups_of_every_round_of_pruning_are_better_than_single_trainings():
    # Each copy ends at the optimum and independent noise; the mean of nine has a third of it.
    target = {"w": jnp.arange(1.0, 65).reshape(8, 8)}

    def tune(params, held, key):
        noise = jax.random.normal(key, (8, 8)) / 4
        return masks.apply({"w": target["w"] + noise}, held)

    def souped(params, held, key):
        tuned = jax.vmap(lambda key: tune(params, held, key))(jax.random.split(key, 9))
        return ensembles.soup(
            ensembles.from_stacked(tuned, jax.tree.map(lambda mask: jnp.stack([mask] * 9), held))
        ).params

    ends = []
    for train in (tune, souped):
        found = lottery.iterative_pruning(
            train, target, rounds=[0.5, 0.75], key=KEY, rewind=lottery.learning_rate_only()
        ).ticket
        kept = np.asarray(found.masks["w"][-1])
        assert kept.sum() == 16
        np.testing.assert_array_equal(np.asarray(found.params["w"][-1])[~kept], 0)
        ends.append(float(((found.params["w"][-1] - target["w"])[kept] ** 2).mean()))
    assert ends[1] < ends[0] / 3


def test_a_soup_of_different_masks_is_refused_by_name():
    held = {"w": jnp.array([[True, True, False], [True, False, False]]), "b": jnp.ones(2, bool)}
    members = ensembles.from_stacked({"w": jnp.ones((2, 3)), "b": jnp.ones((2, 1))}, held)
    with pytest.raises(ValueError, match=r"first member's in\n  w: 1 places\nfine-tune copies"):
        _ = ensembles.soup(members)
    for weights in ([1.0, -1.0], [0.0, 0.0]):
        with pytest.raises(ValueError, match="non-negative with a positive sum"):
            _ = ensembles.soup(ensembles.from_stacked({"w": jnp.ones((2, 3))}), weights)
    with pytest.raises(ValueError, match=r"one number for each member, \(2,\); got \(3,\)"):
        _ = ensembles.soup(ensembles.from_stacked({"w": jnp.ones((2, 3))}), [1, 1, 1])


def test_free_tickets_explore_refine_and_leap():
    updates = ensembles.Updates(every=4, fraction=0.25, leap=0.75)
    how: Any = {"key": KEY, "allocation": allocation.uniform}
    tickets = ensembles.free_tickets(0.75, members=3, explore=20, refine=12, updates=updates, **how)
    assert tickets.ends == (32, 44, 56)
    is_due: Any = tickets.method.is_due
    due = [step for step in range(70) if is_due(step)]
    # Not at 28, 40, 52: in the second half of each refinement the masks rest.
    assert due == [4, 8, 12, 16, 20, 24, 32, 36, 44, 48]
    optimizer = jaxprune.sparsify(optax.sgd(lambda step: 0.1 * tickets.rate(step)), tickets.method)
    params = {"w": normal(16, 16)}
    state = optimizer.init(params)
    step = jax.jit(lambda p, s: optimizer.update(jax.tree.map(lambda w: jnp.sin(40 * w) + 0.1, p), s, p))
    held = [jaxprune.get_masks(state)["w"]]
    for _ in range(56):
        updates, state = step(params, state)
        params = optax.apply_updates(params, updates)
        held.append(jaxprune.get_masks(state)["w"])
    dropped = {i: int((a & ~b).sum()) for i, (a, b) in enumerate(itertools.pairwise(held)) if (a != b).any()}
    # 64 kept: a quarter moves at each update, three quarters at a leap; and always 64 stay.
    assert dropped == {step: 48 if step in (32, 44) else 16 for step in due}
    assert all(int(mask.sum()) == 64 for mask in held)


def test_the_criterion_of_free_tickets_says_what_is_dropped():
    largest_first = lambda params, **signals: jax.tree.map(lambda w: -jnp.abs(w), params)
    updates = ensembles.Updates(every=1, fraction=0.5)
    how: Any = {"key": KEY, "criterion": largest_first}
    tickets = ensembles.free_tickets(0.5, members=1, explore=4, refine=2, updates=updates, **how)
    optimizer = jaxprune.sparsify(optax.sgd(0.0), tickets.method)
    params = {"w": jnp.arange(1.0, 17).reshape(4, 4)}
    state = optimizer.init(params)
    before = jaxprune.get_masks(state)["w"]
    for _ in range(2):  # the masks first move before the second step
        _, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, masks.apply(params, {"w": before}))
    dropped = np.asarray(params["w"])[np.asarray(before & ~jaxprune.get_masks(state)["w"])]
    kept = np.asarray(params["w"])[np.asarray(before)]
    np.testing.assert_array_equal(np.sort(dropped), np.sort(kept)[4:])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"members": 0}, "members must be an integer of 1"),
        ({"refine": 1}, "refine must be an integer of 2"),
        ({"explore": 0.5}, "explore must be an integer of 0"),
        ({"updates": ensembles.Updates(leap=1.5)}, r"leap must be in \[0, 1\], the fraction .*; got 1.5"),
        ({"rates": (0.1, 0.0)}, r"rates must be two factors in \(0, 1\]; got \(0.1, 0.0\)"),
        ({"updates": ensembles.Updates(every=0)}, "every must be a positive integer"),
        ({"sparsity": 1.0}, "sparsity"),
    ],
)
def test_free_tickets_check_their_numbers(wrong, message):
    options = {"sparsity": 0.5, "members": 2, "explore": 10, "refine": 5, "key": KEY, **wrong}
    with pytest.raises(ValueError, match=message):
        _ = ensembles.free_tickets(**options)


def test_distillation_loss():
    rng = np.random.default_rng(0)
    student, teacher, labels = rng.normal(size=(4, 5)), rng.normal(size=(4, 5)), np.array([0, 1, 2, 3])
    log = lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True))
    p, q = log(teacher / 3), log(student / 3)
    kl = (np.exp(p) * (p - q)).sum(-1).mean()
    ce = -log(student)[np.arange(4), labels].mean()
    got = ensembles.distillation_loss(jnp.asarray(student), jnp.asarray(teacher), labels, temperature=3.0, weight=0.7)
    np.testing.assert_allclose(got, 0.7 * 9 * kl + 0.3 * ce, rtol=1e-5)
    teach = jax.grad(lambda t: ensembles.distillation_loss(jnp.asarray(student), t))(jnp.asarray(teacher))
    assert not np.asarray(teach).any()
    wrong: list[tuple[Any, str]] = [
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"weight": 0.5}, "needs labels"),
    ]
    for bad, message in wrong:
        with pytest.raises(ValueError, match=message):
            _ = ensembles.distillation_loss(jnp.asarray(student), jnp.asarray(teacher), **bad)
    with pytest.raises(ValueError, match="must have the same shape"):
        _ = ensembles.distillation_loss(jnp.asarray(student), jnp.asarray(teacher)[:2])


def test_softened_is_the_mean_of_softened_members():
    logits = normal(4, 6, 3) * 3
    for temperature in (0.5, 1.0, 4.0):
        soft = jax.nn.softmax(softened(logits, temperature) / temperature)
        np.testing.assert_allclose(soft, jax.nn.softmax(logits / temperature).mean(0), rtol=1e-5)


@pytest.mark.slow
def test_a_pruned_student_learns_from_its_teachers():
    x = normal(200, 6)
    teachers = normal(3, 6, 3, seed=1)
    soft, labels = jnp.einsum("nd,mdk->mnk", x, teachers), jax.random.randint(KEY, (200,), 0, 3)
    apply = lambda params, x: x @ params["w"]
    loss = lambda params, x, soft, labels: ensembles.distillation_loss(apply(params, x), soft, labels)
    optimizer = jaxprune.sparsify(optax.adam(0.05), training.one_shot(0.5, step=50))
    params = {"w": jnp.zeros((6, 3))}
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        grads = jax.grad(loss)(params, x, soft, labels)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    before = loss(params, x, soft, labels)
    for _ in range(150):
        params, state = step(params, state)
    assert int((params["w"] != 0).sum()) == 9
    agree = (apply(params, x).argmax(1) == ensembles.mean_probability(soft).argmax(1)).mean()
    assert loss(params, x, soft, labels) < before / 2
    assert agree > 0.7
    mixed = ensembles.distillation_loss(apply(params, x), soft, labels, weight=0.0)  # the labels alone
    expected = optax.softmax_cross_entropy_with_integer_labels(apply(params, x), labels).mean()
    np.testing.assert_allclose(mixed, expected, rtol=1e-5)


def test_errors_of_distillation():
    with pytest.raises(ValueError, match=r"leading axis of members of the teacher; got \(2, 3\) and \(4, 2, 5\)"):
        _ = ensembles.distillation_loss(jnp.ones((2, 3)), jnp.ones((4, 2, 5)))
    with pytest.raises(ValueError, match="temperature must be positive; got 0"):
        _ = softened(jnp.ones((1, 2, 3)), 0)


@pytest.mark.slow
def test_stored_top_logits_bound_the_loss_from_below_and_reach_it():
    student, teacher = (jax.random.normal(key, (3, 4, 7)) * 3 for key in jax.random.split(KEY))
    whole, slope = jax.value_and_grad(ensembles.distillation_loss)(student, teacher, temperature=1.5)
    losses = []
    for k in (1, 3, 6, 7):
        stored = ensembles.TopLogits.of(teacher, k, temperature=1.5)
        assert stored.values.shape == stored.indices.shape == (3, 4, k)
        value, grads = jax.value_and_grad(ensembles.distillation_loss)(student, stored, temperature=1.5)
        losses.append(float(value))
        if k >= 6:  # "any other class" is one class, or none
            np.testing.assert_allclose(value, whole, rtol=1e-5)
            np.testing.assert_allclose(grads, slope, atol=1e-6)
    assert losses[0] < losses[1] < losses[2]
    # A twin of k = 3: seven classes become four.
    soft, own = (np.asarray(jax.nn.softmax(x / 1.5)) for x in (teacher, student))
    first = np.argsort(-soft, -1)[..., :3]
    p, q = (np.take_along_axis(x, first, -1) for x in (soft, own))
    p, q = (np.concatenate([x, 1 - x.sum(-1, keepdims=True)], -1) for x in (p, q))
    np.testing.assert_allclose(losses[1], 1.5**2 * (p * np.log(p / q)).sum(-1).mean(), rtol=1e-4)
    for k in (0, 8):
        with pytest.raises(ValueError, match="k must be 1 to the number of classes, 7"):
            _ = ensembles.TopLogits.of(teacher, k)
    stored = ensembles.TopLogits.of(teacher, 3)
    with pytest.raises(ValueError, match=r"stored for temperature 2\.0, but the loss has temperature 3\.0"):
        _ = ensembles.distillation_loss(student, stored, temperature=3.0)
    with pytest.raises(
        ValueError, match=r"same shape except for the classes; got \(4, 7\) and TopLogits of \(3, 4, 3\)"
    ):
        _ = ensembles.distillation_loss(student[0], stored)


def test_hidden_states_learn_the_layers_of_the_map():
    teacher = [jax.random.normal(key, (5, 2, 6)) * 10**i for i, key in enumerate(jax.random.split(KEY, 4))]
    student = [jax.random.normal(key, (5, 2, 6)) for key in jax.random.split(jax.random.key(1), 3)]
    distance = lambda own, goal: float(((own - goal) ** 2).sum() / (goal**2).sum())
    got = ensembles.hidden_loss(student, teacher, [0, None, 3])
    np.testing.assert_allclose(
        got, (distance(student[0], teacher[0]) + distance(student[2], teacher[3])) / 2, rtol=1e-5
    )
    slopes = jax.grad(ensembles.hidden_loss)(student, teacher, [0, None, 3])
    assert not slopes[1].any()
    assert slopes[0].any()
    assert not jax.grad(ensembles.hidden_loss, 1)(student, jnp.stack(teacher), [0, None, 3]).any()
    # Rows of the identity: a student of channels 1, 3 and 5 that agrees in them misses the others alone.
    kept = jnp.array([1, 3, 5])
    narrow = [x[..., kept] for x in teacher]
    got = ensembles.hidden_loss(narrow, teacher, range(4), projections=jnp.eye(6)[kept])
    rest = [float((x[..., jnp.array([0, 2, 4])] ** 2).sum() / (x**2).sum()) for x in teacher]
    np.testing.assert_allclose(got, np.mean(rest), rtol=1e-5)
    wrong: list[tuple[Any, Any, str]] = [
        ([0, 3], {}, "each of the 3 states of the student; got 2 entries"),
        ([0, 1, 4], {}, r"layers\[2\] is 4, but the teacher has 4 states"),
        ([None] * 3, {}, "nothing to learn"),
        ([0, 1, 2], {"projections": [None]}, "one for each of the 3 layers; got 1"),
        ([0, 1, 2], {"projections": jnp.ones((3, 6))}, r"projection of layer 0 must be .* \(6, 6\); got \(3, 6\)"),
    ]
    for layers, options, message in wrong:
        with pytest.raises(ValueError, match=message):
            _ = ensembles.hidden_loss(student, teacher, layers, **options)
    with pytest.raises(ValueError, match=r"state 0 of the student, \(5, 2, 3\).*; for another width pass projections"):
        _ = ensembles.hidden_loss(narrow, teacher, range(4))
