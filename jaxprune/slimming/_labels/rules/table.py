"""The rule of each primitive, by its name."""

from jaxprune.slimming._labels.rules import (
    contraction,
    control,
    convolution,
    custom,
    elementwise,
    indexing,
    pieces,
    reductions,
    shapes,
)
from jaxprune.slimming._labels.rules.base import Rule

RULES: dict[str, Rule] = {
    **elementwise.TABLE,
    **contraction.TABLE,
    **convolution.TABLE,
    **shapes.TABLE,
    **pieces.TABLE,
    **reductions.TABLE,
    **indexing.TABLE,
    **control.TABLE,
    **custom.TABLE,
}
