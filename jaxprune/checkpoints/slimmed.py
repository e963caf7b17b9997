"""`save_slim` and `load_slim`: a slim network in one file: the smaller function, its parameters and the manifest."""

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

    The file contains the smaller parameters in the format of `save`, the manifest, and the function as a StableHLO
    program (`jax.export`). `load_slim` needs neither the original network nor its code.

    Args:
      path: a new file in an existing folder.
      slimmed: the result of `jaxprune.slim`; after fine-tuning `dataclasses.replace(slimmed, params=trained)`.
      *inputs: arrays or ShapeDtypeStructs: the loaded function takes inputs of these shapes.
        `jax.ShapeDtypeStruct(jax.export.symbolic_shape('batch, 28, 28, 1'), jnp.float32)` allows any batch size.
      platforms: the kinds of devices on which the loaded function can run, with the names of `jax.export`.

    Returns:
      The sizes.

    Raises:
      FileExistsError: the file exists; nothing is overwritten.
      ValueError: the function cannot be exported: its inputs or outputs have containers other than dicts, lists, tuples
        and classes registered with `jax.export`.
      TypeError: parameters are not arrays of numbers.
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
    _tree.check_instance(slimmed, Slimmed, "slimmed", "what slim returned; save other networks by checkpoints.save")
    # Checked before tracing and compiling, because jax.export needs flatbuffers only at its end.
    _ = _disk.check_new(path), _disk.optional("flatbuffers", "saving a function")
    structure = jax.tree.structure(slimmed.params)

    def flat(leaves: list[Any], *inputs: Any) -> PyTree:
        # A list of leaves, because the containers of the parameters may not be registered with jax.export.
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
    """Reads a slim network and its function from a file that `save_slim` wrote.

    The function runs under jit and vmap but has no gradient. To continue training, call
    `jaxprune.slim(fn, params, loaded.manifest, *inputs)` with the original network, and load the parameters with
    `load`.

    Args:
      path: the file.
      like: arrays or ShapeDtypeStructs in the structure of the smaller parameters, if their containers are not dicts;
        see `load`. Default None.

    Returns:
      `Slimmed(fn, params, manifest)`.

    Raises:
      ValueError: the file is damaged, contains no function, or its parameters differ from `like`.
      ImportError: the package safetensors or flatbuffers is missing.
    """
    _ = _disk.optional("flatbuffers", "loading a function")
    loaded, arrays, paths = networks.read(path, like)
    if _FUNCTION not in arrays:
        raise ValueError(f"{path} contains a network without its function; read it with checkpoints.load")
    exported = export.deserialize(bytearray(arrays[_FUNCTION]))

    def fn(params: PyTree, *inputs: Any) -> PyTree:
        leaves = {_tree.identity(p): leaf for p, leaf in _tree.with_paths(params)}
        return exported.call([leaves[p] for p in paths], *inputs)

    return Slimmed(fn, loaded.params, Manifest.from_json(json.dumps(loaded.about["manifest"])))
