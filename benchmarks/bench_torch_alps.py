"""ALPS beside its published torch code on the same Gram matrices: output errors and processor seconds.

    pip install torch; git clone https://github.com/mazumder-lab/ALPS
    python benchmarks/bench_torch_alps.py --code ALPS --text tinyshakespeare.txt --output output/recovery --cores 0

The layers are those of the decoder that bench_recovery.py trains, calibrated on the text; `--output` is its folder.
With `--model MODEL` they are those of the first block of a language model, each solved `--repeat` times. The published
code runs as it is, with its device `cuda:0` read as `cpu`. Contestants take turns.
"""

import argparse
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
from bench_torch_sparsegpt import KERNELS, first_block, parsed


def published(folder: Path) -> Any:
    """The published class, without the part of transformers that a linear layer does not need."""
    import torch  # pyright: ignore[reportMissingImports]

    stub: Any = types.ModuleType("transformers")
    stub.Conv1D = type("Conv1D", (), {})
    _ = sys.modules.setdefault("transformers", stub)
    torch.cuda.synchronize = lambda: None
    names: dict[str, Any] = {}
    exec((folder / "alps.py").read_text().replace("cuda:0", "cpu"), names)
    return names["ALPS_prune"]


def theirs(pruner_of: Any, weight: np.ndarray, gram: np.ndarray, asked: dict[str, Any]) -> np.ndarray:
    """The published code on a kernel [inputs, outputs]."""
    import torch  # pyright: ignore[reportMissingImports]

    layer = torch.nn.Linear(*weight.shape, bias=False)
    layer.weight.data = torch.tensor(weight.T)
    pruner = pruner_of(layer, 1, 1)
    pruner.XtX = torch.tensor(gram)
    _ = pruner.ALPS_admm(**asked)
    return layer.weight.data.numpy().T


def of_decoder(options: argparse.Namespace) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Weights [blocks, inputs, outputs] and Gram matrices of three kinds of kernels of the trained decoder."""
    from small_decoder import KERNELS, scanned, stacked, trained

    from jaxprune.calibration import calibrate

    subject = trained(options.text, options.seed, options.output)
    params = stacked(subject.params)
    stats = calibrate(scanned, params, subject.calibration(), where=KERNELS)
    found = {}
    for kind in ("self_attn.q_proj", "mlp.gate_proj", "mlp.down_proj"):
        inputs = stats[f"blocks/{kind}.weight"]
        weights = inputs.layout.matrices(params["blocks"][f"{kind}.weight"])
        found[kind] = np.asarray(weights), np.asarray(inputs.gram)
    return found


def of_model(options: argparse.Namespace) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The same of a language model's first block, each kernel several times."""
    params, stats = first_block(options.model, options.text, options.windows)
    again = lambda x: np.broadcast_to(np.asarray(x), (options.repeat, *x.shape))
    return {name: (again(params[name].T), again(stats[name].gram[0])) for name in KERNELS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="the folder of bench_recovery.py")
    parser.add_argument("--model", type=Path, help="a folder, as bench_torch_sparsegpt.py takes it")
    parser.add_argument("--seed", type=int, default=0)
    options = parsed(parser, windows=16, repeat=3)
    import jax
    import jax.numpy as jnp

    from jaxprune.reconstruction import Entries, Grouped, alps

    pruner_of = published(options.code)
    layers = of_decoder(options) if options.model is None else of_model(options)
    print("| kernel, [inputs, outputs] | removed | error, ours | theirs | ours / theirs | ms, ours | theirs | times |")
    print("|---|---|---|---|---|---|---|---|")
    for kind, (weights, grams) in layers.items():
        for setting in (0.5, 0.7, 0.9, "2:4"):
            target, asked = Grouped(2, 4), {"sp": 0.5, "nm_n": 2, "nm_m": 4}
            if setting != "2:4":
                target, asked = Entries(jnp.int32(setting * weights[0].size)), {"sp": setting}
            run = jax.jit(lambda w, g, t=target: alps(w, g, t)[0])
            turns = {
                "ours": lambda w, g, run=run: np.asarray(run(w, g)),
                "theirs": lambda w, g, a=asked: theirs(pruner_of, w, g, a),
            }
            errors: dict[str, list[float]] = {name: [] for name in turns}
            seconds: dict[str, list[float]] = {name: [] for name in turns}
            for turn in range(len(weights) + 1):  # the first compiles
                weight, gram = weights[turn - 1], grams[turn - 1]
                for name, solve in turns.items():
                    began = time.process_time()
                    new = solve(weight, gram)
                    if turn:
                        seconds[name].append(time.process_time() - began)
                        change = weight - new
                        errors[name].append(float((change * (gram @ change)).sum() / (weight * (gram @ weight)).sum()))
            ratio, times = (np.array(x["ours"]) / x["theirs"] for x in (errors, seconds))
            print(
                f"| {kind} {list(weights[0].shape)} | {setting if setting == '2:4' else f'{setting:.0%}'} "
                f"| {np.mean(errors['ours']):.3g} | {np.mean(errors['theirs']):.3g} "
                f"| {np.median(ratio):.3f} ({ratio.min():.3f} to {ratio.max():.3f}) "
                f"| {1000 * np.median(seconds['ours']):.0f} | {1000 * np.median(seconds['theirs']):.0f} "
                f"| {1 / np.median(times):.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
