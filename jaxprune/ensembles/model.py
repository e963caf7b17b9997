"""Members as ONE model: one program that applies all of them to the same inputs, by vmap."""

from collections.abc import Callable
from typing import Any

import jax

from jaxprune import masks
from jaxprune.ensembles.combining import Combine, mean_probability
from jaxprune.ensembles.members import Members

Array = jax.Array
PyTree = Any


def logits_of(fn: Callable[..., Array]) -> Callable[..., Array]:
    """The logits of every member, from one vmapped, jitted function.

    Args:
      fn: `(params, *inputs) -> logits (n, classes)`, traceable. Keep what this returns: another call compiles again.

    Returns:
      `(members, *inputs) -> (members, n, classes)`. The masks are applied in it, so that removed weights are zero
      whatever the parameters hold.

    Example:
      >>> from jaxprune.ensembles import make
      >>> run = logits_of(lambda params, x: x @ params['w'])
      >>> run(make({'w': jnp.ones((3, 2, 5))}), jnp.ones((4, 2))).shape
      (3, 4, 5)
    """

    def one(params: PyTree, held: PyTree, inputs: tuple[Any, ...]) -> Array:
        return fn(masks.apply(params, held), *inputs)

    @jax.jit
    def run(members: Members, *inputs: Any) -> Array:
        return jax.vmap(one, in_axes=(0, 0, None))(members.params, members.masks, inputs)

    return run


def predictor(fn: Callable[..., Array], combine: Combine = mean_probability) -> Callable[..., Array]:
    """The ensemble as one function: all members by vmap, and one prediction of them, in one jitted program.

    Args:
      fn: as in `logits_of`.
      combine: `mean_probability`, `mean_logit`, `majority`, or any function of logits (members, n, classes).

    Returns:
      `(members, *inputs) -> log-probabilities (n, classes)`: what `assess.evaluate` takes as logits.

    Example:
      >>> from jaxprune.ensembles import make
      >>> run = predictor(lambda params, x: x @ params['w'])
      >>> run(make({'w': jnp.ones((3, 2, 5))}), jnp.ones((4, 2))).shape
      (4, 5)
    """
    every = logits_of(fn)
    return jax.jit(lambda members, *inputs: combine(every(members, *inputs)))
