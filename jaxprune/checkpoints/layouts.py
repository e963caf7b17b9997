"""`named_roles`: the roles of parameters and their axes, from names of Hugging Face and MaxText.

- Hugging Face: dotted names, kernels [outputs, inputs].
- MaxText: kernels [inputs, outputs] whose axis 1 is the layer if layers are scanned; attention kernels have head axes;
  experts are before layers, [experts, layers, inputs, outputs].
"""

import re
from typing import Any

from jaxprune import _tree

PyTree = Any
_Axes = tuple[str, ...]
# The end of a leaf's path; its use, empty if it is not pruned by default; its axes without layers; a description.
_MAXTEXT: tuple[tuple[str, tuple[Any, ...], _Axes, str], ...] = (
    (r"(query|key|value)/kernel", ("multiplied",), ("input", "output", "output"), ""),
    (r"\w*attention\w*/out/kernel", ("multiplied",), ("input", "input", "output"), ""),
    (r"wi(_\d)?/kernel|wo/kernel", ("multiplied",), ("input", "output"), ""),
    (r"\w*moe_?block\w*/(wi(_\d)?|wo)", ("multiplied",), ("stacked", "input", "output"), ""),
    (r"gate/kernel", (), ("input", "output"), "a router"),
    (r"embedding", ("embedding",), ("indexed", "output"), ""),
    (r"logits_dense/kernel", (), ("input", "output"), "the head"),
    (r"scale|bias", ("elementwise",), ("entry",), ""),
)
_HUGGING_FACE: tuple[tuple[str, tuple[Any, ...], _Axes, str], ...] = (
    (r"(.*\.)?(embed_tokens|wte|wpe|embeddings?)\.weight", ("embedding",), ("indexed", "output"), ""),
    (r"(.*\.)?lm_head\.weight", (), ("output", "input"), "the head"),
    (r".*(\.gate|shared_expert_gate|router)\.weight", (), ("output", "input"), "a router"),
    (r".*norm\w*\.weight|.*\.bias", ("elementwise",), ("entry",), ""),
    (r".*\.weight", ("multiplied",), ("output", "input"), ""),
)


def named_roles(params: PyTree, *, unknown: bool = False) -> _tree.Roles:
    """Returns the role of each leaf and the meaning of its axes, from names in the layout of a known program.

    Use it to prune a checkpoint without its function: pass the result as `roles=` wherever weights are chosen, so that
    N:M patterns run along inputs, and embeddings, norms, biases, routers and the head are not pruned by default. If
    there is a function, `jaxprune.find_roles(fn, params, *inputs)` is exact for any layout.

    Args:
      params: a flat dict by the dotted names of Hugging Face, or nested dicts in the layout of MaxText; arrays or
        ShapeDtypeStructs. Layers of MaxText may be scanned (`layers`, on axis 1) or separate (`layers_0`).
      unknown: whether leaves with other names are allowed, and get the use "other"; default False: they raise.

    Returns:
      The roles, in the order of `jax.tree.leaves(params)`.

    Raises:
      ValueError: names or numbers of axes fit neither layout; the message names the leaves.

    Example:
      >>> shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
      >>> roles = named_roles({'decoder': {'layers': {'mlp': {'wo': {'kernel': shape(32, 6, 8)}}}}})
      >>> roles['decoder/layers/mlp/wo/kernel'].axes
      ('input', 'stacked', 'output')
    """
    leaves = _tree.with_paths(params)
    dotted = bool(leaves) and all(
        len(path) == 1 and _tree.name(path).endswith((".weight", ".bias")) for path, _ in leaves
    )
    found, wrong = [], []
    for path, leaf in leaves:
        role = _role(path, leaf, _HUGGING_FACE if dotted else _MAXTEXT)
        if role is None:
            wrong.append(f"  {_tree.name(path)}: {_tree.shown(leaf)}")
            shape, note = tuple(getattr(leaf, "shape", ())), "its name is not known"
            axes = ("unknown",) * len(shape)
            role = _tree.LeafRole(_tree.name(path), _tree.identity(path), shape, ("other",), axes, note=note)
        found.append(role)
    if wrong and not unknown:
        raise ValueError(
            "named_roles knows the layouts of Hugging Face and MaxText by name, and these leaves belong to neither; "
            "pass jaxprune.find_roles(fn, params, *inputs) or name axes in the pattern:\n" + "\n".join(wrong[:20])
        )
    return _tree.Roles(tuple(found))


def _role(path: Any, leaf: Any, table: Any) -> _tree.LeafRole | None:
    """The role of a leaf by the first line of the table that its name matches; None if no line fits."""
    name, shape = _tree.name(path), tuple(getattr(leaf, "shape", ()))
    line = next((line for line in table if re.search(f"(^|/)({line[0]})$", name, re.IGNORECASE)), None)
    if line is None:
        return None
    _, uses, axes, note = line
    if "layers" in _tree.identity(path) and len(shape) > len(axes):
        axes = (axes[0], "stacked", *axes[1:])
    if axes[0] == "entry":  # the bias of an attention projection has head axes
        axes = (*axes, *["entry"] * (len(shape) - len(axes)))
    if len(shape) != len(axes):
        return None
    return _tree.LeafRole(name, _tree.identity(path), shape, uses, axes, note=note)
