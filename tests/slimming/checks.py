"""What a slimmed function must satisfy, for any function and any choice."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import slimming


def random_params(shapes: Any, seed: int = 0) -> Any:
    """Numbers for shapes; scales and variances positive."""
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return np.zeros(leaf.shape, leaf.dtype)
        name = jax.tree_util.keystr(path)
        noise = rng.normal(size=leaf.shape)
        return np.asarray(np.abs(noise) * 0.3 + 0.5 if "var" in name or "scale" in name else noise * 0.3, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def is_depth(group: slimming.Group) -> bool:
    """Whether the units are whole layers that a scan runs over."""
    return "a layer that a scan runs over" in (group.inexact or "")


def random_choice(groups: slimming.Groups, seed: int = 0, share: float = 0.5) -> slimming.Choice:
    """Removes a share of each group's units, in stacked layers each its own, and never all.

    No layer of a scan and no unit that a softmax chooses goes: these are not masked.
    """
    rng = np.random.default_rng(seed)
    keep = np.ones(groups.size, bool)
    for group in groups:
        if is_depth(group) or group.routed:
            continue
        for layer in range(group.layers):
            units = np.arange(group.count) if group.layer is None else np.flatnonzero(group.layer == layer)
            gone = rng.permutation(units)[: min(int(units.size * share), units.size - 1)]
            keep[group.first + gone] = False
    return slimming.Choice(groups, keep)


def masked(params: Any, choice: slimming.Choice) -> Any:
    """The parameters with zeros where the choice removes."""
    return jax.tree.map(lambda p, m: np.where(m, p, np.zeros_like(p)), params, choice.masks())


def difference(a: Any, b: Any) -> float:
    """The largest difference of two trees, relative to the largest number of the first."""
    pairs = zip(jax.tree.leaves(jax.device_get(a)), jax.tree.leaves(jax.device_get(b)), strict=True)
    return max(float(np.abs(x - y).max() / (np.abs(x).max() + 1e-9)) for x, y in pairs if np.size(x))


def check_agrees(
    fn: Callable[..., Any],
    params: Any,
    inputs: Sequence[Any],
    seed: int = 0,
    share: float = 0.5,
    *,
    tokens: bool = False,
) -> tuple[slimming.Groups, slimming.Choice, slimming.Slimmed]:
    """Slims at random and compares the smaller function with the function of masked parameters.

    All groups must be exact. With `tokens`, units that a softmax chooses (tokens that attention attends to) may be
    inexact, and the groups that share an axis with them: removing such a token masks its logits, not its values, so a
    contraction over tokens and channels as one axis is not exact, and the analysis does not tell the two apart.
    """
    groups = slimming.find_groups(fn, params, *inputs)
    choice = random_choice(groups, seed, share)
    small = slimming.slim(fn, params, choice, *inputs)
    expected = jax.jit(fn)(masked(params, choice), *inputs)
    got = jax.jit(small.fn)(small.params, *inputs)
    assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, expected)
    routed = {(m.leaf, m.axis) for g in groups if g.routed and tokens for m in g.members}
    shared = lambda g: any((m.leaf, m.axis) in routed for m in g.members)
    assert all(g.exact or is_depth(g) or shared(g) for g in groups), str(groups)
    assert difference(expected, got) < 1e-5
    return groups, choice, small
