"""Writes torch_sparsegpt.npz: a layer, its inputs, and what the published SparseGPT makes of them.

Run once, in an environment with torch and beside the published code (github.com/IST-DASLab/sparsegpt, commit 147d215);
the tests read what it wrote and need neither:

    pip install torch==2.13.0 numpy && python tests/reference/torch_sparsegpt.py FOLDER_OF_THE_PUBLISHED_CODE

The published code removes `int(sparsity * n) + 1` entries of each block of n, for its threshold is removed as well;
none of a block's saliencies may tie, which is checked here.

Arrays in the file: `weight` [inputs, outputs] (torch's transposed), `x` [samples, inputs], and for each case
`BLOCK/SPARSITY` or `BLOCK/N:M` (N of M kept) the new weights [inputs, outputs].
"""

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

INPUTS, OUTPUTS, SAMPLES = 48, 20, 160
SPARSITIES = ((16, 0.5), (16, 0.7), (48, 0.5))
GROUPS = ((16, 2, 4), (16, 4, 8), (48, 1, 4))


def _layer() -> tuple[np.ndarray, np.ndarray]:
    """Weights, and inputs that are correlated and of different sizes, as those of trained layers are."""
    rng = np.random.default_rng(20240611)
    own, shared = rng.standard_normal((SAMPLES, INPUTS)), rng.standard_normal((SAMPLES, INPUTS // 4))
    mixed = 0.5 * own + shared @ rng.standard_normal((INPUTS // 4, INPUTS)) / np.sqrt(INPUTS // 4)
    x = mixed * np.exp(0.5 * rng.standard_normal(INPUTS))
    weight = rng.standard_normal((INPUTS, OUTPUTS)) / np.sqrt(INPUTS)
    return weight.astype(np.float32), x.astype(np.float32)


def _published(folder: str) -> types.ModuleType:
    """The published module, without what it imports or calls but does not need for a linear layer on a CPU."""
    stub: Any = types.ModuleType("transformers")
    stub.Conv1D = type("Conv1D", (), {})
    _ = sys.modules.setdefault("transformers", stub)
    sys.path.insert(0, folder)
    import sparsegpt  # pyright: ignore[reportMissingImports]

    torch.cuda.synchronize = lambda: None
    return sparsegpt


def _pruned(module: types.ModuleType, weight: np.ndarray, x: np.ndarray, sparsity: float, **options: int) -> np.ndarray:
    layer = torch.nn.Linear(INPUTS, OUTPUTS, bias=False)
    layer.weight.data = torch.from_numpy(weight.T.copy())
    pruner = module.SparseGPT(layer)
    pruner.add_batch(torch.from_numpy(x), None)
    pruner.fasterprune(sparsity, **options)
    return layer.weight.data.numpy().T.copy()


def main() -> None:
    """Writes the file next to this script."""
    module = _published(sys.argv[1])
    weight, x = _layer()
    arrays = {"weight": weight, "x": x}
    for block, sparsity in SPARSITIES:
        arrays[f"{block}/{sparsity}"] = new = _pruned(module, weight, x, sparsity, blocksize=block)
        wanted = INPUTS // block * (int(block * OUTPUTS * sparsity) + 1)
        if (new == 0).sum() != wanted:
            raise ValueError(f"{wanted} entries should be removed, {(new == 0).sum()} are: choose another seed")
    for block, n, m in GROUPS:
        options = {"prunen": m - n, "prunem": m, "blocksize": block}
        arrays[f"{block}/{n}:{m}"] = _pruned(module, weight, x, 0.0, **options)
    path = Path(__file__).with_suffix(".npz")
    np.savez_compressed(path, **arrays)  # pyright: ignore[reportArgumentType]
    print(f"{path}: {len(arrays) - 2} cases by torch {torch.__version__}, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
