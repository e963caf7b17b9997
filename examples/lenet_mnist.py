"""LeNet-300-100 on MNIST, as in Frankle and Carbin 2019: what the experiments on it share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from main_job import idx

import jaxprune
from jaxprune import masks, training

PyTree = Any
WIDTHS = (300, 100, 10)
RATE, BATCH = 1.2e-3, 60


class Split(NamedTuple):
    """Images uint8 [n, pixels] and labels int32 [n]."""

    images: jax.Array
    labels: jax.Array


class Data(NamedTuple):
    """What is trained on, what is looked at while training, and what is reported."""

    train: Split
    validation: Split
    test: Split


class History(NamedTuple):
    """The validation loss at its lowest, and after how many steps that was."""

    loss: jax.Array
    step: jax.Array


def load(folder: Path, *, size: int | None = None) -> Data:
    """MNIST; the last twelfth of the training files, 5000, is for validation. `size` takes the first of each split."""
    found = idx.find(folder)
    splits = {}
    for name in ("train", "test"):
        images, labels = idx.read_split(found[name, "images"], found[name, "labels"])
        splits[name] = images.reshape(len(images), -1), labels.astype(np.int32)
    (images, labels), test = splits["train"], splits["test"]
    cut = len(images) - len(images) // 12
    parts = (images[:cut], labels[:cut]), (images[cut:], labels[cut:]), test
    return Data(*(Split(*(jnp.asarray(array[:size]) for array in part)) for part in parts))


def init(key: Any, inputs: int = 784, widths: tuple[int, ...] = WIDTHS) -> PyTree:
    """Glorot normal kernels [in, out] and zero biases."""
    draw = jax.nn.initializers.glorot_normal()
    sizes = zip((inputs, *widths[:-1]), widths, jax.random.split(key, len(widths)), strict=True)
    return {f"dense_{i}": {"kernel": draw(k, (n, m)), "bias": jnp.zeros(m)} for i, (n, m, k) in enumerate(sizes)}


def apply(params: PyTree, images: jax.Array) -> jax.Array:
    """Logits [n, 10] of images, uint8 or already between 0 and 1."""
    x = images / 255.0 if images.dtype == jnp.uint8 else images
    for i in range(len(params)):
        layer = params[f"dense_{i}"]
        x = (jax.nn.relu(x) if i else x) @ layer["kernel"] + layer["bias"]
    return x


def loss(params: PyTree, split: Split) -> jax.Array:
    """The mean cross-entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(apply(params, split.images), split.labels).mean()


def epochs(key: Any, size: int, steps: int) -> jax.Array:
    """Rows of each batch [steps, BATCH]: every image once an epoch, what does not fill a batch left out."""
    each = size // BATCH
    keys = jax.random.split(key, -(-steps // each))
    rows = jax.vmap(lambda key: jax.random.permutation(key, size)[: each * BATCH])(keys)
    return rows.reshape(-1, BATCH)[:steps]


def fit(
    params: PyTree,
    method: training.Method,
    key: Any,
    data: Data,
    *,
    steps: int,
    look_every: int = 100,
    sparse: Callable[[PyTree, PyTree], PyTree] = lambda params, held: params,
) -> tuple[PyTree, PyTree, History]:
    """A whole training as one traceable function.

    Args:
      params: the first weights.
      method: how they are pruned.
      key: the order of the images.
      data: MNIST.
      steps: updates with Adam, a multiple of `look_every`.
      look_every: after how many of them the validation loss is computed.
      sparse: `(params, masks) -> params`, what the loss takes: `training.sparse_params` for methods with dense weights.

    Returns:
      The weights, the masks, and where the validation loss was lowest.
    """
    optimizer = jaxprune.sparsify(optax.adam(RATE), method)
    state = optimizer.init(params)
    # Methods that start sparse have their zeros in the first gradient too.
    params = params if method.dense else masks.apply(params, jaxprune.get_masks(state))

    def step(carry: tuple[PyTree, PyTree], rows: jax.Array) -> tuple[tuple[PyTree, PyTree], None]:
        params, state = carry
        batch = Split(data.train.images[rows], data.train.labels[rows])
        grads = jax.grad(lambda p: loss(sparse(p, jaxprune.get_masks(state)), batch))(params)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    def stretch(carry: tuple[PyTree, PyTree, History], rows: jax.Array) -> tuple[tuple[PyTree, PyTree, History], None]:
        params, state, best = carry
        (params, state), _ = jax.lax.scan(step, (params, state), rows)
        found = History(loss(sparse(params, jaxprune.get_masks(state)), data.validation), state.step)
        best = jax.tree.map(lambda new, old: jnp.where(found.loss < best.loss, new, old), found, best)
        return (params, state, best), None

    rows = epochs(key, len(data.train.labels), steps).reshape(-1, look_every, BATCH)
    start = params, state, History(jnp.float32(jnp.inf), jnp.zeros((), jnp.int32))
    (params, state, best), _ = jax.lax.scan(stretch, start, rows)
    held = jaxprune.get_masks(state)
    return masks.apply(params, held), held, best
