"""Training whose every number is exact, so that it ends in the same bits however it is spread over devices.

The loss is linear, the mean over a batch of <w, g>, and the g are multiples of 1/8 below 2^5: their mean over 8
examples has no rounding, in whichever order they are added. What is left to differ is what is tested: masks.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune
from jaxprune import _tree, allocation, criteria, masks, schedules, training
from tests.distributed import layouts

PyTree = Any
STEPS = 5
EXAMPLES = 8
_CUBIC = schedules.cubic(0, 4, 0.75)
_ON: Any = {"where": layouts.WHERE}
_STACKED: Any = {"layers/*": 1}
_WHEN = schedules.every(2)

METHODS: dict[str, Any] = {
    "gradual": lambda **on: training.gradual(_CUBIC, when=_WHEN, batch_axes=_STACKED, **_ON, **on),
    "gradual global": lambda **on: training.gradual(_CUBIC, when=_WHEN, allocation=allocation.one_ranking, **_ON, **on),
    "gradual lamp": lambda **on: training.gradual(_CUBIC, when=_WHEN, allocation=allocation.lamp, **_ON, **on),
    "gradual channels": lambda **on: training.gradual(_CUBIC, when=_WHEN, pattern=masks.Channel(-1), **_ON, **on),
    "gradual random": lambda **on: training.gradual(
        _CUBIC, when=_WHEN, criterion=criteria.random, key=jax.random.key(2), **_ON, **on
    ),
    "one_shot snip": lambda **on: training.one_shot(0.5, step=2, criterion=criteria.snip, **_ON, **on),
    "static": lambda **on: training.static(0.5, key=jax.random.key(0), **_ON, **on),
    # ER of the paper needs inputs and outputs, which a stacked leaf without roles does not tell; ERK needs none.
    "set": lambda **on: training.set_(0.5, key=jax.random.key(0), when=_WHEN, allocation=allocation.erk, **_ON, **on),
    "rigl": lambda **on: training.rigl(0.5, 8, key=jax.random.key(0), every=2, **_ON, **on),
    "rigl stacked": lambda **on: training.rigl(
        0.5, 8, key=jax.random.key(0), every=2, batch_axes=_STACKED, **_ON, **on
    ),
    "acdc": lambda **on: training.acdc(0.5, begin=1, end=5, compressed=1, dense=1, **_ON, **on),
    "straight_through": lambda **on: training.straight_through(0.5, when=_WHEN, **_ON, **on),
    "sr_ste": lambda **on: training.sr_ste(where="layers/*", batch_axes=1, **on),
    "top_kast": lambda **on: training.top_kast(0.5, 0.25, when=_WHEN, **_ON, **on),
}


def make_optimizer(name: str, packed: bool = False) -> Any:
    """A method around SGD with momentum, of steps that are exact in binary."""
    return jaxprune.sparsify(optax.sgd(0.125, momentum=0.5), METHODS[name](), packed=packed)


def loss(params: PyTree, batch: PyTree) -> jax.Array:
    """The mean over the batch of the inner product."""
    products = jax.tree.map(lambda w, g: (w * g.mean(0)).sum(), params, batch)
    return sum(jax.tree.leaves(products), jnp.zeros(()))


def batch(step: int) -> PyTree:
    """Eight gradients for each leaf."""
    rng = np.random.default_rng(100 + step)
    draw = lambda shape: np.round(8 * rng.normal(size=(EXAMPLES, *shape))).astype(np.float32) / 8
    return jax.tree.map(draw, layouts.SHAPES, is_leaf=lambda s: isinstance(s, tuple))


def make_step(optimizer: Any, average: Any = lambda grads: grads) -> Any:
    """A step of training; `average` is what a loop over devices does to gradients."""

    def step(params: PyTree, state: PyTree, examples: PyTree) -> tuple[PyTree, PyTree]:
        grads = average(jax.grad(loss)(params, examples))
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def train(step: Any, params: PyTree, state: PyTree, place: Any = lambda examples: examples) -> list[PyTree]:
    """The parameters and masks after each step, as NumPy arrays."""
    found = []
    for i in range(STEPS):
        params, state = step(params, state, place(batch(i)))
        found.append(jax.tree.map(np.asarray, (params, masks.unpack(jaxprune.get_masks(state)))))
    return found


def alone(name: str) -> list[PyTree]:
    """What one device gives."""
    optimizer = make_optimizer(name)
    params = layouts.init_params()
    return train(jax.jit(make_step(optimizer)), params, optimizer.init(params))


def infer(shapes: PyTree, params: PyTree, places: PyTree) -> PyTree:
    """Where each leaf of a state lies, from shapes alone: with the parameter whose path and shape it has.

    Packed masks lie where the parameter does too, as far as their bytes can be shared out.
    """
    named = _tree.with_paths(params)
    known = {
        _tree.identity(path): (leaf.shape, at) for (path, leaf), at in zip(named, jax.tree.leaves(places), strict=True)
    }

    def of(path: Any, leaf: Any) -> NamedSharding:
        names = _tree.identity(path)
        names = names[:-1] if names[-1] == "bits" else names
        for start in range(len(names)):
            shape, at = known.get(names[start:], (None, None))
            if at is None or shape is None:
                continue
            if leaf.shape == shape or (len(leaf.shape) == len(shape) and leaf.shape[-1] == -(-shape[-1] // 8)):
                try:
                    _ = at.shard_shape(leaf.shape)
                except ValueError:
                    break
                return at
        return NamedSharding(jax.tree.leaves(places)[0].mesh, P())

    return jax.tree_util.tree_map_with_path(of, shapes)
