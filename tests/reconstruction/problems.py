"""Weights, and inputs that are correlated as those of real layers are."""

import numpy as np


def layer(seed, inputs, outputs, samples=None, correlation=0.9):
    """Weights [inputs, outputs] and inputs [samples, inputs], float64."""
    rng = np.random.default_rng(seed)
    samples = 4 * inputs if samples is None else samples
    own, shared = rng.normal(size=(samples, inputs)), rng.normal(size=(samples, max(inputs // 4, 1)))
    mixed = shared @ rng.normal(size=(shared.shape[1], inputs)) / np.sqrt(shared.shape[1])
    x = (np.sqrt(1 - correlation) * own + np.sqrt(correlation) * mixed) * np.exp(0.5 * rng.normal(size=inputs))
    return rng.normal(size=(inputs, outputs)) / np.sqrt(inputs), x
