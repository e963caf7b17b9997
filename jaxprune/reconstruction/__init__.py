"""Reconstruction: prune in one shot, and change the weights that are kept to make up for those that are removed.

Methods are functions of one weight matrix, `(weight [inputs, outputs], gram, target) -> (weight, mask)`: `sparsegpt`,
`alps`, `obs`, `least_squares`, or your own. The target says what to remove: `Entries`, `Grouped` or `Given`.
`reconstruct` and `reconstruct_sequential` run a method on every leaf of a tree of parameters.
"""

from jaxprune.reconstruction.alps import alps as alps
from jaxprune.reconstruction.batch_statistics import recalibrate_statistics as recalibrate_statistics
from jaxprune.reconstruction.least_squares import least_squares as least_squares
from jaxprune.reconstruction.obs import obs as obs
from jaxprune.reconstruction.reconstruct import reconstruct as reconstruct
from jaxprune.reconstruction.reconstruct import relative_errors as relative_errors
from jaxprune.reconstruction.removal import Entries as Entries
from jaxprune.reconstruction.removal import Given as Given
from jaxprune.reconstruction.removal import Grouped as Grouped
from jaxprune.reconstruction.sequential import reconstruct_sequential as reconstruct_sequential
from jaxprune.reconstruction.sparsegpt import sparsegpt as sparsegpt
