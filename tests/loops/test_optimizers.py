"""Every optimizer that Optax exports, found by listing them, in float32 and bfloat16 at once."""

import inspect
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from jaxprune import training
from jaxprune.training.enforce import zero_removed
from tests.cases import few
from tests.loops.watch import Watch, by_pickle, without_key

_LATER: Any = lambda step: step > 0
# Those that cannot be made of a learning rate alone; an optimizer that is new in Optax and needs more comes here.
MADE: dict[str, Any] = {
    "adaptive_grad_clip": lambda: optax.chain(optax.adaptive_grad_clip(0.1), optax.sgd(0.1)),
    "add_noise": lambda: optax.chain(optax.add_noise(0.1, 0.5, key=jax.random.key(0)), optax.sgd(0.1)),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.adam(0.1), 2),
    "clip": lambda: optax.chain(optax.clip(0.1), optax.adam(0.1)),
    "clip_by_block_rms": lambda: optax.chain(optax.clip_by_block_rms(0.1), optax.adam(0.1)),
    "clip_by_global_norm": lambda: optax.chain(optax.adam(0.1), optax.clip_by_global_norm(0.1)),
    "conditionally_mask": lambda: optax.conditionally_mask(optax.sgd(0.1, 0.9), _LATER),
    "conditionally_transform": lambda: optax.conditionally_transform(optax.adam(0.1), _LATER),
    "ema": lambda: optax.chain(optax.adam(0.1), optax.ema(0.9)),
    "flatten": lambda: optax.flatten(optax.sgd(0.1)),
    "freeze": lambda: optax.chain(optax.adam(0.1), optax.freeze({"w": False, "h": True, "b": True})),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(optax.linear_schedule(0.1, 0.01, 5)),
    "inject_stateful_hyperparams": lambda: optax.inject_stateful_hyperparams(optax.adam)(learning_rate=0.1),
    "masked": lambda: optax.masked(optax.adam(0.1), {"w": True, "h": False, "b": True}),
    "multi_transform": lambda: optax.multi_transform(
        {"a": optax.adam(0.1), "s": optax.sgd(0.1, 0.9)}, {"w": "a", "h": "s", "b": "a"}
    ),
    "partition": lambda: optax.partition(
        {"a": optax.adam(0.1), "s": optax.set_to_zero()}, {"w": "a", "h": "a", "b": "s"}
    ),
    "scale": lambda: optax.scale(-0.1),
    "scale_by_backtracking_linesearch": lambda: optax.chain(optax.sgd(0.1), optax.scale_by_backtracking_linesearch(3)),
    "scale_by_schedule": lambda: optax.scale_by_schedule(optax.constant_schedule(-0.1)),
    "scale_by_zoom_linesearch": lambda: optax.chain(optax.sgd(0.1), optax.scale_by_zoom_linesearch(3)),
    "selective_transform": lambda: optax.selective_transform(
        optax.adam(0.1), freeze_mask={"w": False, "h": True, "b": False}
    ),
    "snapshot": lambda: optax.chain(
        optax.snapshot("norm", lambda updates, *_, **__: optax.tree.norm(updates)), optax.sgd(0.1)
    ),
    "stateless": lambda: optax.stateless(lambda updates, params: jax.tree.map(lambda u: -0.1 * u, updates)),
    "stateless_with_tree_map": lambda: optax.stateless_with_tree_map(lambda u, p: -0.1 * u),
    "trace": lambda: optax.chain(optax.trace(0.9), optax.scale(-0.1)),
    "with_extra_args_support": lambda: optax.with_extra_args_support(optax.adam(0.1)),
    "contrib.differentially_private_aggregate": lambda: optax.chain(
        optax.contrib.differentially_private_aggregate(1.0, 0.1, jax.random.key(0)), optax.sgd(0.1)
    ),
    "contrib.dpsgd": lambda: optax.contrib.dpsgd(0.1, 1.0, 0.1, seed=0),
    "contrib.mechanize": lambda: optax.contrib.mechanize(optax.adamw(0.1)),
    "contrib.sam": lambda: optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.01), sync_period=2),
    "contrib.schedule_free": lambda: optax.contrib.schedule_free(optax.sgd(0.1), 0.1, state_dtype=jnp.float32),
    "contrib.split_real_and_imaginary": lambda: optax.contrib.split_real_and_imaginary(optax.adam(0.1)),
    "noisy_sgd": lambda: optax.noisy_sgd(0.1, key=jax.random.key(0)),
    "MultiSteps": lambda: optax.MultiSteps(optax.adam(0.1), 2),
}
# The update of Optax's own takes no extra arguments, or no mixture of dtypes.
NO_EXTRA, ONE_DTYPE = ("contrib.sam",), ("contrib.mechanize", "contrib.sophia")
PER_EXAMPLE = ("contrib.differentially_private_aggregate", "contrib.dpsgd")
# Combinations without an optimizer of their own; lookahead, which has a test of its own; and what returns no updates.
APART = {"chain", "named_chain", "lookahead", "measure_with_ema"}


