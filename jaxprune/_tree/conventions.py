"""`leaf_roles`: the roles of leaves, from the `Roles` of a function, or from names and types.

Without a function the library knows a leaf by the type of its module (Equinox, Flax NNX), or by its name: `kernel` and
`w` have inputs first (Flax, Haiku), `weight` has outputs first (Equinox, PyTorch, Hugging Face). Stacked axes are known
if the caller names them or if a framework marks them: names of axes in the boxes and Variables of Flax, and Haiku's
`layer_stack`. All other axes stay "unknown", and patterns that need them raise.

`prunable` and `selected` decide which leaves of a tree are pruned: by their roles, or by the argument `where`.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.tree_util import tree_flatten_with_path

from jaxprune._tree import paths
from jaxprune._tree.arguments import check_instance, is_array, kind, shown
from jaxprune._tree.paths import Where, by_where, is_floating, resolve
from jaxprune._tree.roles import Axes, LeafRole, Roles, Use

PyTree = Any

Size = int | None
Axis = tuple[str, Size]
BatchAxes = int | tuple[int, ...] | Mapping[str, int | tuple[int, ...]]


def leaf_roles(
    tree: PyTree, roles: Roles | None = None, batch_axes: BatchAxes = 0, *, parts: bool = False
) -> tuple[LeafRole, ...]:
    """Returns the role of each leaf, in the order of `jax.tree.leaves`.

    Args:
      tree: parameters, their shapes, or scores in their structure.
      roles: the result of `find_roles`; None for the conventions.
      batch_axes: the stacked axes that the caller names; see `masks.Units`.
      parts: whether leaves may be the parts that a device holds inside `jax.shard_map`.

    Returns:
      A role for each leaf. `LeafRole.stacked` includes `batch_axes`.

    Raises:
      ValueError: the roles belong to another tree; an axis is outside of a leaf.
      TypeError: `roles` or `batch_axes` has another type.

    Example:
      >>> [leaf] = leaf_roles({'dense': {'kernel': jax.numpy.ones((4, 2, 3))}}, batch_axes=1)
      >>> leaf.role, leaf.axes
      ('multiplied', ('stacked', 'input', 'output'))
    """
    batch = explicit_axes(tree, batch_axes)
    if roles is None:
        return _by_convention(tree, batch)
    check_instance(roles, Roles, "roles", "what jaxprune.find_roles(fn, params, *inputs) returns")
    known = roles.of(tree, scores=True, parts=parts)
    return tuple(role.stack(axes) if axes else role for role, axes in zip(known, batch, strict=True))


def explicit_axes(tree: PyTree, batch_axes: BatchAxes) -> tuple[Axes, ...]:
    """Returns the stacked axes of each leaf that the caller names: a number of leading axes, or the axes.

    Raises:
      ValueError: an axis is outside of a leaf of two axes or more. A leaf with fewer axes ignores the axes that it
        lacks.
      TypeError: `batch_axes` is neither an integer nor a tuple of integers.
    """
    leaves = jax.tree.leaves(tree)
    if isinstance(batch_axes, int) and not batch_axes:
        return ((),) * len(leaves)
    found, wrong = [], []
    names = paths.named_leaves(tree)
    for (name, leaf), value in zip(names, resolve(batch_axes, tree, default=0, what="batch_axes"), strict=True):
        number = isinstance(value, int) and not isinstance(value, bool)
        if not number and not (isinstance(value, tuple) and all(type(a) is int for a in value)):
            raise TypeError(
                f"{name}: batch_axes must be an integer, the number of leading axes that are slices, or a tuple of "
                f"axes such as (1,); got {shown(value)}"
            )
        ndim = len(getattr(leaf, "shape", ()))
        axes = range(value) if isinstance(value, int) else value
        inside = sorted({a % ndim for a in axes if -ndim <= a < ndim})
        if (isinstance(value, int) and value < 0) or (ndim > 1 and len(inside) < len(axes)):
            wrong.append(f"  {name}: batch_axes {value} and shape {tuple(leaf.shape)}")
        found.append(tuple(inside))
    if wrong:
        raise ValueError("batch_axes must be axes of the leaf, each once:\n" + "\n".join(wrong))
    return tuple(found)


_CACHE: dict[Any, tuple[LeafRole, ...]] = {}
_CACHED = 64


def _by_convention(tree: PyTree, batch: tuple[Axes, ...]) -> tuple[LeafRole, ...]:
    """Returns the roles, from a cache for trees of the same structure and shapes: selection asks on every call."""
    leaves, structure = jax.tree.flatten(tree)
    key = structure, tuple(tuple(getattr(leaf, "shape", ())) for leaf in leaves), batch
    try:
        found = _CACHE.get(key)
    except (TypeError, ValueError):  # static fields of a module that cannot be hashed or compared
        return _convene(tree, key[1], batch)
    if found is None:
        if len(_CACHE) >= _CACHED:
            _CACHE.clear()
        found = _CACHE[key] = _convene(tree, key[1], batch)
    return found


def _convene(tree: PyTree, shapes: Sequence[Axes], batch: Sequence[Axes]) -> tuple[LeafRole, ...]:
    flat = [path for path, _ in paths.with_paths(tree)]
    identities = [paths.identity(path) for path in flat]
    spelt = [_words(path) for path in flat]
    together = {tuple(words) for words in spelt}
    found = []
    each = zip(flat, identities, spelt, shapes, batch, _context(tree), strict=True)
    for path, identity, words, shape, axes, (module, marks) in each:
        stacked = {*axes, *_marked(marks, len(shape)), *({0} if _LAYER_STACK & set(words) and shape else ())}
        use, kinds, note = _by_type(module, words, shape, stacked) or _by_name(
            words, shape, stacked, is_bias=words[-1:] == ["b"] and (*words[:-1], "w") in together
        )
        if use in ("multiplied", "unknown") and sum(kind != "stacked" for kind in kinds) < 2:
            use = "elementwise"
            note = "fewer than two axes apart from stacked ones" if "stacked" in kinds else "fewer than two axes"
        found.append(LeafRole(paths.name(path), identity, shape, (use,), kinds, note=note))
    return tuple(found)


# What the framework says: the module of a leaf, and the names of its axes.
_STACKED = {"layer", "layers", "stage", "stages", "expert", "experts", "exp", "block", "blocks", "scan"}
_LAYER_STACK = {"__layer_stack_no_per_layer", "__layer_stack_with_per_layer"}


def _context(node: Any, module: Any = None, names: Any = None) -> Iterator[tuple[Any, Any]]:
    """Returns for each leaf the node that it is a field of, and the names of its axes if a box has them."""
    box = paths.is_box(node)
    if box:
        metadata = node.get_metadata() if hasattr(node, "get_metadata") else {}
        keys = ("out_sharding", "sharding_names", "sharding", "names")
        names = next((metadata[key] for key in keys if metadata.get(key) is not None), getattr(node, "names", None))
    children = tree_flatten_with_path(node, is_leaf=lambda x: x is not node)[0]
    for path, child in children:
        if path:
            yield from _context(child, module if box else node, names)
        else:
            yield module, names


def _marked(names: Any, ndim: int) -> set[int]:
    """Returns the axes whose names say that they stack layers or experts."""
    if not isinstance(names, tuple | list) or len(names) > ndim:
        return set()
    return {a for a, name in enumerate(names) if isinstance(name, str) and _STACKED & set(_tokens(name))}


# Modules that are nodes of the tree are known by their type, and their axes by the sizes in their static fields.
_NORMS = ("LayerNorm", "RMSNorm", "GroupNorm", "BatchNorm", "InstanceNorm", "SpectralNorm", "WeightNorm")


def _by_type(
    module: Any, words: Sequence[str], shape: Axes, stacked: set[int]
) -> tuple[Use, tuple[str, ...], str] | None:
    for base in type(module).__mro__ if module is not None else ():
        library = base.__module__.partition(".")[0]
        if base.__name__ in _NORMS and library in ("equinox", "flax"):
            return "elementwise", _fit((), shape, stacked, "entry"), f"a parameter of {base.__name__}"
        if (library, base.__name__) in (("equinox", "Embedding"), ("flax", "Embed")):
            return "embedding", _fit((("indexed", None), ("output", None)), shape, stacked), "an embedding by its type"
        sizes = _TYPES.get((library, base.__name__))
        if sizes is not None and words[-1] in ("kernel", "weight", "weight_ih", "weight_hh"):
            kinds = _fit(sizes(module), shape, stacked)
            return "multiplied", kinds, f"{base.__name__} of other sizes" if "unknown" in kinds else ""
        if sizes is not None and words[-1] in ("bias", "bias_n"):
            return "elementwise", _fit((), shape, stacked, "entry"), "a bias by its type"
    return None


def _number(size: Any) -> Size:
    return size if isinstance(size, int) else 1


def _channels(inputs: int, outputs: int, groups: int) -> tuple[Axis, Axis]:
    output = "output" if groups == 1 else "group" if groups == outputs else "group+output"
    return ("input", inputs // groups), (output, outputs)


def _equinox_conv(m: Any) -> tuple[Axis, ...]:
    inputs, outputs = _channels(m.in_channels, m.out_channels, m.groups)
    return outputs, inputs, *(("window", n) for n in m.kernel_size)


def _nnx_conv(m: Any) -> tuple[Axis, ...]:
    inputs, outputs = _channels(m.in_features, m.out_features, getattr(m, "feature_group_count", 1))
    window = (m.kernel_size,) if isinstance(m.kernel_size, int) else m.kernel_size
    channels = (outputs, inputs) if getattr(m, "transpose_kernel", False) else (inputs, outputs)
    return *(("window", n) for n in window), *channels


def _linear_general(m: Any) -> tuple[Axis, ...]:
    many = lambda sizes: (sizes,) if isinstance(sizes, int) else tuple(sizes)
    batch = len(m.batch_axis) if isinstance(m.batch_axis, Mapping) else 0
    features = [("input", n) for n in many(m.in_features)] + [("output", n) for n in many(m.out_features)]
    return *(("stacked", None),) * batch, *features


def _nnx_einsum(m: Any) -> tuple[Axis, ...]:
    text = m.einsum_str.replace(" ", "").replace("...", "")
    (data, own), result = text.split("->")[0].split(","), text.split("->")[1]
    kinds = {(True, False): "input", (False, True): "output", (True, True): "stacked", (False, False): "input"}
    return tuple((kinds[c in data, c in result], n) for c, n in zip(own, m.kernel_shape, strict=True))


_LINEAR = {
    "equinox": lambda m: (("output", _number(m.out_features)), ("input", _number(m.in_features))),
    "flax": lambda m: (("input", m.in_features), ("output", m.out_features)),
}
_TYPES = {
    ("equinox", "Linear"): _LINEAR["equinox"],
    ("equinox", "Conv"): _equinox_conv,
    ("equinox", "ConvTranspose"): _equinox_conv,
    ("equinox", "GRUCell"): lambda m: (("output", None), ("input", None)),
    ("equinox", "LSTMCell"): lambda m: (("output", None), ("input", None)),
    ("flax", "Linear"): _LINEAR["flax"],
    ("flax", "LinearGeneral"): _linear_general,
    ("flax", "Einsum"): _nnx_einsum,
    ("flax", "Conv"): _nnx_conv,
    ("flax", "ConvTranspose"): _nnx_conv,
}


def _fit(expected: Sequence[Axis], shape: Axes, stacked: set[int], every: str = "unknown") -> tuple[str, ...]:
    """Returns the kinds of axes of a leaf: stacked axes first, then the axes that its module is expected to have.

    `every` is the kind of each axis if the module has other sizes.
    """
    rest = [a for a in range(len(shape)) if a not in stacked]
    more = len(rest) - len(expected)
    own = rest[max(more, 0) :]
    fits = more >= 0 and all(n in (None, shape[a]) for a, (_, n) in zip(own, expected, strict=True))
    kinds = ["stacked" if a in stacked else every for a in range(len(shape))]
    if expected and fits:
        for a in rest[:more]:
            kinds[a] = "stacked"  # by vmap or scan, whose axis is the first
        for a, (kind, _) in zip(own, expected, strict=True):
            kinds[a] = kind
    return tuple(kinds)


# Names.
_HEADS = {"query", "key", "value", "qkv", "q", "k", "v", "o", "out", "attention", "attn", "head", "heads", "einsum"}
_HEADS |= {"expert", "experts"}
_TURNED = {"transpose", "transposed", "deconv", "deconvolution", "up", "upsample", "upsampler", "upconv", "convt"}
_SCALES = {"bias", "biases", "scale", "scales", "scaling", "gain", "gamma", "beta", "offset", "shift"}
_SCALES |= {"mean", "var", "variance", "std", "cls", "token", "tokens"}
_POSITIONS = ("", "ition", "itions", "itional", "emb", "embed")
_CONV1D = {"c_attn", "c_proj", "c_fc"}
_RECURRENT = re.compile(r"(in_proj|[qkv]_proj)_weight|weight_(ih|hh|hr)(_l\d+)?(_reverse)?")


def _by_name(words: Sequence[str], shape: Axes, stacked: set[int], is_bias: bool) -> tuple[Use, tuple[str, ...], str]:
    own = words[-1] if words else ""
    rest = len(shape) - len(stacked)
    fit = lambda kinds: _fit([(kind, None) for kind in kinds], shape, stacked)
    entries = _fit((), shape, stacked, "entry")
    if own in ("kernel", "w"):
        kinds = _inputs_first(rest, set(_tokens("".join(words[-2:-1]))))
        return "multiplied", fit(kinds), "" if kinds else f"{rest} axes, of attention, experts, layers or a convolution"
    if own == "weight":
        return _weight(words, rest, fit, entries)
    if _RECURRENT.fullmatch(own) and rest == 2:
        return "multiplied", fit(("output", "input")), ""
    if is_bias:
        return "elementwise", entries, "a bias by its name"
    if any(t.startswith("pos") and t[3:] in _POSITIONS for t in _tokens(own)):
        return "elementwise", entries, "a position embedding by its name"
    if _is_embedding(_tokens(own)):
        return "embedding", fit(()), "an embedding by its name"
    if _is_norm(_tokens(own)) or _SCALES & set(_tokens(own)):
        return "elementwise", entries, f"named {own!r}"
    return "unknown", fit(()), "no convention for its name"


def _weight(
    words: Sequence[str], rest: int, fit: Callable[[Sequence[str]], tuple[str, ...]], entries: tuple[str, ...]
) -> tuple[Use, tuple[str, ...], str]:
    """Returns the role of a leaf named `weight`, which the name of its module decides."""
    near = words[-2] if len(words) > 1 else ""
    named = next((word for word in reversed(words[:-1]) if not word.isdigit()), "")
    if _is_norm(_tokens(named)) or "bias" in _tokens(near):
        return "elementwise", entries, f"the weight of {named!r}"
    if rest == 2 and (_is_embedding(_tokens(near)) or near == "shared"):
        return "embedding", fit(("indexed", "output")), f"an embedding by the name {near!r}"
    if near in _CONV1D:
        return "multiplied", fit(()), f"the weight of {near!r} is [in, out] in some models and [out, in] in others"
    if rest > 2 and _TURNED & set(_tokens(near)):
        return "multiplied", fit(()), "a transposed convolution by its name"
    return "multiplied", fit(("output", "input", *["window"] * (rest - 2)) if rest > 1 else ()), ""


def _inputs_first(rest: int, near: set[str]) -> tuple[str, ...]:
    if rest == 2 and "einsum" not in near:
        return "input", "output"
    if rest in (4, 5) and not near & (_HEADS | _TURNED):
        return *["window"] * (rest - 2), "input", "output"
    return ()


def _is_embedding(tokens: Sequence[str]) -> bool:
    return any(t.startswith("embed") or t in ("emb", "wte", "wpe") for t in tokens)


def _is_norm(tokens: Sequence[str]) -> bool:
    return any(t.endswith(("norm", "norms")) or t in ("ln", "bn", "gn") for t in tokens)


def _tokens(word: str) -> list[str]:
    """Returns the words of a name in lower case: `LayerNorm_0` -> layer, norm, 0."""
    return [t.lower() for t in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", word)]


def _words(path: paths.Path) -> list[str]:
    """Returns the components of a path; dotted names and names with slashes are split."""
    found: list[str] = []
    for key in paths.without_box(path):
        raw = getattr(key, "key", None)
        parts = raw if isinstance(raw, tuple) else [paths.name((key,))]
        found += [part for whole in parts for part in re.split(r"[./]", str(whole)) if part]
    return found


def prunable(tree: PyTree, where: Where = None, roles: Roles | None = None, batch_axes: BatchAxes = 0) -> PyTree:
    """Returns which leaves are pruned.

    The default rule takes floating leaves that are multiplied: by their role if a function is known, else by the
    conventions of `leaf_roles`. It leaves biases, scales, embeddings and leaves of fewer than two axes alone, where
    stacked axes do not count.

    Args:
      tree: parameters, or any tree with the structure, shapes and dtypes of parameters.
      where: None for the default rule; a glob over names such as `encoder/*/kernel` (`*` also crosses `/`), or a
        sequence of globs, which narrow the rule: `*` never selects a bias; or a predicate `(name, leaf) -> bool`, which
        replaces the rule.
      roles: the result of `find_roles`; None for the conventions.
      batch_axes: the stacked axes that the caller names; see `masks.Units`.

    Returns:
      A tree of Python bools with the structure of `tree`.

    Raises:
      TypeError: `where` has another type, or its predicate selects a leaf that is not floating.
      ValueError: a glob matches no prunable leaf, or the list of globs is empty; the role of a leaf could not be told.
        The message names the leaves.

    Example:
      >>> import jax.numpy as jnp
      >>> prunable({'dense': {'kernel': jnp.ones((2, 3)), 'bias': jnp.ones(3)}})
      {'dense': {'bias': False, 'kernel': True}}
    """
    return jax.tree.unflatten(
        jax.tree.structure(tree), chosen(tree, leaf_roles(tree, roles, batch_axes, parts=True), where)
    )


def chosen(tree: PyTree, known: tuple[LeafRole, ...], where: Where) -> list[bool]:
    """Returns which leaves are pruned, by their roles; see `prunable`. The list has the order of `jax.tree.leaves`."""
    leaves = jax.tree.leaves(tree)
    own = [(role.name, leaf) for role, leaf in zip(known, leaves, strict=True)]
    usual, unclear = [], []
    for role, leaf in zip(known, leaves, strict=True):
        there = is_floating(leaf) and len(leaf.shape) == len(role.shape)
        usual.append(there and (role.is_weight or role.is_unclear))
        unclear.append(there and role.is_unclear)
    found = by_where(own, usual, where, lambda name: next(r.why_left_alone for r in known if r.name == name))
    if any(unclear) and not callable(where):
        lines = [f"  {role.name}: {role.note}" for role, a, b in zip(known, found, unclear, strict=True) if a and b]
        if lines:
            raise ValueError(
                "the function uses these leaves in a way that does not tell whether they are weights; say which leaves "
                "are pruned by a predicate, where=lambda name, leaf: ..., or leave them out by globs:\n"
                + "\n".join(lines[:10])
            )
    return found


def selected(tree: PyTree, where: Where = None, roles: Roles | None = None, batch_axes: BatchAxes = 0) -> list[bool]:
    """Returns which leaves are pruned; like `prunable`, but raises if no leaf is selected.

    Args:
      tree: parameters, or any tree with the structure, shapes and dtypes of parameters.
      where: None, a predicate `(name, leaf) -> bool`, a glob, or a list of globs; see `prunable`.
      roles: the result of `find_roles`; None for the conventions.
      batch_axes: the stacked axes that the caller names; see `masks.Units`.

    Returns:
      A list of Python bools, in the order of `jax.tree.leaves`.

    Raises:
      TypeError: `where` has another type, or its predicate selects a leaf that is not floating.
      ValueError: a glob matches no prunable leaf; no leaf is selected. The message lists the leaves of the tree.

    Example:
      >>> import jax.numpy as jnp
      >>> selected({'dense': {'kernel': jnp.ones((2, 3)), 'bias': jnp.ones(3)}})
      [False, True]
    """
    known = leaf_roles(tree, roles, batch_axes, parts=True)
    found = chosen(tree, known, where)
    if any(found):
        return found
    if tree is None or (jax.tree.structure(tree) == jax.tree.structure(0) and not is_array(tree)):
        raise ValueError(
            f"there is nothing to prune: params must be a tree of arrays, such as variables['params'] of a Flax model; "
            f"got {shown(tree)}"
        )
    said = lambda leaf, role: f", {role.why_left_alone}" if where is None and is_floating(leaf) else ""
    lines = [
        f"  {paths.label(name)}: {kind(leaf)}{said(leaf, role)}"
        for (name, leaf), role in zip(paths.named_leaves(tree), known, strict=True)
    ]
    lines = lines[:10] + ([f"  and {len(lines) - 10} more"] if len(lines) > 10 else [])
    rule = (
        "where=None takes floating weights of two axes or more" if where is None else "the predicate is False for all"
    )
    raise ValueError(
        f"there is nothing to prune: {rule}; pass a predicate where=lambda name, leaf: ... that is True for a floating "
        "leaf. The leaves are:\n" + ("\n".join(lines) or "  (none: the tree is empty)")
    )
