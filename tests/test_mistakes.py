"""What users get wrong, room by room: each message names the argument or the leaf, what was expected, and a way out."""

# The mistakes are what a type checker complains of.
# pyright: reportArgumentType=false, reportCallIssue=false, reportUnusedCallResult=false, reportAttributeAccessIssue=false
# pyright: reportIndexIssue=false, reportOptionalMemberAccess=false, reportReturnType=false

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from jaxprune import (
    allocation,
    assess,
    calibration,
    checkpoints,
    cli,
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

P = {"a": {"kernel": jnp.arange(1.0, 49).reshape(8, 6), "bias": jnp.ones(6)}, "b": {"kernel": jnp.ones((6, 4))}}
OTHER = {"c": jnp.ones((3, 3))}
MASKS = {"a": {"kernel": jnp.ones((8, 6), bool), "bias": True}, "b": {"kernel": jnp.ones((6, 4), bool)}}
PRUNED = masks.Pruned(P, MASKS)
X, KEY = jnp.ones((5, 8)), jax.random.key(0)
LOGITS, LABELS = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32), np.arange(30) % 3
Y = jnp.arange(5) % 4


def net(p, x):
    return jnp.tanh(x @ p["a"]["kernel"] + p["a"]["bias"]) @ p["b"]["kernel"]


def loss(p, x):
    return (net(p, x) ** 2).mean()


def mean(p):
    return loss(p, X)


def per_sample(logits, y):
    return -jax.nn.log_softmax(logits)[jnp.arange(len(y)), y]


def train(params, masks, key):
    return params


@functools.cache
def stats():
    return jaxprune.calibrate(net, P, [X], progress=False)


@functools.cache
def groups():
    return jaxprune.find_groups(net, P, X)


@functools.cache
def scores():
    return slimming.group_scores(groups(), P)


@functools.cache
def small():
    return jaxprune.slim(net, P, {"a/kernel[1]": [0]}, X)


OPTIMIZER = jaxprune.sparsify(optax.sgd(0.1), training.one_shot(0.5))
STATE = OPTIMIZER.init(P)


def prune(**how):
    return jaxprune.prune(P, 0.5, **how)


def init(method):
    return jaxprune.sparsify(optax.sgd(0.1), method).init(P)


def rigl(**options):
    return training.rigl(**{"sparsity": 0.5, "steps": 1000, "key": KEY, **options})


def search(train=train, params=P, **options):
    return lottery.iterative_pruning(train, params, **{"rounds": 1, "key": KEY, "progress": False, **options})


PRUNE = {
    "a model for its parameters": (lambda: jaxprune.prune(nn.Dense(3), 0.5), "params must be a tree of arrays"),
    "a function for the parameters": (lambda: jaxprune.prune(net, 0.5), r"params must be .*\['params'\].*got function"),
    "no parameters": (lambda: jaxprune.prune(None, 0.5), "params must be a tree of arrays.*got None"),
    "sparsity before parameters": (lambda: jaxprune.prune(0.5, P), "params must be a tree of arrays.*got 0.5"),
    "a percentage": (lambda: jaxprune.prune(P, 50), r"in \[0, 1\), got 50; for 50 % pass 0.5"),
    "a percentage in an array": (lambda: jaxprune.prune(P, jnp.float32(90)), r"sparsity .*in \[0, 1\)"),
    "a vector of sparsities": (lambda: jaxprune.prune(P, jnp.ones(2)), "sparsity must be a floating scalar"),
    "a schedule for a sparsity": (
        lambda: jaxprune.prune(P, schedules.cubic(0, 9, 0.9)),
        r"sparsity must be a number in \[0, 1\)",
    ),
    "a mapping with a misspelt leaf": (lambda: jaxprune.prune(P, {"encoder/*": 0.5}), "no leaf matches.*a/kernel"),
    "a mapping with a percentage": (lambda: jaxprune.prune(P, {"a/kernel": 50}), "a/kernel: sparsity.*pass 0.5"),
    "a misspelt keyword": (lambda: prune(patern=masks.Channel()), "did you mean pattern"),
    "a signal of a criterion": (lambda: prune(mu=P), r"name it there: def magnitude\(params, \*, mu, \*\*signals\)"),
    "the name of a criterion": (lambda: prune(criterion="magnitude"), "criterion must be a function.*'magnitude'"),
    "the result of a criterion": (lambda: prune(criterion=criteria.magnitude(P)), "criterion must be.*got a dict"),
    "a factory of a criterion": (lambda: prune(criterion=criteria.synflow), r"criterion synflow.*fn, \*inputs"),
    "a criterion without signals": (lambda: prune(criterion=lambda p: p), r"criterion.*\*\*signals"),
    "a criterion of arrays": (lambda: prune(criterion=jnp.abs), r"criterion abs.*\*\*signals"),
    "a criterion that returns None": (lambda: prune(criterion=lambda p, **_: None), "scores.*criterion.*is None"),
    "a criterion that returns a list": (
        lambda: prune(criterion=lambda p, **_: jax.tree.leaves(p)),
        "scores.*criterion.*structure of params",
    ),
    "a criterion that returns one number": (lambda: prune(criterion=lambda p, **_: 1.0), "scores.*criterion.*is 1.0"),
    "a criterion that returns a number a leaf": (
        lambda: prune(criterion=lambda p, **_: jax.tree.map(jnp.sum, p)),
        "criterion.*shapes of the parameters:.*a/kernel",
    ),
    "a criterion that returns integers": (
        lambda: prune(criterion=lambda p, **_: jax.tree.map(lambda w: w.astype(int), p)),
        "criterion.*floating arrays:.*a/kernel: int32",
    ),
    "a criterion without its key": (lambda: prune(criterion=criteria.random), "random needs key: pass key="),
    "a criterion without its gradients": (lambda: prune(criterion=criteria.snip), "snip needs grads: pass grads="),
    "a criterion without its statistics": (lambda: prune(criterion=criteria.wanda), "wanda needs stats: pass stats="),
    "a function for gradients": (
        lambda: prune(criterion=criteria.snip, grads=jax.grad(loss)),
        "grads must have the structure of params.*grads is function",
    ),
    "value and gradients": (
        lambda: prune(criterion=criteria.snip, grads=(1.0, P)),
        "grads must have the structure of params.*0: in grads",
    ),
    "gradients of other shapes": (
        lambda: prune(criterion=criteria.snip, grads=jax.tree.map(lambda w: w[:1], P)),
        "grads must have the shapes of params.*a/kernel",
    ),
    "a batch for statistics": (lambda: prune(criterion=criteria.wanda, stats=X), "stats must be .*calibrate"),
    "statistics of another network": (
        lambda: jaxprune.prune(OTHER, 0.5, criterion=criteria.wanda, stats=stats()),
        "stats.*calibrate.*a/kernel",
    ),
    "a seed for a key": (lambda: prune(criterion=criteria.random, key=0), r"pass jax.random.key\(seed\); got 0"),
    "floats for a key": (lambda: prune(key=jnp.ones(2)), r"key must be a key.*got float32\[2\]"),
    "the name of an allocation": (lambda: prune(allocation="erk"), "allocation must be a function.*'erk'"),
    "an allocation that is not called": (
        lambda: prune(allocation=allocation.by_path),
        r"allocation is called as allocation\(scores, sparsity, \*\*units\)",
    ),
    "an allocation that returns None": (
        lambda: prune(allocation=lambda scores, sparsity, **units: None),
        "allocation must return an allocation.Allocation; got None",
    ),
    "a misspelt option of an allocation": (lambda: allocation.erk(P, 0.5, patern=1), "patern is not one of.*pattern"),
    "a misspelt option of masks": (lambda: masks.select_global(P, 0.5, wher="a/*"), "wher is not one of.*where"),
    "the name of a pattern": (lambda: prune(pattern="2:4"), "pattern must be .*NM.*got '2:4'"),
    "the class of a pattern": (lambda: prune(pattern=masks.Channel), r"pattern must be .*Channel\(\)"),
    "n and m swapped": (lambda: masks.NM(4, 2), "1 <= n <= m, got n=4, m=2"),
    "n and m as floats": (lambda: masks.NM(2.0, 4), "takes integers, such as NM"),
    "m that does not divide": (lambda: prune(pattern=masks.NM(2, 5, axis=0)), "a/kernel: .*m=5; leave it out"),
    "2:4 at another sparsity": (
        lambda: jaxprune.prune(P, 0.9, where="a/*", pattern=masks.NM(2, 4, axis=0)),
        "a/kernel: .*removes exactly 0.5.*pass 0.5",
    ),
    "a block of one number": (lambda: masks.Block(4), r"shape must be a tuple of integers, such as Block\(\(4, 4\)\)"),
    "blocks that do not divide": (lambda: prune(pattern=masks.Block((3, 5))), "a/kernel: .*choose sizes"),
    "a channel axis out of range": (lambda: prune(pattern=masks.Channel(5)), r"a/kernel: axes \(5,\).*by path"),
    "a channel axis by name": (lambda: prune(pattern=masks.Channel("out")), "a/kernel: axes must be an integer.*'out'"),
    "a pattern for a misspelt leaf": (lambda: prune(pattern={"x/*": masks.Channel()}), "no leaf matches 'x/.*a/kernel"),
    "a glob that matches nothing": (lambda: prune(where="encodr/*"), "where: no prunable leaf matches.*a/kernel"),
    "no globs": (lambda: prune(where=[]), r"where=\[\] .*None"),
    "masks for where": (lambda: prune(where=MASKS), "where must be None, a predicate.*got a dict"),
    "a predicate of the name alone": (
        lambda: prune(where=lambda name: True),
        r"where is called as where\(name, leaf\)",
    ),
    "more batch axes than axes": (lambda: prune(batch_axes=3), r"a/kernel: batch_axes 3 and shape \(8, 6\)"),
    "batch axes as a float": (lambda: prune(batch_axes=1.0), "batch_axes must be an integer.*got 1.0"),
}

