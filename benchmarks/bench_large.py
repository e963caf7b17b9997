"""An 8-billion-parameter decoder on a mesh of 256 devices, compiled and not run: what pruning costs there.

    python benchmarks/bench_large.py --output output/bench
    python benchmarks/bench_large.py --quick

A Llama-like decoder (the sizes of Llama 3 8B: Grattafiori et al. 2024, arXiv 2407.21783, table 3), its 32 layers
scanned, its arrays cut along both axes of a mesh of simulated devices. Everything is lowered from ShapeDtypeStructs: no
weight exists. Printed for each device, as the compiled program has it and by a model on paper: the memory of the state,
temporary memory, and the bytes that the mask update and the training step move. XLA's compiler for CPUs schedules for
time, not for memory, so its temporary memory is no forecast for a TPU or GPU; the state and the collectives are what
the partitioner makes of the program on any of them.
"""

import argparse
import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from collectives import Moved, collectives, total
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune
from jaxprune import _tree, masks, schedules, training

PyTree = Any
SPARSITY = 0.9
TURNS = (2, 8)


class Sizes(NamedTuple):
    """What makes a decoder."""

    layers: int = 32
    width: int = 4096
    hidden: int = 14336
    heads: int = 32
    key_heads: int = 8
    vocabulary: int = 128256
    batch: int = 256
    length: int = 2048


QUICK = Sizes(2, 64, 128, 4, 2, 256, 16, 32)
# Leaves are cut along `data` (as the batch is) and along `model`; the leading axis is that of the layers.
SPECS = {
    "embed": P("model", "data"),
    "head": P("data", "model"),
    "layers": {
        "attention_norm": P(None, None), "mlp_norm": P(None, None),
        "q": P(None, "data", "model"), "k": P(None, "data", "model"), "v": P(None, "data", "model"),
        "o": P(None, "model", "data"), "gate": P(None, "data", "model"), "up": P(None, "data", "model"),
        "down": P(None, "model", "data"),
    },
    "norm": P(None),
}  # fmt: skip


def shapes(s: Sizes) -> PyTree:
    """The parameters, float32."""
    keys = s.width // s.heads * s.key_heads
    layer = {
        "attention_norm": (s.width,), "mlp_norm": (s.width,), "q": (s.width, s.width), "k": (s.width, keys),
        "v": (s.width, keys), "o": (s.width, s.width), "gate": (s.width, s.hidden), "up": (s.width, s.hidden),
        "down": (s.hidden, s.width),
    }  # fmt: skip
    named = {
        "embed": (s.vocabulary, s.width),
        "head": (s.width, s.vocabulary),
        "layers": {name: (s.layers, *shape) for name, shape in layer.items()},
        "norm": (s.width,),
    }
    make = lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.tree.map(make, named, is_leaf=lambda x: isinstance(x, tuple))


def norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt((x.astype(jnp.float32) ** 2).mean(-1, keepdims=True) + 1e-5).astype(x.dtype) * scale


def rotate(x: jax.Array) -> jax.Array:
    """Rotary positions, (batch, length, heads, size)."""
    half = x.shape[-1] // 2
    angle = jnp.arange(x.shape[1])[:, None] / 500000 ** (jnp.arange(half) / half)
    sin, cos = (f(angle)[None, :, None].astype(x.dtype) for f in (jnp.sin, jnp.cos))
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def block(s: Sizes, x: jax.Array, w: PyTree) -> jax.Array:
    """One layer: grouped-query attention and a gated MLP."""
    w = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), w)
    batch, length, _ = x.shape
    h = norm(x, w["attention_norm"])
    q = rotate((h @ w["q"]).reshape(batch, length, s.heads, -1))
    k = rotate((h @ w["k"]).reshape(batch, length, s.key_heads, -1))
    v = (h @ w["v"]).reshape(batch, length, s.key_heads, -1)
    x = x + jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(batch, length, -1) @ w["o"]
    h = norm(x, w["mlp_norm"])
    return x + (jax.nn.silu(h @ w["gate"]) * (h @ w["up"])) @ w["down"]


