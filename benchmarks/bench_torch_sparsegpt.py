"""SparseGPT beside its published torch code on the same layers: processor seconds, wall seconds, the same weights.

    pip install torch transformers; git clone https://github.com/IST-DASLab/sparsegpt
    python benchmarks/bench_torch_sparsegpt.py --code sparsegpt --model MODEL --text tinyshakespeare.txt --cores 0

The layers are those of the first block of a language model (`bench_language_model.py import`), calibrated on the text.
Contestants take turns; with `--cores` the process is bound to these cores, so that processor seconds compare on a
machine that others use too.
"""

import argparse
import contextlib
import io
import os
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np

KERNELS = [f"{name}_proj.weight" for name in ("self_attn.q", "self_attn.k", "mlp.up", "mlp.down")]


def published(folder: Path) -> Any:
    """The published module, without the parts of transformers and CUDA that a linear layer on a CPU does not need."""
    import torch  # pyright: ignore[reportMissingImports]

    stub: Any = types.ModuleType("transformers")
    stub.Conv1D = type("Conv1D", (), {})
    _ = sys.modules.setdefault("transformers", stub)
    sys.path.insert(0, str(folder))
    import sparsegpt  # pyright: ignore[reportMissingImports]

    torch.cuda.synchronize = lambda: None
    return sparsegpt


def theirs(module: Any, weight: np.ndarray, gram: np.ndarray, pattern: dict[str, Any]) -> np.ndarray:
    """The published code on a kernel [outputs, inputs]."""
    import torch  # pyright: ignore[reportMissingImports]

    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = torch.from_numpy(weight.copy())
    pruner = module.SparseGPT(layer)
    pruner.H = torch.from_numpy(gram.copy())
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its time and error
        pruner.fasterprune(**pattern)
    return layer.weight.data.numpy()


def first_block(model: Path, text: Path, count: int) -> tuple[dict[str, Any], Any]:
    """The first block's parameters, and statistics of KERNELS on windows of a text."""
    import jax.numpy as jnp
    from bench_language_model import windows

    from jaxprune import checkpoints, models
    from jaxprune.calibration import calibrate

    folder = checkpoints.Folder(model)
    cut = models.parts(folder.config)
    names = [name for name in folder.shapes if name.startswith("model.layers.0.")]
    params = models.block_params(folder.load(names), 0)
    tokens = jnp.asarray(windows(model, text, 256)[:count])
    hidden = cut.embed(folder.load(["model.embed_tokens.weight"]), tokens)
    return params, calibrate(
        lambda p, x: cut.block(p, x, 0), params, [hidden], where=lambda name, leaf: name in KERNELS
    )


def parsed(parser: argparse.ArgumentParser, *, windows: int, repeat: int) -> argparse.Namespace:
    """Adds what every comparison with published code takes, reads the command line, and binds the process to cores."""
    parser.add_argument("--code", type=Path, required=True, help="the folder of the published code")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=windows, help="of the text, for the layers of a model")
    parser.add_argument("--repeat", type=int, default=repeat)
    parser.add_argument("--cores", type=int, nargs="*")
    options = parser.parse_args()
    if options.cores:  # before the thread pools of torch and XLA count the cores
        os.sched_setaffinity(0, options.cores)
    return options


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    options = parsed(parser, windows=4, repeat=5)
    import jax
    import jax.numpy as jnp

    from jaxprune.reconstruction import Entries, Grouped, sparsegpt

    module = published(options.code)
    params, stats = first_block(options.model, options.text, options.windows)
    print("| kernel, [outputs, inputs] | pattern | ours, processor s | theirs | ours, wall s | theirs | times | same |")
    print("|---|---|---|---|---|---|---|---|")
    for name in KERNELS:
        weight, gram = np.asarray(params[name]), np.asarray(stats[name].gram[0])
        half = weight.size // 2
        cases = {
            "50 %": (Entries(jnp.asarray(half)), {"sparsity": 0.5}),
            "2:4": (Grouped(2, 4), {"sparsity": 0, "prunen": 2, "prunem": 4}),
        }
        for pattern, (target, asked) in cases.items():
            ours = jax.jit(lambda w, g, t=target: sparsegpt(w, g, t)[0])
            turns = {
                "ours": lambda w=weight.T, g=gram, run=ours: np.asarray(run(w, g)).T,
                "theirs": lambda w=weight, g=gram, a=asked: theirs(module, w, g, a),
            }
            found, processor, wall = {}, {"ours": [], "theirs": []}, {"ours": [], "theirs": []}
            for turn in range(options.repeat + 1):  # the first compiles
                for who, run in turns.items():
                    began, spent = time.perf_counter(), time.process_time()
                    found[who] = run()
                    if turn:
                        processor[who].append(time.process_time() - spent)
                        wall[who].append(time.perf_counter() - began)
            spread = lambda x: f"{np.median(x):.2f} ({min(x):.2f} to {max(x):.2f})"
            shown = " | ".join(spread(x) for t in (processor, wall) for x in t.values())
            ratio = np.median(np.array(processor["theirs"]) / np.array(processor["ours"]))
            # Kept weights agree wherever both keep them; published counts differ by one entry a block.
            same = np.isclose(found["ours"], found["theirs"], atol=1e-4).mean()
            print(f"| {name} {list(weight.shape)} | {pattern} | {shown} | {ratio:.2f} | {same:.2%} |", flush=True)


if __name__ == "__main__":
    main()