MASKS_AND_SHARES = {
    "masks before parameters": (lambda: masks.apply(MASKS, P), "params and masks are swapped"),
    "parameters before masks": (lambda: masks.invert(P, MASKS), "params and masks are swapped"),
    "floats for masks": (lambda: masks.apply(P, P), "masks must be bool.*mask != 0.*a/kernel: float32"),
    "masks of another network": (lambda: masks.apply(P, {"c": True}), "masks must have the structure of params.*c: in"),
    "masks of other shapes": (
        lambda: masks.apply(P, jax.tree.map(lambda m: jnp.ones((2, *np.shape(m)), bool), MASKS)),
        r"a/kernel: mask \(2, 8, 6\), parameter \(8, 6\)",
    ),
    "a Pruned for masks": (lambda: masks.apply(P, PRUNED), "masks must have.*of this Pruned pass its .masks"),
    "no masks": (lambda: masks.apply(P, None), "masks must have the structure of params.*masks is None"),
    "parameters to unite": (lambda: masks.unite(MASKS, P), "the other masks must be bool.*a/kernel"),
    "masks of other shapes to intersect": (
        lambda: masks.intersect({"w": jnp.ones((2, 2), bool)}, {"w": jnp.ones((3, 2), bool)}),
        r"same parameters.*w: \(2, 2\) and \(3, 2\)",
    ),
    "an allocation's result for sparsities": (
        lambda: masks.select(P, allocation.erk(P, 0.5)),
        "sparsities must have.*of this Allocation pass its .sparsities",
    ),
    "a leaf that is too large": (
        lambda: jax.eval_shape(lambda s: masks.select(s, 0.5), {"a": jax.ShapeDtypeStruct((2**20,) * 3, "float32")}),
        r"too large to be ranked; split(.|\n)*a: the axes of \(1048576, 1048576, 1048576\) do not divide",
    ),
    "a leaf that is too large to be counted": (
        lambda: jax.eval_shape(lambda s: masks.select(s, 0.5), jax.ShapeDtypeStruct((2, 2**16, 2**16), "float32")),
        r"\(the tree itself\): \(2, 65536, 65536\) has no axis of at most 32768 positions",
    ),
    "sparsities of some leaves": (lambda: masks.select(P, {"a": 0.5}), "sparsities must have.*b/kernel"),
    "one ranking of slices": (
        lambda: masks.select_global(P, 0.5, batch_axes=1, where=lambda name, leaf: "kernel" in name),
        "same number of slices.*keep batch_axes=0",
    ),
    "one ranking of 2:4": (
        lambda: masks.select_global(P, 0.5, pattern=masks.NM(1, 2, axis=0)),
        "no global ranking; use select:.*a/kernel",
    ),
    "parameters to pack": (lambda: masks.pack(P), "masks must be bool.*a/kernel"),
    "packed masks of another network": (
        lambda: masks.unpack(masks.pack(MASKS), OTHER),
        "masks must have the structure of like.*c: in like",
    ),
    "a fraction for a count": (lambda: masks.Count.of(2.5), "a count must be an integer.*got 2.5; a fraction is a"),
    "rules as a list": (lambda: allocation.by_path(["a/*"]), "rules must be a mapping from globs"),
    "a rule in percent": (lambda: allocation.by_path({"a/*": 50}), r"rules\['a/\*'\] .*pass 0.5"),
    "a number for the other leaves": (lambda: allocation.by_path({"a/*": 0.5}, 0.3), "default must be a function.*erk"),
    "rules that leave no room": (
        lambda: jaxprune.prune(P, 0.9, allocation=allocation.by_path({"a/*": 0.0})),
        "total can be from 0 to .*not 0.9; change",
    ),
    "a layer by name": (
        lambda: prune(allocation=functools.partial(allocation.owl, layer_of="a")),
        "layer_of must be a function",
    ),
}

