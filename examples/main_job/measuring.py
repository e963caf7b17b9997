"""How good and how large a network is, measured with `jaxprune.assess`."""

from typing import Any

import jax
import numpy as np

from jaxprune import assess

from .experiment import Network
from .fitting import predict
from .models import Model


def measure(model: Model, network: Network, test: tuple[np.ndarray, np.ndarray]) -> assess.ModelResult:
    """Accuracy, NLL, Brier score and calibration error on the test images; parameters and FLOPs of one image.

    Args:
        model: The model.
        network: The network.
        test: The test images and their labels.

    Returns:
        A row for `assess.comparison_table`; `seconds` are those of this network's own training, `steps` all behind it.

    Raises:
        RuntimeError: If a removed weight is not exactly zero: then nothing here could be trusted.
    """
    images, labels = test
    leaks = not_zero(network.params, network.masks)
    if leaks:
        raise RuntimeError(f"{leaks} removed weights of {network.name} are not zero")
    one_image = jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype)
    metrics = assess.evaluate(predict(model, network.params, images), labels)
    complexity = assess.complexity(model.apply, network.params, network.masks, one_image)
    extra = {"steps": network.steps, "seconds": network.seconds} if network.steps else {}
    return assess.ModelResult(network.name, metrics, complexity, extra)


def not_zero(params: Any, masks: Any) -> int:
    """How many weights are not exactly zero although the masks say that they are removed."""
    removed = lambda leaf, mask: np.asarray(leaf)[~np.broadcast_to(mask, leaf.shape)]
    return sum(int(np.count_nonzero(entries)) for entries in jax.tree.leaves(jax.tree.map(removed, params, masks)))
