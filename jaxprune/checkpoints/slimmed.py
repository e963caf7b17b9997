"""Slim networks in one file: `save_slim` and `load_slim` keep the smaller function, its parameters and the manifest."""

import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import export

from jaxprune import _tree
from jaxprune.checkpoints import _disk, networks
from jaxprune.checkpoints.networks import Saved
from jaxprune.slimming import Manifest, Slimmed

PyTree = Any
_FUNCTION = "jaxprune.function"


def save_slim(path: Any, slimmed: Slimmed, *inputs: Any, platforms: Sequence[str] = ("cpu", "cuda", "tpu")) -> Saved:
    """Writes a slim network and its function to a new safetensors file.

    The file holds the smaller parameters as `save` writes them, the manifest, and the function as a StableHLO program
    (`jax.export`). Whoever loads it needs neither the original network nor its code.

    Args:
      path: a file that does not exist, in a folder that does.
      slimmed: what `jaxprune.slim` returned; `dataclasses.replace(slimmed, params=trained)` after fine-tuning.
      *inputs: arrays or ShapeDtypeStructs: the loaded function takes inputs of these shapes.
        `jax.ShapeDtypeStruct(jax.export.symbolic_shape('batch, 28, 28, 1'), jnp.float32)` leaves the batch free.
      platforms: the kinds of devices that the loaded function can run on, as `jax.export` names them.

    Returns:
      The sizes.

    Raises:
      FileExistsError: the file exists; nothing is overwritten.
      ValueError: the function cannot be exported: inputs or outputs in containers other than dicts, lists, tuples and
        those registered with `jax.export`.
      TypeError: parameters that are not arrays of numbers.
      ImportError: the package safetensors or flatbuffers is missing.

    Example:
      >>> import tempfile, jaxprune
      >>> params = {'a': jnp.ones((3, 4)), 'b': jnp.ones((4, 2))}
      >>> fn = lambda p, x: jnp.tanh(x @ p['a']) @ p['b']
      >>> small = jaxprune.slim(fn, params, {'a[1]': [0, 2]}, jnp.ones((5, 3)))
      >>> path = tempfile.mkdtemp() + '/slim.safetensors'
      >>> _ = save_slim(path, small, jnp.ones((5, 3)))
      >>> fn, params, manifest = load_slim(path)
      >>> params['a'].shape, fn(params, jnp.ones((5, 3))).shape
      ((3, 2), (5, 2))
    """
    # Before the work of tracing and compiling: jax.export misses flatbuffers only at its end.
    _tree.check_instance(slimmed, Slimmed, "slimmed", "what slim returned; save other networks by checkpoints.save")
    _ = _disk.check_new(path), _disk.optional("flatbuffers", "saving a function")
    structure = jax.tree.structure(slimmed.params)

    def flat(leaves: list[Any], *inputs: Any) -> PyTree:
        # A list of leaves, because the containers of the parameters may be of classes that nobody registered.
        return slimmed.fn(jax.tree.unflatten(structure, leaves), *inputs)

    try:
        program = export.export(jax.jit(flat), platforms=platforms)(
            jax.tree.leaves(slimmed.params), *inputs
        ).serialize()
    except ValueError as error:
        raise ValueError(f"the function cannot be exported: {error}") from error
    about = {"manifest": json.loads(slimmed.manifest.to_json())}
    return networks.write(path, slimmed.params, None, about, {_FUNCTION: np.frombuffer(program, np.uint8)})


def load_slim(path: Any, like: PyTree = None) -> Slimmed:
    """Reads a slim network with its function from a file that `save_slim` wrote.

    The function runs under jit and vmap. It has no gradient: to train on, call
    `jaxprune.slim(fn, params, loaded.manifest, *inputs)` with the original network and load the parameters with `load`.

    Args:
      path: the file.
      like: arrays or ShapeDtypeStructs in the structure of the smaller parameters, for parameters in containers other
        than dicts; see `load`.

    Returns:
      `Slimmed(fn, params, manifest)`.

    Raises:
      ValueError: the file is damaged, holds no function, or other parameters than `like`.
      ImportError: the package safetensors or flatbuffers is missing.
    """
    _ = _disk.optional("flatbuffers", "loading a function")
    loaded, arrays, paths = networks.read(path, like)
    if _FUNCTION not in arrays:
        raise ValueError(f"{path} holds a network without its function; read it with checkpoints.load")
    exported = export.deserialize(bytearray(arrays[_FUNCTION]))

    def fn(params: PyTree, *inputs: Any) -> PyTree:
        leaves = {_tree.identity(p): leaf for p, leaf in _tree.with_paths(params)}
        return exported.call([leaves[p] for p in paths], *inputs)

    return Slimmed(fn, loaded.params, Manifest.from_json(json.dumps(loaded.about["manifest"])))
