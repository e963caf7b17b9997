"""One-shot pruning of a trained ResNet-20 without training: what repair and fresh batch statistics recover.

    python examples/sparsegpt_resnet20.py --data ../shared/data

reads the published weights (PyTorch's names and OIHW kernels, resnet20_cifar10/weights.npz) and CIFAR-10 images
(cifar10_jpeg), calibrates on some of the first half and prints the accuracy on the second, for every method, with the
old batch statistics, with statistics re-estimated on the calibration images as they are, and on random crops of them as
in training; with the spread over calibration sets.
"""

import argparse
import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune import masks
from jaxprune.calibration import calibrate
from jaxprune.reconstruction import recalibrate_statistics, reconstruct, reconstruct_sequential

PyTree = Any
Row = dict[str, list[float]]
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
MOMENTUM = 0.9
CROPS = 2  # of each image, for the statistics
# The first convolution and the classifier are left dense, as is usual.
KERNELS = "layer*conv*weight"
SETTINGS = (
    ("50 %", 0.5, masks.Unstructured()),
    ("2:4", 0.5, masks.NM(2, 4)),
    ("4:8", 0.5, masks.NM(4, 8)),
    ("70 %", 0.7, masks.Unstructured()),
)


def images(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Normalised images [n, 32, 32, 3] and labels, shuffled, for they are stored class by class."""
    from PIL import Image  # in jaxprune[examples]

    with np.load(path) as stored:
        blob, offset, labels = stored["jpeg"].tobytes(), stored["offset"], stored["label"]
    pairs = itertools.pairwise(offset)
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(blob[a:b])).convert("RGB")) for a, b in pairs])
    order = np.random.default_rng(0).permutation(len(labels))
    return ((pixels / 255.0 - MEAN) / STD).astype(np.float32)[order], labels.astype(np.int32)[order]


def as_in_training(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each image mirrored or not, and moved by up to four pixels, with black where it is moved away from."""
    black = (-MEAN / STD).astype(x.dtype)
    frame = np.broadcast_to(black, (len(x), 40, 40, 3)).copy()
    frame[:, 4:-4, 4:-4] = x
    rows, columns = (
        rng.integers(0, 9, len(x))[:, None, None] + np.arange(32).reshape(shape) for shape in ((-1, 1), 32)
    )
    moved = frame[np.arange(len(x))[:, None, None], rows, columns]
    return np.where(rng.random((len(x), 1, 1, 1)) < 0.5, moved, moved[:, :, ::-1])


def network(path: Path) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Parameters, and running statistics, by PyTorch's names."""
    with np.load(path) as stored:
        arrays = {name.replace(".", "/"): jnp.asarray(stored[name]) for name in stored.files}
    arrays = {name: x for name, x in arrays.items() if not name.endswith("num_batches_tracked")}
    running = {name: x for name, x in arrays.items() if "running" in name}
    return {name: x for name, x in arrays.items() if name not in running}, running


def apply(params: PyTree, running: PyTree, x: jax.Array, *, train: bool) -> tuple[jax.Array, PyTree]:
    """Logits, and the running statistics after this batch."""
    new = dict(running)

    def conv(name: str, x: jax.Array, stride: int = 1) -> jax.Array:
        numbers = ("NHWC", "OIHW", "NHWC")
        pad = [(1, 1), (1, 1)]
        return lax.conv_general_dilated(x, params[f"{name}/weight"], (stride, stride), pad, dimension_numbers=numbers)

    def norm(name: str, x: jax.Array) -> jax.Array:
        mean, var = running[f"{name}/running_mean"], running[f"{name}/running_var"]
        if train:
            own = x.mean((0, 1, 2)), x.var((0, 1, 2))
            new[f"{name}/running_mean"], new[f"{name}/running_var"] = (
                MOMENTUM * old + (1 - MOMENTUM) * now for old, now in zip((mean, var), own, strict=True)
            )
            mean, var = own
        return (x - mean) * lax.rsqrt(var + 1e-5) * params[f"{name}/weight"] + params[f"{name}/bias"]

    x = jax.nn.relu(norm("bn1", conv("conv1", x)))
    for stage in (1, 2, 3):
        for i in range(3):
            name, stride = f"layer{stage}/{i}", 2 if stage > 1 and i == 0 else 1
            y = jax.nn.relu(norm(f"{name}/bn1", conv(f"{name}/conv1", x, stride)))
            y = norm(f"{name}/bn2", conv(f"{name}/conv2", y))
            if stride == 2:  # every second pixel, new channels zero on both sides
                quarter = x.shape[-1] // 2
                x = jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (quarter, quarter)))
            x = jax.nn.relu(x + y)
    return x.mean((1, 2)) @ params["linear/weight"].T + params["linear/bias"], new