CRITERIA = {
    "a power of zero": (lambda: criteria.magnitude(P, power=0), "power must be 1 or 2; got 0"),
    "an unknown norm": (lambda: criteria.magnitude(P, normalise="l3"), "normalise must be None or one of l1"),
    "obd without the Hessian": (lambda: criteria.obd(P, grads=P), "obd needs hessian_diagonal: pass"),
    "a seed for the Hessian": (lambda: criteria.hessian_diagonal(loss, P, [X], key=0), r"pass jax.random.key\(seed\)"),
    "one batch for the Hessian": (
        lambda: criteria.hessian_diagonal(loss, P, X, key=KEY),
        r"batches .*for one.*\[batch\]",
    ),
    "no batch for the Hessian": (lambda: criteria.hessian_diagonal(loss, P, [], key=KEY), "batches is empty"),
    "parameters before the loss": (
        lambda: criteria.hessian_diagonal(P, loss, [X], key=KEY),
        r"loss must be a function, such as loss\(params, batch\); got a dict",
    ),
    "a network for a loss": (
        lambda: criteria.hessian_diagonal(net, P, [X], key=KEY),
        r"loss must return a scalar, such as a mean.*got float32\[5, 4\]",
    ),
    "GraSP of a network": (lambda: prune(criterion=criteria.grasp(net, X)), "loss must return a scalar"),
    "GraSP without a batch": (
        lambda: prune(criterion=criteria.grasp(loss)),
        r"loss is called as loss\(params, \*inputs\)",
    ),
    "SynFlow with parameters": (
        lambda: prune(criterion=criteria.synflow(net, P, X)),
        r"fn is called as fn\(params, \*inputs\)",
    ),
    "SynFlow of parameters": (lambda: criteria.synflow(P, X), r"fn must be a function, such as fn\(params"),
    "parameters before the function of SynFlow": (
        lambda: criteria.synflow_masks(P, net, 0.5, X),
        "fn must be a function.*got a dict",
    ),
    "no iterations of SynFlow": (
        lambda: criteria.synflow_masks(net, P, 0.5, X, iterations=0),
        "iterations must be 1 or more",
    ),
    "a marked name": (lambda: criteria.within_outputs("wanda"), "criterion must be a function.*'wanda'"),
}

SCHEDULES = {
    "an end before the begin": (lambda: schedules.cubic(10, 5, 0.9), "end must come after begin; got begin=10, end=5"),
    "a final sparsity in percent": (
        lambda: schedules.cubic(0, 10, 90),
        "final is the fraction removed.*for 90 % pass 0.9",
    ),
    "steps as fractions": (lambda: schedules.cubic(0.1, 0.9, 0.9), "begin must be an integer; got 0.1"),
    "every zero steps": (lambda: schedules.every(0), "n must be 1 or more; got 0"),
    "updates that end before they begin": (lambda: schedules.every(5, 10, 3), "end must not come before begin"),
    "no cycles": (lambda: schedules.cyclic(0, 10, 0.9, cycles=0), "cycles must be 1 or more; got 0"),
    "a step before a sparsity": (lambda: schedules.jump(100, 0.5), r"sparsity is .* must be in \[0, 1\)"),
    "a number for a schedule of Optax": (lambda: schedules.from_optax(0.5), "from_optax .*function.*got 0.5"),
    "a schedule of Optax in percent": (
        lambda: schedules.from_optax(optax.linear_schedule(0, 90, 10))(5),
        "sparsity at step 5 is the fraction removed.*pass 0.45",
    ),
}

