"""Training and evaluation of a network under one optimizer: plain JAX and Optax, nothing of jaxprune."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .models import Model


class Fit(NamedTuple):
    """What a run leaves behind: the parameters, the optimizer's state, and the seconds that its steps took."""

    params: Any
    opt_state: Any
    seconds: float


def scaled(model: Model, mean: float, deviation: float) -> Model:
    """The model, with its images shifted and scaled by the mean and the deviation of the training images."""
    return model._replace(apply=lambda params, images: model.apply(params, (images - mean) / deviation))


def batches(images: np.ndarray, labels: np.ndarray, *, steps: int, size: int, seed: list[int]) -> Iterator[tuple]:
    """Draw `steps` batches, going through a new permutation of the images each time they are used up."""
    rng = np.random.default_rng(seed)
    rows = np.empty(0, int)
    for _ in range(steps):
        while len(rows) < size:
            rows = np.concatenate([rows, rng.permutation(len(images))])
        yield images[rows[:size]], labels[rows[:size]]
        rows = rows[size:]


class Trainer:
    """The training loop of one method, compiled once.

    The loop over steps is Python's: XLA runs a convolution inside `lax.scan` about fifteen times slower on a CPU.
    """

    def __init__(self, model: Model, optimizer: Callable[[Any], optax.GradientTransformation]):
        """Keep the model and `optimizer`, a function of what differs between the runs of this method."""

        def loss(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
            logits = model.apply(params, images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        def step(params: Any, opt_state: Any, choice: Any, images: jax.Array, labels: jax.Array) -> tuple:
            value, grads = jax.value_and_grad(loss)(params, images, labels)
            updates, opt_state = optimizer(choice).update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, value

        self._init = jax.jit(lambda params, choice: optimizer(choice).init(params))
        self._step = jax.jit(step, donate_argnums=(0, 1))
        self.compile_seconds = 0.0
        self._compiled: Any = None

    def run(self, params: Any, choice: Any, data: Iterator[tuple], tick: Callable[[float], None]) -> Fit:
        """Train from `params` on.

        Args:
            params: Where to start; left untouched.
            choice: What is handed to the optimizer's function: None, a sparsity or masks.
            data: Batches of images and labels.
            tick: Called with the loss after each step.

        Returns:
            The trained parameters and the state of the optimizer.
        """
        choice = jax.tree.map(jnp.asarray, choice)
        params = jax.tree.map(jnp.copy, params)
        opt_state = self._init(params, choice)
        seconds = 0.0
        for images, labels in data:
            step = self._compile(params, opt_state, choice, images, labels)
            began = time.perf_counter()
            params, opt_state, value = step(params, opt_state, choice, images, labels)
            value = float(value)
            seconds += time.perf_counter() - began
            tick(value)
        return Fit(params, opt_state, seconds)

    def _compile(self, *args: Any) -> Any:
        if self._compiled is None:
            began = time.perf_counter()
            self._compiled = self._step.lower(*args).compile()
            self.compile_seconds = time.perf_counter() - began
        return self._compiled


@partial(jax.jit, static_argnums=0)
def _logits(apply: Callable, params: Any, images: jax.Array) -> jax.Array:
    return apply(params, images)


def predict(model: Model, params: Any, images: np.ndarray, size: int = 1000) -> jax.Array:
    """The logits of many images, some at a time."""
    parts = [_logits(model.apply, params, images[i : i + size]) for i in range(0, len(images), size)]
    return jnp.concatenate(parts)
