"""Pruning in training: the wrapper of optimizers, and the methods that make the masks."""

from jaxprune.training.acdc import acdc as acdc
from jaxprune.training.dense import sparse_params as sparse_params
from jaxprune.training.dense import sr_ste as sr_ste
from jaxprune.training.dense import straight_through as straight_through
from jaxprune.training.dense import top_kast as top_kast
from jaxprune.training.dynamic import dynamic as dynamic
from jaxprune.training.dynamic import static as static
from jaxprune.training.enforce import keep_zeros as keep_zeros
from jaxprune.training.evolving import cosine_fraction as cosine_fraction
from jaxprune.training.evolving import rigl as rigl
from jaxprune.training.evolving import set_ as set_
from jaxprune.training.evolving import srigl as srigl
from jaxprune.training.growth import drop_and_grow as drop_and_grow
from jaxprune.training.growth import gradient_growth as gradient_growth
from jaxprune.training.method import Dense as Dense
from jaxprune.training.method import Method as Method
from jaxprune.training.method import Signals as Signals
from jaxprune.training.moments import zero_removed as zero_removed
from jaxprune.training.movement import movement as movement
from jaxprune.training.phases import phases as phases
from jaxprune.training.scheduled import fixed as fixed
from jaxprune.training.scheduled import gradual as gradual
from jaxprune.training.scheduled import one_shot as one_shot
from jaxprune.training.sparsify import SparsifyState as SparsifyState
from jaxprune.training.sparsify import get_masks as get_masks
from jaxprune.training.sparsify import sparsify as sparsify
