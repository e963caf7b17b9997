"""Pruning in training: `sparsify` wraps an optimizer, and methods such as `gradual` and `rigl` make the masks.

    optimizer = jaxprune.sparsify(optax.adamw(1e-3), training.gradual(schedules.cubic(0, 1000, 0.9)))

Methods that hold removed weights at zero: `fixed`, `one_shot`, `gradual`; `static`, `set_`, `rigl`, `srigl`, `dynamic`;
`acdc`; and `phases`, which runs methods one after another. Methods that train dense weights behind a sparse forward
pass (`sparse_params`): `straight_through`, `sr_ste`, `top_kast`, `movement`. Your own method is a `Method`.
"""

from jaxprune.training.dynamic import dynamic as dynamic
from jaxprune.training.dynamic import rigl as rigl
from jaxprune.training.dynamic import set_ as set_
from jaxprune.training.dynamic import srigl as srigl
from jaxprune.training.dynamic import static as static
from jaxprune.training.growth import gradient_growth as gradient_growth
from jaxprune.training.planned import acdc as acdc
from jaxprune.training.planned import fixed as fixed
from jaxprune.training.planned import gradual as gradual
from jaxprune.training.planned import one_shot as one_shot
from jaxprune.training.planned import phases as phases
from jaxprune.training.sparsify import Method as Method
from jaxprune.training.sparsify import Signals as Signals
from jaxprune.training.sparsify import SparsifyState as SparsifyState
from jaxprune.training.sparsify import get_masks as get_masks
from jaxprune.training.sparsify import is_finished as is_finished
from jaxprune.training.sparsify import sparsify as sparsify
from jaxprune.training.straight_through import movement as movement
from jaxprune.training.straight_through import sparse_params as sparse_params
from jaxprune.training.straight_through import sr_ste as sr_ste
from jaxprune.training.straight_through import straight_through as straight_through
from jaxprune.training.straight_through import top_kast as top_kast

__all__ = [
    "Method",
    "Signals",
    "SparsifyState",
    "acdc",
    "dynamic",
    "fixed",
    "get_masks",
    "gradient_growth",
    "gradual",
    "is_finished",
    "movement",
    "one_shot",
    "phases",
    "rigl",
    "set_",
    "sparse_params",
    "sparsify",
    "sr_ste",
    "srigl",
    "static",
    "straight_through",
    "top_kast",
]
