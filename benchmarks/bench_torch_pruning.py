"""ResNet-50 halved by jaxprune and by Torch-Pruning: how long it takes to find what goes together, and to remove it.

    python benchmarks/bench_torch_pruning.py
    PYTHONPATH=. .venv-zoo/bin/python benchmarks/bench_torch_pruning.py --shares

needs `pip install torch torch-pruning` beside jaxprune, and says so and ends where they are missing. Both get the same
architecture, have to find groups of the same sizes, remove half of every group's channels by their L2 norms, and have
to end with the same number of weights. jaxprune works on shapes until weights are scored; Torch-Pruning runs the
network once on an image.

`--shares` asks which share of the weights goes with half of the units of each group, and whether the smaller network
runs. It needs torchvision and the environment of `make zoo` too. The models of transformers have the same small
configuration in Flax and in PyTorch, and a linear head behind them whose outputs stay; models of torchvision stand
beside networks of the same kind in `tests/slimming/zoo`.
"""

import argparse
import importlib
import importlib.util
import json
import signal
import sys
import time
import warnings
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


# A model of transformers, or a kind of network in the zoo: how torchvision makes one.
SHARES: dict[str, Callable[[Any], Any] | None] = {
    "convnext": lambda m: m.ConvNeXt([m.convnext.CNBlockConfig(16, 32, 1), m.convnext.CNBlockConfig(32, None, 1)]),
    "efficientnet": lambda m: m.efficientnet_b0(num_classes=10),
    "swin": lambda m: m.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=10),
    "shufflenet": lambda m: m.shufflenet_v2_x0_5(num_classes=10),
    "densenet": lambda m: m.DenseNet(8, (2, 2), 16, num_classes=10),
} | dict.fromkeys(("ResNet", "RegNet", "ViT", "Bert", "T5", "Whisper", "CLIPVision", "CLIPText", "GPT2", "Llama"))


def share(name: str) -> str:
    """A row: the share of the weights that goes here, masked and as built, and in Torch-Pruning."""
    from tests.slimming.test_zoo import shapes_of  # needs the repository's root in PYTHONPATH
    from tests.slimming.zoo import flax_models, table

    torch: Any = importlib.import_module("torch")
    make = SHARES[name]
    if make is None:
        body, shapes, given = flax_models.build(name)
        pooled = lambda y: y.mean((2, 3)) if y.ndim == 4 else y
        shapes = {"body": shapes, "head": jax.ShapeDtypeStruct((16, 10), jnp.float32)}
        fn, inputs = lambda p, x: pooled(body(p["body"], x)) @ p["head"], (given,)
        model = _with_head(name, flax_models.MODELS[name][0])
        x = {k: torch.tensor(np.asarray(v)) for k, v in given.items()}
    else:
        fn, shapes, inputs = shapes_of(name)
        model, x = make(importlib.import_module("torchvision").models), {"x": torch.ones(2, 3, 64, 64)}
    groups = slimming.find_groups(fn, shapes, *inputs)
    mine = [table.shares(groups, shapes, inexact=inexact).split(", ")[1] for inexact in (False, True)]
    return f"| {name} | {mine[0]} | {mine[1]} | {' | '.join(_torch_share(model.eval(), x))} |"


def _with_head(name: str, options: dict[str, Any]) -> Any:
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")

    class Headed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = getattr(transformers, f"{name}Config")(**options)
            without = {"add_pooling_layer": False} if name in ("ViT", "Bert") else {}  # nothing reads the pooler here
            self.body = getattr(transformers, f"{name}Model")(config, **without)
            self.head = torch.nn.Linear(16, 10, bias=False)

        def forward(self, **inputs: Any) -> Any:
            y = self.body(**inputs)[0]
            return self.head(y.mean((2, 3)) if y.ndim == 4 else y)

    return Headed()


def _torch_share(model: Any, x: dict[str, Any]) -> tuple[str, str]:
    """The share of the weights that Torch-Pruning removes, and whether the smaller network runs."""
    torch, tp = importlib.import_module("torch"), importlib.import_module("torch_pruning")
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    attention: list[tuple[Any, Any]] = []  # modules, and their projections to heads
    heads: dict[Any, int] = {}
    for module in model.modules():
        own = {key: m for key, m in module.named_children() if isinstance(m, torch.nn.Linear)}
        query = next((own[key] for key in ("query", "q_proj", "q", "qkv") if key in own), None)
        config = getattr(module, "config", None)
        count = next((n for n in (getattr(s, a, None) for s in (module, config) for a in HEADS) if n), None)
        if query is not None and count:
            attention.append((module, query))
            grouped = getattr(config, "num_key_value_heads", None) or count
            heads |= {own[key]: count for key in ("query", "q_proj", "q", "qkv") if key in own}
            heads |= {own[key]: grouped for key in ("key", "value", "k_proj", "v_proj", "k", "v") if key in own}
    whole = sum(p.numel() for p in model.parameters())
    stop = lambda *_: (_ for _ in ()).throw(TimeoutError("no end after 400 s"))
    _ = signal.signal(signal.SIGALRM, stop)
    _ = signal.setitimer(signal.ITIMER_REAL, 400, 5)  # again, in case something swallows the error
    try:
        pruner = tp.pruner.BasePruner(
            model, x if len(x) > 1 or "x" not in x else x["x"], importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=0.5, ignored_layers=[linear[-1]], num_heads=heads,
        )  # fmt: skip
        pruner.step()
    except Exception as error:  # whatever it is, it is the result
        return "none", f"{type(error).__name__}: {str(error)[:120]}"
    finally:
        _ = signal.setitimer(signal.ITIMER_REAL, 0)
    gone = f"{100 * (1 - sum(p.numel() for p in model.parameters()) / whole):.0f} %"
    for note in ("yes", "when the sizes of heads are set by hand"):
        try:
            _ = model(**x) if "x" not in x else model(x["x"])
            return gone, note
        except Exception as error:
            why = f"{type(error).__name__}: {str(error)[:120]}"
        for module, query in attention:
            sizes = dict.fromkeys(
                ("attention_head_size", "head_dim", "key_value_proj_dim"), query.out_features // heads[query]
            )
            sizes |= dict.fromkeys(("all_head_size", "inner_dim", "embed_dim"), query.out_features)
            for attribute, size in sizes.items():
                if hasattr(module, attribute):
                    setattr(module, attribute, size)
    return gone, f"no: {why}"


HEADS = ("num_attention_heads", "num_heads", "n_heads")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=224, help="of the image")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shares", nargs="*", metavar="network", help=f"of {', '.join(SHARES)}; all if none is named")
    parser.add_argument("--output", type=Path, help="a folder to write torch_pruning.json into")
    options = parser.parse_args()
    missing = [name for name in ("torch", "torch_pruning") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"not run: {', '.join(missing)} not installed (pip install torch torch-pruning)")
        sys.exit(0)
    if options.shares is not None:
        print("| network | jaxprune, masked | as built | Torch-Pruning | it runs afterwards |\n|---|---|---|---|---|")
        for name in options.shares or SHARES:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                print(share(name), flush=True)
        return
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