TRAINING = {
    "optimizer and method swapped": (
        lambda: jaxprune.sparsify(training.one_shot(0.5), optax.sgd(0.1)),
        "method must be a training.Method.*optimizer and method are swapped",
    ),
    "an optimizer that is not called": (
        lambda: jaxprune.sparsify(optax.adam, training.one_shot(0.5)),
        r"optimizer must be .*such as optax.adam\(1e-3\); got function adam",
    ),
    "a method that is not called": (
        lambda: jaxprune.sparsify(optax.sgd(0.1), training.one_shot),
        r"method must be .*such as training.gradual\(...\); got function one_shot",
    ),
    "a sparsity for a method": (lambda: jaxprune.sparsify(optax.sgd(0.1), 0.5), "method must be .*got 0.5"),
    "a method without functions": (
        lambda: init(training.Method(None, None, None)),
        "init of method must be a function",
    ),
    "a leaf of one axis": (lambda: OPTIMIZER.init({"b": jnp.ones(3)}), r"nothing to prune.*b: float32\[3\]"),
    "an update without parameters": (lambda: OPTIMIZER.update(P, STATE), r"update\(grads, state, params\)"),
    "gradients of some leaves": (
        lambda: OPTIMIZER.update({"b": P["b"]}, STATE, P),
        "gradients do not belong to the parameters:.*a/kernel: expected .*got nothing",
    ),
    "gradients of other shapes in update": (
        lambda: OPTIMIZER.update(jax.tree.map(lambda w: w[:1], P), STATE, P),
        r"gradients .*a/kernel: expected float32\[8, 6\], got float32\[1, 6\]",
    ),
    "gradients and state swapped": (lambda: OPTIMIZER.update(STATE, P, P), "state must be a training.SparsifyState"),
    "the state of another optimizer": (
        lambda: OPTIMIZER.update(P, optax.sgd(0.1).init(P), P),
        "state must be a training.SparsifyState.*start from init",
    ),
    "the state of another method": (
        lambda: OPTIMIZER.update(P, init(rigl()), P),
        "state .* another optimizer, method or network.*optimizer.init",
    ),
    "the state of another network": (lambda: OPTIMIZER.update(OTHER, STATE, OTHER), "masks must have.*c: in params"),
    "masks of a dense optimizer": (
        lambda: jaxprune.get_masks(optax.adam(0.1).init(P)),
        "opt_state must .*found 0; pass the state",
    ),
    "masks for a state": (lambda: training.is_finished(MASKS), "opt_state must .*found 0; pass the state"),
    "a number for a schedule": (lambda: training.gradual(0.5), "schedule must be a function, such as schedules.cubic"),
    "a schedule that is not called": (
        lambda: training.gradual(schedules.cubic),
        r"schedule is called as schedule\(step\)",
    ),
    "a schedule of vectors": (lambda: training.gradual(lambda step: jnp.ones(2)), "schedule.*must return a number"),
    "an interval for updates": (
        lambda: training.gradual(schedules.cubic(0, 10, 0.9), when=100),
        r"when must be a function, such as schedules.every\(100\)",
    ),
    "RigL that never revises": (lambda: training.rigl(0.5, 100, key=jax.random.key(0)), "lower every"),
    "RigL without a key": (lambda: init(training.rigl(0.5, 1000)), "needs key: pass key="),
    "RigL with a seed": (lambda: rigl(key=0), r"pass jax.random.key\(seed\)"),
    "RigL's sparsity and steps swapped": (lambda: training.rigl(1000, 0.5, key=KEY), "steps must be an integer"),
    "RigL with when": (lambda: rigl(when=schedules.every(3)), "every= and end= in place of when"),
    "a dropped fraction in percent": (lambda: rigl(fraction=30), r"fraction .*in \[0, 1\].*got 30"),
    "an end in steps": (lambda: rigl(end=750), r"end is a fraction of the steps and must be in \(0, 1\]"),
    "growth by name": (
        lambda: training.dynamic(0.5, grow="gradient", key=KEY),
        "grow must be a function, such as training.gradient_growth",
    ),
    "AC/DC that ends before it begins": (
        lambda: training.acdc(0.5, begin=10, end=5, compressed=2, dense=2),
        "end must come after begin",
    ),
    "the backward sparsity above the forward one": (
        lambda: training.top_kast(0.5, 0.9),
        "backward must be at most sparsity=0.5",
    ),
    "a rate for the optimizer of scores": (
        lambda: training.movement(0.5, learn=0.1),
        r"learn must be .*optax.adam\(1e-2\); got 0.1",
    ),
    "fixed parameters": (lambda: init(training.fixed(P)), "masks must be bool.*a/kernel"),
    "a fixed sparsity": (lambda: init(training.fixed(0.5)), "masks must have the structure of params.*masks is 0.5"),
    "phases without steps": (lambda: training.phases(training.one_shot(0.5)), r"pairs \(step, training.Method\)"),
    "phases out of order": (
        lambda: training.phases((10, training.one_shot(0.5)), (5, training.one_shot(0.5))),
        "steps of phases must rise from 0",
    ),
    "a state for masks": (lambda: training.sparse_params(P, STATE), "of this SparsifyState pass its .masks"),
}

CALIBRATION = {
    "parameters before the function": (lambda: jaxprune.calibrate(P, net, [X]), "fn and params are swapped"),
    "one batch": (lambda: jaxprune.calibrate(net, P, X), r"batches .*array of shape \[5, 8\]; for one.*\[batch\]"),
    "no batches": (lambda: jaxprune.calibrate(net, P, []), "batches is empty"),
    "a misspelt sum": (lambda: jaxprune.calibrate(net, P, [X], collect="grams"), "collect must be .*gram.*'grams'"),
    "sums of integers": (lambda: jaxprune.calibrate(net, P, [X], dtype=int), "dtype must be a floating type"),
    "a glob that matches nothing": (lambda: jaxprune.calibrate(net, P, [X], where="z"), "where: no .*'z'.*a/kernel"),
    "too little memory": (lambda: jaxprune.calibrate(net, P, [X], max_bytes=8), "max_bytes.*a/kernel"),
    "activations that are NaN": (
        lambda: jaxprune.calibrate(net, P, [X * jnp.nan], progress=False),
        "activations are not finite.*a/kernel",
    ),
    "a function without its parameters": (
        lambda: jaxprune.calibrate(lambda p, x: x.sum(), P, [X], progress=False),
        "a/kernel: enters no matrix product",
    ),
    "parameters of another network": (
        lambda: calibration.calibrator(net, P)(OTHER, [X]),
        "these params must have the structure.*c: in these params",
    ),
    "a misspelt leaf": (lambda: stats()["a/kernal"], "a/kernal: was not calibrated.*a/kernel"),
    "gradients of a network": (lambda: calibration.accumulate_gradients(net, P, [X]), "loss must return a scalar"),
    "gradients before the loss": (lambda: calibration.accumulate_gradients(P, loss, [X]), "loss must be a function"),
    "roles of parameters": (lambda: jaxprune.find_roles(P, net, X), "fn must be a function.*swapped"),
}

