"""Why an update failed: gradients or a state that are not those of these parameters, this method, this optimizer.

It is asked only once something has failed, for it traces the optimizer's init anew.
"""

from collections.abc import Callable
from typing import Any

import jax

from jaxprune import _tree

PyTree = Any
_SHOWN = 10


def explain(init: Callable[[PyTree], PyTree], updates: PyTree, state: PyTree, params: PyTree) -> str:
    """What does not belong together, leaf by leaf; empty where everything does.

    Args:
      init: the `init` of the sparsified optimizer.
      updates: the gradients that its update was given.
      state: the state that its update was given.
      params: the parameters that its update was given.

    Returns:
      A message for people.
    """
    lines = _differences(_kinds(params), _kinds(updates), optional=True)
    if lines:
        return "the gradients must be those of the parameters:\n" + "\n".join(lines)
    try:
        expected = jax.eval_shape(init, params)
    except Exception:  # then init has an error of its own, which is not this one's reason
        return ""
    lines = _differences(_kinds(expected), _kinds(state))
    if not lines:
        return ""
    packed = [any(name[-1:] == ("bits",) for name in _kinds(t.masks)) for t in (expected, state)]
    hint = ""
    if packed[0] != packed[1]:
        hint = f"; it has {'packed' if packed[1] else 'bool'} masks: pass sparsify(..., packed={packed[1]})"
    return (
        "the state is of another optimizer, method or network than this sparsify(...); make it by "
        "optimizer.init(params), restore it for the same one, or change methods by training.phases(...)"
        + "\n".join([hint, *lines])
    )


def _kinds(values: PyTree) -> dict[tuple[str, ...], str]:
    leaves = jax.tree_util.tree_flatten_with_path(values)[0]
    return {_tree.identity(path): _kind(leaf) for path, leaf in leaves}


def _kind(leaf: Any) -> str:
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return f"{leaf.dtype}{list(leaf.shape)}"
    return type(leaf).__name__


def _differences(expected: dict[Any, str], got: dict[Any, str], *, optional: bool = False) -> list[str]:
    """Lines for what differs. Gradients may leave parameters out, and have a dtype of their own."""
    names = [name for name in {**expected, **got} if not (optional and name not in got)]
    bare = (lambda kind: kind[kind.find("[") :]) if optional else (lambda kind: kind)
    wrong = [n for n in names if bare(expected.get(n, "nothing")) != bare(got.get(n, "nothing"))]
    lines = [
        f"  {'/'.join(n) or '(the tree itself)'}: expected {expected.get(n, 'nothing')}, got {got.get(n, 'nothing')}"
        for n in wrong[:_SHOWN]
    ]
    return lines + ([f"  and {len(wrong) - _SHOWN} more"] if len(wrong) > _SHOWN else [])
