"""ResNet-50 halved by jaxprune and by Torch-Pruning: how long it takes to find what goes together, and to remove it.

    python benchmarks/bench_torch_pruning.py

needs `pip install torch torch-pruning` beside jaxprune, and says so and ends where they are missing. Both get the same
architecture, have to find groups of the same sizes, remove half of every group's channels by their L2 norms, and have
to end with the same number of weights. jaxprune works on shapes until weights are scored; Torch-Pruning runs the
network once on an image.
"""

import argparse
import importlib
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from bench_slimming import ResNet, draw

from jaxprune import criteria, slimming
from jaxprune._jaxprs import trace
from jaxprune.slimming._labels.analysis import couple
from jaxprune.slimming.groups import group

BLOCKS = (3, 4, 6, 3)


def torch_resnet50() -> Any:
    """The network of `bench_slimming.ResNet(64, (3, 4, 6, 3), bottleneck=True)` in PyTorch."""
    torch: Any = importlib.import_module("torch")
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self, channels: int, width: int, stride: int) -> None:
            super().__init__()
            sizes = [(channels, width, 1, 1), (width, width, 3, stride), (width, 4 * width, 1, 1)]
            steps: list[Any] = []
            for a, b, kernel, step in sizes:
                steps += [nn.Conv2d(a, b, kernel, step, kernel // 2, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
            self.steps = nn.Sequential(*steps[:-1])
            other = channels != 4 * width or stride != 1
            shortcut = [nn.Conv2d(channels, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)]
            self.shortcut = nn.Sequential(*shortcut) if other else nn.Identity()

        def forward(self, x: Any) -> Any:
            return torch.relu(self.steps(x) + self.shortcut(x))

    layers: list[Any] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, count in enumerate(BLOCKS):
        for k in range(count):
            layers.append(Block(channels, 64 * 2**stage, 2 if stage and k == 0 else 1))
            channels = 4 * 64 * 2**stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)).eval()


class Run(NamedTuple):
    """Seconds of each task, the channels of each group in ascending order, and the weights that are left."""

    seconds: dict[str, float]
    channels: list[int]
    left: int


def theirs(side: int) -> Run:
    """What Torch-Pruning takes and finds."""
    torch, tp = importlib.import_module("torch"), importlib.import_module("torch_pruning")
    model, x = torch_resnet50(), torch.ones(1, 3, side, side)
    seconds = {}
    start = time.perf_counter()
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=x)
    found = list(graph.get_all_groups(ignored_layers=[model[-1]]))
    seconds["find"] = time.perf_counter() - start
    start = time.perf_counter()
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    pruner = tp.pruner.BasePruner(model, x, importance=importance, pruning_ratio=0.5, ignored_layers=[model[-1]])
    pruner.step()
    seconds["find, score and remove"] = time.perf_counter() - start
    return Run(seconds, sorted(len(g[0].idxs) for g in found), sum(p.numel() for p in model.parameters()))


def ours(side: int) -> Run:
    """What jaxprune takes and finds."""
    model = ResNet(64, BLOCKS, bottleneck=True)
    x = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    params = draw(jax.eval_shape(model.init, jax.random.key(0), x))
    magnitudes = jax.block_until_ready(criteria.magnitude(params))  # compiled before the clock starts
    seconds = {}
    start = time.perf_counter()
    groups = group(couple(trace(model.apply, params, x), params, fix_outputs=True))
    seconds["find"] = time.perf_counter() - start
    start = time.perf_counter()
    groups = slimming.find_groups(model.apply, params, x)
    scores = slimming.group_scores(groups, magnitudes, normalise=None)
    small = slimming.slim(model.apply, params, slimming.choose(groups, scores, 0.5), x)
    _ = jax.block_until_ready(small.params)
    seconds["find, score and remove"] = time.perf_counter() - start
    left = sum(p.size for p in jax.tree.leaves(small.params["params"]))
    return Run(seconds, sorted(g.count for g in groups), left)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=224, help="of the image")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="a folder to write torch_pruning.json into")
    options = parser.parse_args()
    missing = [name for name in ("torch", "torch_pruning") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"not run: {', '.join(missing)} not installed (pip install torch torch-pruning)")
        sys.exit(0)
    sides: dict[str, Callable[[int], Any]] = {"jaxprune": ours, "Torch-Pruning": theirs}
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in sides}
    runs: dict[str, Run] = {}
    for _ in range(options.rounds):
        for name, run in sides.items():
            runs[name] = run(options.side)
            for what, value in runs[name].seconds.items():
                seconds[name].setdefault(what, []).append(value)
    rows = []
    for what in seconds["jaxprune"]:
        a, b = np.asarray(seconds["jaxprune"][what]), np.asarray(seconds["Torch-Pruning"][what])
        low, middle, high = np.percentile(b / a, [25, 50, 75])
        print(
            f"{what:24} jaxprune {np.median(a):.2f} s, Torch-Pruning {np.median(b):.2f} s: "
            f"{middle:.2f} ({low:.2f} to {high:.2f}) times faster"
        )
        rows.append({"what": what, "jaxprune_s": float(np.median(a)), "torch_pruning_s": float(np.median(b))})
    left = {name: run.left for name, run in runs.items()}
    channels = {name: run.channels for name, run in runs.items()}
    print(f"groups: {', '.join(f'{name} {len(each)}' for name, each in channels.items())}")
    print(f"the same numbers of channels in them: {channels['jaxprune'] == channels['Torch-Pruning']}")
    print(f"weights left: {left}")
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        _ = (options.output / "torch_pruning.json").write_text(
            json.dumps({"rows": rows, "channels": channels, "left": left}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
