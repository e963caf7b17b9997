"""Steps that `optax.apply_if_finite` inside the optimizer skips: on these no mask changes and no time passes."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxprune.training import enforce

PyTree = Any


def is_guarded(state: PyTree) -> bool:
    """Whether an optimizer's state is that of a chain with `optax.apply_if_finite` in it; known when traced."""
    return bool(_guards(state))


def was_skipped(before: PyTree, after: PyTree) -> jax.Array:
    """Whether a guard met gradients that are not finite between two states; a bool scalar."""
    pairs = zip(_guards(before), _guards(after), strict=True)
    return jnp.any(jnp.stack([a.total_notfinite != b.total_notfinite for b, a in pairs]))


def are_finite(grads: PyTree, mask_tree: PyTree) -> jax.Array:
    """Whether all gradients of kept weights are finite, which is all that the optimizer sees; a bool scalar."""
    leaves = jax.tree.leaves(enforce.zero(grads, mask_tree))
    return jnp.all(jnp.stack([jnp.array(True), *(jnp.isfinite(leaf).all() for leaf in leaves)]))


def _guards(state: PyTree) -> list[optax.ApplyIfFiniteState]:
    is_guard = lambda node: isinstance(node, optax.ApplyIfFiniteState)
    found = [node for node in jax.tree.leaves(state, is_leaf=is_guard) if is_guard(node)]
    # One guard may stand inside another.
    return found + [inner for node in found for inner in _guards(node.inner_state)]
