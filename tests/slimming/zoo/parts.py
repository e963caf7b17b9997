"""Layers of the networks of the zoo: functions of `Weights`, of a prefix of their parameters' names, and of values."""

from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


class Weights:
    """Hands out parameters by name; without parameters it collects their shapes."""

    def __init__(self, params: dict[str, Any] | None = None) -> None:
        self.params = params
        self.shapes: dict[str, Any] = {}

    def __call__(self, name: str, *shape: int) -> Array:
        self.shapes[name] = jax.ShapeDtypeStruct(shape, jnp.float32)
        return jnp.ones(shape) if self.params is None else self.params[name]


def dense(w: Weights, name: str, x: Array, width: int) -> Array:
    return x @ w(f"{name}/kernel", x.shape[-1], width) + w(f"{name}/bias", width)


def conv(w: Weights, name: str, x: Array, width: int, size: int = 3, stride: int = 1, groups: int = 1) -> Array:
    """A convolution over all axes but the first and the last."""
    space = x.ndim - 2
    kernel = w(f"{name}/kernel", *(size,) * space, x.shape[-1] // groups, width)
    letters = "HW"[:space]
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride,) * space,
        "SAME",
        dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
        feature_group_count=groups,
    )


def batch_norm(w: Weights, name: str, x: Array) -> Array:
    c = x.shape[-1]
    x = (x - w(f"{name}/mean", c)) * jax.lax.rsqrt(w(f"{name}/var", c) + 1e-3)
    return x * w(f"{name}/scale", c) + w(f"{name}/bias", c)


def layer_norm(w: Weights, name: str, x: Array) -> Array:
    """Layer normalisation in one pass, as Flax writes it."""
    mean, square = x.mean(-1, keepdims=True), (x**2).mean(-1, keepdims=True)
    x = (x - mean) * jax.lax.rsqrt(square - mean**2 + 1e-3)
    return x * w(f"{name}/scale", x.shape[-1]) + w(f"{name}/bias", x.shape[-1])


def rms_norm(w: Weights, name: str, x: Array) -> Array:
    return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-3) * w(f"{name}/scale", x.shape[-1])


def group_norm(w: Weights, name: str, x: Array, groups: int = 2) -> Array:
    """Group normalisation in one pass, over space and the channels of a group."""
    c = x.shape[-1]
    y = x.reshape(*x.shape[:-1], groups, c // groups)
    over = (*range(1, x.ndim - 1), x.ndim)
    mean, square = y.mean(over, keepdims=True), (y**2).mean(over, keepdims=True)
    y = ((y - mean) * jax.lax.rsqrt(square - mean**2 + 1e-3)).reshape(x.shape)
    return y * w(f"{name}/scale", c) + w(f"{name}/bias", c)


def attention(
    w: Weights,
    name: str,
    x: Array,
    *,
    heads: int,
    dim: int,
    of: Array | None = None,
    bias: Any = 0.0,
    scale: Any = None,
) -> Array:
    """Attention of the tokens `x` to the tokens `of`, or to themselves; `bias` is added to the logits [b, h, t, s]."""
    of = x if of is None else of
    c = x.shape[-1]
    q, k, v = (
        jnp.einsum("btc,chd->bthd", z, w(f"{name}/{n}", z.shape[-1], heads, dim))
        for z, n in ((x, "q"), (of, "k"), (of, "v"))
    )
    logits = jnp.einsum("bthd,bshd->bhts", q, k) * (dim**-0.5 if scale is None else scale) + bias
    return jnp.einsum("bhts,bshd,hdc->btc", jax.nn.softmax(logits), v, w(f"{name}/o", heads, dim, c))


def mlp(w: Weights, name: str, x: Array, hidden: int) -> Array:
    return dense(w, f"{name}/down", jax.nn.gelu(dense(w, f"{name}/up", x, hidden)), x.shape[-1])
