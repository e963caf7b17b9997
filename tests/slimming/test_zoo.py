"""A zoo of networks: what each may lose, and that it loses this exactly, under both meanings of removal."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import slimming
from tests.cases import few, normal
from tests.slimming import checks
from tests.slimming.zoo import images, sequences
from tests.slimming.zoo.parts import Weights

IMAGE, TOKENS = ((8, 8, 3),), ((5,),)
CHANNELS = "conv_general_dilated with an axis that cannot shrink"  # of the image
LOOKUP = "a gather at indices that the function computes; constant indices are followed"
TABLE = "a table whose entries a grid of constant indices reads several times"
JOINED = "joined with positions that cannot shrink"
INPUT = "dot_general with an axis that cannot shrink"
ADDED = "add with an axis that cannot shrink"
DROPPED = "a single position that an index or a squeeze drops"
OUTPUT = "output 0 of the function"
HEAD = {"head/kernel[1]": OUTPUT, "head/bias[0]": OUTPUT}
SUM = "a sum over values that masking does not make zero"
BLOCKS = {"heads": 1, "dim": 2, "hidden": 7}


class Network(NamedTuple):
    """What is expected of a network.

    Attributes:
      make: a function of weights, inputs and widths.
      inputs: the shapes of the inputs of one example; a shape of one axis is a row of tokens.
      units: for each group, named by one of its members: the number of its units, and how many of them the smaller
        network has.
      smaller: the widths of the smaller network; None if no widths give the kept units: as built is then as masked.
      frozen: the reason of each frozen axis, but for the windows of convolutions.
      inexact: the reason of each group for which removing is not masking.
    """

    make: Callable[..., Any]
    inputs: tuple[tuple[int, ...], ...]
    units: dict[str, tuple[int, int]]
    smaller: dict[str, int] | None
    frozen: dict[str, str]
    inexact: dict[str, str] = {}  # noqa: RUF012


def heads(*names: str) -> dict[str, tuple[int, int]]:
    """Attention of 2 heads: a head has queries, keys, values and outputs; a dimension has two of them in all heads."""
    one = lambda name: {f"{name}/q[1]": (2, 1), f"{name}/q[2]": (3, 2), f"{name}/v[2]": (3, 2)}
    return {key: count for name in names for key, count in one(name).items()}


def each(count: int, kept: int, *names: str) -> dict[str, tuple[int, int]]:
    return dict.fromkeys(names, (count, kept))


def grouped(name: str, width: int, kept: int) -> dict[str, tuple[int, int]]:
    """Channels that are normalised in 2 groups: a whole group may go, or the same channels of both."""
    return {f"{name} block of {width // 2}": (2, 2), f"{name} every {width // 2}": (width // 2, kept // 2)}


ZOO = {
    "swin": Network(
        images.swin,
        IMAGE,
        {
            **each(8, 6, "embed/kernel[3]"),
            **heads("block0", "block1"),
            **each(10, 7, "block0/up/kernel[1]", "block1/up/kernel[1]"),
            **each(12, 9, "merge/kernel[1]"),
        },
        {"width": 6, **BLOCKS, "merged": 9},
        {"embed/kernel[2]": CHANNELS, "block0/table[0]": TABLE, "block1/table[0]": TABLE, **HEAD},
    ),
    "convnext": Network(
        images.convnext,
        IMAGE,
        {**each(8, 6, "stem/kernel[3]"), **each(14, 9, "block/up/kernel[1]"), **each(10, 7, "downsample/kernel[3]")},
        {"width": 6, "hidden": 9, "deep": 7},
        {"stem/kernel[2]": CHANNELS, "depthwise/kernel[2]": CHANNELS, **HEAD},
        # x - mean is not zero where x is.
        {"stem/kernel[3]": SUM, "downsample/kernel[3]": SUM},
    ),
    "efficientnet": Network(
        images.efficientnet,
        IMAGE,
        {
            **each(6, 4, "stem/kernel[3]"),
            **each(14, 11, "expand/kernel[3]"),
            **each(4, 3, "squeeze/kernel[1]"),
            **each(10, 7, "top/kernel[3]"),
        },
        {"width": 4, "expanded": 11, "squeezed": 3, "top": 7},
        {"stem/kernel[2]": CHANNELS, "depthwise/kernel[2]": CHANNELS, **HEAD},
    ),
    "shufflenet": Network(
        images.shufflenet,
        IMAGE,
        {
            # The second half of the channels enters a branch. A shuffle puts two channels of each half into each half.
            **each(4, 3, "branch0/in/kernel[2]"),
            **each(2, 1, "stem/kernel[3]", "branch1/in/kernel[2]"),  # two enter the second branch
            **each(2, 1, "branch0/out/kernel[3] #0", "branch0/out/kernel[3] #1"),
            **each(6, 4, "branch0/in/kernel[3]", "branch1/in/kernel[3]"),
            **each(4, 3, "branch1/out/kernel[3]"),
        },
        None,  # halves that lose different channels are no ShuffleNet
        {
            "stem/kernel[2]": CHANNELS,
            "branch0/depthwise/kernel[2]": CHANNELS,
            "branch1/depthwise/kernel[2]": CHANNELS,
            **HEAD,
        },
    ),
    "densenet": Network(
        images.densenet,
        IMAGE,
        {
            **each(8, 6, "stem/kernel[3]"),
            **each(12, 7, *(f"block{b}/layer{k}/neck/kernel[3]" for b in (0, 1) for k in (0, 1))),
            **each(4, 3, *(f"block{b}/layer{k}/grow/kernel[3]" for b in (0, 1) for k in (0, 1))),
            **each(10, 8, "transition/kernel[3]"),
        },
        {"width": 6, "neck": 7, "growth": 3, "reduced": 8},
        {"stem/kernel[2]": CHANNELS, **HEAD},
    ),
    "unet": Network(
        images.unet,
        ((8, 8, 3), (4,)),
        {
            # The norm over [upsampled, skipped] has one group for each: their channels go together.
            **grouped("down/conv1/kernel[2]", 8, 6),
            **each(1, 1, "up/conv1/kernel[2]"),
            **grouped("down/conv1/kernel[3]", 8, 6),
            **grouped("attention/o[2]", 12, 10),
            **grouped("middle/conv1/kernel[3]", 12, 10),
            **grouped("up/conv1/kernel[3]", 8, 6),
            **grouped("out/kernel[2]", 8, 6),
            **heads("attention"),
            **each(6, 4, "time/kernel[1]"),
        },
        {"width": 6, "deep": 10, "time": 4, "heads": 1, "dim": 2},
        {"stem/kernel[2]": CHANNELS, "time/kernel[0]": INPUT, "out/kernel[3]": OUTPUT},
    ),
    "detr": Network(
        images.detr,
        IMAGE,
        {
            **each(6, 4, "backbone/kernel[3]"),
            **each(8, 6, "project/kernel[3]", "queries[1]"),  # encoder and decoder
            **heads("encoder", "decoder/self", "decoder/cross"),
            **each(10, 7, "encoder/up/kernel[1]", "decoder/up/kernel[1]"),
            **each(10, 8, "box1/kernel[1]"),
        },
        {"channels": 4, "width": 6, **BLOCKS},
        {
            "backbone/kernel[2]": CHANNELS,
            "positions[0]": ADDED,
            "queries[0]": OUTPUT,
            "classes/kernel[1]": OUTPUT,
            "classes/bias[0]": OUTPUT,
            "box2/kernel[1]": "output 1 of the function",
            "box2/bias[0]": "output 1 of the function",
        },
    ),
    "yolo": Network(
        images.yolo,
        IMAGE,
        {
            **each(6, 4, "stem/kernel[3]", "down/kernel[3]"),
            # One half passes on, the other half also enters the inner convolution, to which it is added.
            **each(4, 3, "fine/in/kernel[3]", "fine/inner/kernel[3]", "neck/in/kernel[3]", "neck/inner/kernel[3]"),
            **each(8, 6, "fine/out/kernel[3]", "neck/out/kernel[3]"),
            **each(5, 3, "pool/in/kernel[3]"),
            **each(7, 5, "pool/out/kernel[3]"),
            **each(9, 7, "head0/unit/kernel[3]", "head1/unit/kernel[3]"),
        },
        {"stem": 4, "half": 3, "pooled": 3, "neck": 5, "head": 7},
        {
            "stem/kernel[2]": CHANNELS,
            **{f"head{k}/out/{axis}": OUTPUT for k in (0, 1) for axis in ("kernel[3]", "bias[0]")},
        },
    ),
    "mamba": Network(
        sequences.mamba,
        TOKENS,
        {**each(8, 6, "embed[1]"), **each(12, 9, "conv[1]"), **each(3, 2, "a_log[1]"), **each(2, 1, "step[0]")},
        {"width": 6, "inner": 9, "state": 2, "rank": 1},
        {"embed[0]": LOOKUP, "conv[0]": DROPPED},
    ),
    "rwkv": Network(
        sequences.rwkv,
        TOKENS,
        {**each(8, 6, "embed[1]"), **each(6, 4, "time/k[1]"), **each(10, 7, "channel/k[1]")},
        {"width": 6, "inner": 4, "hidden": 7},
        {"embed[0]": LOOKUP, "head[1]": OUTPUT},
    ),
    "t5": Network(
        sequences.t5,
        TOKENS,
        {
            **each(8, 6, "embed[1]"),
            **heads("encoder", "decoder/self", "decoder/cross"),
            **each(10, 7, "encoder/gate[1]", "decoder/gate[1]"),
            **each(1, 1, "encoder/buckets[0]", "decoder/buckets[0]"),  # the bucket of a distance of 0 to the right
        },
        {"width": 6, **BLOCKS},
        {"embed[0]": LOOKUP, "encoder/buckets[0]": TABLE, "decoder/buckets[0]": TABLE},
    ),
    "whisper": Network(
        sequences.whisper,
        ((8, 4), (5,)),
        {
            **each(8, 6, "conv1/kernel[2]", "conv2/kernel[2]", "embed[1]"),
            **heads("encoder", "decoder/self", "decoder/cross"),
            **each(10, 7, "encoder/up/kernel[1]", "decoder/up/kernel[1]"),
            **each(4, 4, "decoder/positions[0]"),  # of 9, where a text has 5 tokens
        },
        {"width": 6, **BLOCKS},
        {"embed[0]": LOOKUP, "conv1/kernel[1]": CHANNELS, "encoder/positions[0]": ADDED, "decoder/positions[0]": ADDED},
    ),
    "clip": Network(
        sequences.clip,
        ((8, 8, 3), (5,)),
        {
            **each(8, 6, "image/patches/kernel[3]"),
            **each(6, 5, "text/embed[1]"),
            **each(5, 4, "image/project[1]"),
            **heads("image", "text"),
            **each(10, 7, "image/up/kernel[1]", "text/up/kernel[1]"),
        },
        {"seen": 6, "read": 5, "shared": 4, **BLOCKS},
        {
            "image/patches/kernel[2]": CHANNELS,
            "image/positions[0]": DROPPED,
            "text/positions[0]": ADDED,
            "text/embed[0]": LOOKUP,
        },
    ),
    "graph": Network(
        sequences.graph,
        (),
        {
            **each(8, 6, "encode/kernel[1]", "message0/out/kernel[1]", "message1/out/kernel[1]"),
            **each(10, 7, "message0/in/kernel[1]", "message1/in/kernel[1]"),
            **each(10, 7, "update0/up/kernel[1]", "update1/up/kernel[1]"),
        },
        {"width": 6, "hidden": 7},
        {"encode/kernel[0]": INPUT, "message0/in/kernel[0]": JOINED, "message1/in/kernel[0]": JOINED, **HEAD},
    ),
    "ensemble": Network(
        sequences.ensemble,
        ((4,),),
        {**each(3, 2, "bias[0]"), **each(30, 21, "bias[1]"), **each(18, 12, "middle[2]")},  # each member its own units
        {"members": 2, "hidden": 7, "second": 4},
        {"up[1]": INPUT, "down[2]": OUTPUT},
        {"bias[0]": SUM},  # the variance over the members
    ),
}  # fmt: skip


def inputs_of(name: str, batch: int) -> tuple[Any, ...]:
    if name == "graph":  # the batch is a larger graph: the nodes of several
        senders = np.concatenate([np.array([0, 1, 2, 3, 0, 1]) + 4 * k for k in range(batch)])
        receivers = np.concatenate([np.array([1, 2, 3, 0, 2, 3]) + 4 * k for k in range(batch)])
        return normal(4 * batch, 3), normal(6 * batch, 2), jnp.asarray(senders), jnp.asarray(receivers)
    rng = np.random.default_rng(batch)
    tokens = lambda shape: shape == (5,)
    draw = lambda shape: jnp.asarray(rng.integers(0, 11, (batch, 5))) if tokens(shape) else normal(batch, *shape)
    return tuple(map(draw, ZOO[name].inputs))


def shapes_of(name: str) -> tuple[Callable[..., Any], dict[str, Any], tuple[Any, ...]]:
    """A network's function of parameters and inputs, the shapes of its parameters, and inputs for a batch of 2."""
    make, collect, inputs = ZOO[name].make, Weights(), inputs_of(name, 2)
    _ = jax.eval_shape(lambda *given: make(collect, *given), *inputs)
    return lambda p, *given: make(Weights(p), *given), collect.shapes, inputs


