"""One-shot pruning of a trained ResNet-20 without training: what repair and fresh batch statistics recover.

    python examples/sparsegpt_resnet20.py --data ../shared/data

reads the published weights (PyTorch's names and OIHW kernels, resnet20_cifar10/weights.npz) and CIFAR-10 images
(cifar10_jpeg), calibrates on some and prints the accuracy on the others, for every method, with the old batch
statistics and with statistics re-estimated on the calibration images.
"""

import argparse
import io
import itertools
from functools import partial
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
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
MOMENTUM = 0.9
# The first convolution and the classifier are left dense, as is usual.
KERNELS = "layer*conv*weight"


def images(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Normalised images [n, 32, 32, 3] and labels, shuffled, for they are stored class by class."""
    from PIL import Image  # in jaxprune[examples]

    with np.load(path) as stored:
        blob, offset, labels = stored["jpeg"].tobytes(), stored["offset"], stored["label"]
    pairs = itertools.pairwise(offset)
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(blob[a:b])).convert("RGB")) for a, b in pairs])
    order = np.random.default_rng(0).permutation(len(labels))
    return ((pixels / 255.0 - MEAN) / STD).astype(np.float32)[order], labels.astype(np.int32)[order]


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


def accuracy(params: PyTree, running: PyTree, x: np.ndarray, labels: np.ndarray) -> float:
    run = jax.jit(lambda p, r, b: apply(p, r, b, train=False)[0].argmax(-1))
    found = [run(params, running, x[i : i + 500]) for i in range(0, len(x), 500)]
    return float((np.concatenate(found) == labels).mean())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder with resnet20_cifar10 and cifar10_jpeg")
    parser.add_argument("--calibration", type=int, default=1000, help="how many images to calibrate on")
    parser.add_argument("--test", type=int, default=4000, help="how many of the others to test on")
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.5, 0.7])
    options = parser.parse_args(arguments)
    x, labels = images(options.data / "cifar10_jpeg" / "half_a_5000.npz")
    params, running = network(options.data / "resnet20_cifar10" / "weights.npz")
    batches = [x[i : i + 250] for i in range(0, options.calibration, 250)]
    x, labels = x[options.calibration :][: options.test], labels[options.calibration :][: options.test]
    score = partial(accuracy, x=x, labels=labels)
    print(f"dense: {score(params, running):.2%} of {len(x)} images, calibrated on {options.calibration} others")
    fn = lambda p, b: apply(p, running, b, train=False)[0]
    stats = calibrate(fn, params, batches, where=KERNELS)
    settings = [(f"{s:.0%}", s, masks.Unstructured()) for s in options.sparsities]
    for title, sparsity, pattern in [*settings, ("2:4", 0.5, masks.NM(2, 4))]:
        share = {KERNELS: sparsity}
        for method in ("magnitude", "wanda", "least_squares", "sparsegpt", "sequential"):
            if method == "sequential":
                new = reconstruct_sequential(fn, params, batches, share, pattern=pattern, where=KERNELS).params
            else:
                new = reconstruct(params, stats, share, method=method, pattern=pattern).params
            update = lambda r, b, new=new: apply(new, r, b, train=True)[1]
            fresh = recalibrate_statistics(update, running, batches)
            print(
                f"{title:>4} {method:13} {score(new, running):.2%}, statistics re-estimated {score(new, fresh):.2%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