RECONSTRUCTION = {
    "statistics before parameters": (lambda: jaxprune.reconstruct(stats(), P, 0.5), "params and stats are swapped"),
    "batches for statistics": (lambda: jaxprune.reconstruct(P, [X], 0.5), "stats must be what calibrate"),
    "nothing to remove": (lambda: jaxprune.reconstruct(P, stats()), "a/kernel.*pass a sparsity"),
    "masks and a sparsity": (
        lambda: jaxprune.reconstruct(P, stats(), 0.5, masks=MASKS),
        "leave out sparsity.*got sparsity",
    ),
    "a misspelt method": (
        lambda: jaxprune.reconstruct(P, stats(), 0.5, method="sparse_gpt"),
        "method must be one of sparsegpt",
    ),
    "a criterion for a method": (
        lambda: jaxprune.reconstruct(P, stats(), 0.5, method=criteria.magnitude),
        r"method is called as method\(weight, gram_matrix, target\)",
    ),
    "statistics of another network": (
        lambda: jaxprune.reconstruct(OTHER, stats(), 0.5),
        "stats belongs to another network.*calibrate.*a/kernel",
    ),
    "masks of another network": (lambda: jaxprune.reconstruct(P, stats(), masks={"c": True}), "masks must have the"),
    "stage by stage, parameters first": (
        lambda: reconstruction.reconstruct_sequential(P, net, [X], 0.5),
        "fn and params are swapped",
    ),
    "stage by stage, an iterator": (
        lambda: reconstruction.reconstruct_sequential(net, P, iter([X]), 0.5),
        "batches .*iterator.*pass a list",
    ),
    "statistics before the new parameters": (
        lambda: reconstruction.relative_errors(P, stats(), P),
        "new and stats are swapped",
    ),
    "batch statistics before their update": (
        lambda: reconstruction.recalibrate_statistics({"mean": X}, lambda s, b: s, [X]),
        r"update must be a function update\(statistics, batch\); got a dict",
    ),
    "an update that returns nothing": (
        lambda: reconstruction.recalibrate_statistics(lambda s, b: None, {"mean": X}, [X]),
        "what update returned must have the structure of statistics",
    ),
    "a mask for a target": (
        lambda: reconstruction.sparsegpt(P["a"]["kernel"], jnp.eye(8), MASKS["a"]["kernel"]),
        r"target must say what is removed: .*Given\(mask\)",
    ),
}

SLIMMING = {
    "parameters before the function": (lambda: jaxprune.slim(P, net, 0.5, X), "fn and params are swapped"),
    "no inputs": (lambda: jaxprune.slim(net, P, 0.5), r"fn is called as fn\(params, \*inputs\).*'x'"),
    "a percentage": (lambda: jaxprune.slim(net, P, 50, X), r"sparsity must be in \[0, 1\]; got 50"),
    "a word": (lambda: jaxprune.slim(net, P, "half", X), "what must be a number in .*masks.*got 'half'"),
    "groups for a choice": (lambda: jaxprune.slim(net, P, groups(), X), "what must be .*a Choice"),
    "a Pruned for masks": (lambda: jaxprune.slim(net, P, PRUNED, X), "of this Pruned pass its .masks"),
    "a misspelt group": (
        lambda: jaxprune.slim(net, P, {"a/kernel[9]": [0]}, X),
        r"no group.*did you mean 'a/kernel\[1\]",
    ),
    "units as bools": (
        lambda: jaxprune.slim(net, P, {"a/kernel[1]": np.arange(6) > 3}, X),
        r"a/kernel\[1\]: .*numbers.*np.flatnonzero",
    ),
    "units as floats": (
        lambda: jaxprune.slim(net, P, {"a/kernel[1]": [1.5]}, X),
        r"a/kernel\[1\].*float64: round them",
    ),
    "units out of range": (lambda: jaxprune.slim(net, P, {"a/kernel[1]": [6]}, X), r"a/kernel\[1\] .*units 0 to 5"),
    "all units": (lambda: jaxprune.slim(net, P, {"a/kernel[1]": range(6)}, X), r"a/kernel\[1\]: no unit would be left"),
    "another function without a list": (lambda: jaxprune.find_groups(net, P, X, also=net), "also must be a list of"),
    "a list of units": (lambda: slimming.Choice.remove(groups(), [0, 1]), "removed must be a mapping from groups"),
    "masks before groups": (lambda: slimming.Choice.from_masks(MASKS, groups()), "groups must be .*find_groups"),
    "scores before groups": (lambda: slimming.choose(scores(), groups(), 0.5), "groups must be .*find_groups"),
    "scores of leaves": (lambda: slimming.choose(groups(), P, 0.5), "scores must be 6 numbers, one for each unit"),
    "a cost as a fraction": (
        lambda: slimming.choose(groups(), scores(), cost=slimming.costs.parameters, target=0.5),
        r"target 0.5: .*no fraction \(half: 0.5 \*",
    ),
    "neither a sparsity nor a cost": (lambda: slimming.choose(groups(), scores()), "choose needs either sparsity, or"),
    "a number for limits": (
        lambda: slimming.choose(groups(), scores(), 0.5, limits=4),
        r"limits must be slimming.Limits",
    ),
    "a misspelt protected leaf": (
        lambda: slimming.choose(groups(), scores(), 0.5, limits=slimming.Limits(protect=("zz",))),
        "protect: no group .*'zz'",
    ),
    "parameters before groups": (lambda: slimming.group_scores(P, groups()), "groups must be .*find_groups"),
    "scores of another network": (
        lambda: slimming.group_scores(groups(), OTHER),
        r"got 1 leaves for 3:\n  a/bias: only in the parameters(.|\n)*c: only in the scores",
    ),
    "an unknown norm": (lambda: slimming.group_scores(groups(), P, reduce="l3"), "reduce must be one of"),
    "a negative strength": (lambda: slimming.group_lasso(groups(), -1.0), "strength must be 0 or more"),
    "a negative growth": (
        lambda: slimming.growing_penalty(slimming.Choice.remove(groups(), {}), -0.1),
        "growth must be 0 or more; got -0.1",
    ),
    "a misspelt growth": (
        lambda: slimming.growing_penalty(slimming.Choice.remove(groups(), {}), "0.1"),
        "growth must be a number or a function of the step; got '0.1'",
    ),
    "strength before groups": (lambda: slimming.group_lasso(0.1, groups()), "groups must be .*find_groups"),
    "groups to penalise": (lambda: slimming.growing_penalty(groups(), 0.1), "choice must be a slimming.Choice"),
    "a model before its manifest": (
        lambda: slimming.hyperparameters(nn.Dense(3), small().manifest, X),
        "manifest must be .*slimmed.manifest",
    ),
    "whole arrays to expand": (lambda: small().expand(P), r"a/kernel: \(8, 6\), the parameter \(8, 5\)"),
}

