"""Networks for images, small: Swin, ConvNeXt, EfficientNet, ShuffleNet, DenseNet, U-Net, DETR and YOLO."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.slimming.zoo.parts import (
    Array,
    Weights,
    attention,
    batch_norm,
    conv,
    dense,
    group_norm,
    layer_norm,
    mlp,
)

silu = jax.nn.silu


def swin(
    w: Weights, x: Array, *, width: int = 8, heads: int = 2, dim: int = 3, hidden: int = 10, merged: int = 12
) -> Array:
    """Attention in windows of 2 x 2, then in shifted windows; relative position bias; patches are merged."""
    x = conv(w, "embed", x, width, size=2, stride=2)  # [b, 4, 4, c]
    b = x.shape[0]
    place = np.stack(np.unravel_index(np.arange(4), (2, 2)), -1)
    offset = place[:, None] - place[None] + 1  # [4, 4, 2], from 0 to 2

    def windows(x: Any) -> Any:
        x = x.reshape(-1, 2, 2, 2, 2, *x.shape[3:])
        return x.swapaxes(2, 3).reshape(-1, 4, *x.shape[5:])

    for shift in (0, 1):
        name = f"block{shift}"
        h = jnp.roll(layer_norm(w, f"{name}/ln1", x), (-shift, -shift), (1, 2))
        # After the roll a window holds tokens from up to four corners; they don't attend to each other.
        edge = np.where(np.arange(4) < 4 - shift, 0, 1)
        region = windows((2 * edge[:, None] + edge)[None])  # [windows, 4]
        mask = np.where(region[:, :, None] == region[:, None], 0.0, -1e9)[:, None]
        bias = w(f"{name}/table", 9, heads)[offset[..., 0] * 3 + offset[..., 1]]  # [4, 4, heads]
        h = attention(
            w, name, windows(h), heads=heads, dim=dim, bias=bias.transpose(2, 0, 1) + jnp.tile(mask, (b, 1, 1, 1))
        )
        h = h.reshape(b, 2, 2, 2, 2, -1).swapaxes(2, 3).reshape(b, 4, 4, -1)
        x = x + jnp.roll(h, (shift, shift), (1, 2))
        x = x + mlp(w, name, layer_norm(w, f"{name}/ln2", x), hidden)
    x = jnp.concatenate([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
    x = layer_norm(w, "merge/ln", x) @ w("merge/kernel", 4 * width, merged)
    return dense(w, "head", x.mean((1, 2)), 3)


def convnext(w: Weights, x: Array, *, width: int = 8, hidden: int = 14, deep: int = 10) -> Array:
    """Depthwise convolutions, layer normalisation in two passes, a scale for each channel of the block."""

    def norm(name: str, x: Array) -> Array:
        x = x - x.mean(-1, keepdims=True)
        x = x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-3)
        return x * w(f"{name}/scale", x.shape[-1]) + w(f"{name}/bias", x.shape[-1])

    x = norm("stem/ln", conv(w, "stem", x, width, size=2, stride=2))
    h = norm("ln", conv(w, "depthwise", x, width, groups=width))
    x = x + w("layer_scale", width) * mlp(w, "block", h, hidden)
    x = conv(w, "downsample", norm("downsample/ln", x), deep, size=2, stride=2)
    return dense(w, "head", norm("head/ln", x.mean((1, 2))), 3)


def efficientnet(
    w: Weights, x: Array, *, width: int = 6, expanded: int = 14, squeezed: int = 4, top: int = 10
) -> Array:
    """An inverted bottleneck with a depthwise convolution and squeeze-and-excitation."""

    def unit(name: str, x: Array, width: int, **options: int) -> Array:
        return batch_norm(w, f"{name}/bn", conv(w, name, x, width, **options))

    x = silu(unit("stem", x, width, stride=2))
    h = silu(unit("expand", x, expanded, size=1))
    h = silu(unit("depthwise", h, expanded, groups=expanded))
    squeeze = silu(dense(w, "squeeze", h.mean((1, 2), keepdims=True), squeezed))
    h = h * jax.nn.sigmoid(dense(w, "excite", squeeze, expanded))
    x = x + unit("project", h, width, size=1)
    return dense(w, "head", silu(unit("top", x, top, size=1)).mean((1, 2)), 3)


def shufflenet(w: Weights, x: Array, *, half: int = 4, inner: int = 6) -> Array:
    """Half of the channels pass a branch; then the channels of both halves are shuffled."""
    x = jax.nn.relu(batch_norm(w, "stem/bn", conv(w, "stem", x, 2 * half, stride=2)))
    for k in range(2):
        stay, h = jnp.split(x, 2, -1)
        h = jax.nn.relu(conv(w, f"branch{k}/in", h, inner, size=1))
        h = batch_norm(w, f"branch{k}/bn", conv(w, f"branch{k}/depthwise", h, inner, groups=inner))
        h = jax.nn.relu(conv(w, f"branch{k}/out", h, half, size=1))
        x = jnp.concatenate([stay, h], -1)
        x = x.reshape(*x.shape[:-1], 2, half).swapaxes(-1, -2).reshape(x.shape)
    return dense(w, "head", x.mean((1, 2)), 3)


def densenet(w: Weights, x: Array, *, width: int = 8, neck: int = 12, growth: int = 4, reduced: int = 10) -> Array:
    """Every layer reads all earlier ones; a transition halves the image."""
    x = conv(w, "stem", x, width)
    for block in range(2):
        for layer in range(2):
            name = f"block{block}/layer{layer}"
            h = conv(w, f"{name}/neck", jax.nn.relu(batch_norm(w, f"{name}/bn1", x)), neck, size=1)
            h = conv(w, f"{name}/grow", jax.nn.relu(batch_norm(w, f"{name}/bn2", h)), growth)
            x = jnp.concatenate([x, h], -1)
        if block == 0:
            x = conv(w, "transition", jax.nn.relu(batch_norm(w, "transition/bn", x)), reduced, size=1)
            x = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
    return dense(w, "head", jax.nn.relu(batch_norm(w, "bn", x)).mean((1, 2)), 3)


def unet(
    w: Weights, x: Array, t: Array, *, width: int = 8, deep: int = 12, time: int = 6, heads: int = 2, dim: int = 3
) -> Array:
    """Residual blocks that a time embedding shifts, attention at the lowest resolution, a skip connection."""
    t = silu(dense(w, "time", t, time))

    def block(name: str, x: Array, width: int) -> Array:
        h = conv(w, f"{name}/conv1", silu(group_norm(w, f"{name}/gn1", x)), width)
        h = h + dense(w, f"{name}/time", t, width)[:, None, None]
        h = conv(w, f"{name}/conv2", silu(group_norm(w, f"{name}/gn2", h)), width)
        return h + (x if x.shape[-1] == width else conv(w, f"{name}/skip", x, width, size=1))

    x = conv(w, "stem", x, width)
    skip = block("down", x, width)
    x = block("middle", conv(w, "downsample", skip, deep, stride=2), deep)
    b, rows, columns, _ = x.shape
    tokens = group_norm(w, "attention/gn", x).reshape(b, rows * columns, deep)
    x = x + attention(w, "attention", tokens, heads=heads, dim=dim).reshape(x.shape)
    x = jax.image.resize(x, (b, 2 * rows, 2 * columns, deep), "nearest")
    x = block("up", jnp.concatenate([conv(w, "upsample", x, width), skip], -1), width)
    return conv(w, "out", silu(group_norm(w, "out/gn", x)), 3)


def detr(
    w: Weights, x: Array, *, channels: int = 6, width: int = 8, heads: int = 2, dim: int = 3, hidden: int = 10
) -> tuple[Array, Array]:
    """A convolution, an encoder, a decoder whose queries are parameters; positions are added to queries and keys."""
    options: Any = {"heads": heads, "dim": dim}
    x = jax.nn.relu(batch_norm(w, "backbone/bn", conv(w, "backbone", x, channels, stride=2)))
    x = conv(w, "project", x, width, size=1).reshape(x.shape[0], -1, width)
    x = x + w("positions", x.shape[1], width)
    x = layer_norm(w, "encoder/ln1", x + attention(w, "encoder", x, **options))
    x = layer_norm(w, "encoder/ln2", x + mlp(w, "encoder", x, hidden))
    queries = w("queries", 3, width)
    y = jnp.broadcast_to(queries, (x.shape[0], 3, width))
    y = layer_norm(w, "decoder/ln1", y + attention(w, "decoder/self", y + queries, **options))
    y = layer_norm(w, "decoder/ln2", y + attention(w, "decoder/cross", y + queries, of=x, **options))
    y = layer_norm(w, "decoder/ln3", y + mlp(w, "decoder", y, hidden))
    box = jax.nn.relu(dense(w, "box1", y, width + 2))
    return dense(w, "classes", y, 5), jax.nn.sigmoid(dense(w, "box2", box, 4))


def yolo(w: Weights, x: Array, *, stem: int = 6, half: int = 4, pooled: int = 5, neck: int = 7, head: int = 9) -> Array:
    """A block that splits its channels, pyramid pooling, a top-down path, heads of two scales decoded on a grid."""

    def unit(name: str, x: Array, width: int, **options: int) -> Array:
        return silu(batch_norm(w, f"{name}/bn", conv(w, name, x, width, **options)))

    def split(name: str, x: Array, half: int) -> Array:
        a, b = jnp.split(unit(f"{name}/in", x, 2 * half, size=1), 2, -1)
        return unit(f"{name}/out", jnp.concatenate([a, b, b + unit(f"{name}/inner", b, half)], -1), 2 * half, size=1)

    def decode(name: str, x: Array, stride: int) -> Array:
        x = conv(w, f"{name}/out", unit(f"{name}/unit", x, head), 2 * 7, size=1) + w(f"{name}/out/bias", 14)
        b, rows, columns, _ = x.shape
        x = jax.nn.sigmoid(x.reshape(b, rows, columns, 2, 7))  # 2 anchors: 2 centres, 2 sizes, objectness, 2 classes
        grid = jnp.stack(jnp.meshgrid(jnp.arange(columns), jnp.arange(rows)), -1)[:, :, None]
        centre = (2 * x[..., :2] - 0.5 + grid) * stride
        size = (2 * x[..., 2:4]) ** 2 * jnp.asarray([[8.0, 8.0], [16.0, 12.0]])
        return jnp.concatenate([centre, size, x[..., 4:]], -1).reshape(b, -1, 7)

    x = unit("stem", x, stem, stride=2)
    fine = split("fine", x, half)
    x = unit("pool/in", unit("down", fine, stem, stride=2), pooled, size=1)
    pools = [x]
    for _ in range(2):
        pools.append(jax.lax.reduce_window(pools[-1], -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 1, 1, 1), "SAME"))
    coarse = unit("pool/out", jnp.concatenate(pools, -1), neck, size=1)
    up = jnp.repeat(jnp.repeat(coarse, 2, 1), 2, 2)
    fine = split("neck", jnp.concatenate([up, fine], -1), half)
    return jnp.concatenate([decode("head0", fine, 2), decode("head1", coarse, 4)], 1)
