"""What the demo says of its networks: a table, plots, and the risk report; all measured by `jaxprune.assess`."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import assess, ensembles
from jaxprune.assess.complexity import Complexity

from . import data
from .experiment import FINE_TUNED, GRADUAL, LONGER, PRUNED, RANDOM, SAME_CHANCE, SLIM, SMALLER, TICKET, Network
from .networks import predict

FLOPS = "FLOPs are the effective ones of one image: 2 for each multiply-add with a weight that is kept."
LATENCY = (
    "milliseconds: the median time of one jitted call with 128 images, all networks in turn, 50 rounds, on this"
    " machine; kB: the network's file, with masks as bits and the kept values."
)
DRAWN = (LONGER, GRADUAL, TICKET)
"""The methods in the plots of the risk report; more lines could not be told apart."""
SPARSITY = 0.9
"""The sparsity of the ensemble's members, and of the pruned networks whose latency is measured."""
ENSEMBLE = "ensemble of 3 pruned"
AT_MOST = 2000
"""Training images that the generalisation gap is measured on."""
HOW = (
    f"The ensemble is the mean probability of the three networks trained at {SPARSITY:.0%} sparsity, all from one dense"
    " network. Temperatures were fitted to the validation images."
)
Measured = Sequence[tuple[Network, assess.ModelResult]]


class Sets(NamedTuple):
    """What networks are judged by: images, uint8 or float (n, height, width, channels), with their labels."""

    train: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


def measure(network: Network, test: tuple[np.ndarray, np.ndarray]) -> assess.ModelResult:
    """Accuracy, NLL, Brier score and calibration error on the test images; parameters and FLOPs of one image.

    Args:
        network: The network.
        test: The test images and their labels.

    Returns:
        A row of the table; `seconds` are those of this network's own training, `steps` all behind it.

    Raises:
        RuntimeError: If a removed weight is not exactly zero: then nothing here could be trusted.
    """
    images, labels = test
    leaks = not_zero(network.params, network.masks)
    if leaks:
        raise RuntimeError(f"{leaks} removed weights of {network.name} are not zero")
    metrics = assess.evaluate(predict(network.apply, network.params, images), labels)
    extra = {"steps": network.steps, "seconds": network.seconds} if network.steps else {}
    return assess.ModelResult(network.name, metrics, _complexity(network, images), extra)


def not_zero(params: Any, masks: Any) -> int:
    """How many weights are not exactly zero although the masks say that they are removed."""
    removed = lambda leaf, mask: np.asarray(leaf)[~np.broadcast_to(mask, leaf.shape)]
    return sum(int(np.count_nonzero(entries)) for entries in jax.tree.leaves(jax.tree.map(removed, params, masks)))


def latencies(networks: Sequence[Network], images: np.ndarray, *, rounds: int = 50) -> dict[str, float]:
    """How long a jitted call takes, all networks in turn so that a busy machine is unfair to none.

    Args:
        networks: Dense, pruned or slim ones.
        images: One batch.
        rounds: How many calls of each are timed.

    Returns:
        The median milliseconds, by the network's name.
    """
    batch = jnp.asarray(images)
    calls = {n.name: (jax.jit(n.apply).lower(n.params, batch).compile(), n.params) for n in networks}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 3):
        for name, (call, params) in calls.items():
            began = time.perf_counter()
            jax.block_until_ready(call(params, batch))
            times[name].append(1000 * (time.perf_counter() - began))
    return {name: float(np.median(taken[3:])) for name, taken in times.items()}


def timed(networks: Sequence[Network]) -> list[Network]:
    """The networks whose latency tells something: dense, pruned to `SPARSITY`, slim."""
    return [n for n in networks if n.method in (LONGER, SLIM) or (n.method == GRADUAL and n.target == SPARSITY)]


def data_line(origin: Mapping[str, Any]) -> str:
    """Which data were used, in one line."""
    counts = f"{origin['training images']:,} training and {origin['test images']:,} test images"
    shape = "x".join(map(str, origin["image shape"]))
    return f"data: {origin['source']}, {counts} of {shape}, sha256 {origin['sha256'][:12]}"


def write(folder: Path, measured: Measured, about: dict[str, Any]) -> str:
    """Write `report.txt`, `report.json`, `accuracy.png`, `layers.png` and `latency.png`.

    Args:
        folder: Where to.
        measured: The networks and what was measured.
        about: What else stands in the JSON: `data` (of which a line also heads the plots), the plan, times.

    Returns:
        The table, with the notes that must be read with it.
    """
    line = data_line(about["data"])
    notes = (
        *(line, f"plan: {_plan(about)}", SAME_CHANCE, SMALLER, FLOPS, LATENCY),
        _doubt(about["data"]["test images"]),
    )
    report = assess.comparison_table([result for _, result in measured], notes=notes)
    costs = {network.name: result.complexity for network, result in measured if result.complexity}
    details = {name: cost.as_dict() for name, cost in costs.items()}
    content = {**about, **json.loads(report.to_json()), "complexity": details}
    (folder / "report.json").write_text(json.dumps(content, indent=2) + "\n")
    (folder / "report.txt").write_text(f"{report}\n")
    gradual = {network.name: costs[network.name] for network, _ in measured if network.method == GRADUAL}
    _save(_accuracy_plot(measured), folder / "accuracy.png", line)
    _save(
        assess.plots.sparsity_by_leaf(gradual), folder / "layers.png", f"{line}\nother methods prune each layer as much"
    )
    _save(_latency_plot(measured), folder / "latency.png", line)
    return str(report)


