"""Features: which inputs of a network matter, which hidden channels and layers are redundant, and smaller networks.

A score is larger for a feature that is more worth keeping; `top` and `eliminate` turn scores into a mask, and `narrow`
turns a mask into a smaller network.

| input of the score | scores |
|---|---|
| one feature and the target | `pearson`, `spearman`, `anova_f`, `mutual_information` |
| pairs of features | `mrmr`, `one_of_each` (remove redundancy), `relatedness` (looks for redundancy) |
| a trained network | `gradient_saliency`, `permutation`, `input_norms` |
| a network while it trains | `StochasticGates`, `input_lasso` |
| hidden channels and layers | `distinctness`, `alive`, `map_rank`, `cka`, `similar_layers` |

Targets of shape (n,) are class labels if they are integers, booleans or strings, and numbers if they are floats.
"""

from jaxprune.features.hidden import (
    alive,
    cka,
    distinctness,
    map_rank,
    similar_layers,
)
from jaxprune.features.narrowing import eliminate, narrow, top
from jaxprune.features.saliency import StochasticGates, gradient_saliency, input_lasso, input_norms, permutation
from jaxprune.features.scores import (
    anova_f,
    clusters,
    correlations,
    mrmr,
    mutual_information,
    one_of_each,
    pearson,
    relatedness,
    spearman,
)

__all__ = [
    "StochasticGates",
    "alive",
    "anova_f",
    "cka",
    "clusters",
    "correlations",
    "distinctness",
    "eliminate",
    "gradient_saliency",
    "input_lasso",
    "input_norms",
    "map_rank",
    "mrmr",
    "mutual_information",
    "narrow",
    "one_of_each",
    "pearson",
    "permutation",
    "relatedness",
    "similar_layers",
    "spearman",
    "top",
]