def loss(s: Sizes, params: PyTree, tokens: jax.Array) -> jax.Array:
    """Next-token loss; a layer keeps its input and is computed again in the backward pass."""
    hold = lambda x: jax.lax.with_sharding_constraint(x, P("data"))
    x = hold(params["embed"].astype(jnp.bfloat16)[tokens[:, :-1]])
    body = jax.checkpoint(lambda x, w: (hold(block(s, x, w)), None))
    x, _ = jax.lax.scan(body, x, params["layers"])
    logits = norm(x, params["norm"].astype(x.dtype)) @ params["head"].astype(x.dtype)
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), tokens[:, 1:]).mean()


def place(structure: PyTree, params: PyTree, mesh: Mesh) -> PyTree:
    """Shapes with shardings, inferred by path and shape: moments and masks lie with their parameter."""
    specs = dict(
        zip([name for name, _ in _tree.named_leaves(params)], jax.tree.leaves(SPECS, is_leaf=_is_spec), strict=True)
    )

    def of(name: str, leaf: Any) -> Any:
        name = name.removesuffix("/bits")
        found = [spec for own, spec in specs.items() if name == own or name.endswith(f"/{own}")]
        spec = found[0] if found and len(leaf.shape) == len(found[0]) else P()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return _tree.map_named(of, structure)


def _is_spec(x: Any) -> bool:
    return isinstance(x, P)


def held(structure: PyTree) -> int:
    """Bytes of a tree on one device."""
    sizes = [math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(structure)]
    return sum(sizes)


def compile_program(
    name: str, fn: Callable[..., Any], arguments: tuple[Any, ...], mesh: Mesh, **options: Any
) -> dict[str, Any]:
    """Compiles, and says what the program takes on each device."""
    began = time.perf_counter()
    with jax.set_mesh(mesh):
        compiled = jax.jit(fn, **options).lower(*arguments).compile()
    seconds = time.perf_counter() - began
    moved = collectives(compiled, turns=TURNS)
    memory = compiled.memory_analysis()
    assert memory is not None
    by_kind = {kind: total([m for m in moved if m.kind == kind]) for kind in sorted({m.kind for m in moved})}
    found = {
        "program": name, "seconds": seconds, "arguments": memory.argument_size_in_bytes,
        "temporary": memory.temp_size_in_bytes, "moved": total(moved), "by_kind": by_kind,
        "largest": max((m.largest for m in moved), default=0),
        "most": most(moved),
    }  # fmt: skip
    print(f"  {name}: compiled in {seconds:.0f} s, {by_kind}", flush=True)
    return found


def most(moved: list[Moved]) -> list[list[Any]]:
    """What moves the most: kind, bytes each time, how often, and in how many places of the program."""
    alike = Counter((m.kind, m.size, m.times) for m in moved)
    return [
        [*key, places] for key, places in sorted(alike.items(), key=lambda one: -one[0][1] * one[0][2] * one[1])[:12]
    ]


def programs(s: Sizes, mesh: Mesh) -> list[dict[str, Any]]:
    """Mask updates alone, the dense step, the sparse step."""
    params = shapes(s)
    weights = place(params, params, mesh)
    tokens = jax.ShapeDtypeStruct((s.batch, s.length + 1), jnp.int32, sharding=NamedSharding(mesh, P("data")))
    out = lambda structure: jax.tree.map(lambda x: x.sharding, structure)
    magnitudes: Callable[[PyTree], PyTree] = partial(jax.tree.map, jnp.abs)
    stacked: Any = {"layers/*": 1}
    where = ("embed", "head", *(f"layers/{name}" for name in ("q", "k", "v", "o", "gate", "up", "down")))
    update = {
        "mask update, each layer": lambda p: masks.select(magnitudes(p), SPARSITY, where=where, batch_axes=stacked),
        "mask update, global": lambda p: masks.select_global(magnitudes(p), SPARSITY, where=where),
    }
    found = [compile_program(name, fn, (weights,), mesh) | {"state": held(weights)} for name, fn in update.items()]
    method = training.gradual(
        schedules.cubic(0, 1000, SPARSITY), when=schedules.every(100), where=where, batch_axes=stacked
    )
    adam = optax.adam(1e-4)
    for name, optimizer in {"dense step": adam, "sparse step": jaxprune.sparsify(adam, method, packed=True)}.items():
        state = place(jax.eval_shape(optimizer.init, params), params, mesh)

        def step(p: PyTree, state: PyTree, batch: jax.Array, optimizer: Any = optimizer) -> tuple[PyTree, PyTree]:
            updates, state = optimizer.update(jax.grad(partial(loss, s))(p, batch), state, p)
            return optax.apply_updates(p, updates), state

        row = compile_program(
            name, step, (weights, state, tokens), mesh, donate_argnums=(0, 1), out_shardings=(out(weights), out(state))
        )
        found.append(row | {"state": held((weights, state, tokens))})
    return found


