"""Writes torch_sparsegpt.npz: a layer, its inputs, and what the published SparseGPT and GPTQ make of them.

Run once, in an environment with torch and beside the published code (github.com/IST-DASLab/sparsegpt, commit 147d215,
and github.com/IST-DASLab/gptq, commit 2d65066); the tests read what it wrote and need neither:

    pip install torch==2.13.0 numpy && python tests/reference/torch_sparsegpt.py FOLDER_OF_SPARSEGPT FOLDER_OF_GPTQ

The published code removes `int(sparsity * n) + 1` entries of each block of n, for its threshold is removed as well;
none of a block's saliencies may tie, which is checked here.

No weight that is rounded may be in the middle between two integers, which is checked as well.

Arrays in the file: `weight` [inputs, outputs] (torch's transposed), `x` [samples, inputs], and for each case
`BLOCK/SPARSITY` or `BLOCK/N:M` (N of M kept) the new weights [inputs, outputs]. `BLOCK/SPARSITY/BITS` and
`BLOCK/N:M/BITS` are by SparseGPT with its quantizer, one scale an output; `BLOCK/dense/BITS/GROUP` is by GPTQ, whose
blocks are one group of scales long, so that the scales of a group are those of its weights at that time.
"""

import importlib
import sys
import types
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

INPUTS, OUTPUTS, SAMPLES = 48, 20, 160
SPARSITIES = ((16, 0.5), (16, 0.7), (48, 0.5))
GROUPS = ((16, 2, 4), (16, 4, 8), (48, 1, 4))
QUANTISED = ((16, 0.5, 8), (16, 0.5, 4), (16, "2:4", 4))
GROUPED = ((16, 4, 16), (24, 8, 24), (48, 3, 48))


def _layer() -> tuple[np.ndarray, np.ndarray]:
    """Weights, and inputs that are correlated and of different sizes, as those of trained layers are."""
    rng = np.random.default_rng(20240611)
    own, shared = rng.standard_normal((SAMPLES, INPUTS)), rng.standard_normal((SAMPLES, INPUTS // 4))
    mixed = 0.5 * own + shared @ rng.standard_normal((INPUTS // 4, INPUTS)) / np.sqrt(INPUTS // 4)
    x = mixed * np.exp(0.5 * rng.standard_normal(INPUTS))
    weight = rng.standard_normal((INPUTS, OUTPUTS)) / np.sqrt(INPUTS)
    return weight.astype(np.float32), x.astype(np.float32)


def _published(folder: str, name: str) -> types.ModuleType:
    """A published module, without what it imports or calls but does not need for a linear layer on a CPU."""
    stub: Any = types.ModuleType("transformers")
    stub.Conv1D = type("Conv1D", (), {})
    _ = sys.modules.setdefault("transformers", stub)
    sys.path.insert(0, folder)
    _ = sys.modules.pop("quant", None)  # each of the two repositories has one
    module = importlib.import_module(name)
    sys.path.remove(folder)
    torch.cuda.synchronize = lambda: None
    return module


def _new(
    weight: np.ndarray, x: np.ndarray, of: Any, run: str, *args: Any, quantizer: Any = None, **options: int
) -> Any:
    """The weights after the method `run` of the published class `of`."""
    layer = torch.nn.Linear(INPUTS, OUTPUTS, bias=False)
    layer.weight.data = torch.from_numpy(weight.T.copy())
    pruner = of(layer)
    if quantizer is not None:
        pruner.quantizer = quantizer
    pruner.add_batch(torch.from_numpy(x), None)
    getattr(pruner, run)(*args, **options)
    return layer.weight.data.numpy().T.copy()


def _without_ties(name: str, run: Any) -> np.ndarray:
    """What a method returns, if a change of the damping by 1e-5 of it moves no weight to another integer."""
    found, *others = (run(percdamp=0.01 * factor) for factor in (1.0, 1 - 1e-5, 1 + 1e-5))
    if any(np.abs(other - found).max() > 1e-4 for other in others):
        raise ValueError(f"{name}: a weight is in the middle between two integers: choose another seed")
    return found


def _quantizer(module: types.ModuleType, bits: int) -> Any:
    found = module.Quantizer()
    found.configure(bits, perchannel=True, sym=True, mse=False)
    return found


def main() -> None:
    """Writes the file next to this script."""
    sparse = _published(sys.argv[1], "sparsegpt")
    weight, x = _layer()
    prune = partial(_new, weight, x, sparse.SparseGPT, "fasterprune")
    arrays = {"weight": weight, "x": x}
    for block, sparsity in SPARSITIES:
        arrays[f"{block}/{sparsity}"] = new = prune(sparsity, blocksize=block)
        wanted = INPUTS // block * (int(block * OUTPUTS * sparsity) + 1)
        if (new == 0).sum() != wanted:
            raise ValueError(f"{wanted} entries should be removed, {(new == 0).sum()} are: choose another seed")
    for block, n, m in GROUPS:
        arrays[f"{block}/{n}:{m}"] = prune(0.0, prunen=m - n, prunem=m, blocksize=block)
    for block, target, bits in QUANTISED:
        share, options = (0.0, {"prunen": 2, "prunem": 4}) if target == "2:4" else (target, {})
        run = lambda b=bits, s=share, **o: prune(s, quantizer=_quantizer(sparse, b), **o)
        name = f"{block}/{target}/{bits}"
        arrays[name] = _without_ties(name, partial(run, blocksize=block, **options))
    dense = _published(sys.argv[2], "gptq")
    for block, bits, group in GROUPED:
        quantise = partial(_new, weight, x, dense.GPTQ, "fasterquant", blocksize=block, groupsize=group)
        run = lambda b=bits, q=quantise, **o: q(quantizer=_quantizer(dense, b), **o)
        name = f"{block}/dense/{bits}/{group}"
        arrays[name] = _without_ties(name, run)
    path = Path(__file__).with_suffix(".npz")
    np.savez_compressed(path, **arrays)  # pyright: ignore[reportArgumentType]
    print(f"{path}: {len(arrays) - 2} cases by torch {torch.__version__}, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
