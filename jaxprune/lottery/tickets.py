"""Tickets: masks, the weights they are rewound to, and where both come from."""

import hashlib
import importlib
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxprune import _tree, checkpoints, masks
from jaxprune.lottery.records import Rounds

PyTree = Any
_HEAD = b"jaxprune ticket 1\n"


@dataclass(frozen=True)
class Ticket:
    """A sparse network to be trained.

    Attributes:
      masks: bool, in the structure of the params.
      params: the weights to train from, zero where the masks are False.
      provenance: what can be said in JSON: `method`, `seeds`, `sparsity`, `metrics`, `versions`.
    """

    masks: PyTree
    params: PyTree
    provenance: dict[str, Any]


def ticket(rounds: Rounds, r: int, *, method: str, seeds: dict[str, int] | None = None, **notes: Any) -> Ticket:
    """The ticket of a round.

    Args:
      rounds: of one search (not vmapped; take one member with `jax.tree.map(lambda x: x[i], rounds)`).
      r: the round; -1 is the last.
      method: how it was found, in words.
      seeds: the seeds it depends on, by name.
      **notes: anything else for the provenance that JSON can hold.

    Returns:
      A ticket whose provenance also has the sparsity counted from the masks, the metrics of its training, and the
      versions of jaxprune, jax and Python.

    Raises:
      IndexError: there is no such round.

    Example:
      >>> from jaxprune.lottery.rounds import iterative_pruning
      >>> found = iterative_pruning(lambda params, masks, key: params, {'w': jax.numpy.arange(4.0).reshape(2, 2)},
      ...                           rounds=1, rate=0.5, key=jax.random.key(0))
      >>> ticket(found, -1, method='magnitude', seeds={'search': 0}).provenance['sparsity']
      0.5
    """
    size = len(rounds.sparsity)
    if not -size <= r < size:
        raise IndexError(f"round {r} of a search with {size}")
    held, start, metrics = jax.tree.map(lambda x: x[r], (rounds.ticket.masks, rounds.start, rounds.ticket.metrics))
    provenance = {
        "method": method,
        "seeds": seeds or {},
        "round": range(size)[r],
        "sparsity": float(masks.sparsity(start, held)),
        "metrics": {name: np.asarray(value).tolist() for name, value in metrics.items()},
        "versions": _versions(),
        **notes,
    }
    return Ticket(held, start, provenance)


def check(found: Ticket, params: PyTree) -> None:
    """Raises unless a ticket fits parameters: the same leaves, shapes and dtypes, and masks that fit.

    Args:
      found: a ticket.
      params: arrays or ShapeDtypeStructs.

    Raises:
      ValueError: it does not; the message names the leaves.
    """
    _tree.check_same(params, found.params, what="the ticket")
    pairs = zip(_tree.named_leaves(params), jax.tree.leaves(found.params), strict=True)
    wrong = [
        f"  {n}: ticket {_kind(own)}, params {_kind(leaf)}" for (n, leaf), own in pairs if _kind(own) != _kind(leaf)
    ]
    if wrong:
        raise ValueError("the ticket is of another network:\n" + "\n".join(wrong))
    _tree.check_masks(params, found.masks)


def save(path: Any, found: Ticket) -> None:
    """Writes a ticket to a new file, which is whole or missing; masks take a bit an entry.

    Args:
      path: a file that does not exist.
      found: the ticket; its leaves are arrays, and no typed keys.

    Raises:
      FileExistsError: the file exists; nothing is overwritten.
      FileNotFoundError: its folder does not.
      TypeError: the provenance is not JSON.
    """
    from flax import serialization  # it loads flax's modules, which the rest of the room does without

    paths = [_tree.identity(path) for path, _ in jax.tree_util.tree_flatten_with_path(found.params)[0]]
    held = [np.asarray(masks.as_bool(m)) for m in jax.tree.structure(found.params).flatten_up_to(found.masks)]
    about = {"provenance": found.provenance, "paths": paths, "shapes": [m.shape for m in held]}
    leaves = [*map(np.asarray, jax.tree.leaves(found.params)), *(np.packbits(m) for m in held)]
    body = serialization.msgpack_serialize(
        {"about": json.dumps(about), "leaves": {f"{i:06d}": leaf for i, leaf in enumerate(leaves)}}
    )
    _ = checkpoints.write_new(path, lambda part: part.write_bytes(_HEAD + hashlib.sha256(body).digest() + body))


def load(path: Any, params: PyTree) -> Ticket:
    """Reads a ticket for a network.

    Args:
      path: a file from `save`.
      params: the network's parameters, or ShapeDtypeStructs; the ticket takes their structure.

    Returns:
      The ticket, with arrays of NumPy.

    Raises:
      ValueError: the file is no ticket or is damaged; the ticket does not fit the parameters (the leaves are named).
    """
    from flax import serialization

    data = Path(path).read_bytes()
    digest, body = data[len(_HEAD) : len(_HEAD) + 32], data[len(_HEAD) + 32 :]
    if not data.startswith(_HEAD):
        raise ValueError(f"{path} is no ticket of jaxprune")
    if hashlib.sha256(body).digest() != digest:
        raise ValueError(f"{path} is damaged: its bytes do not have the digest that was saved with them")
    content: Any = serialization.msgpack_restore(body)
    about = json.loads(content["about"])
    leaves = [content["leaves"][name] for name in sorted(content["leaves"])]
    order = _order(params, [tuple(p) for p in about["paths"]])
    held = [
        np.unpackbits(bits, count=int(np.prod(shape))).astype(bool).reshape(shape)
        for bits, shape in zip(leaves[len(order) :], about["shapes"], strict=True)
    ]
    structure = jax.tree.structure(params)
    made = Ticket(
        jax.tree.unflatten(structure, [held[i] for i in order]),
        jax.tree.unflatten(structure, [leaves[i] for i in order]),
        about["provenance"],
    )
    check(made, params)
    return made


def _order(params: PyTree, there: list[tuple[str, ...]]) -> list[int]:
    here = [_tree.identity(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    lines = [f"  {'/'.join(path)}: in params, not in the ticket" for path in here if path not in there]
    lines += [f"  {'/'.join(path)}: in the ticket, not in params" for path in there if path not in here]
    if lines:
        raise ValueError("the ticket is of another network:\n" + "\n".join(lines))
    return [there.index(path) for path in here]


def _kind(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "dtype") else type(leaf).__name__


def _versions() -> dict[str, str]:
    own = importlib.import_module("jaxprune").__version__
    return {"jaxprune": own, "jax": jax.__version__, "python": platform.python_version()}
