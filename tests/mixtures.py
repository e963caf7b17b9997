"""Mixtures of experts in every common form, and a loop over their experts in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

EXPERTS, WIDTH, HIDDEN, TOP = 4, 6, 8, 2
CAPACITY = 5


def params(experts=EXPERTS, width=WIDTH, hidden=HIDDEN, seed=0):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape) / shape[-2] ** 0.5, jnp.float32)
    weights = {"w1": normal(experts, width, hidden), "w2": normal(experts, hidden, width)}
    return {"router": normal(width, experts), "bias": 0.1 * normal(1, experts)[0], **weights}


def tokens(count=40, width=WIDTH, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(count, width)), jnp.float32)


def logits(p, x):
    return x @ p["router"] + p["bias"]


def choice(p, x):
    return lax.top_k(jax.nn.softmax(logits(p, x)), TOP)


def combine(p, x):
    gate, index = choice(p, x)
    return (jax.nn.one_hot(index, p["router"].shape[1]) * gate[..., None]).sum(1)


def dense(p, x):
    hidden = jax.nn.relu(jnp.einsum("bd,edf->bef", x, p["w1"]))
    return (jnp.einsum("bef,efd->bed", hidden, p["w2"]) * combine(p, x)[..., None]).sum(1)


def dense_in_one_einsum(p, x):
    hidden = jax.nn.relu(jnp.einsum("bd,edf->bef", x, p["w1"]))
    return jnp.einsum("be,bef,efd->bd", combine(p, x), hidden, p["w2"])


def dense_by_threshold(p, x):
    own = logits(p, x)
    least = lax.top_k(own, TOP)[0][:, -1:]
    gate = jax.nn.softmax(jnp.where(own >= least, own, -jnp.inf))
    hidden = jax.nn.relu(jnp.einsum("bd,edf->ebf", x, p["w1"]))
    return jnp.einsum("ebd,be->bd", jnp.einsum("ebf,efd->ebd", hidden, p["w2"]), gate)


def slots_by_masks(p, x):
    gate, index = choice(p, x)
    one = jax.nn.one_hot(index, p["router"].shape[1], dtype=jnp.int32)
    flat = one.reshape(-1, one.shape[-1])
    place = (jnp.cumsum(flat, 0) * flat - 1).reshape(one.shape)
    slots = jax.nn.one_hot(place, CAPACITY) * (place < CAPACITY)[..., None] * one[..., None]
    given = jnp.einsum("bec,bd->ecd", slots.sum(1), x)
    # An empty slot is not zero after the bias.
    hidden = jax.nn.gelu(jnp.einsum("ecd,edf->ecf", given, p["w1"]) + 0.3)
    return jnp.einsum(
        "ecd,bec->bd", jnp.einsum("ecf,efd->ecd", hidden, p["w2"]), (slots * gate[..., None, None]).sum(1)
    )


def slots_by_index(p, x):
    gate, index = choice(p, x)
    index = index.reshape(-1)
    one = jax.nn.one_hot(index, p["router"].shape[1], dtype=jnp.int32)
    place = (jnp.cumsum(one, 0) - one)[jnp.arange(index.size), index]
    given = jnp.zeros((one.shape[1], CAPACITY, x.shape[1])).at[index, place].set(jnp.repeat(x, TOP, 0), mode="drop")
    hidden = jax.nn.gelu(jnp.einsum("ecd,edf->ecf", given, p["w1"]) + 0.3)
    out = jnp.einsum("ecf,efd->ecd", hidden, p["w2"]).at[index, place].get(mode="fill", fill_value=0.0)
    return (out.reshape(-1, TOP, x.shape[1]) * gate[..., None]).sum(1)


def _sorted(p, x):
    gate, index = choice(p, x)
    index = index.reshape(-1)
    return gate, jnp.argsort(index), jnp.bincount(index, length=p["router"].shape[1])


def ragged(p, x):
    gate, order, sizes = _sorted(p, x)
    hidden = jax.nn.relu(lax.ragged_dot(jnp.repeat(x, TOP, 0)[order], p["w1"], sizes))
    out = lax.ragged_dot(hidden, p["w2"], sizes)
    return (jnp.zeros_like(out).at[order].set(out).reshape(-1, TOP, x.shape[1]) * gate[..., None]).sum(1)


def ragged_and_added(p, x):
    gate, order, sizes = _sorted(p, x)
    hidden = jax.nn.relu(lax.ragged_dot(x[order // TOP], p["w1"], sizes))
    out = lax.ragged_dot(hidden, p["w2"], sizes) * gate.reshape(-1)[order][:, None]
    return jnp.zeros_like(x).at[order // TOP].add(out)


def matrices_of_tokens(p, x):
    gate, index = choice(p, x)
    hidden = jax.nn.relu(jnp.einsum("bd,bkdf->bkf", x, p["w1"][index]))
    return jnp.einsum("bkd,bk->bd", jnp.einsum("bkf,bkfd->bkd", hidden, p["w2"][index]), gate)


def switch(p, x):
    gate = jax.nn.softmax(logits(p, x))
    index = jnp.argmax(gate, -1)
    hidden = jax.nn.relu(jnp.einsum("bd,bdf->bf", x, p["w1"][index]))
    return x + jnp.einsum("bf,bfd->bd", hidden, p["w2"][index]) * jnp.take_along_axis(gate, index[:, None], 1)


FORMS = {
    "dense": dense,
    "dense in one einsum": dense_in_one_einsum,
    "dense by threshold": dense_by_threshold,
    "slots by masks": slots_by_masks,
    "slots by index": slots_by_index,
    "ragged": ragged,
    "ragged and added": ragged_and_added,
    "matrices of tokens": matrices_of_tokens,
    "switch": switch,
}


def rows_of_experts(name, p, x):
    """For each expert its tokens, their gates and its matrix of activations before w2, by a loop in float64."""
    x, router, bias, w1 = (np.asarray(a, np.float64) for a in (x, p["router"], p["bias"], p["w1"]))
    top = 1 if name == "switch" else TOP
    own = x @ router + bias
    gates = np.exp(own - own.max(1, keepdims=True))
    gates /= gates.sum(1, keepdims=True)
    index = np.argsort(-gates, 1, kind="stable")[:, :top]
    if name == "dense by threshold":
        chosen = np.take_along_axis(gates, index, 1)
        gates = gates / chosen.sum(1, keepdims=True)
    rows = [[] for _ in range(router.shape[1])]
    for token in range(len(x)):
        for expert in index[token]:
            if not name.startswith("slots") or len(rows[expert]) < CAPACITY:
                rows[expert].append(token)
    found = []
    for expert, own in enumerate(rows):
        before = x[own] @ w1[expert]
        gelu = np.asarray(jax.nn.gelu(jnp.asarray(before + 0.3, jnp.float32)), np.float64)
        hidden = gelu if name.startswith("slots") else np.maximum(before, 0)
        found.append((x[own], gates[own, expert], hidden))
    return found
