"""Changing the weights that are kept to make up for those that are removed."""

from jaxprune.reconstruction.elimination import obs as obs
from jaxprune.reconstruction.gram import no_worse as no_worse
from jaxprune.reconstruction.gram import output_errors as output_errors
from jaxprune.reconstruction.masked import magnitude as magnitude
from jaxprune.reconstruction.masked import wanda as wanda
from jaxprune.reconstruction.repair import least_squares as least_squares
from jaxprune.reconstruction.sequential import reconstruct_sequential as reconstruct_sequential
from jaxprune.reconstruction.statistics import recalibrate_statistics as recalibrate_statistics
from jaxprune.reconstruction.sweep import sparsegpt as sparsegpt
from jaxprune.reconstruction.targets import Entries as Entries
from jaxprune.reconstruction.targets import Given as Given
from jaxprune.reconstruction.targets import Grouped as Grouped
from jaxprune.reconstruction.trees import reconstruct as reconstruct
from jaxprune.reconstruction.trees import relative_errors as relative_errors