def remove(groups: slimming.Groups, units: dict[str, tuple[int, int]], but: Any = ()) -> slimming.Choice:
    """Removes random units, as many in each layer as the smaller network lacks."""
    rng, removed = np.random.default_rng(0), {}
    for name, (count, kept) in units.items():
        group = groups[name]
        layer = np.zeros(count, int) if group.layer is None else group.layer
        if name not in but:
            gone = [
                rng.permutation(np.flatnonzero(layer == k))[: (count - kept) // group.layers]
                for k in range(group.layers)
            ]
            removed[group.name] = np.concatenate(gone)
    return slimming.Choice.remove(groups, removed)


@pytest.mark.parametrize("name", few(ZOO, "convnext", "mamba", "graph", "ensemble"))
def test_zoo(name: str) -> None:
    make, _, units, smaller, frozen, inexact = ZOO[name]
    fn, shapes, inputs = shapes_of(name)
    params, others = checks.random_params(shapes), inputs_of(name, 3)
    groups = slimming.find_groups(fn, params, *inputs)

    found = {groups[key].name: count for key, (count, _) in units.items()}
    assert {group.name: group.count for group in groups} == found
    assert {group.name: group.inexact for group in groups if not group.exact} == {
        groups[key].name: reason for key, reason in inexact.items()
    }
    window = lambda f: params[f.name].ndim > 2 and "kernel" in f.name and f.axis < params[f.name].ndim - 2
    assert {f.reason for f in groups.frozen if window(f)} <= {"the window of a convolution"}
    reasons = {f"{f.name}[{f.axis}]": f.reason for f in groups.frozen if not window(f)}
    assert reasons == frozen

    masked = remove(groups, units, inexact)
    built = remove(groups, units)
    less = slimming.slim(fn, params, masked, *inputs)
    small = slimming.slim(fn, params, built, *inputs, as_built=True)
    model = less.fn if smaller is None else lambda p, *given: make(Weights(p), *given, **smaller)
    assert sum(p.size for p in jax.tree.leaves(small.params)) < sum(p.size for p in jax.tree.leaves(params))

    def run(fn: Any, params: Any) -> Any:
        """The outputs for a larger batch, and the slope of their squares."""
        loss = lambda p: (out := fn(p, *others), sum(jnp.sum(y**2) for y in jax.tree.leaves(out)))[::-1]
        (_, out), slope = jax.value_and_grad(loss, has_aux=True)(params)
        return out, slope

    @jax.jit
    def compare(given: Any, less_params: Any, small_params: Any) -> Any:
        as_built = model(small_params, *others), small.fn(small_params, *others)
        return run(fn, given), run(less.fn, less_params), as_built

    (whole, slope), (own, less_slope), (expected, got) = compare(
        checks.masked(params, masked), less.params, small.params
    )
    assert checks.difference(whole, own) < 2e-6
    assert near(less.shrink(slope), less_slope)
    assert checks.difference(expected, got) < 2e-6


def near(a: Any, b: Any) -> bool:
    """Whether gradients agree, measured by the largest of all: those of keys' biases are zero but for rounding."""
    largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(jax.device_get(a)))
    gaps = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), jax.device_get(a), jax.device_get(b))
    assert math.isfinite(largest)
    return max(jax.tree.leaves(gaps)) < 1e-5 * largest


