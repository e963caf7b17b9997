"""Pruning in training on many devices: from one process with eight simulated devices to several processes.

    python examples/distributed.py                  # one process, eight devices
    python examples/distributed.py --processes 2    # two processes on this machine, four devices each
    python examples/distributed.py --processes 2 --process 0 --coordinator HOST:PORT --real    # one of two machines

trains the main job's CNN on its images with gradual pruning and with RigL, the batch shared out among all devices and,
with --sharded, the parameters, moments and masks too. At the end every process says which masks its devices hold, and
what they are on the others. Everything that is about devices is in this file; the optimizer is wrapped as anywhere.
"""

import argparse
import hashlib
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from main_job import data, networks

import jaxprune
from jaxprune import allocation, masks, schedules, training

PyTree = Any
DEVICES = 8
SPARSITY = 0.9


def methods(steps: int) -> dict[str, training.Method]:
    """The two ways of pruning."""
    end = max(1, steps // 2)
    when = schedules.every(max(1, end // 10), 0, end)
    return {
        "gradual": training.gradual(schedules.cubic(0, end, SPARSITY), when=when, allocation=allocation.erk),
        "rigl": training.rigl(SPARSITY, steps, key=jax.random.key(0), every=max(1, steps // 20)),
    }


def places(shapes: PyTree, mesh: Mesh, sharded: bool) -> PyTree:
    """Where each array of a state lies: whole on every device, or cut along its largest axis that they divide.

    It looks at shapes alone, so moments and masks lie where their parameter does.
    """

    def place(leaf: Any) -> NamedSharding:
        fitting_axes = [axis for axis, size in enumerate(leaf.shape) if size % mesh.size == 0 and len(leaf.shape) > 1]
        if not sharded or not fitting_axes:
            return NamedSharding(mesh, P())
        axis = max(fitting_axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, P(*["data" if a == axis else None for a in range(len(leaf.shape))]))

    return jax.tree.map(place, shapes)


def share_out(mesh: Mesh, rows: np.ndarray) -> jax.Array:
    """A batch on all devices; each process has all rows and hands over those of its own."""
    return jax.make_array_from_callback(rows.shape, NamedSharding(mesh, P("data")), lambda index: rows[index])


def train(method: training.Method, images: data.Images, mesh: Mesh, options: argparse.Namespace) -> tuple[Any, float]:
    """The masks after training, and the accuracy on the test images."""
    (train_images, train_labels), (test_images, test_labels), classes, _ = images
    mean, deviation = float(train_images.mean()), float(train_images.std())
    model = networks.scaled(networks.make("linen", train_images.shape[1:], classes), mean, deviation)
    optimizer = jaxprune.sparsify(optax.adam(3e-3), method)  # the one line about pruning

    def start(seed: int | jax.Array) -> tuple[PyTree, PyTree]:
        params = model.init(jax.random.key(seed))
        return params, optimizer.init(params)

    def step(params: PyTree, state: PyTree, x: jax.Array, y: jax.Array) -> tuple[PyTree, PyTree]:
        loss = lambda p: optax.softmax_cross_entropy_with_integer_labels(model.apply(p, x), y).mean()
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    where = places(jax.eval_shape(start, options.seed), mesh, options.sharded)
    params, state = jax.jit(start, out_shardings=where)(options.seed)
    step = jax.jit(step, donate_argnums=(0, 1), out_shardings=where)
    drawn = networks.batches(train_images, train_labels, steps=options.steps, size=options.batch, seed=[options.seed])
    for x, y in drawn:
        params, state = step(params, state, share_out(mesh, x), share_out(mesh, y))
        # Simulated devices wait for each other with a time limit; many steps at once would run into it.
        jax.block_until_ready(params)
    even = len(test_labels) // mesh.size * mesh.size  # the devices share the test images evenly, so a few are left out
    correct = jax.jit(lambda p, x, y: (model.apply(p, x).argmax(-1) == y).mean())
    accuracy = correct(params, share_out(mesh, test_images[:even]), share_out(mesh, test_labels[:even]))
    return jaxprune.get_masks(state), float(accuracy)


def fingerprints(held: PyTree, mesh: Mesh) -> list[str]:
    """A hash of the masks on each device of this process."""
    whole = jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, P()))(held)
    digests = {device: hashlib.sha256() for device in mesh.local_devices}
    for leaf in jax.tree.leaves(whole):
        for shard in leaf.addressable_shards:
            digests[shard.device].update(np.packbits(np.asarray(shard.data)).tobytes())
    return [digest.hexdigest()[:16] for digest in digests.values()]


def compare(name: str, held: PyTree, mesh: Mesh, say: Any) -> bool:
    """Prints what this process holds and whether the others hold the same."""
    own = fingerprints(held, mesh)
    sent = np.array([[int(digest, 16) >> 32, int(digest, 16) & 0xFFFFFFFF] for digest in own], np.uint32)
    all_of_them = np.asarray(multihost_utils.process_allgather(sent)).reshape(-1, 2)
    same = bool((all_of_them == all_of_them[0]).all())
    print(f"process {jax.process_index()}: {name}: masks {own[0]} on each of its {len(own)} devices", flush=True)
    say(f"{name}: all {jax.process_count()} processes hold {'the same masks' if same else 'DIFFERENT masks'}")
    return same


def work(options: argparse.Namespace) -> int:
    """What each process does."""
    if not options.real:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", DEVICES // options.processes)
    if options.processes > 1:
        jax.distributed.initialize(options.coordinator, options.processes, options.process)
    say = partial(print, flush=True) if jax.process_index() == 0 else lambda *_: None
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    images = data.load(options.dataset, folder=options.data_dir, cache=options.cache)
    say(f"{jax.process_count()} processes, {mesh.size} devices; {images.origin['source']}")
    same = True
    for name, method in methods(options.steps).items():
        held, accuracy = train(method, images, mesh, options)
        kept = jax.jit(lambda m: (sum(x.sum() for x in m), sum(x.size for x in m)))([
            mask for mask in jax.tree.leaves(masks.unpack(held)) if mask.ndim
        ])  # fmt: skip
        say(f"{name}: accuracy {accuracy:.4f}, {1 - int(kept[0]) / int(kept[1]):.2%} of the pruned leaves removed")
        same &= compare(name, held, mesh, say)
    return 0 if same else 1


def launch(options: argparse.Namespace, arguments: list[str]) -> int:
    """Starts the processes on this machine, and waits for all of them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, str(Path(__file__)), *arguments, "--coordinator", coordinator]
    started = [subprocess.Popen([*command, "--process", str(i)]) for i in range(options.processes)]
    try:
        return max(process.wait(options.limit) for process in started)
    finally:
        for process in started:
            process.kill()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=1, choices=(1, 2, 4, 8))
    parser.add_argument("--process", type=int, help="which one this is; left out, all are started here")
    parser.add_argument("--coordinator", help="HOST:PORT of process 0")
    parser.add_argument("--real", action="store_true", help="the devices there are, not simulated ones")
    parser.add_argument("--sharded", action="store_true", help="share out parameters, moments and masks as well")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=128, help="images in a step, a multiple of the devices")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dataset", default="digits", choices=data.NAMES)
    parser.add_argument("--data-dir", type=Path, help="a folder of IDX files to use instead")
    parser.add_argument("--cache", type=Path, default=data.default_cache())
    parser.add_argument("--limit", type=float, default=1800, help="seconds after which processes are ended")
    options = parser.parse_args(arguments)
    if options.processes > 1 and options.process is None:
        return launch(options, arguments)
    return work(options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