LOTTERY = {
    "rounds as a float": (lambda: search(rounds=2.5), "rounds must be a number of rounds or a list.*got 2.5"),
    "rounds in percent": (lambda: search(rounds=[20, 50]), r"rounds .*numbers in \(0, 1\)"),
    "a seed": (lambda: search(key=0), r"pass jax.random.key\(seed\)"),
    "evaluate without masks": (
        lambda: search(train=lottery.Training(train, lambda p: {})),
        r"evaluate is called as evaluate\(params, masks\)",
    ),
    "no key": (lambda: lottery.iterative_pruning(train, P, rounds=1), "iterative_pruning needs key="),
    "parameters before train": (lambda: search(P, train), "train must be a function.*train and params are swapped"),
    "train of two arguments": (lambda: search(lambda p, m: p), r"train is called as train\(params, masks, key\)"),
    "train that returns nothing": (lambda: search(lambda p, m, k: None), "what train returned .*is None"),
    "train that returns a loss too": (
        lambda: search(lambda p, m, k: (p, 0.1)),
        "what train returned must have .*1: in",
    ),
    "rewinding by name": (lambda: search(rewind="early"), r"rewind must be .*initial_weights\(\).*'early'"),
    "a list of controls": (lambda: search(controls=[lottery.random_masks()]), "controls must be a mapping such as"),
    "a control that is not called": (
        lambda: search(controls={"random": lottery.random_masks}),
        r"controls\['random'\] is called as .*random_masks\(\)",
    ),
    "a number of early steps": (lambda: lottery.early_weights(100), r"train must be .*train\(params, key\).*got 100"),
    "a line between networks": (
        lambda: lottery.error_barrier(lambda p: 0.0, P, OTHER),
        "the other params must have the structure",
    ),
    "parameters before the error": (lambda: lottery.error_barrier(P, mean, P), r"error must be .*error\(params\)"),
    "an error that is None": (
        lambda: lottery.error_barrier(lambda p: None, P, P),
        "error must return a scalar.*got None",
    ),
    "one point": (lambda: lottery.error_barrier(mean, P, P, points=1), "points must be 2 or more"),
    "instability from a seed": (lambda: lottery.instability(train, mean, P, MASKS, 0), r"jax.random.key\(seed\)"),
    "a ticket of parameters": (lambda: lottery.ticket(P, 0, method="m"), "rounds must be what .*iterative_pruning"),
}

FEATURES = {
    "labels before features": (lambda: features.anova_f(LABELS, LOGITS), r"x must have shape \(n, features\)"),
    "labels of other samples": (lambda: features.anova_f(LOGITS, LABELS[:3]), r"y must have shape \(30,\).*got \(3,\)"),
    "features that are NaN": (
        lambda: features.spearman(LOGITS * np.nan, LABELS),
        "x .*NaN.*3 of 3 features.*fill or drop",
    ),
    "too few samples": (lambda: features.pearson(LOGITS[:1], LABELS[:1]), "n of 2 or more; got"),
    "no bins": (lambda: features.mutual_information(LOGITS, LABELS, bins=0), "bins must be 2 or more"),
    "a fraction of features": (lambda: features.top(np.ones(5), 0.5), "count must be in 1 to 5"),
    "similarities before relevance": (lambda: features.mrmr(np.eye(5), np.ones(5), 2), "relevance must be a vector"),
    "elimination from a seed": (
        lambda: features.eliminate(lambda m, k: np.ones(5), 5, 2, key=0),
        r"pass jax.random.key\(seed\)",
    ),
    "a number before the score": (
        lambda: features.eliminate(5, lambda m, k: np.ones(5), 2, key=KEY),
        r"score must be a function, such as score\(mask, key\)",
    ),
    "saliency of parameters": (
        lambda: features.gradient_saliency(P, net, X, Y, per_sample),
        "predict and params are swapped",
    ),
    "labels after losses": (
        lambda: features.gradient_saliency(net, P, X, per_sample, Y),
        r"losses must be a function, such as losses\(predict",
    ),
    "a mean of losses": (
        lambda: features.gradient_saliency(net, P, X, Y, lambda *a: per_sample(*a).mean()),
        r"losses.* one loss .*sample, shape \(5,\); got a scalar float32 array",
    ),
    "permutation from a seed": (
        lambda: features.permutation(net, P, X, Y, per_sample, key=0),
        r"pass jax.random.key\(seed\)",
    ),
    "a misspelt leaf of inputs": (lambda: features.input_lasso(0.1, "zz").init(P), "no leaf matches 'zz'.*a/kernel"),
    "a mask of numbers": (lambda: features.narrow(net, P, [0, 1], X), "mask must be 8 bools, one for each feature"),
    "no feature": (lambda: features.narrow(net, P, jnp.zeros(8, bool), X), "mask keeps no feature"),
    "samples that differ": (lambda: features.cka(LOGITS, LOGITS[:3]), "a and b must .*samples.*got 30 and 3"),
}

SENSITIVITY = {
    "parameters first": (lambda: sensitivity.leaf_sensitivity(P, mean, [0.5]), "evaluate and params are swapped"),
    "one level": (lambda: sensitivity.leaf_sensitivity(mean, P, 0.5), r"levels must be a list .*\[0.5, 0.9\]"),
    "a network in place of a loss": (
        lambda: sensitivity.leaf_sensitivity(net, P, [0.5]),
        r"evaluate is called as evaluate\(params\), but does not accept these arguments: missing .*'x'",
    ),
    "levels in percent": (lambda: sensitivity.leaf_sensitivity(mean, P, [50]), r"levels .*sparsities in \[0, 1\)"),
    "a vector of losses": (
        lambda: sensitivity.leaf_sensitivity(lambda p: net(p, X), P, [0.5]),
        r"evaluate\(params\) must be a scalar, such as a mean",
    ),
    "groups before parameters": (
        lambda: sensitivity.group_sensitivity(mean, groups(), P, scores(), [0.5]),
        "params must be a tree of arrays",
    ),
    "a budget that is too small": (
        lambda: sensitivity.cheapest_loss(np.ones((2, 3)), np.ones((2, 3)), 0.1),
        "more than the budget 0.1: allow higher levels",
    ),
    "tables that differ": (
        lambda: sensitivity.greedy_levels(np.ones((2, 3)), np.ones((3, 2)), 9),
        r"losses and costs must both be \(leaves, levels\)",
    ),
    "curves of parameters": (lambda: sensitivity.sensitivity_curves(P), "found must be what leaf_sensitivity"),
}

