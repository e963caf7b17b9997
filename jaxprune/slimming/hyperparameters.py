"""`hyperparameters`: the hyperparameters that give a linen or NNX model the shapes of slim parameters."""

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from jaxprune import _tree
from jaxprune.slimming.manifest import Kept, Manifest

PyTree = Any
# The leaf of a module, the axis counted from the end, and the hyperparameters that may say its size.
_SIZES = (
    ("kernel", -1, ("features", "out_features")),
    ("kernel", -2, ("in_features",)),
    ("embedding", -1, ("features",)),
    ("embedding", -2, ("num_embeddings",)),
    ("scale", -1, ("num_features",)),
    ("mean", -1, ("num_features",)),
)
_PROJECTIONS = ("query", "key", "value", "out")
_MEANS = ("LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm")


@dataclasses.dataclass
class _Module:
    """A module of the model, and the arguments it is called with (linen makes its parameters from them)."""

    module: Any
    call: tuple[tuple[Any, ...], dict[str, Any]] | None = None


class Rebuilt(NamedTuple):
    """The hyperparameters to rebuild one module.

    Attributes:
      path: the path of the module, and its class.
      changes: the old and the new value of each hyperparameter that changes, by its name.
      problem: why the rebuilt module would not compute the slim function, or would have other shapes, or why the
        module could not be checked; None if it was built, from shapes, and has the shapes of the slim parameters.
    """

    path: str
    changes: dict[str, tuple[Any, Any]]
    problem: str | None


def hyperparameters(manifest: Manifest, model: Any, *inputs: Any, **options: Any) -> list[Rebuilt]:
    """Finds the hyperparameters that give the modules of a model the shapes of slim parameters.

    Each module is compared with its leaves: the features of a Dense or Conv, the heads of an attention, the sizes of an
    embedding. Each layer gets its own widths, so a model whose layers share one number must be changed to take one
    number for each layer. Each module is then built with the new values, from shapes (`jax.eval_shape`), and its shapes
    are compared. `Rebuilt.problem` reports modules that no constructor can express: an attention whose queries and
    values have different dimensions, or, unless the network was slimmed `as_built`, a norm whose mean would be taken
    over fewer positions.

    Args:
      manifest: the positions that stay, for parameters in the model's own structure: `model.init(...)` or its "params",
        or the state of `nnx.split`.
      model: a linen module (not bound), or an NNX module.
      *inputs: for linen, arrays or ShapeDtypeStructs to call the model with, since linen makes its modules in a call.
      **options: for linen, further arguments of the call, such as `train=False`.

    Returns:
      One entry for each module with a leaf that shrinks, in the order of the manifest.

    Raises:
      TypeError: the model is neither a linen nor an NNX module.

    Example:
      >>> import flax.linen as nn
      >>> from jaxprune.slimming import slim
      >>> model, x = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)]), jnp.ones((1, 3))
      >>> params = model.init(jax.random.key(0), x)
      >>> small = slim(model.apply, params, {'params/layers_0/kernel[1]': [0, 5]}, x)
      >>> hyperparameters(small.manifest, model, x)
      [Rebuilt(path='layers_0: Dense', changes={'features': (8, 6)}, problem=None)]
    """
    _tree.check_instance(manifest, Manifest, "manifest", "the manifest of what slim returned, slimmed.manifest")
    modules = dict(_modules(model, inputs, options))
    owned: dict[tuple[str, ...], dict[str, Kept]] = {}
    for kept in manifest.leaves:
        owner, leaf = _owner(kept.identity, modules)
        owned.setdefault(owner, {})[leaf] = kept
    shrunk = {owner: leaves for owner, leaves in owned.items() if any(kept.axes for kept in leaves.values())}
    as_built = manifest.as_built is not None
    found = [
        _checked(modules[owner], leaves, _rebuilt(owner, modules[owner].module, leaves, as_built))
        for owner, leaves in shrunk.items()
    ]
    return [entry for entry in found if entry.changes or entry.problem]


