"""`explain`: why an update failed: gradients or a state that do not belong to the parameters or the optimizer.

It runs only after a failure, because it traces the optimizer's init again.
"""

from collections.abc import Callable
from typing import Any

import jax

from jaxprune import _tree

PyTree = Any
_SHOWN = 10


def explain(init: Callable[[PyTree], PyTree], updates: PyTree, state: PyTree, params: PyTree) -> str:
    """Which leaves of the gradients or the state do not belong to the parameters or the optimizer.

    Args:
      init: the `init` of the sparsified optimizer.
      updates: the gradients given to its update.
      state: the state given to its update.
      params: the parameters given to its update.

    Returns:
      A message that names the leaves; empty if everything belongs together.
    """
    try:
        _ = jax.tree.structure(params).flatten_up_to(updates)
        whole = True
    except (ValueError, TypeError):
        whole = False  # some leaves are missing, which None would stand for
    lines = _differences(_kinds(params), _kinds(updates), optional=whole)
    if lines:
        return "the gradients must be those of the parameters:\n" + "\n".join(lines)
    try:
        expected = jax.eval_shape(init, params)
    except Exception:  # an error of init itself does not explain the failed update
        return ""
    lines = _differences(_kinds(expected), _kinds(state))
    if not lines:
        return ""
    packed = [any(name[-1:] == ("bits",) for name in _kinds(t.masks)) for t in (expected, state)]
    hint = ""
    if packed[0] != packed[1]:
        hint = f"; it has {'packed' if packed[1] else 'bool'} masks: pass sparsify(..., packed={packed[1]})"
    return (
        "the state belongs to another optimizer, method or network than this sparsify(...); make it by "
        "optimizer.init(params), restore it for the same one, or change methods by training.phases(...)"
        + "\n".join([hint, *lines])
    )


def _kinds(values: PyTree) -> dict[tuple[str, ...], str]:
    leaves = _tree.with_paths(values)
    return {_tree.identity(path): _kind(leaf) for path, leaf in leaves}


def _kind(leaf: Any) -> str:
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return f"{leaf.dtype}{list(leaf.shape)}"
    return type(leaf).__name__


def _differences(expected: dict[Any, str], got: dict[Any, str], *, optional: bool = False) -> list[str]:
    """A line for each leaf that differs. Gradients (`optional`) may lack leaves and may have another dtype."""
    names = [name for name in {**expected, **got} if not (optional and name not in got)]
    bare = (lambda kind: kind[kind.find("[") :]) if optional else (lambda kind: kind)
    wrong = [n for n in names if bare(expected.get(n, "nothing")) != bare(got.get(n, "nothing"))]
    lines = [
        f"  {'/'.join(n) or '(the tree itself)'}: expected {expected.get(n, 'nothing')}, got {got.get(n, 'nothing')}"
        for n in wrong[:_SHOWN]
    ]
    return lines + ([f"  and {len(wrong) - _SHOWN} more"] if len(wrong) > _SHOWN else [])