PREDICTIONS = assess.Predictions(LOGITS)
ASSESS = {
    "labels before logits": (lambda: assess.evaluate(LABELS, LOGITS), "logits must be floating; got int"),
    "labels from one on": (lambda: assess.evaluate(LOGITS, LABELS + 1), r"labels must be in \[0, 3\).*first at 2: 3"),
    "labels as one-hot rows": (
        lambda: assess.evaluate(LOGITS, np.eye(3)[LABELS]),
        "labels must be integers, one class",
    ),
    "logits of one class": (lambda: assess.evaluate(LOGITS[:, 0], LABELS), r"logits must have shape \(n, classes\)"),
    "labels of other samples": (lambda: assess.evaluate(LOGITS, LABELS[:5]), r"got \(30, 3\) and \(5,\)"),
    "logits that are NaN": (lambda: assess.evaluate(LOGITS * np.nan, LABELS), "logits hold NaN.*30 of 30 samples"),
    "no samples": (lambda: assess.evaluate(LOGITS[:0], LABELS[:0]), "metrics need a sample"),
    "logits for probabilities": (
        lambda: assess.evaluate(LOGITS, LABELS, probabilities=True),
        "row of probabilities must .*Pass logits as they are",
    ),
    "no bins": (lambda: assess.evaluate(LOGITS, LABELS, bins=0), "bins must be a positive integer"),
    "a test from a seed": (lambda: assess.calibration_test(LOGITS, LABELS, key=0), r"pass jax.random.key\(seed\)"),
    "confidence in percent": (
        lambda: assess.calibration_test(LOGITS, LABELS, key=KEY, confidence=95),
        r"confidence in \(0, 1\); got 1000 and 95",
    ),
    "samples before the statistic": (lambda: assess.bootstrap(LOGITS, jnp.mean, key=KEY), "statistic comes first"),
    "samples of two lengths": (
        lambda: assess.bootstrap(lambda a, b: a.mean() - b.mean(), LOGITS, LOGITS[:3], key=KEY),
        "samples must have one length",
    ),
    "changes from a seed": (lambda: assess.changes(LOGITS, LOGITS, LABELS, key=0), r"pass jax.random.key\(seed\)"),
    "models of other samples": (
        lambda: assess.changes(LOGITS, LOGITS[:3], LABELS, key=KEY),
        r"logits of one shape; got \(30, 3\) and \(3, 3\)",
    ),
    "complexity of parameters": (lambda: assess.complexity(P, net, MASKS, X), "fn and params are swapped"),
    "complexity without masks": (lambda: assess.complexity(net, P, X), r"masks must have .*masks is float32\[5, 8\]"),
    "complexity without inputs": (lambda: assess.complexity(net, P, MASKS), r"fn is called as fn\(params, \*inputs\)"),
    "results by name": (lambda: assess.comparison_table({"a": None}), "results must be a list of assess.ModelResult"),
    "no results": (lambda: assess.comparison_table([]), "results"),
    "risk of logits": (lambda: assess.risk(LOGITS, LABELS, key=KEY), r"expected assess.Predictions.*pass assess.Pred"),
    "foreign logits without a name": (
        lambda: assess.risk(assess.Predictions(LOGITS, foreign=LOGITS), assess.Labels(LABELS), key=KEY),
        "foreign must be a mapping from names to logits",
    ),
    "a report of a list": (
        lambda: assess.risk_report([PREDICTIONS], assess.Labels(LABELS), key=KEY),
        "models must be a mapping from names to assess.Predictions",
    ),
    "a reference that is not there": (
        lambda: assess.risk_report({"a": PREDICTIONS}, assess.Labels(LABELS), key=KEY, reference="dense"),
        "reference must be one of the models, a; got 'dense'",
    ),
    "images before the model": (
        lambda: assess.corrupted_logits(jnp.ones((1, 8, 8, 1)), lambda x: x, key=KEY),
        "predict and images are swapped",
    ),
    "a corruption that is a function": (
        lambda: assess.corrupted_logits(lambda x: x, jnp.ones((1, 8, 8, 1)), key=KEY, ways={"x": jnp.sin}),
        r"ways\['x'\] must be assess.Corruption",
    ),
    "no samples for the BIC": (lambda: assess.selection.bic(1.0, 0, 5), "n must be 1 or more"),
    "candidates without names": (
        lambda: assess.hold_out([assess.Candidate(P, None, net)], (X, Y), (X, Y)),
        "candidates must be a mapping from names",
    ),
    "folds from a seed": (lambda: assess.k_fold(lambda *a: 0.0, 10, 5, key=0), r"pass jax.random.key\(seed\)"),
    "folds of data": (lambda: assess.k_fold(lambda *a: 0.0, X, 5, key=KEY), "n must be the number of samples"),
    "one fold": (lambda: assess.k_fold(lambda *a: 0.0, 10, 1, key=KEY), "folds must be in 2 to 10"),
    "models without errors": (lambda: assess.one_standard_error([0.1], [], [1]), r"lengths are \[1, 0, 1\]"),
}

ENSEMBLES = {
    "no networks": (lambda: ensembles.stack([]), "needs .*network.*got none"),
    "one network without a list": (lambda: ensembles.stack((P, MASKS)), r"pair \(params, masks\)"),
    "networks of two dtypes": (
        lambda: ensembles.stack([(P, None), (jax.tree.map(lambda x: x.astype("bfloat16"), P), None)]),
        r"same dtype(.|\n)*a/kernel: bfloat16\[8, 6\] in member 1, float32\[8, 6\] in member 0",
    ),
    "networks by name": (lambda: ensembles.stack({"a": (P, MASKS)}), "networks must be a list of pairs"),
    "networks that differ": (
        lambda: ensembles.stack([(P, MASKS), (OTHER, {"c": True})]),
        "member 1 must have the structure of member 0",
    ),
    "members that are not stacked": (lambda: ensembles.from_stacked(P, MASKS), "same leading axis.*a/bias: 6"),
    "members of a list": (lambda: ensembles.take([P, P], [0]), "members must be ensembles.Members.*stack"),
    "a soup of a list": (lambda: ensembles.soup([P, P]), "members must be ensembles.Members.*stack"),
    "parameters for members": (lambda: ensembles.kept_weights(P), "members must be ensembles.Members.*got a dict"),
    "logits of parameters": (lambda: ensembles.member_logits(net)(P, X), "members must be ensembles.Members"),
    "parameters for a function": (lambda: ensembles.member_logits(P), r"fn must be a function, such as fn\(params"),
    "members for the predictor": (
        lambda: ensembles.predictor(net, ensembles.stack([(P, None)])),
        r"predictor\(fn\)\(members, x\)",
    ),
    "a combination by name": (lambda: ensembles.predictor(net, "mean"), "combine must be a function.*mean_probability"),
    "logits of one member": (lambda: ensembles.greedy_selection(LOGITS, LABELS), r"\(members, n, classes\); got"),
    "a teacher of other classes": (
        lambda: ensembles.distillation_loss(jnp.asarray(LOGITS), jnp.asarray(LOGITS[:, :2])),
        r"student and teacher must have .*shape.*\(30, 2\)",
    ),
    "one-hot labels": (
        lambda: ensembles.distillation_loss(*[jnp.asarray(LOGITS)] * 2, jnp.eye(3)[LABELS], weight=0.5),
        "labels must be integers",
    ),
    "an interval for updates": (
        lambda: ensembles.free_tickets(0.5, members=2, explore=10, refine=10, updates=100, key=KEY),
        "updates must be ensembles.Updates.*got 100",
    ),
}