@jax.jit
def hits(params: PyTree, running: PyTree, x: jax.Array, labels: jax.Array) -> jax.Array:
    """How many images are classified rightly."""
    return (apply(params, running, x, train=False)[0].argmax(-1) == labels).sum()


def accuracy(params: PyTree, running: PyTree, x: np.ndarray, labels: np.ndarray) -> float:
    each = [hits(params, running, x[i : i + 500], labels[i : i + 500]) for i in range(0, len(x), 500)]
    return float(sum(map(int, each)) / len(x))


def prunings(params: PyTree, running: PyTree, batches: list[np.ndarray]) -> Iterator[tuple[str, PyTree]]:
    """The pruned networks, by setting and method."""
    fn = lambda p, b: apply(p, running, b, train=False)[0]
    stats = calibrate(fn, params, batches, where=KERNELS)
    for title, sparsity, pattern in SETTINGS:
        share = {KERNELS: sparsity}
        for method in ("magnitude", "wanda", "least_squares", "sparsegpt"):
            yield f"{title:>4} {method}", reconstruct(params, stats, share, method=method, pattern=pattern).params
        new = reconstruct_sequential(fn, params, batches, share, pattern=pattern, where=KERNELS)
        yield f"{title:>4} sequential", new.params


def measured(params: PyTree, running: PyTree, x: np.ndarray, labels: np.ndarray, seed: int, size: int) -> Row:
    """The accuracies with the old statistics and both new ones, calibrated on some images of the first half."""
    half, rng = len(x) // 2, np.random.default_rng(seed)
    chosen = x[rng.permutation(half)[:size]]
    batches = [chosen[i : i + 250] for i in range(0, size, 250)]
    crops = [as_in_training(b, rng) for b in batches * CROPS]
    found: Row = {}
    for name, new in itertools.chain([("dense", params)], prunings(params, running, batches)):
        # Parameters come with the batches, so that nothing is compiled for their values.
        update = lambda r, b: apply(b[0], r, b[1], train=True)[1]
        fresh = [recalibrate_statistics(update, running, [(new, b) for b in seen]) for seen in (batches, crops)]
        found[name] = [accuracy(new, r, x[half:], labels[half:]) for r in (running, *fresh)]
        print(f"seed {seed}: {name:19} {'  '.join(f'{each:.2%}' for each in found[name])}", flush=True)
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder with resnet20_cifar10 and cifar10_jpeg")
    parser.add_argument("--calibration", type=int, default=1000, help="how many images to calibrate on")
    parser.add_argument("--images", type=int, default=5000, help="how many images in all; the second half is the test")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one calibration set each")
    parser.add_argument("--output", type=Path, help="a JSON file for the accuracies")
    options = parser.parse_args(arguments)
    if not 0 < options.calibration <= options.images // 2:
        parser.error(f"--calibration must be 1 to {options.images // 2}, half of --images")
    x, labels = (y[: options.images] for y in images(options.data / "cifar10_jpeg" / "half_a_5000.npz"))
    params, running = network(options.data / "resnet20_cifar10" / "weights.npz")
    print("accuracy with the old statistics, with statistics of the same images, and of crops of them as in training")
    each = [measured(params, running, x, labels, seed, options.calibration) for seed in options.seeds]
    print(f"accuracy on {len(x) - len(x) // 2} images: mean (least to greatest) of {len(each)} calibration sets")
    for name in each[0]:
        columns = np.array([found[name] for found in each]).T
        print(f"{name:19} {',  '.join(f'{np.mean(v):.1%} ({min(v):.1%} to {max(v):.1%})' for v in columns)}")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        _ = options.output.write_text(json.dumps(dict(zip(map(str, options.seeds), each, strict=True)), indent=1))


if __name__ == "__main__":
    main()
