"""`described`: arguments as JSON values, by which a resumed run recognises the arguments that it was started with."""

import enum
import functools
import hashlib
import json
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import Any

import jax
import numpy as np

from jaxprune import _tree

_FEW = 4  # entries that are written out


def described(value: Any, _within: tuple[int, ...] = (), _closure: bool = False) -> Any:
    """Describes a value by what stays the same in a new process: never by an address.

    - a function: its module and name, its defaults, and the values in its closure; a lambda, which has no name, also by
      its bytecode. The code of other functions is not compared, and neither are lists and sets in a closure, because
      they may be what a function records.
    - a `functools.partial`: its function and its arguments.
    - an array: dtype, shape and a digest of its bits; other trees by their leaves.
    - a dataclass or NamedTuple: its type and fields.
    - any other object: its `repr` if this contains no address, else its type alone, marked as not compared.

    Args:
      value: anything.

    Returns:
      A JSON value.

    Example:
      >>> described(functools.partial(max, 2, key=abs))
      {'partial': 'builtins.max', 'args': [2], 'keywords': [['key', 'builtins.abs']]}
      >>> described(np.zeros(2)), described(np.zeros(5, np.uint8))
      ('float64[2] [0.0, 0.0]', 'uint8[5] 8855508aade16ec5')
    """
    if value is None or isinstance(value, bool | int | str):
        return str(value) if isinstance(value, enum.Enum) else value
    if isinstance(value, float):
        return value if np.isfinite(value) else str(value)
    if id(value) in _within:
        return "recursive"
    if _closure and isinstance(value, list | set | bytearray):
        return f"{_name(type(value))} (not compared)"
    inner = functools.partial(described, _within=(*_within, id(value)), _closure=_closure)
    if callable(value) and (found := _callable(value, inner)) is not None:
        return found
    if isinstance(value, np.dtype):
        return str(value)
    return _array(value) if _tree.is_array(value) else _container(value, inner)


def _callable(value: Any, inner: Any) -> Any:
    """Describes functions and types; returns None for another object that can be called, such as a dataclass."""
    if isinstance(value, functools.partial):
        return {"partial": inner(value.func), "args": inner(value.args), "keywords": inner(value.keywords)}
    if isinstance(value, types.MethodType):
        return {"method": _name(value), "of": inner(value.__self__)}
    if isinstance(value, types.FunctionType):
        return _function(value, inner)
    if isinstance(value, type | np.ufunc | types.BuiltinFunctionType):
        return _name(value)
    if isinstance(getattr(value, "__wrapped__", None), types.FunctionType | functools.partial):  # such as jax.jit makes
        return {_name(type(value)): inner(value.__wrapped__)}
    return None


def _container(value: Any, inner: Any) -> Any:
    kind = {"type": _name(type(value))}
    named = [field.name for field in fields(value)] if is_dataclass(value) else getattr(value, "_fields", None)
    if named is not None:
        return kind | {name: inner(getattr(value, name)) for name in named}
    if isinstance(value, Mapping):  # as pairs in their order, because the order of globs may count
        return [[inner(key), inner(entry)] for key, entry in value.items()]
    if isinstance(value, list | tuple):
        return [inner(entry) for entry in value]
    if isinstance(value, set | frozenset):
        return sorted((inner(entry) for entry in value), key=json.dumps)
    leaves, structure = jax.tree.flatten(value)
    if not jax.tree_util.treedef_is_leaf(structure):
        return kind | {"leaves": [inner(leaf) for leaf in leaves]}
    text = str(value) if isinstance(value, PurePath) else repr(value)
    return f"{_name(type(value))} (not compared)" if " at 0x" in text else text


def _function(function: types.FunctionType, inner: Any) -> Any:
    cells = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            content = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
        cells[name] = inner(content, _closure=True)
    defaults = {"defaults": inner(function.__defaults__), "keywords": inner(function.__kwdefaults__)}
    found = {"function": _name(function), "closure": cells} | {name: x for name, x in defaults.items() if x}
    if function.__name__ == "<lambda>":
        found["code"] = hashlib.sha256(repr(_code(function.__code__)).encode()).hexdigest()[:16]
    return found if len(found) > 2 or cells else found["function"]


def _code(code: types.CodeType) -> Any:
    constants = [_code(x) if isinstance(x, types.CodeType) else x for x in code.co_consts]
    constants = [sorted(map(repr, x)) if isinstance(x, frozenset) else x for x in constants]
    return code.co_code, constants, code.co_names


def _array(value: Any) -> str:
    if isinstance(value, jax.ShapeDtypeStruct):
        return _tree.kind(value)
    if not getattr(value, "is_fully_addressable", True):
        return f"{_tree.kind(value)} of several processes (not compared)"
    keys = isinstance(value, jax.Array) and jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key)
    array = np.ascontiguousarray(jax.random.key_data(value) if keys else value)
    if array.size <= _FEW and not keys:
        return f"{_tree.kind(value)} {array.tolist()}"
    data = repr(array.tolist()).encode() if array.dtype == object else array.reshape(-1).view(np.uint8).data
    return f"{_tree.kind(value)} {hashlib.sha256(data).hexdigest()[:16]}"


def _name(value: Any) -> str:
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", getattr(value, "__name__", ""))
    return f"{module}.{name}" if module else name