def _modules(model: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], _Module]]:
    from flax import linen, nnx  # only callers with a Flax model reach this line

    if isinstance(model, nnx.Module):
        for path, module in nnx.iter_modules(model):
            yield tuple(map(str, path)), _Module(module)
    elif isinstance(model, linen.Module):
        met: dict[tuple[str, ...], _Module] = {}

        def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            known = met.setdefault(context.module.path, _Module(context.module))
            if context.method_name == "__call__" and known.call is None:
                known.call = jax.tree.map(
                    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if _tree.is_array(x) else x, (args, kwargs)
                )
            return call(*args, **kwargs)

        keys = {name: jax.random.key(0) for name in ("params", "dropout")}
        with linen.intercept_methods(note):
            _ = jax.eval_shape(lambda *args: model.init(keys, *args, **options), *inputs)
        yield from met.items()
    else:
        raise TypeError(f"model must be a linen or NNX module; got {type(model).__name__}")


def _owner(identity: tuple[str, ...], modules: dict[tuple[str, ...], _Module]) -> tuple[tuple[str, ...], str]:
    # The innermost module that owns the leaf; an attention owns its projections. Linen's variables are in
    # collections.
    path = identity[1:] if identity[0] in ("params", "batch_stats") and (identity[0],) not in modules else identity
    for end in range(len(path) - 1, 0, -1):
        if path[end - 1] in _PROJECTIONS and hasattr(
            getattr(modules.get(path[: end - 1]), "module", None), "num_heads"
        ):
            return path[: end - 1], "/".join(path[end - 1 :])
        if path[:end] in modules:
            return path[:end], "/".join(path[end:])
    return (), "/".join(path)


def _rebuilt(path: tuple[str, ...], module: Any, leaves: dict[str, Kept], as_built: bool) -> Rebuilt:
    kind = type(module).__name__
    name = f"{'/'.join(path) or 'the model itself'}: {kind}"
    if hasattr(module, "num_heads"):
        return Rebuilt(name, *_attention(module, leaves, as_built))
    leaves = {leaf: kept for leaf, kept in leaves.items() if kept.axes}
    changes: dict[str, tuple[Any, Any]] = {}
    for leaf, axis, attributes in _SIZES:
        if leaf in leaves:
            changes |= _changes(module, leaves[leaf], axis, attributes)
    problem = None
    groups = getattr(module, "feature_group_count", 1)
    if groups > 1 and changes:
        features = next((v for k, v in changes.items() if k in ("features", "out_features")), (None, None))
        if features[0] == groups:  # depthwise
            changes["feature_group_count"] = features
            changes |= {"in_features": features} if "in_features" in changes or hasattr(module, "in_features") else {}
        else:
            problem = "how many groups of channels stay is not told by the kernel"
    if any(word in kind for word in _MEANS) and not as_built:
        problem = "its moments would be taken over fewer positions than in the masked model"
    elif not changes and not ("Norm" in kind or leaves.keys() <= {"bias"}) and _own(leaves):
        problem = f"no hyperparameter is known that says the shape of {', '.join(leaves)}"
    return Rebuilt(name, changes, problem)


def _checked(met: _Module, leaves: dict[str, Kept], proposed: Rebuilt) -> Rebuilt:
    """Returns the proposal, with a problem if a module built with it has other shapes than the slim parameters."""
    if proposed.problem is not None or not proposed.changes:
        return proposed
    values = {name: new for name, (_, new) in proposed.changes.items()}
    try:
        built = _built(met, leaves, values)
    except Exception as error:  # a user's constructor may raise anything
        reason = str(error).strip().splitlines() or [type(error).__name__]
        return proposed._replace(problem=f"it could not be built with these values: {reason[0]}")
    wrong = [
        f"{leaf} would have shape {built.get(leaf)}, not {kept.small}"
        for leaf, kept in leaves.items()
        if kept.shape is not None and built.get(leaf) != kept.small
    ]
    return proposed._replace(problem="; ".join(wrong)) if wrong else proposed


