"""What slimming can remove, as a table: `python -m tests.slimming.zoo.table [name ...]`; `make zoo` has all of it.

For each network: the units that can go; the share of the weights that some unit holds and the share that goes with half
of the units of each group, first where removing equals masking and then also as built; the groups that only go as
built; and why other positions are frozen, but for windows of convolutions, inputs, outputs and the vocabulary. Nothing
is computed but shapes.
"""

import sys
from collections import Counter
from typing import Any

import jax
import numpy as np

from jaxprune import slimming
from jaxprune.slimming.choice import unit_masks
from tests.slimming.checks import is_depth
from tests.slimming.test_zoo import ZOO, shapes_of
from tests.slimming.zoo import flax_models

# Windows of convolutions, outputs, the channels of inputs, rows of the vocabulary.
ALWAYS = (
    "the window of a convolution",
    "output ",
    "conv_general_dilated with",
    "dot_general with",
    "a gather at indices that the function computes",
)


def shares(groups: slimming.Groups, shapes: Any, *, inexact: bool) -> str:
    """The share of the weights that some unit holds, and the share that goes with half of each group."""
    sizes = np.array([leaf.size for leaf in jax.tree.leaves(shapes)])
    keep, half = np.ones((2, groups.size), bool)
    for group in groups:
        if not is_depth(group) and (inexact or group.exact):
            keep[group.span] = group.count == group.layers  # a group of one unit cannot shrink
            layer = np.zeros(group.count, int) if group.layer is None else group.layer
            for k in range(group.layers):
                of_layer = np.flatnonzero(layer == k)
                half[group.first + of_layer[: min(of_layer.size // 2, of_layer.size - group.least)]] = False
    stays = [[np.mean(mask) for mask in jax.tree.leaves(unit_masks(groups, own))] for own in (keep, half)]
    held, gone = (1 - float(sizes @ np.array(own)) / sizes.sum() for own in stays)
    return f"{100 * held:.0f} %, {100 * gone:.0f} %"


def row(name: str, fn: Any, shapes: Any, inputs: Any) -> str:
    groups = slimming.find_groups(fn, shapes, *inputs)
    moving = [group for group in groups if group.count > group.layers and not is_depth(group)]
    inexact = sorted({group.inexact for group in moving if group.inexact is not None})
    frozen = Counter[str]()
    for found in groups.frozen:
        if not found.reason.startswith(ALWAYS):
            frozen[found.reason] += found.positions
    why = "; ".join(f"{reason} ({count})" for reason, count in frozen.most_common(3))
    cells = (
        name,
        f"{sum(group.count for group in moving)} in {len(moving)}",
        *(shares(groups, shapes, inexact=inexact) for inexact in (False, True)),
        "; ".join(inexact),
        why,
    )
    return f"| {' | '.join(cells)} |"


def main(names: list[str]) -> None:
    print("| network | units in groups | masked: held, gone at half | as built | only as built | frozen positions |")
    print("|---|---|---|---|---|---|")
    for name in (name for name in ZOO if not names or name in names):
        print(row(name, *shapes_of(name)), flush=True)
    for name in (name for name in flax_models.MODELS if not names or name in names):
        try:
            fn, shapes, inputs = flax_models.build(name)
        except ModuleNotFoundError:
            sys.exit("transformers is not installed: `make zoo` installs it in an environment of its own")
        print(row(f"Flax {name}", fn, shapes, (inputs,)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
