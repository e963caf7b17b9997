"""jaxprune: pruning for JAX, as pure functions.

    params --criteria--> scores --allocation--> a sparsity for each leaf --masks--> masks
    masks --> apply | sparsify(optimizer) | slim(function) | rewind | ensemble --> assess --> report
    a folder on disk --models, checkpoints--> a smaller folder on disk

Each arrow is a public function that can be used alone; `prune` is the first line in one call. This package exports the
names that are used most. Its modules export all others, and `help(jaxprune.masks)` lists the names of one module:

    masks           patterns, exact selection, algebra, packing
    criteria        scores: by weights, gradients, second order, activations, flow
    allocation      how the leaves share a sparsity: uniform, ER, ERK, one ranking, LAMP, OWL, by path
    schedules       step -> sparsity, step -> update or not
    training        methods for `sparsify`: fixed, one-shot, gradual, RigL, AC/DC, straight-through
    lottery         tickets: iterative pruning, rewinding, control experiments, stability
    calibration     the activations that each weight is multiplied by, for any function
    reconstruction  one-shot pruning that repairs: SparseGPT, OBS, ALPS, least squares
    slimming        removal of channels, heads and layers from the arrays
    features        which inputs and hidden units matter
    sensitivity     the loss when each layer is pruned alone, and the best levels within a budget
    assess          cost, accuracy, risk, comparison, choice of models; reports
    ensembles       pruned members as one program, soups, distillation
    checkpoints     networks, runs and Hugging Face folders on disk
    models          decoders of the Llama family, from folder to folder
"""

from jaxprune import (
    allocation,
    assess,
    calibration,
    checkpoints,
    criteria,
    ensembles,
    features,
    lottery,
    masks,
    models,
    reconstruction,
    schedules,
    sensitivity,
    slimming,
    training,
)
from jaxprune._jaxprs import find_roles
from jaxprune._tree import LeafRole, Roles
from jaxprune.calibration import calibrate
from jaxprune.masks import Pruned
from jaxprune.prune import How, Selector, prune
from jaxprune.reconstruction import reconstruct
from jaxprune.slimming import find_groups, slim
from jaxprune.training import get_masks, sparsify

__version__ = "0.1.0"

__all__ = [
    "How",
    "LeafRole",
    "Pruned",
    "Roles",
    "Selector",
    "allocation",
    "assess",
    "calibrate",
    "calibration",
    "checkpoints",
    "criteria",
    "ensembles",
    "features",
    "find_groups",
    "find_roles",
    "get_masks",
    "lottery",
    "masks",
    "models",
    "prune",
    "reconstruct",
    "reconstruction",
    "schedules",
    "sensitivity",
    "slim",
    "slimming",
    "sparsify",
    "training",
]
