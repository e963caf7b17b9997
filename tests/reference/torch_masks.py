"""Writes torch_masks.npz: inputs without ties and the masks that torch.nn.utils.prune makes of them.

Run once, in an environment with torch; the tests read what it wrote and never need torch:

    pip install torch==2.13.0 numpy && python tests/reference/torch_masks.py

torch removes `round(amount * n)` entries, Python's rounding to even; jaxprune removes
`floor(amount * n + 1/2)`. The two agree wherever `amount * n` is no half, which is checked here, as are the
ties: every score differs from its neighbour in rank by far more than the rounding of a sum.

Arrays in the file: `input/NAME`, and one mask for each case, `METHOD/NAME/AMOUNT` with METHOD one of `l1`,
`global`, `ln-N-DIM`. Masks are packed to bits; under `global` all inputs were ranked together.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch.nn.utils import prune  # pyright: ignore[reportMissingImports]

AMOUNTS = (0.1, 0.3, 0.4, 0.7, 0.93)
SHAPES = {"dense": (24, 17), "conv": (3, 3, 11, 13), "stacked": (7, 6, 19)}
NORMS = (1, 2)
# Neighbours in rank differ by this much, relatively: a float32 sum of 1000 terms errs by less.
GAP = 1e-5


def _check_count(amount: float, n: int) -> None:
    if round(amount * n) != int(np.floor(amount * n + 0.5)) or abs(amount * n % 1 - 0.5) < 1e-6:
        raise ValueError(f"{amount} of {n} is a half: torch and jaxprune round it differently")


def _check_ties(scores: np.ndarray, gap: float) -> None:
    ranked = np.sort(scores.astype(np.float64).ravel())
    if np.min(np.diff(ranked) / ranked[1:]) <= gap:
        raise ValueError("two scores are equal or nearly so: choose another seed")


def _module(value: np.ndarray) -> torch.nn.Module:
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(torch.from_numpy(value.copy()))
    return module


def _unstructured(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    masks = {}
    for name, value in inputs.items():
        _check_ties(np.abs(value), 0.0)
        for amount in AMOUNTS:
            _check_count(amount, value.size)
            module = prune.l1_unstructured(_module(value), "weight", amount)
            masks[f"l1/{name}/{amount}"] = module.weight_mask.numpy().astype(bool)
    return masks


def _global(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    masks = {}
    _check_ties(np.abs(np.concatenate([value.ravel() for value in inputs.values()])), 0.0)
    for amount in AMOUNTS:
        _check_count(amount, sum(value.size for value in inputs.values()))
        modules = {name: _module(value) for name, value in inputs.items()}
        prune.global_unstructured(
            [(module, "weight") for module in modules.values()], prune.L1Unstructured, amount=amount
        )
        for name, module in modules.items():
            masks[f"global/{name}/{amount}"] = module.weight_mask.numpy().astype(bool)
    return masks


def _structured(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    masks = {}
    for name, value in inputs.items():
        for dim in range(value.ndim):
            others = tuple(axis for axis in range(value.ndim) if axis != dim)
            for order in NORMS:
                _check_ties((np.abs(value.astype(np.float64)) ** order).sum(others), GAP)
                for amount in AMOUNTS:
                    _check_count(amount, value.shape[dim])
                    module = prune.ln_structured(_module(value), "weight", amount, n=order, dim=dim)
                    masks[f"ln-{order}-{dim}/{name}/{amount}"] = module.weight_mask.numpy().astype(bool)
    return masks


def main() -> None:
    """Writes the file next to this script."""
    rng = np.random.default_rng(20240607)
    # Different scales, so that one ranking over all leaves differs from one for each.
    inputs = {
        name: (scale * rng.standard_normal(shape)).astype(np.float32)
        for scale, (name, shape) in zip((1.0, 0.4, 2.0), SHAPES.items(), strict=True)
    }
    masks = {**_unstructured(inputs), **_global(inputs), **_structured(inputs)}
    # Bits, since a mask of bools takes eight times the space.
    packed = {name: np.packbits(mask) for name, mask in masks.items()}
    path = Path(__file__).with_suffix(".npz")
    arrays: dict[str, Any] = {**{f"input/{name}": value for name, value in inputs.items()}, **packed}
    np.savez_compressed(path, **arrays)
    print(f"{path}: {len(masks)} masks by torch {torch.__version__}, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
