"""What a search hands from round to round, and what it returns; and both as named arrays, to be saved."""

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any
_NAMES = "metrics"


class Trained(NamedTuple):
    """What one training made.

    Attributes:
      masks: its masks.
      params: the trained weights, exactly zero where the masks are False.
      metrics: what `evaluate` returned for them, and what the training itself did with `has_aux`; else an empty dict.
    """

    masks: PyTree
    params: PyTree
    metrics: dict[str, Any]


class Rounds(NamedTuple):
    """All rounds, each array with a leading axis of them: 0 is the dense network.

    Attributes:
      sparsity: float32, the total sparsity asked for in each round.
      start: the weights that each round started from, with zeros where its masks are False.
      ticket: the trained tickets.
      controls: the trained controls, by name.
    """

    sparsity: jax.Array
    start: PyTree
    ticket: Trained
    controls: dict[str, Trained]


class Carry(NamedTuple):
    """What the next round needs.

    Attributes:
      start: the weights that it starts from, before its masks.
      masks: its masks.
    """

    start: PyTree
    masks: PyTree


def pack(found: tuple[Carry, Rounds]) -> dict[str, np.ndarray]:
    """A finished round as a dict of arrays."""
    arrays = {f"{i:06d}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(found))}
    names = json.dumps(sorted(found[1].ticket.metrics)).encode()
    return arrays | {_NAMES: np.frombuffer(names, np.uint8)}


def unpack(arrays: dict[str, Any], params: PyTree, controls: Iterable[str]) -> tuple[Carry, Rounds]:
    """The round of which `pack` made the arrays."""
    metrics = dict.fromkeys(json.loads(bytes(np.asarray(arrays[_NAMES]))), 0)
    one = Trained(params, params, metrics)
    like = (Carry(params, params), Rounds(jnp.zeros(()), params, one, dict.fromkeys(controls, one)))
    leaves = [np.asarray(arrays[name]) for name in sorted(arrays) if name != _NAMES]
    carry, made = jax.tree.unflatten(jax.tree.structure(like), leaves)
    return carry, made