# What an optimizer itself leaves at removed weights: adabelief and acprop add 1e-16 in each of four steps, adamax and
# adamaxw the float32 or bfloat16 next to 1e-8. A line search keeps the gradient at which it ended.
FLOORS = {"adafactor": 1e-30, "adabelief": 4.1e-16, "contrib.acprop": 4.1e-16, "adamax": 1.01e-8, "adamaxw": 1.01e-8}
# One optimizer of each kind: state like the parameters, factored, flat, per group, accumulated, wrapped, with noise.
QUICK = (
    *("adam", "adafactor", "flatten", "multi_transform", "masked", "MultiSteps", "inject_hyperparams", "noisy_sgd"),
    *("apply_if_finite", "contrib.muon", "contrib.schedule_free", "contrib.dpsgd"),
)
KEPT = {"lbfgs", "scale_by_zoom_linesearch", "scale_by_backtracking_linesearch"}


def listed() -> dict[str, Any]:
    """A function for each name; None where it is not known how to make the optimizer."""
    found: dict[str, Any] = dict.fromkeys(MADE)
    for prefix, module in (("", optax), ("contrib.", optax.contrib)):
        for short, fn in vars(module).items():
            name = prefix + short
            if short.startswith("_") or not inspect.isfunction(fn) or name in APART:
                continue
            signature = inspect.signature(fn)
            needed = {
                p.name for p in signature.parameters.values() if p.default is p.empty and p.kind < p.VAR_POSITIONAL
            }
            if "GradientTransformation" in str(signature.return_annotation) and "learning_rate" in signature.parameters:
                found[name] = (lambda fn=fn: fn(learning_rate=0.05)) if needed <= {"learning_rate"} else None
            elif "GradientTransformation" in str(signature.return_annotation) and needed:
                found[name] = None
    return {name: MADE.get(name, make) for name, make in found.items()}


def halves() -> training.Method:
    """Removes every second column at step 1, and the other columns instead at step 3; cheap to compile."""

    def init(params: Any) -> Any:
        return jax.tree.map(lambda p: jnp.ones(p.shape if p.ndim == 2 else (), bool), params), None

    def revise(kept: Any, state: Any, signals: training.Signals) -> Any:
        columns = (jnp.arange(6) + signals.step // 2) % 2 == 0
        return jax.tree.map(lambda m: jnp.broadcast_to(columns, m.shape) if m.ndim else m, kept), state

    return training.Method(init, lambda step: step % 2 == 1, revise)


def traces_of(step: Any, params: Any, state: Any) -> int:
    """The number of times that four steps without pruning are traced; some states of Optax begin with other types."""
    seen = set()
    for _ in range(4):
        leaves = jax.tree.leaves((params, state))
        seen.add(tuple((x.shape, x.dtype, getattr(x, "weak_type", False)) for x in leaves))
        params, state = jax.eval_shape(step, params, state)
    return len(seen)


def test_how_to_make_every_optimizer_is_known():
    unknown = sorted(name for name, make in listed().items() if make is None)
    assert not unknown, f"say in MADE how these are made: {unknown}"


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize("name", few(listed(), *QUICK))
def test_it_leaves_exact_zeros_at_every_step(name, tmp_path):
    inner: Any = optax.with_extra_args_support(listed()[name]())
    optimizer: Any = jaxprune.sparsify(inner, halves())
    keys = jax.random.split(jax.random.key(0), 2)
    params: Any = {"w": jax.random.normal(keys[0], (4, 6)), "b": jnp.ones(6)}
    params["h"] = jax.random.normal(keys[1], (4, 6), jnp.float32 if name in ONE_DTYPE else jnp.bfloat16)

    def loss(p: Any) -> jax.Array:
        out = jnp.ones((3, 4)) @ (p["w"] + p["h"].astype(jnp.float32)) + p["b"]
        return jnp.mean((out - 1) ** 2)

    def step(optimizer: Any, p: Any, state: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(p)
        sent = jax.tree.map(lambda g: jnp.stack([g, g]), grads) if name in PER_EXAMPLE else grads
        extra: Any = {"value": value, "grad": grads, "obj_fn" if name == "contrib.sophia" else "value_fn": loss}
        updates, state = optimizer.update(sent, state, p, **({} if name in NO_EXTRA else extra))
        return optax.apply_updates(p, updates), state

    watch = Watch()
    jitted = jax.jit(watch.traced(partial(step, optimizer)))
    start = params, optimizer.init(params)
    end = watch.train(lambda carry, i: jitted(*carry), start, lambda carry: carry, by_pickle, tmp_path, steps=4)
    assert jax.tree.map(lambda x: x.dtype, end[0]) == jax.tree.map(lambda x: x.dtype, params)
    watch.expect({"w": 12, "h": 12}, traces=traces_of(partial(step, inner), params, inner.init(params)))
    assert np.count_nonzero(end[0]["w"][:, ::2]) == 0
    if name not in KEPT:
        cleaned = zero_removed(end[1].inner, end[0], jaxprune.get_masks(end[1]))
        chex.assert_trees_all_close(plain(end[1].inner), plain(cleaned), rtol=0, atol=FLOORS.get(name, 0))


def plain(tree: Any) -> Any:
    """The arrays of a tree, keys as their data."""
    return [np.asarray(x, np.float64) for x in map(without_key, jax.tree.leaves(tree)) if x.dtype != bool]