def test_groups_of_a_concatenation_whose_second_half_has_groups_of_its_own() -> None:
    def half(x: Any) -> Any:
        y = x.reshape(-1, 2, x.shape[-1] // 2)
        return (y * jax.lax.rsqrt((y**2).mean(-1, keepdims=True) + 1)).reshape(x.shape)

    params = {"a": normal(3, 8), "b": normal(3, 8, seed=1), "c": normal(16, 2)}
    fn = lambda p, x: half(jnp.concatenate([x @ p["a"], half(x @ p["b"])], -1)) @ p["c"]
    groups, _, _ = checks.check_agrees(fn, params, (normal(5, 3),))
    # A channel of the first half goes with one of the second half: with those of a group of 4, or with every fourth.
    counts = {group.name: (group.count, [(m.name, m.positions) for m in group.members]) for group in groups}
    members = lambda n: [("a", n), ("b", n), ("c", 2 * n)]
    assert counts["a[1] block of 4"] == (2, members(4))
    assert counts["a[1] every 4"] == (4, members(2))


def test_a_table_that_constant_indices_read_as_a_grid_keeps_the_entries_that_it_reads() -> None:
    far = np.abs(np.arange(3)[:, None] - np.arange(3))
    params = {"table": normal(5, 4), "b": normal(4, 2)}
    groups, _, _ = checks.check_agrees(lambda p: jnp.tanh(p["table"])[far] @ p["b"], params, ())
    assert [(f.name, f.axis, f.positions) for f in groups.frozen if "several times" in f.reason] == [("table", 0, 3)]
    assert groups["table[0]"].count == 2
