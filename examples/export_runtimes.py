"""A trained network, pruned, as a smaller file in another runtime: ONNX, StableHLO or IREE.

    python examples/export_runtimes.py cnn onnx iree --output output/export

trains a CNN (`cnn`) or a vision transformer (`vit`) on the digits of scikit-learn, or a decoder of the Llama family on
a text (`decoder`); removes half the units of each group; trains the smaller network further; writes both networks to
files of the runtime; and runs the files. It prints how far the runtime's outputs are from JAX's, the sizes of the
files, and how much faster the smaller file is, beside how many times fewer FLOPs it has.

    onnx       jax2onnx writes, ONNX Runtime runs; any batch size
    stablehlo  jaxprune.checkpoints.save_slim writes, load_slim reads; any batch size
    iree       IREE compiles for the processor of this machine; one batch size

All of it comes with `pip install '.[export]'`.
"""

import argparse
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import jaxpr_as_fun

from jaxprune import assess, checkpoints, masks, models, slimming

PyTree = Any
Run = Callable[[np.ndarray], np.ndarray]


class Task(NamedTuple):
    """A network and its data.

    Attributes:
      fn: `(params, inputs) -> logits`.
      params: initial parameters.
      batches: a generator of training batches `(inputs, labels)` from a seed and a number of steps.
      test: held-out inputs and labels.
      rate: the learning rate of Adam.
    """

    fn: Callable[..., Any]
    params: PyTree
    batches: Callable[[int, int], Iterator[tuple[np.ndarray, np.ndarray]]]
    test: tuple[np.ndarray, np.ndarray]
    rate: float


class CNN(nn.Module):
    """Three convolutions."""

    width: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.relu(nn.Conv(self.width, (3, 3))(x))
        x = nn.relu(nn.Conv(2 * self.width, (3, 3))(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Conv(2 * self.width, (3, 3))(x))
        return nn.Dense(10)(x.mean((1, 2)))


class ViT(nn.Module):
    """A vision transformer on patches of 4 x 4 pixels."""

    width: int
    layers: int = 4

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Conv(self.width, (4, 4), (4, 4))(x)
        x = x.reshape(x.shape[0], -1, self.width)
        x = x + self.param("position", nn.initializers.normal(0.02), (1, x.shape[1], self.width))
        for _ in range(self.layers):
            x = x + nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x))
            x = x + nn.Dense(self.width)(nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x))))
        return nn.Dense(10)(nn.LayerNorm()(x).mean(1))