def on_paper(s: Sizes, mesh: Mesh) -> dict[str, dict[str, float]]:
    """What each program should take on a device.

    n parameters, of which p are pruned and the rest, of norms, lie whole on each device; D x M devices, D of them along
    `data`; b tokens on a device.
      state         4 (p / (D M) + n - p) for the weights, twice that for Adam's moments, p / 8 / (D M) for packed masks
      mask update   a count of 4 bytes for each of 8 probes of each row (a leaf, or a layer of a leaf) in each pass,
                    and a sample of 1024 keys, or of 64 of each row; both summed along one axis of the mesh and then
                    along the other. It takes what is pruned alone
      step          a device's slice of `model` of the layers' weights, gathered forward and again backward, of the head
                    once, all as float32 (they are cast after that): 8 l / M and 4 h / M bytes; gradients, 4 p / M,
                    summed over `data`; and 8 sums a layer of b activations over `model`, which a CPU makes in float32:
                    2 forward, 1 recomputed, 5 for the inputs of the products
    """
    sizes = {name: math.prod(leaf.shape) for name, leaf in _tree.named_leaves(shapes(s))}
    pruned = sum(size for name, size in sizes.items() if "norm" not in name)
    whole = sum(sizes.values()) - pruned
    data, model = mesh.shape["data"], mesh.shape["model"]
    weights = 4 * (pruned / mesh.size + whole)
    tokens = s.batch * (s.length + 1) * 4 / data
    rows = {"mask update, each layer": 2 + 7 * s.layers, "mask update, global": 9}
    paper = {
        name: {"state": 4 * pruned / mesh.size, "moved": 2 * 4 * (math.prod(TURNS) * r * 8 + max(1024, 64 * r))}
        for name, r in rows.items()
    }
    sums = 8 * s.layers * 4 * s.batch / data * s.length * s.width * (model > 1)
    layers = pruned - sizes["embed"] - sizes["head"]
    step = (8 * layers + 4 * sizes["head"] + 4 * pruned) / model + sums
    paper["dense step"] = {"state": 3 * weights + tokens, "moved": step}
    extra = paper["mask update, each layer"]["moved"]
    paper["sparse step"] = {"state": 3 * weights + tokens + pruned / 8 / mesh.size, "moved": step + extra}
    return paper


def show(rows: list[dict[str, Any]], paper: dict[str, dict[str, float]]) -> None:
    print("Each device:")
    print("| program | state, GB | on paper | temporary, GB | moved, MB | on paper | largest, MB | compiled in |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        own = paper[row["program"]]
        numbers = [
            f"{row['arguments'] / 1e9:.4f}", f"{own['state'] / 1e9:.4f}", f"{row['temporary'] / 1e9:.3f}",
            f"{row['moved'] / 1e6:,.3f}", f"{own['moved'] / 1e6:,.3f}", f"{row['largest'] / 1e6:,.4f}",
            f"{row['seconds']:.0f} s",
        ]  # fmt: skip
        print("| " + " | ".join([row["program"], *numbers]) + " |")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=256)
    parser.add_argument("--model", type=int, default=4, help="devices along the model axis of the mesh")
    parser.add_argument("--layers", type=int, default=Sizes().layers)
    parser.add_argument("--output", type=Path, help="a folder to write large.json into")
    parser.add_argument("--quick", action="store_true", help="a small decoder on 8 devices")
    options = parser.parse_args(arguments)
    sizes = QUICK if options.quick else Sizes(layers=options.layers)
    devices, model = (8, 2) if options.quick else (options.devices, options.model)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    mesh = jax.make_mesh((devices // model, model), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    entries = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes(sizes)))
    print(f"{entries:,} parameters on {devices} simulated devices {dict(mesh.shape)}, jax {jax.__version__}, {sizes}")
    rows, paper = programs(sizes, mesh), on_paper(sizes, mesh)
    show(rows, paper)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        content = {"devices": devices, "sizes": sizes._asdict(), "cpus": os.cpu_count(), "rows": rows, "paper": paper}
        (options.output / "large.json").write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
