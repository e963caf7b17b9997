"""Rotary positions (Su et al. 2021, arXiv 2104.09864): `rotate`, and `frequencies` with scaling to longer texts."""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


class Wave(NamedTuple):
    """The cosines and sines of a text's angles, float32 [time, turned / 2], times an amplitude."""

    cos: jax.Array
    sin: jax.Array


def rotate(x: jax.Array, wave: Wave) -> jax.Array:
    """Rotates each head's vectors by their position, pairing the first half of the rotated part with the second half.

    Args:
      x: [batch, time, heads, size].
      wave: the cosines and sines of the positions. If they cover fewer than `size` entries, the other entries stay.

    Returns:
      An array in the shape and dtype of `x`.
    """
    half = wave.cos.shape[-1]
    # With a symbolic batch size x[..., :half] is a gather, which hides from `slim` that these are channels.
    ends = [0, half, 2 * half, x.shape[-1]]
    first, second, rest = (lax.slice_in_dim(x, *pair, axis=-1) for pair in itertools.pairwise(ends))
    cos, sin = (part[:, None].astype(x.dtype) for part in wave)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], -1)


def frequencies(config: Mapping[str, Any], size: int) -> Callable[[int], Wave]:
    """Returns the rotary waves of a config.

    Args:
      config: a config with `rope_theta`, `rope_scaling`, `partial_rotary_factor`, `max_position_embeddings`.
      size: the size of a head.

    Returns:
      A function `time -> Wave` for the positions 0 to time - 1, with a Python int `time`.

    Raises:
      ValueError: an unknown kind of scaling.
    """
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in KINDS:
        raise ValueError(f"config.json has rope_scaling of type {kind!r}; decoder knows {', '.join(KINDS)}")
    theta = float(config.get("rope_theta") or 10000.0)
    turned = int(size * config.get("partial_rotary_factor", 1.0))
    longest = config.get("max_position_embeddings") or 2048
    plain = theta ** (-np.arange(0, turned, 2, dtype=np.float64) / turned)

    def wave(time: int) -> Wave:
        speeds, amplitude = _scaled(kind, scaling, plain, theta, turned, longest, config, time)
        angles = np.outer(np.arange(time), speeds.astype(np.float32)).astype(np.float32)
        return Wave(jnp.asarray(np.cos(angles) * amplitude), jnp.asarray(np.sin(angles) * amplitude))

    return wave


def _scaled(
    kind: str,
    scaling: Mapping[str, Any],
    plain: np.ndarray,
    theta: float,
    turned: int,
    longest: int,
    config: Mapping[str, Any],
    time: int,
) -> tuple[np.ndarray, np.float32]:
    """Returns the angle per position, float64 [turned / 2], and the amplitude of the cosines and sines."""
    factor, one = float(scaling.get("factor") or 1.0), np.float32(1.0)
    if kind == "linear":
        return plain / factor, one
    if kind == "dynamic" and time > longest:
        # "NTK-aware": the base grows with the text.
        base = theta * ((factor * time / longest) - (factor - 1)) ** (turned / (turned - 2))
        return base ** (-np.arange(0, turned, 2) / turned), one
    if kind == "llama3":
        return _llama3(plain, factor, scaling), one
    if kind == "yarn":
        return _yarn(plain, factor, theta, turned, scaling, longest)
    if kind == "longrope":
        original = config.get("original_max_position_embeddings") or scaling.get("original_max_position_embeddings")
        trained = original or longest
        stretch = np.asarray(scaling["long_factor" if time > trained else "short_factor"], np.float64)
        factor = longest / trained if original else factor
        amplitude = scaling.get("attention_factor")
        if amplitude is None:
            amplitude = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(trained))
        return plain / stretch, np.float32(amplitude)
    return plain, one


def _llama3(plain: np.ndarray, factor: float, scaling: Mapping[str, Any]) -> np.ndarray:
    """Divides the frequency of slow waves by `factor`, keeps fast waves, and interpolates between them (Llama 3.1)."""
    trained = scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = trained * plain / (2 * np.pi)  # how often each wave turns over the trained length
    mix = np.clip((turns - low) / (high - low), 0, 1)
    return (1 - mix) * plain / factor + mix * plain


def _yarn(
    plain: np.ndarray, factor: float, theta: float, turned: int, scaling: Mapping[str, Any], longest: int
) -> tuple[np.ndarray, np.float32]:
    """YaRN, Peng et al. 2023, arXiv 2309.00071, section 3.2 and eq. 22."""
    trained = scaling.get("original_max_position_embeddings") or longest
    place = lambda turns: turned * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(theta))
    low, high = place(scaling.get("beta_fast") or 32), place(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, turned - 1)
    ramp = np.clip((np.arange(turned // 2) - low) / max(high - low, 0.001), 0, 1)
    amplitude = scaling.get("attention_factor")
    if amplitude is None:
        scale = lambda by: 1.0 if factor <= 1 else 0.1 * by * math.log(factor) + 1
        by, whole = scaling.get("mscale"), scaling.get("mscale_all_dim")
        amplitude = scale(by) / scale(whole) if by and whole else scale(1)
    return plain / factor * ramp + plain * (1 - ramp), np.float32(amplitude)
