"""The risk report that the demo ends with: how far to trust each network, the ticket, and an ensemble."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import assess, ensembles

from . import foreign
from .experiment import FINE_TUNED, GRADUAL, LONGER, RANDOM, Network
from .fitting import predict
from .models import Model

SPARSITY = 0.9
ENSEMBLE = "ensemble of 3 pruned"
AT_MOST = 2000
"""Training images that the generalisation gap is measured on."""

HOW = (
    f"The ensemble is the mean probability of the three networks trained at {SPARSITY:.0%} sparsity, all from one dense"
    " network. Temperatures were fitted to the validation images."
)


class Sets(NamedTuple):
    """What networks are judged by: images, uint8 or float (n, height, width, channels), with their labels."""

    train: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


def report(
    model: Model, networks: Sequence[Network], sets: Sets, *, seed: int, resamples: int, notes: Sequence[str] = ()
) -> assess.RiskReport:
    """Judge all networks and the ensemble against the dense network that was trained as long.

    Args:
        model: The model.
        networks: The networks, the one called `LONGER` among them.
        sets: The images.
        seed: Of the bootstrap, and of the noise in corrupted images.
        resamples: Of every interval.
        notes: Sentences for the report.

    Returns:
        The report.
    """
    key = jax.random.key(seed)
    white = float(sets.train[0].max())
    other, strange = foreign.like(sets.test[0].shape[1:], white)
    judged = partial(_outputs, sets=sets, key=key, white=white, other=other, strange=strange)
    one_image = jax.ShapeDtypeStruct((1, *sets.test[0].shape[1:]), sets.test[0].dtype)
    models = {
        n.name: judged(
            partial(predict, model, n.params), complexity=assess.complexity(model.apply, n.params, n.masks, one_image)
        )
        for n in networks
    }
    chosen = [n for n in networks if n.target == SPARSITY and n.method in (GRADUAL, FINE_TUNED, RANDOM)]
    if chosen:
        models[ENSEMBLE] = _ensemble(model, chosen, judged, sets, strange, other, one_image)
    truth = assess.Labels(sets.test[1], sets.train[1][:AT_MOST], sets.validation[1])
    line = f"{other}: {len(strange)} images of another kind; the ensemble: {', '.join(n.name for n in chosen)}"
    return assess.risk_report(
        models,
        truth,
        key=key,
        reference=LONGER,
        images=sets.test[0] / np.float32(white),
        notes=(*notes, line, HOW),
        resamples=resamples,
    )


def write(found: assess.RiskReport, folder: Path, drawn: Sequence[str]) -> None:
    """Write `risk.txt`, `risk.json` and `risk.html`, with some of the networks in its plots."""
    (folder / "risk.txt").write_text(f"{found}\n")
    (folder / "risk.json").write_text(found.to_json() + "\n")
    (folder / "risk.html").write_text(found.to_html(title="What pruning did to the risk", draw=drawn))


def _outputs(
    run: Any, *, sets: Sets, key: jax.Array, white: float, other: str, strange: np.ndarray, **more: Any
) -> assess.Predictions:
    test = jnp.asarray(sets.test[0], jnp.float32)
    # The levels are meant for 32 pixels; on smaller images their blur would hardly be one.
    scale = max(0.75, test.shape[1] / 32)
    ways = assess.corruptions(low=0.0, high=white, scale=scale)
    return assess.Predictions(
        test=run(test),
        train=run(sets.train[0][:AT_MOST]),
        held_out=run(sets.validation[0]),
        foreign={other: run(strange)},
        corrupted=assess.corrupted_logits(run, test, key=key, ways=ways),
        **more,
    )


def _ensemble(
    model: Model, chosen: Sequence[Network], judged: Any, sets: Sets, strange: np.ndarray, other: str, one_image: Any
) -> assess.Predictions:
    members = ensembles.stack([(network.params, network.masks) for network in chosen])
    every = ensembles.logits_of(model.apply)
    in_parts = lambda images: jnp.concatenate(
        [every(members, part) for part in np.array_split(np.asarray(images), math.ceil(len(images) / 1000))], axis=1
    )
    together = lambda params, x: [model.apply(each, x) for each in params]
    each = [n.params for n in chosen], [n.masks for n in chosen]
    return judged(
        lambda images: ensembles.mean_probability(in_parts(images)),
        complexity=assess.complexity(together, *each, one_image),
        members=in_parts(sets.test[0]),
        foreign_members={other: in_parts(strange)},
    )
