"""Checks of the arguments of public functions, such as sparsities and keys; `call` and `each` call functions.

`at_hand` tells which arrays NumPy can read in place.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import SingleDeviceSharding

PyTree = Any

_FEW = 8  # leaves that are computed one by one
_LARGE = 1 << 24  # entries of a leaf from which compiling is worth its time


def is_array(leaf: Any) -> bool:
    """Returns whether a leaf is an array or a ShapeDtypeStruct.

    Args:
      leaf: anything.

    Returns:
      A Python bool; False for Python numbers.

    Example:
      >>> is_array(jnp.ones(2)), is_array(1.0)
      (True, False)
    """
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def kind(leaf: Any) -> str:
    """Returns the dtype and shape of an array, or the name of the type of another leaf.

    Example:
      >>> kind(jnp.ones((2, 3))), kind('half')
      ('float32[2, 3]', 'str')
    """
    return f"{leaf.dtype}{list(leaf.shape)}" if is_array(leaf) else type(leaf).__name__


def shown(value: Any) -> str:
    """Returns a short text for any value, for a message.

    Args:
      value: anything.

    Returns:
      The dtype and shape of an array, the type of a container, the name of a function, else at most 100 characters of
      its `repr`.

    Example:
      >>> shown({'w': 1.0}), shown(jnp.ones((2, 3))), shown(jnp.ones(())), shown('half')
      ('a dict', 'float32[2, 3]', 'a scalar float32 array', "'half'")
    """
    if is_array(value) and not isinstance(value, type):
        return kind(value) if value.shape else f"a scalar {value.dtype} array"
    if isinstance(value, dict) or (isinstance(value, list | tuple | Mapping) and jax.tree.leaves(value)):
        scalars = isinstance(value, list | tuple) and all(isinstance(x, int | float | str) for x in value)
        if not scalars:
            return f"a {type(value).__name__}"
    text = " ".join(repr(value).split())
    if " at 0x" in text:
        return f"{type(value).__name__} {getattr(value, '__qualname__', '')}".strip()
    return text if len(text) <= 100 else f"{text[:97]}..."


def check_function(given: Any, what: str, such_as: str) -> None:
    """Raises if the argument is not a function but, for instance, a name, a number or a result.

    Args:
      given: the argument.
      what: the name of the argument.
      such_as: an example of what to pass.

    Raises:
      TypeError: the argument is not callable.

    Example:
      >>> check_function(len, 'criterion', 'criteria.magnitude')
    """
    if not callable(given):
        raise TypeError(f"{what} must be a function, such as {such_as}; got {shown(given)}")


def check_instance(given: Any, kind: Any, what: str, expected: str) -> None:
    """Raises where an argument is of another type.

    Args:
      given: the argument.
      kind: its type, or a union of types.
      what: its name.
      expected: the expected argument, and the function that returns it.

    Raises:
      TypeError: it is of another type.

    Example:
      >>> check_instance([1], dict, 'controls', 'a mapping from names to controls')
      Traceback (most recent call last):
      TypeError: controls must be a mapping from names to controls; got [1]
    """
    if not isinstance(given, kind):
        raise TypeError(f"{what} must be {expected}; got {shown(given)}")


def call(fn: Any, what: str, form: str, /, *args: Any, **kwargs: Any) -> Any:
    """Calls a user's function; if it does not accept the arguments, the error names it and the form of the call.

    Args:
      fn: the function.
      what: the name of the argument.
      form: how it is called, such as "fn(params, *inputs)".
      *args: its arguments.
      **kwargs: its keyword arguments.

    Returns:
      The result of `fn`.

    Raises:
      TypeError: `fn` is not a function, or does not accept these arguments. Errors that `fn` itself raises get a note.

    Example:
      >>> call(lambda params: 1.0, 'f', 'f(params, batch)', {}, jnp.ones(2))
      Traceback (most recent call last):
      TypeError: f is called as f(params, batch), but does not accept these arguments: too many positional arguments
    """
    if not callable(fn):
        swapped = f"; {what} and the argument after it are swapped" if args and _is_function(args[0]) else ""
        raise TypeError(f"{what} must be a function {form}; got {shown(fn)}{swapped}")
    try:
        return fn(*args, **kwargs)
    except Exception as error:
        if isinstance(error, TypeError) and (reason := _unbound(fn, args, kwargs)):
            # Modules of NNX, Linen and Equinox are callable objects without a name.
            is_module = "(params, *inputs)" in form and not hasattr(fn, "__name__") and not isinstance(fn, partial)
            module = "; pass a function of a module's parameters: lambda params, x: nnx.merge(graph, params)(x)"
            raise TypeError(
                f"{what} is called as {form}, but does not accept these arguments: {reason}"
                f"{module if is_module else ''}"
            ) from error
        note = f"{what} was called as {form}"
        if note not in getattr(error, "__notes__", []):
            error.add_note(note)
        raise


def scalar(loss: Any, what: str, form: str) -> Callable[..., Any]:
    """Returns a user's function with a check that it returns a scalar.

    Args:
      loss: the function.
      what: the name of the argument.
      form: how it is called, such as "loss(params, batch)".

    Returns:
      The function.

    Raises:
      TypeError: `loss` is not a function; when called, it does not take the arguments or does not return a scalar.

    Example:
      >>> scalar(lambda x: 2 * x, 'loss', 'loss(x)')(jnp.ones(3))
      Traceback (most recent call last):
      TypeError: loss must return a scalar, such as a mean over the batch; got float32[3]
    """
    check_function(loss, what, form)

    def checked(*args: Any, **kwargs: Any) -> Any:
        value = call(loss, what, form, *args, **kwargs)
        if not isinstance(value, int | float) and getattr(value, "shape", None) != ():
            raise TypeError(f"{what} must return a scalar, such as a mean over the batch; got {shown(value)}")
        return value

    return checked


def check_sparsity(sparsity: Any, what: str = "sparsity") -> Any:
    """Checks that a number or an array is a sparsity in [0, 1); the value of a traced array is not checked.

    Args:
      sparsity: a real number, or a floating scalar array.
      what: the name of the sparsity, for the message.

    Returns:
      A Python float; the array itself if its value is not known here.

    Raises:
      TypeError: the sparsity is neither a number nor a floating scalar.
      ValueError: the sparsity is outside [0, 1), or NaN.

    Example:
      >>> check_sparsity(90, 'dense/kernel: sparsity')
      Traceback (most recent call last):
      ValueError: dense/kernel: sparsity is the fraction removed and must be in [0, 1), got 90; for 90 % pass 0.9
    """
    if isinstance(sparsity, jax.Array):
        if sparsity.ndim or not jnp.issubdtype(sparsity.dtype, jnp.floating):
            raise TypeError(f"{what} must be a floating scalar, got {shown(sparsity)}")
        if isinstance(sparsity, Tracer) or not sparsity.is_fully_addressable:
            return sparsity
        sparsity = float(sparsity)
    if isinstance(sparsity, np.ndarray) and sparsity.ndim == 0:
        sparsity = sparsity.item()
    if not isinstance(sparsity, Real) or isinstance(sparsity, bool):
        hint = "; sparsities by path are allocation=allocation.by_path({...})" if isinstance(sparsity, Mapping) else ""
        raise TypeError(f"{what} must be a number in [0, 1), got {sparsity!r}{hint}")
    if not 0 <= float(sparsity) < 1:
        hint = f"; for {sparsity} % pass {float(sparsity) / 100:g}" if 1 < float(sparsity) < 100 else ""
        raise ValueError(f"{what} is the fraction removed and must be in [0, 1), got {sparsity}{hint}")
    return float(sparsity)


def check_key(key: Any, *, needed_by: str | None = None) -> None:
    """Raises if a seed or another value was passed instead of a key.

    Args:
      key: a key of `jax.random`, typed or raw, or an array of keys; or None.
      needed_by: the function that cannot do without a key; None where None may be passed.

    Raises:
      TypeError: the argument is not a key, or None where one is needed.

    Example:
      >>> check_key(jax.random.key(0))
    """
    if key is None:
        if needed_by is not None:
            raise TypeError(f"{needed_by} needs a key: pass key=jax.random.key(seed)")
        return
    dtype = getattr(key, "dtype", None)
    if dtype is None or not (jnp.issubdtype(dtype, jax.dtypes.prng_key) or (dtype == np.uint32 and np.ndim(key))):
        raise TypeError(f"key must be a key of jax.random: pass jax.random.key(seed); got {shown(key)}")


def check_batches(batches: Any) -> None:
    """Raises if `batches` is a single batch: iterating over an array would yield its rows.

    Raises:
      TypeError: `batches` is an array, a mapping, or not iterable.
    """
    shape = getattr(batches, "shape", None)
    if shape is not None or isinstance(batches, Mapping) or not isinstance(batches, Iterable):
        got = type(batches).__name__ if shape is None else f"an array of shape {list(shape)}"
        raise TypeError(f"batches must be a list or another iterable of batches, got {got}; for one batch pass [batch]")


def at_hand(*arrays: Any) -> bool:
    """Returns whether NumPy can read all arrays in place: they are not traced, and each is on one CPU device."""
    return all(
        isinstance(x, jax.Array)
        and not isinstance(x, Tracer)
        and not jnp.issubdtype(x.dtype, jax.dtypes.extended)
        and isinstance(x.sharding, SingleDeviceSharding)
        and [device.platform for device in x.devices()] == ["cpu"]
        for x in arrays
    )


def put_like(array: np.ndarray, like: jax.Array) -> jax.Array:
    """Returns a JAX array on the device of an array that is `at_hand`.

    If no one placed that array, the new one too may go where it is used.
    """
    return jax.device_put(array, like.sharding if like.committed else None)


def each(fn: Callable[..., Any], *arrays: Sequence[Any], on_host: Callable[..., np.ndarray] | None = None) -> list[Any]:
    """Returns `fn(*leaves)` for each leaf, like `map`; many leaves outside of jit become one program.

    One at a time, JAX compiles a program for every shape, which takes longer than one program for all shapes. A few
    leaves stay apart, because other trees with the same shapes use their programs again.

    Args:
      fn: a function of arrays, the same object in every call, or the program is compiled again.
      *arrays: for each argument of `fn` one array for each leaf.
      on_host: a function of NumPy arrays that returns the same numbers as `fn`. It computes leaves that are `at_hand`,
        so that nothing is compiled. None (default): there is no such function.
    """
    given = [x for of_leaves in arrays for x in of_leaves]
    if on_host is not None and at_hand(*given) and all(x.size <= _LARGE for x in given):
        return [put_like(on_host(*map(np.asarray, leaf)), leaf[0]) for leaf in zip(*arrays, strict=True)]
    leaves = jax.tree.leaves(arrays)
    known = [x for x in leaves if isinstance(x, jax.Array) and not isinstance(x, Tracer)]
    devices = {frozenset(x.sharding.device_set) for x in known}
    traced = any(isinstance(x, Tracer) for x in leaves)
    if len(arrays[0]) <= _FEW or traced or len(devices) > 1:
        return [fn(*leaf) for leaf in zip(*arrays, strict=True)]
    return _in_one_program(fn, arrays)


@partial(jax.jit, static_argnums=0)
def _in_one_program(fn: Callable[..., Any], arrays: Sequence[Sequence[Any]]) -> list[Any]:
    return [fn(*leaves) for leaves in zip(*arrays, strict=True)]


def _is_function(value: Any) -> bool:
    return inspect.isroutine(value) or hasattr(value, "__wrapped__")


def _unbound(fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Returns why the arguments do not fit the signature of a function; empty if they do or it has none."""
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):
        return ""
    try:
        _ = signature.bind(*args, **kwargs)
    except TypeError as error:
        return str(error)
    return ""