def digits(model: nn.Module, rate: float) -> Task:
    """The 8 x 8 digits, enlarged to 16 x 16; a fifth is held out."""
    from sklearn.datasets import load_digits

    pixels, digit = load_digits(return_X_y=True)
    images = np.kron(pixels.reshape(-1, 8, 8) / 16, np.ones((2, 2)))[..., None].astype(np.float32)
    labels = digit.astype(np.int32)
    order = np.random.default_rng(0).permutation(len(images))
    test, train = order[: len(order) // 5], order[len(order) // 5 :]

    def batches(seed: int, steps: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        rng = np.random.default_rng(seed)
        for _ in range(steps):
            rows = rng.choice(train, 64, replace=False)
            yield images[rows], labels[rows]

    params = model.init(jax.random.key(0), images[:1])
    return Task(model.apply, params, batches, (images[test], labels[test]), rate)


def text(width: int, source: Path | None, context: int = 64) -> Task:
    """A decoder of characters; by default the text is the documentation beside this script. A tenth is held out."""
    folder = Path(__file__).parent.parent
    pages = [source] if source else [folder / "README.md", *sorted((folder / "docs").rglob("*.md"))]
    read = np.frombuffer("".join(page.read_text() for page in pages).encode("ascii", "ignore"), np.uint8)
    train, test = np.split(read.astype(np.int32), [9 * len(read) // 10])
    config = {
        "model_type": "llama", "hidden_size": width, "num_attention_heads": 4, "num_hidden_layers": 3,
        "intermediate_size": 4 * width, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    }  # fmt: skip
    shapes = {"model.embed_tokens.weight": (128, width), "model.norm.weight": (width,)}
    for layer in range(config["num_hidden_layers"]):
        block = {f"self_attn.{kind}_proj": (width, width) for kind in "qkvo"}
        block |= {"mlp.gate_proj": (4 * width, width), "mlp.up_proj": (4 * width, width)}
        block |= {
            "mlp.down_proj": (width, 4 * width),
            "input_layernorm": (width,),
            "post_attention_layernorm": (width,),
        }
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in block.items()}
    keys = dict(zip(shapes, jax.random.split(jax.random.key(0), len(shapes)), strict=True))
    params = {
        name: jax.random.normal(keys[name], shape) / shape[-1] ** 0.5 if len(shape) == 2 else jnp.ones(shape)
        for name, shape in shapes.items()
    }

    def windows(characters: np.ndarray, rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
        starts = rng.integers(0, len(characters) - context - 1, rows)
        found = characters[starts[:, None] + np.arange(context + 1)]
        return found[:, :-1], found[:, 1:]

    def batches(seed: int, steps: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        rng = np.random.default_rng(seed)
        for _ in range(steps):
            yield windows(train, rng, 16)

    return Task(models.decoder(config), params, batches, windows(test, np.random.default_rng(0), 64), 2e-3)


def make(name: str, width: int | None, source: Path | None) -> Task:
    """The task of a name."""
    if name == "decoder":
        return text(width or 128, source)
    return digits(CNN(width or 64), 1e-3) if name == "cnn" else digits(ViT(width or 128), 5e-4)


def train(task: Task, fn: Callable[..., Any], params: PyTree, steps: int, seed: int) -> PyTree:
    """Parameters after some steps of Adam."""
    optimizer = optax.adam(optax.cosine_decay_schedule(task.rate, max(steps, 1)))

    @jax.jit
    def step(params: PyTree, state: PyTree, inputs: Any, labels: Any) -> tuple[PyTree, PyTree]:
        loss = lambda p: optax.softmax_cross_entropy_with_integer_labels(fn(p, inputs), labels).mean()
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for inputs, labels in task.batches(seed, steps):
        params, state = step(params, state, inputs, labels)
    return params


class File(NamedTuple):
    """A network in a runtime's file: its path, and what runs it on a NumPy batch."""

    path: Path
    run: Run


def free_batch(inputs: np.ndarray) -> jax.ShapeDtypeStruct:
    """The inputs' shape with a symbolic batch size."""
    shape = ", ".join(["batch", *map(str, inputs.shape[1:])])
    return jax.ShapeDtypeStruct(jax.export.symbolic_shape(shape), inputs.dtype)


def onnx(network: slimming.Slimmed, inputs: np.ndarray, path: Path) -> File:
    """ONNX with a free batch size, run by ONNX Runtime on one thread."""
    import jax2onnx  # pyright: ignore[reportMissingImports]
    import onnxruntime  # pyright: ignore[reportMissingImports]

    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # it warns about shapes that it leaves out
    path = path.with_suffix(".onnx")
    spec = free_batch(inputs)
    # Traced here, because jax2onnx puts primitives of its own in place of functions of JAX that it traces.
    program = jax.make_jaxpr(partial(network.fn, network.params))(spec)
    model = jax2onnx.to_onnx(jaxpr_as_fun(program), [spec])
    _ = path.write_bytes(model.SerializeToString())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return File(path, lambda x: np.asarray(session.run(None, {name: x})[0]))


def stablehlo(network: slimming.Slimmed, inputs: np.ndarray, path: Path) -> File:
    """A safetensors file that holds the parameters and the function as StableHLO, with a free batch size."""
    saved = checkpoints.save_slim(path.with_suffix(".safetensors"), network, free_batch(inputs))
    loaded = checkpoints.load_slim(saved.path)
    run = jax.jit(loaded.fn)
    return File(saved.path, lambda x: np.asarray(run(loaded.params, x)))


def iree(network: slimming.Slimmed, inputs: np.ndarray, path: Path) -> File:
    """A module of IREE for this processor and this batch size, run on one thread."""
    from iree import compiler, runtime  # pyright: ignore[reportMissingImports]

    exported = jax.export.export(jax.jit(partial(network.fn, network.params)))(inputs)
    options = ["--iree-llvmcpu-target-cpu=host"]
    compiled = compiler.compile_str(
        exported.mlir_module(), target_backends=["llvm-cpu"], input_type="stablehlo", extra_args=options
    )
    file = path.with_suffix(".vmfb")
    _ = file.write_bytes(compiled)
    module = runtime.load_vm_flatbuffer_file(str(file), driver="local-sync")
    return File(file, lambda x: np.asarray(module.main(x).to_host()))


RUNTIMES = {"onnx": onnx, "stablehlo": stablehlo, "iree": iree}


def quality(task: Task, run: Run) -> str:
    """The accuracy on held-out images, or of the next character."""
    inputs, labels = task.test
    return f"{np.mean(run(inputs).argmax(-1) == labels):.1%}"


def ratio(slow: Callable[[], Any], fast: Callable[[], Any], rounds: int) -> tuple[float, str]:
    """The CPU milliseconds of the first, and how many times less the second takes: median and quartiles over turns.

    CPU time, so that other programs on the machine do not count.
    """
    _ = slow(), fast()
    seconds = np.zeros((rounds, 2))
    for row in seconds:
        for which, call in enumerate((slow, fast)):
            began = time.process_time()
            _ = call()
            row[which] = time.process_time() - began
    low, middle, high = np.quantile(seconds[:, 0] / seconds[:, 1], [0.25, 0.5, 0.75])
    return 1e3 * float(np.median(seconds[:, 0])), f"{middle:.2f} ({low:.2f} to {high:.2f})"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=["cnn", "vit", "decoder"])
    parser.add_argument("runtimes", choices=[*RUNTIMES], nargs="+")
    parser.add_argument("--output", type=Path, required=True, help="a folder for the two files")
    parser.add_argument("--steps", type=int, default=200, help="of training; half as many follow after pruning")
    parser.add_argument("--width", type=int, help="channels, or the width of the transformer")
    parser.add_argument("--batch", type=int, default=16, help="inputs in a batch that is timed")
    parser.add_argument("--rounds", type=int, default=30, help="of timing")
    parser.add_argument("--text", type=Path, help="a text for the decoder; the documentation by default")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)

    task = make(options.network, options.width, options.text)
    params = train(task, task.fn, task.params, options.steps, seed=1)
    inputs = task.test[0][: options.batch]
    groups = slimming.find_groups(task.fn, params, inputs)
    whole = slimming.slim(task.fn, params, slimming.Choice.remove(groups, {}), inputs)
    small = slimming.slim(task.fn, params, 0.5, inputs)
    small = dataclasses.replace(small, params=train(task, small.fn, small.params, options.steps // 2, seed=2))

    networks = {"whole": whole, "slim": small}
    flops = {}
    for name, network in networks.items():
        size = assess.complexity(network.fn, network.params, masks.ones(network.params), inputs)
        flops[name] = size.flops
        right = quality(task, partial(jax.jit(network.fn), network.params))
        print(f"{options.network} {name:5} {size.total:9,} parameters {size.flops / 1e6:8.1f} MFLOPs, accuracy {right}")
    print(f"{flops['whole'] / flops['slim']:.2f} times fewer FLOPs", flush=True)
    for runtime in options.runtimes:
        files = {}
        for name, network in networks.items():
            file = RUNTIMES[runtime](network, inputs, options.output / f"{options.network}-{name}")
            other = inputs if runtime == "iree" else task.test[0][: options.batch + 3]
            apart = max(np.abs(file.run(x) - jax.jit(network.fn)(network.params, x)).max() for x in (inputs, other))
            print(
                f"{runtime:9} {name:5} {file.path.stat().st_size:10,} bytes, at most {apart:.1e} from JAX", flush=True
            )
            files[name] = file.run
        slow, faster = ratio(partial(files["whole"], inputs), partial(files["slim"], inputs), options.rounds)
        print(f"{runtime:9} {options.batch} inputs {slow:8.2f} CPU ms, slim {faster} times faster", flush=True)


if __name__ == "__main__":
    main()