def risk_report(
    networks: Sequence[Network],
    sets: Sets,
    times: Mapping[str, float],
    *,
    seed: int,
    draws: int,
    notes: Sequence[str] = (),
) -> assess.RiskReport:
    """Judges all networks and the ensemble against the dense network that was trained as long.

    Args:
        networks: The networks, the one called `LONGER` among them.
        sets: The images.
        times: The median milliseconds of one call by the name of the network, as `latencies` measured them.
        seed: For the tests, and for the noise in corrupted images.
        draws: The number of draws that the tests make.
        notes: Sentences for the report.

    Returns:
        The report.
    """
    key = jax.random.key(seed)
    images = sets.test[0]
    white = float(sets.train[0].max())
    other, strange = data.foreign_to(images.shape[1:], white)
    judged = partial(_outputs, sets=sets, key=key, white=white, other=other, strange=strange)
    models = {
        n.name: judged(
            partial(predict, n.apply, n.params),
            complexity=_complexity(n, images),
            seconds=times[n.name] / 1000 if n.name in times else None,
        )
        for n in networks
    }
    chosen = [n for n in networks if n.target == SPARSITY and n.method in (GRADUAL, FINE_TUNED, RANDOM)]
    if chosen:
        models[ENSEMBLE] = _ensemble(chosen, judged, images, strange, other)
    truth = assess.Labels(sets.test[1], sets.train[1][:AT_MOST], sets.validation[1])
    line = f"{other}: {len(strange)} images of another kind; the ensemble: {', '.join(n.name for n in chosen)}"
    return assess.risk_report(
        models,
        truth,
        key=key,
        reference=LONGER,
        images=images / np.float32(white),
        notes=(*notes, line, HOW),
        draws=draws,
    )


def write_risk(found: assess.RiskReport, folder: Path, networks: Sequence[Network]) -> None:
    """Write `risk.txt`, `risk.json` and `risk.html`, with some of the networks in its plots."""
    drawn = [*(n.name for n in networks if n.method in DRAWN), *(name for name in found.risks if name == ENSEMBLE)]
    (folder / "risk.txt").write_text(f"{found}\n")
    (folder / "risk.json").write_text(found.to_json() + "\n")
    (folder / "risk.html").write_text(found.to_html(title="What pruning did to the risk", draw=drawn))


def _complexity(network: Network, images: np.ndarray) -> Complexity:
    one_image = jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype)
    return assess.complexity(network.apply, network.params, network.masks, one_image)


def _plan(about: dict[str, Any]) -> str:
    plan = about["plan"]
    steps = f"{plan['steps']:,} steps of {plan['batch']} images in each phase"
    held = "every seventh training image is held out for validation"
    return f"the {about['model']} CNN, seed {plan['seed']}, {steps}; seconds are those of the last phase; {held}"


def _doubt(images: int) -> str:
    error = (0.95 * 0.05 / images) ** 0.5
    return f"One seed; the standard error of an accuracy of 95 % on {images:,} images is {100 * error:.1f} points."


def _accuracy_plot(measured: Measured) -> Any:
    accuracy = lambda method: [
        (network.target, 100 * float(result.metrics.accuracy))
        for network, result in measured
        if network.method == method and result.metrics
    ]
    ((_, dense),) = accuracy(LONGER)
    return assess.plots.accuracy_by_sparsity({m: accuracy(m) for m in PRUNED}, dense=dense, ylabel="test accuracy in %")


def _latency_plot(measured: Measured) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for _, result in measured:
        if result.metrics and "milliseconds" in result.extra:
            x, y = result.extra["milliseconds"], 100 * float(result.metrics.accuracy)
            axes.plot(x, y, "o")
            axes.annotate(result.name, (x, y), textcoords="offset points", xytext=(6, 4), fontsize=8)
    axes.set(xlabel="milliseconds for 128 images", ylabel="test accuracy in %")
    axes.margins(x=0.35, y=0.3)
    return figure


def _save(figure: Any, path: Path, title: str) -> None:
    figure.suptitle(title, fontsize=7, wrap=True)
    figure.savefig(path)


def _outputs(
    run: Any, *, sets: Sets, key: jax.Array, white: float, other: str, strange: np.ndarray, **more: Any
) -> assess.Predictions:
    test = jnp.asarray(sets.test[0], jnp.float32)
    # The levels are meant for 32 pixels; on smaller images their blur would hardly be one.
    ways = assess.corruptions(low=0.0, high=white, scale=max(0.75, test.shape[1] / 32))
    return assess.Predictions(
        test=run(test),
        train=run(sets.train[0][:AT_MOST]),
        held_out=run(sets.validation[0]),
        foreign={other: run(strange)},
        corrupted=assess.corrupted_logits(run, test, key=key, ways=ways),
        **more,
    )


def _ensemble(
    chosen: Sequence[Network], judged: Callable[..., assess.Predictions], images: np.ndarray, strange: Any, other: str
) -> assess.Predictions:
    apply = chosen[0].apply
    members = ensembles.stack([(network.params, network.masks) for network in chosen])
    every = ensembles.member_logits(apply)
    in_parts = lambda images: jnp.concatenate(
        [every(members, part) for part in np.array_split(np.asarray(images), math.ceil(len(images) / 1000))], axis=1
    )
    one_image = jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype)
    together = lambda params, x: [apply(each, x) for each in params]
    return judged(
        lambda images: ensembles.mean_probability(in_parts(images)),
        complexity=assess.complexity(together, [n.params for n in chosen], [n.masks for n in chosen], one_image),
        members=in_parts(images),
        foreign_members={other: in_parts(strange)},
    )
