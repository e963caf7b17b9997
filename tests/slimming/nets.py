"""Nets of the kinds that people slim, small, in linen."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


class LeNet(nn.Module):
    @nn.compact
    def __call__(s, x: Any) -> Any:
        x = nn.relu(nn.Conv(6, (5, 5))(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Conv(16, (5, 5), padding="VALID")(x))
        x = nn.avg_pool(x, (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        x = nn.tanh(nn.Dense(32)(x))
        return nn.Dense(10)(x)


class Block(nn.Module):
    c: int
    s: int

    @nn.compact
    def __call__(s, x: Any) -> Any:
        bn = functools.partial(nn.BatchNorm, use_running_average=True)
        y = nn.Conv(s.c, (3, 3), (s.s, s.s), use_bias=False)(x)
        y = nn.relu(bn()(y))
        y = nn.Conv(s.c, (3, 3), use_bias=False)(y)
        y = bn()(y)
        if x.shape != y.shape:
            x = bn()(nn.Conv(s.c, (1, 1), (s.s, s.s), use_bias=False)(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    @nn.compact
    def __call__(s, x: Any) -> Any:
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(8, (3, 3))(x)))
        for c, st in [(8, 1), (16, 2), (16, 1)]:
            x = Block(c, st)(x)
        return nn.Dense(5)(x.mean((1, 2)))


class OptionA(nn.Module):
    @nn.compact
    def __call__(s, x: Any) -> Any:
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        for c in [8, 16, 16]:
            st = c // x.shape[-1]
            y = nn.Conv(c, (3, 3), (st, st))(x)
            y = nn.relu(y)
            y = nn.Conv(c, (3, 3))(y)
            if st == 2:
                x = jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (4, 4)))
            x = nn.relu(x + y)
        return nn.Dense(5)(x.mean((1, 2)))


class MobileNet(nn.Module):
    @nn.compact
    def __call__(s, x: Any) -> Any:
        x = nn.relu6(nn.Conv(8, (3, 3))(x))
        for c in [16, 16]:
            i = x
            h = nn.relu6(nn.Conv(24, (1, 1))(x))
            h = nn.relu6(nn.Conv(24, (3, 3), feature_group_count=24)(h))
            se = nn.sigmoid(nn.Dense(24)(nn.relu(nn.Dense(6)(h.mean((1, 2), keepdims=True)))))
            h = h * se
            x = nn.Conv(c, (1, 1))(h)
            if x.shape == i.shape:
                x = x + i
        return nn.Dense(5)(x.mean((1, 2)))


class Grouped(nn.Module):
    @nn.compact
    def __call__(s, x: Any) -> Any:
        x = nn.relu(nn.Conv(12, (3, 3))(x))
        x = nn.relu(nn.Conv(24, (3, 3), feature_group_count=4)(x))
        x = nn.Conv(8, (1, 1))(x)
        return nn.Dense(5)(x.mean((1, 2)))


class UNet(nn.Module):
    @nn.compact
    def __call__(s, x: Any) -> Any:
        a = nn.swish(nn.GroupNorm(4)(nn.Conv(8, (3, 3))(x)))
        b = nn.swish(nn.GroupNorm(4)(nn.Conv(16, (3, 3), (2, 2))(a)))
        c = nn.ConvTranspose(8, (2, 2), (2, 2))(b)
        d = jax.image.resize(b, (b.shape[0], a.shape[1], a.shape[2], 16), "nearest")
        x = jnp.concatenate([a, c, d], -1)
        x = nn.swish(nn.GroupNorm(4)(nn.Conv(8, (3, 3))(x)))
        x = nn.Conv(12, (3, 3))(x)  # pixel shuffle
        B, H, W, _ = x.shape
        return x.reshape(B, H, W, 2, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(B, 2 * H, 2 * W, 3)


class DenseNet(nn.Module):
    @nn.compact
    def __call__(s, x: Any) -> Any:
        x = nn.Conv(8, (3, 3))(x)
        for _ in range(3):
            y = nn.Conv(4, (3, 3))(nn.relu(nn.BatchNorm(use_running_average=True)(x)))
            x = jnp.concatenate([x, y], -1)
        return nn.Dense(5)(x.mean((1, 2)))


class RNNs(nn.Module):
    @nn.compact
    def __call__(s, x: Any) -> Any:
        h: Any = nn.RNN(nn.OptimizedLSTMCell(12))(x)
        h = nn.RNN(nn.GRUCell(10))(h)
        h = nn.RNN(nn.LSTMCell(6))(h)
        return nn.Dense(5)(h[:, -1])


class ViT(nn.Module):
    @nn.compact
    def __call__(s, x: Any) -> Any:
        B = x.shape[0]
        x = nn.Conv(16, (4, 4), (4, 4))(x).reshape(B, -1, 16)
        cls = s.param("cls", nn.initializers.normal(), (1, 1, 16))
        x = jnp.concatenate([jnp.tile(cls, (B, 1, 1)), x], 1)
        x = x + s.param("pos", nn.initializers.normal(), (1, x.shape[1], 16))
        for _ in range(2):
            x = x + nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x))
            x = x + nn.Dense(16)(nn.gelu(nn.Dense(32)(nn.LayerNorm()(x))))
        return nn.Dense(5)(nn.LayerNorm()(x)[:, 0])


def rope(x: Any, kind: str) -> Any:
    """Rotary positions in four spellings."""
    T, D = x.shape[1], x.shape[-1]
    f = 1 / 100 ** (jnp.arange(0, D, 2) / D)
    a = jnp.arange(T)[:, None] * f
    c, s = jnp.cos(a)[None, :, None], jnp.sin(a)[None, :, None]
    if kind == "half":
        x1, x2 = jnp.split(x, 2, -1)
        return jnp.concatenate([x1 * c - x2 * s, x2 * c + x1 * s], -1)
    if kind == "rot":
        cc, ss = jnp.concatenate([c, c], -1), jnp.concatenate([s, s], -1)
        x1, x2 = x[..., : D // 2], x[..., D // 2 :]
        return x * cc + jnp.concatenate([-x2, x1], -1) * ss
    if kind == "inter":
        x1, x2 = x[..., ::2], x[..., 1::2]
        return jnp.stack([x1 * c - x2 * s, x1 * s + x2 * c], -1).reshape(x.shape)
    z = x.reshape(*x.shape[:-1], D // 2, 2)
    z = jax.lax.complex(z[..., 0], z[..., 1]) * jnp.exp(1j * a)[None, :, None]
    return jnp.stack([z.real, z.imag], -1).reshape(x.shape)


class LlamaBlock(nn.Module):
    kind: str = "half"

    @nn.compact
    def __call__(s, x: Any, _: Any = None) -> Any:
        B, T, E = x.shape
        H, KV, D = 4, 2, 8
        d = functools.partial(nn.Dense, use_bias=False)
        h = nn.RMSNorm()(x)
        q = d(H * D, name="q")(h).reshape(B, T, H, D)
        k = d(KV * D, name="k")(h).reshape(B, T, KV, D)
        v = d(KV * D, name="v")(h).reshape(B, T, KV, D)
        q, k = rope(q, s.kind), rope(k, s.kind)
        k = jnp.repeat(k, H // KV, 2) if s.kind != "inter" else k
        if s.kind == "inter":
            q = q.reshape(B, T, KV, H // KV, D)
            a = jnp.einsum("btkrd,bskd->bkrts", q, k)
            w = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((T, T), bool)), a / D**0.5, -1e9))
            o = jnp.einsum("bkrts,bskd->btkrd", w, v)
        else:
            v = jnp.repeat(v, H // KV, 2)
            a = jnp.einsum("bthd,bshd->bhts", q, k)
            w = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((T, T), bool)), a / D**0.5, -1e9))
            o = jnp.einsum("bhts,bshd->bthd", w, v)
        x = x + d(E, name="o")(o.reshape(B, T, H * D))
        h = nn.RMSNorm()(x)
        x = x + d(E, name="down")(nn.silu(d(24, name="gate")(h)) * d(24, name="up")(h))
        return x, None


class Llama(nn.Module):
    kind: str = "half"
    mode: str = "loop"

    @nn.compact
    def __call__(s, t: Any) -> Any:
        emb = nn.Embed(11, 16)
        x = emb(t)
        if s.mode == "loop":
            for _ in range(2):
                x, _ = LlamaBlock(s.kind)(x)
        else:
            b = nn.remat(LlamaBlock, prevent_cse=False) if s.mode == "remat" else LlamaBlock
            x, _ = nn.scan(b, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)(s.kind)(x, None)
        return emb.attend(nn.RMSNorm()(x))


class MoE(nn.Module):
    @nn.compact
    def __call__(s, x: Any) -> Any:
        g = jax.nn.softmax(nn.Dense(3)(x))
        w1 = s.param("w1", nn.initializers.normal(0.5), (3, 8, 12))
        w2 = s.param("w2", nn.initializers.normal(0.5), (3, 12, 8))
        h = nn.relu(jnp.einsum("btd,edf->btef", x, w1))
        y = jnp.einsum("btef,efd->bted", h, w2)
        return nn.Dense(4)(jnp.einsum("bted,bte->btd", y, g))
