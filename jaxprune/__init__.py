"""jaxprune: pruning for JAX, as pure functions.

    params --criteria--> scores --allocation--> a sparsity for each leaf --masks--> masks
    masks --> apply | sparsify(optimizer) | slim(function) | rewind | ensemble --> assess --> report

Each arrow is a public function that can be used alone; `prune` is the first line in one call.
"""

from jaxprune import allocation as allocation
from jaxprune import assess as assess
from jaxprune import calibration as calibration
from jaxprune import checkpoints as checkpoints
from jaxprune import criteria as criteria
from jaxprune import ensembles as ensembles
from jaxprune import features as features
from jaxprune import lottery as lottery
from jaxprune import masks as masks
from jaxprune import models as models
from jaxprune import reconstruction as reconstruction
from jaxprune import schedules as schedules
from jaxprune import sensitivity as sensitivity
from jaxprune import slimming as slimming
from jaxprune import training as training
from jaxprune._jaxprs import LeafRole as LeafRole
from jaxprune._jaxprs import Roles as Roles
from jaxprune._jaxprs import find_roles as find_roles
from jaxprune.calibration import calibrate as calibrate
from jaxprune.masks import Pruned as Pruned
from jaxprune.prune import How as How
from jaxprune.prune import Selector as Selector
from jaxprune.prune import prune as prune
from jaxprune.reconstruction import reconstruct as reconstruct
from jaxprune.slimming import find_groups as find_groups
from jaxprune.slimming import slim as slim
from jaxprune.training import get_masks as get_masks
from jaxprune.training import sparsify as sparsify

__version__ = "0.1.0"