def _built(met: _Module, leaves: dict[str, Kept], values: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the variables of a module that is built with other values of its hyperparameters."""
    from flax import linen, nnx

    key = jax.random.key(0)
    if isinstance(met.module, linen.Module):
        old, new = _input_sizes(met.module, values, leaves)
        given, structure = jax.tree.flatten(met.call or ((), {}))
        arrays = {
            k: jax.ShapeDtypeStruct((*x.shape[:-1], new), x.dtype) if x.shape[-1:] == (old,) else x
            for k, x in enumerate(given)
            if isinstance(x, jax.ShapeDtypeStruct)
        }
        module = met.module.clone(parent=None, **values)

        def init(arrays: dict[int, Any]) -> Any:
            args, kwargs = jax.tree.unflatten(structure, [arrays.get(k, x) for k, x in enumerate(given)])
            return module.init({"params": key, "dropout": key}, *args, **kwargs)

        variables = list(jax.eval_shape(init, arrays).values())
    else:
        wanted = inspect.signature(type(met.module).__init__).parameters
        own = {name: getattr(met.module, name) for name in wanted if hasattr(met.module, name)}
        rngs = {"rngs": nnx.Rngs(0)} if "rngs" in wanted else {}
        made = nnx.eval_shape(lambda: type(met.module)(**{**own, **values, **rngs}))
        variables = [nnx.to_pure_dict(nnx.state(made))]
    return {_tree.name(path): tuple(x.shape) for tree in variables for path, x in _tree.with_paths(tree)}


def _input_sizes(module: Any, values: dict[str, Any], leaves: dict[str, Kept]) -> tuple[int, int]:
    """Returns the features that a linen module takes, before and after slimming; (0, 0) if its leaves do not tell."""
    groups = getattr(module, "feature_group_count", 1)
    for leaf, axis in (("query/kernel", -3), ("kernel", -2), ("scale", -1), ("mean", -1)):
        kept = leaves.get(leaf)
        if kept is not None and len(kept.shape or ()) >= -axis:
            return (kept.shape or ())[axis] * groups, kept.small[axis] * values.get("feature_group_count", groups)
    return 0, 0


def _own(leaves: dict[str, Kept]) -> bool:
    """Returns whether a layer shrinks in more than its inputs, which a linen module infers when it is called."""
    return any(leaf != "kernel" or max(kept.axes) == len(kept.shape or ()) - 1 for leaf, kept in leaves.items())


def _changes(module: Any, kept: Kept, axis: int, attributes: tuple[str, ...]) -> dict[str, tuple[Any, Any]]:
    shape = kept.shape or ()
    if len(shape) < -axis:
        return {}
    found = {}
    for attribute in attributes:
        old = getattr(module, attribute, None)
        if isinstance(old, tuple | list) and attribute != "in_features" and tuple(shape[-len(old) :]) == tuple(old):
            new: Any = tuple(kept.small[-len(old) :])
        elif old == shape[axis]:
            new = kept.small[axis]
        else:
            continue
        if new != old:
            found[attribute] = (old, new)
    return found


def _attention(module: Any, leaves: dict[str, Kept], as_built: bool) -> tuple[dict[str, tuple[Any, Any]], str | None]:
    kernels = {name: leaves[f"{name}/kernel"] for name in _PROJECTIONS if f"{name}/kernel" in leaves}
    old: dict[str, tuple[int, ...]] = {name: kept.shape or () for name, kept in kernels.items()}
    new = {name: kept.small for name, kept in kernels.items()}
    changes: dict[str, tuple[Any, Any]] = {}
    inner = [name for name in ("query", "key", "value") if name in kernels]
    for name in inner[:1]:
        changes["num_heads"] = (old[name][-2], new[name][-2])
        changes["qkv_features"] = (old[name][-2] * old[name][-1], new[name][-2] * new[name][-1])
        if hasattr(module, "in_features"):
            changes["in_features"] = (old[name][-3], new[name][-3])
    if "out" in kernels:
        changes["out_features"] = (old["out"][-1], new["out"][-1])
    problem = None
    if len({new[name][-1] for name in inner}) > 1:
        problem = "queries and values would have other dimensions, and the module has one number for both"
    elif any(new[name][-1] != old[name][-1] for name in inner) and not as_built:
        problem = "the scale 1/sqrt(dimensions) would be another than that of the masked model"
    return {k: v for k, v in changes.items() if v[0] != v[1]}, problem
