"""Networks for sequences, graphs and pairs, small: Mamba, RWKV, T5, Whisper, CLIP, a graph network and an ensemble."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.slimming.zoo.parts import Array, Weights, attention, conv, dense, layer_norm, mlp, rms_norm


def causal(size: int) -> Any:
    return np.where(np.tril(np.ones((size, size), bool)), 0.0, -1e9)


def mamba(
    w: Weights, tokens: Array, *, width: int = 8, inner: int = 12, state: int = 3, rank: int = 2, scan: str = "tree"
) -> Array:
    """A selective state space: step sizes, inputs and outputs of the recursion depend on the token."""
    x = w("embed", 11, width)[tokens]
    u, gate = jnp.split(rms_norm(w, "norm", x) @ w("in", width, 2 * inner), 2, -1)
    past = jnp.pad(u, ((0, 0), (2, 0), (0, 0)))
    kernel = w("conv", 3, inner)
    u = jax.nn.silu(sum(past[:, k : k + u.shape[1]] * kernel[k] for k in range(3)) + w("conv_bias", inner))
    step, into, out = jnp.split(u @ w("select", inner, rank + 2 * state), [rank, rank + state], -1)
    step = jax.nn.softplus(step @ w("step", rank, inner) + w("step_bias", inner))  # [b, t, inner]
    decay = jnp.exp(step[..., None] * -jnp.exp(w("a_log", inner, state)))
    added = (step * u)[..., None] * into[..., None, :]  # [b, t, inner, state]
    if scan == "tree":
        _, h = jax.lax.associative_scan(lambda a, b: (a[0] * b[0], a[1] * b[0] + b[1]), (decay, added), axis=1)
    else:
        swapped = decay.swapaxes(0, 1), added.swapaxes(0, 1)
        _, h = jax.lax.scan(lambda h, x: (h := x[0] * h + x[1], h), jnp.zeros_like(added[:, 0]), swapped)
        h = h.swapaxes(0, 1)
    y = jnp.einsum("btis,bts->bti", h, out) + u * w("skip", inner)
    return (x + (y * jax.nn.silu(gate)) @ w("out", inner, width)) @ w("embed", 11, width).T


def rwkv(w: Weights, tokens: Array, *, width: int = 8, inner: int = 6, hidden: int = 10) -> Array:
    """Attention as a recursion over time with a decay for each channel; tokens are mixed with their predecessors."""

    def mix(name: str, x: Array) -> Array:
        before = jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        rate = w(name, width)
        return x * rate + before * (1 - rate)

    def step(carry: Any, given: Any) -> Any:
        top, bottom, largest = carry
        k, v = given
        new = jnp.maximum(largest, k + bonus)
        old, now = jnp.exp(largest - new), jnp.exp(k + bonus - new)
        y = (old * top + now * v) / (old * bottom + now)
        new = jnp.maximum(largest + decay, k)
        old, now = jnp.exp(largest + decay - new), jnp.exp(k - new)
        return (old * top + now * v, old * bottom + now, new), y

    x = w("embed", 11, width)[tokens]
    h = layer_norm(w, "ln1", x)
    r, k, v = (mix(f"time/mix_{n}", h) @ w(f"time/{n}", width, inner) for n in "rkv")
    decay, bonus = -jnp.exp(w("time/decay", inner)), w("time/bonus", inner)
    zero = jnp.zeros_like(k[:, 0])
    _, y = jax.lax.scan(step, (zero, zero, zero - 1e30), (k.swapaxes(0, 1), v.swapaxes(0, 1)))
    x = x + (jax.nn.sigmoid(r) * y.swapaxes(0, 1)) @ w("time/out", inner, width)
    h = layer_norm(w, "ln2", x)
    k = jnp.square(jax.nn.relu(mix("channel/mix_k", h) @ w("channel/k", width, hidden)))
    x = x + jax.nn.sigmoid(mix("channel/mix_r", h) @ w("channel/r", width, width)) * (k @ w("channel/v", hidden, width))
    return layer_norm(w, "ln3", x) @ w("head", width, 11)


def t5(w: Weights, tokens: Array, *, width: int = 8, heads: int = 2, dim: int = 3, hidden: int = 10) -> Array:
    """Relative position bias in buckets, RMS normalisation, gated hidden units, a tied embedding."""
    options: Any = {"heads": heads, "dim": dim, "scale": 1.0}
    embed = w("embed", 11, width)
    length = tokens.shape[1]
    distance = np.arange(length)[None] - np.arange(length)[:, None]
    far = np.where(np.abs(distance) < 2, np.abs(distance), 2) + 3 * (distance > 0)

    def gated(name: str, x: Array) -> Array:
        x = rms_norm(w, f"{name}/norm2", x)
        gate = jax.nn.gelu(x @ w(f"{name}/gate", width, hidden))
        return (gate * (x @ w(f"{name}/up", width, hidden))) @ w(f"{name}/down", hidden, width)

    def bias(name: str) -> Array:
        return w(f"{name}/buckets", 6, heads)[far].transpose(2, 0, 1)

    x = embed[tokens]
    x = x + attention(w, "encoder", rms_norm(w, "encoder/norm1", x), bias=bias("encoder"), **options)
    x = rms_norm(w, "encoder/norm3", x + gated("encoder", x))
    y = embed[tokens[:, ::-1]]
    mask = bias("decoder") + causal(length)
    y = y + attention(w, "decoder/self", rms_norm(w, "decoder/norm1", y), bias=mask, **options)
    y = y + attention(w, "decoder/cross", rms_norm(w, "decoder/norm4", y), of=x, **options)
    y = rms_norm(w, "decoder/norm3", y + gated("decoder", y))
    return y * width**-0.5 @ embed.T


def whisper(
    w: Weights, sound: Array, tokens: Array, *, width: int = 8, heads: int = 2, dim: int = 3, hidden: int = 10
) -> Array:
    """A stem of two convolutions over time, an encoder, a causal decoder that attends to it."""
    options: Any = {"heads": heads, "dim": dim}
    x = jax.nn.gelu(conv(w, "conv1", sound, width))
    x = jax.nn.gelu(conv(w, "conv2", x, width, stride=2))
    x = x + w("encoder/positions", x.shape[1], width)
    x = x + attention(w, "encoder", layer_norm(w, "encoder/ln1", x), **options)
    x = layer_norm(w, "encoder/ln3", x + mlp(w, "encoder", layer_norm(w, "encoder/ln2", x), hidden))
    embed, length = w("embed", 11, width), tokens.shape[1]
    y = embed[tokens] + w("decoder/positions", 9, width)[:length]
    y = y + attention(w, "decoder/self", layer_norm(w, "decoder/ln1", y), bias=causal(length), **options)
    y = y + attention(w, "decoder/cross", layer_norm(w, "decoder/ln2", y), of=x, **options)
    y = y + mlp(w, "decoder", layer_norm(w, "decoder/ln3", y), hidden)
    return layer_norm(w, "decoder/ln4", y) @ embed.T


def clip(
    w: Weights,
    image: Array,
    tokens: Array,
    *,
    seen: int = 8,
    read: int = 6,
    shared: int = 5,
    heads: int = 2,
    dim: int = 3,
    hidden: int = 10,
) -> Array:
    """Two towers of unequal widths, whose normalised outputs are compared at a learnt temperature."""

    def tower(name: str, x: Array, bias: Any = 0.0) -> Array:
        x = x + attention(w, name, layer_norm(w, f"{name}/ln1", x), heads=heads, dim=dim, bias=bias)
        return layer_norm(w, f"{name}/ln3", x + mlp(w, name, layer_norm(w, f"{name}/ln2", x), hidden))

    def unit(x: Array) -> Array:
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    x = conv(w, "image/patches", image, seen, size=4, stride=4)
    x = x.reshape(x.shape[0], -1, seen)
    first = jnp.broadcast_to(w("image/class", seen), (x.shape[0], 1, seen))
    x = jnp.concatenate([first, x], 1)
    x = tower("image", x + w("image/positions", x.shape[1], seen))[:, 0] @ w("image/project", seen, shared)
    y = w("text/embed", 11, read)[tokens] + w("text/positions", tokens.shape[1], read)
    y = tower("text", y, causal(tokens.shape[1]))
    last = tokens.argmax(-1)  # the end of the text has the largest number
    y = y[jnp.arange(y.shape[0]), last] @ w("text/project", read, shared)
    return jnp.exp(w("temperature")) * unit(x) @ unit(y).T


def graph(
    w: Weights, nodes: Array, edges: Array, senders: Array, receivers: Array, *, width: int = 8, hidden: int = 10
) -> Array:
    """Two rounds of messages along edges, summed for each receiver; the readout is a mean over the nodes."""
    x = dense(w, "encode", nodes, width)
    for k in range(2):
        pair = jnp.concatenate([x[senders], x[receivers], edges], -1)
        message = dense(w, f"message{k}/out", jax.nn.relu(dense(w, f"message{k}/in", pair, hidden)), width)
        total = jax.ops.segment_sum(message, receivers, x.shape[0])
        count = jax.ops.segment_sum(jnp.ones(receivers.shape), receivers, x.shape[0])
        best = jax.ops.segment_max(message, receivers, x.shape[0])
        joined = jnp.concatenate(
            [x, total / jnp.maximum(count, 1)[:, None], jnp.where(count[:, None] > 0, best, 0)], -1
        )
        x = x + dense(w, f"update{k}/down", jax.nn.relu(dense(w, f"update{k}/up", joined, hidden)), width)
    return dense(w, "head", x.mean(0), 3)


def ensemble(w: Weights, x: Array, *, members: int = 3, hidden: int = 10, second: int = 6) -> tuple[Array, Array]:
    """Members stacked along the first axis of every parameter, run by vmap: their mean and their variance."""
    names = ("up", "bias", "middle", "down")
    shapes = ((4, hidden), (hidden,), (hidden, second), (second, 2))
    stacked = {name: w(name, members, *shape) for name, shape in zip(names, shapes, strict=True)}

    def member(p: dict[str, Array]) -> Array:
        return jax.nn.relu(jnp.tanh(x @ p["up"] + p["bias"]) @ p["middle"]) @ p["down"]

    outputs = jax.vmap(member)(stacked)
    return outputs.mean(0), ((outputs - outputs.mean(0)) ** 2).mean(0)
