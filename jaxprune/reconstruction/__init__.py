"""Reconstruction: prune in one shot and change the kept weights to compensate for the removed ones.

A method is a function of one weight matrix, `(weight [inputs, outputs], gram, target) -> (weight, mask)`: `sparsegpt`,
`alps`, `obs`, `least_squares`, or your own function. The target says what to remove: `Entries`, `Grouped` or `Given`.
`reconstruct`, `reconstruct_blocks` and `reconstruct_sequential` run a method on every leaf of a tree of parameters.
"""

from jaxprune.reconstruction.alps import affordable, alps
from jaxprune.reconstruction.batch_statistics import recalibrate_statistics
from jaxprune.reconstruction.blocks import reconstruct_blocks
from jaxprune.reconstruction.least_squares import least_squares, obs
from jaxprune.reconstruction.quantise import Quantised, dequantise, quantise
from jaxprune.reconstruction.reconstruct import reconstruct, relative_errors
from jaxprune.reconstruction.removal import Entries, Given, Grouped
from jaxprune.reconstruction.sequential import reconstruct_sequential
from jaxprune.reconstruction.sparsegpt import sparsegpt

__all__ = [
    "Entries",
    "Given",
    "Grouped",
    "Quantised",
    "affordable",
    "alps",
    "dequantise",
    "least_squares",
    "obs",
    "quantise",
    "recalibrate_statistics",
    "reconstruct",
    "reconstruct_blocks",
    "reconstruct_sequential",
    "relative_errors",
    "sparsegpt",
]