FILES = {
    "parameters before the path": (
        lambda path: checkpoints.save(P, path / "new"),
        "path, must be a string or a path|numbers",
    ),
    "a file that exists": (
        lambda path: checkpoints.save(path / "net", P),
        "exists.*overwritten.*choose",
    ),
    "a folder that does not exist": (lambda path: checkpoints.save(path / "x" / "net", P), "does not exist; "),
    "a Pruned as the parameters": (
        lambda path: checkpoints.save(path / "new", jaxprune.prune(P, 0.5)),
        r"save\(path, \*pruned\)",
    ),
    "masks that are not applied": (
        lambda path: checkpoints.save(path / "new", P, jax.tree.map(jnp.logical_not, MASKS)),
        r"a/kernel: 48 of 48|masks.apply\(params, masks\)",
    ),
    "masks of another network": (lambda path: checkpoints.save(path / "new", P, {"c": True}), "masks must have the"),
    "a function to save": (
        lambda path: checkpoints.save(path / "new", net),
        "must be a tree of arrays; got function net",
    ),
    "a slim network to save": (
        lambda path: checkpoints.save(path / "new", small()),
        "must be a tree of arrays; got Slimmed.* call save_slim",
    ),
    "a slim function for batches of None": (
        lambda path: checkpoints.save_slim(path / "new", small(), jax.ShapeDtypeStruct((None, 8), float)),
        "None in a shape; .*symbolic_shape|cannot have None in it",  # JAX itself refuses since 0.12
    ),
    "Python numbers for a saved state": (
        lambda path: checkpoints.restore(checkpoints.write(path / "state", {"step": jnp.array(3)}), {"step": 0}),
        "like=jax.eval_shape.*step: saved int32.*expected int",
    ),
    "a file that does not exist": (lambda path: checkpoints.load(path / "none"), "none does not exist; pass the file"),
    "a folder to load": (checkpoints.load, "is a folder; pass the file"),
    "parameters to load": (lambda path: checkpoints.load(P), "path, must be a string or a path"),
    "another kind of file": (lambda path: checkpoints.load(path / "text"), "text is .* safetensors file"),
    "the file of another network": (
        lambda path: checkpoints.load(path / "net", like=OTHER),
        "another network; .* They differ in:.*c: saved nothing",
    ),
    "a network without a function": (lambda path: checkpoints.load_slim(path / "net"), "read it with checkpoints.load"),
    "a slim function without inputs": (
        lambda path: checkpoints.save_slim(path / "new", small()),
        r"fn is called as fn\(params, \*inputs\)",
    ),
    "parameters for a slim function": (
        lambda path: checkpoints.save_slim(path / "new", P, X),
        "slimmed must be what slim returned; .*checkpoints.save",
    ),
    "a folder that is no checkpoint": (lambda path: checkpoints.restore(path / "none", P), "Orbax checkpoint"),
    "a run from a seed": (lambda path: checkpoints.Run(path / "run", {}, params=P, key=0), r"jax.random.key\(seed\)"),
    "a run without options": (
        lambda path: checkpoints.Run(path / "run", None, params=P, key=KEY),
        "options must be a dict",
    ),
    "a model that is not there": (
        lambda path: models.prune_folder(path / "none", path / "out", np.zeros((1, 4), int), 0.5),
        "none is not a folder",
    ),
    "a folder without a model": (lambda path: models.perplexity(path, np.zeros((1, 4), int)), "has no config.json"),
    "a model of another family": (lambda path: models.decoder({"model_type": "gpt2"}), "'gpt2'; decoder knows llama"),
    "a model by name": (lambda path: models.decoder("llama"), "config must be the mapping in config.json"),
    "a block of another model": (
        lambda path: models.block_params(P, 3),
        "no block 3; no name begins with model.layers",
    ),
    "a block that is not there": (
        lambda path: models.block_params({"model.layers.0.a": 1, "model.layers.10.a": 1}, 11),
        "params has no block 11; it has blocks 0 to 10",
    ),
}

ROOMS = {
    "prune": PRUNE,
    "masks": MASKS_AND_SHARES,
    "criteria": CRITERIA,
    "schedules": SCHEDULES,
    "training": TRAINING,
    "calibration": CALIBRATION,
    "reconstruction": RECONSTRUCTION,
    "slimming": SLIMMING,
    "lottery": LOTTERY,
    "features": FEATURES,
    "sensitivity": SENSITIVITY,
    "assess": ASSESS,
    "ensembles": ENSEMBLES,
}


@pytest.mark.parametrize(
    ("mistake", "message"),
    [pytest.param(*entry, id=f"{room}: {name}") for room, entries in ROOMS.items() for name, entry in entries.items()],
)
def test_a_mistake_is_named_with_the_way_out(mistake, message):
    with pytest.raises((TypeError, ValueError, KeyError, IndexError), match=f"(?s){message}"):
        mistake()


@pytest.mark.parametrize(("mistake", "message"), FILES.values(), ids=FILES.keys())
def test_a_mistake_with_files_is_named(mistake, message, tmp_path):
    checkpoints.save(tmp_path / "net", P)
    (tmp_path / "text").write_text("not a network")
    with pytest.raises((TypeError, ValueError, OSError), match=f"(?s){message}"):
        mistake(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: COMMAND"),
        (("prun", "model"), "invalid choice: 'prun' .*'prune'"),
        (("prune", "model", "--sparsity", "0.5"), "required: --output"),
    ],
)
def test_a_mistake_at_the_command_line_is_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        cli.main(arguments)
    assert re.search(message, capsys.readouterr().err)
