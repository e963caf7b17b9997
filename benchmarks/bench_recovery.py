"""What pruning costs a small decoder, and what brings it back: masks, repairs, integers, searches, distillation.

    python benchmarks/bench_recovery.py --text ../shared/data/tinyshakespeare/input.txt --output output/recovery

trains a Llama-type decoder of 8 blocks for each seed, and measures in parts: `layers` (output errors and seconds of
ALPS, SparseGPT and OBS on the same Gram matrices), `masks` (perplexity after pruning by each criterion and repair, and
after rounding), `order` (2:4 before and after the search for an order of channels), `search` (which blocks and how much
of each layer), `heal` (fine-tuning on labels against distillation). Each part of each seed is stored when it is done,
and is not run again. At the end it prints the mean and the range over the seeds.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from small_decoder import (
    BLOCKS,
    KERNELS,
    Subject,
    loss,
    optimizer,
    perplexity,
    print_table,
    scanned,
    stacked,
    states,
    train,
    trained,
)

import jaxprune
from jaxprune import allocation, criteria, ensembles, masks, reconstruction, sensitivity, slimming, training
from jaxprune.calibration import calibrate
from jaxprune.reconstruction import Entries, Grouped, dequantise, quantise, reconstruct

PyTree = Any
Row = dict[str, Any]
SHARES = (0.5, 0.6, 0.7, 0.8, 0.9)


def layers(subject: Subject) -> Row:
    """Errors of each method on the same Gram matrices, and the seconds of one kernel, in turns."""
    params = stacked(subject.params)
    stats = calibrate(scanned, params, subject.calibration(), where=KERNELS)
    methods = {"sparsegpt": reconstruction.sparsegpt, "alps": reconstruction.alps, "obs": reconstruction.obs}
    out: Row = {}
    for kind in ("self_attn.q_proj", "mlp.gate_proj", "mlp.down_proj"):
        inputs = stats[f"blocks/{kind}.weight"]
        weights = inputs.layout.matrices(params["blocks"][f"{kind}.weight"])
        targets = {f"{share:.0%}": Entries(jnp.int32(share * weights[0].size)) for share in SHARES}
        runs = {name: jax.jit(lambda w, g, k, f=f: f(w, g, Entries(k))) for name, f in methods.items()}
        groups = {name: jax.jit(lambda w, g, f=f: f(w, g, Grouped(2, 4))) for name, f in methods.items()}
        for setting in (*targets, "2:4"):
            found: Row = {name: {"errors": [], "seconds": []} for name in methods}
            for turn in range(len(weights) + 1):  # the first turn compiles
                weight, gram = weights[turn - 1], inputs.gram[turn - 1]
                for name in methods:
                    began = time.perf_counter()
                    run = groups[name] if setting == "2:4" else partial(runs[name], k=targets[setting].removed)
                    new, _ = jax.block_until_ready(run(weight, gram))
                    if turn:
                        found[name]["seconds"].append(time.perf_counter() - began)
                        change = weight - new
                        size = float((weight * (gram @ weight)).sum())
                        found[name]["errors"].append(float((change * (gram @ change)).sum()) / size)
            out[f"{kind} {setting}"] = found
            line = {
                name: (np.mean(x["errors"]).round(5), np.median(x["seconds"]).round(4)) for name, x in found.items()
            }
            print(kind, setting, line, flush=True)
    return out


def measured(subject: Subject, make: Callable[[], PyTree]) -> Row:
    """Perplexity and seconds of a pruned network."""
    began = time.perf_counter()
    new = jax.block_until_ready(make())
    seconds = time.perf_counter() - began
    value = perplexity(scanned, new, subject.text.test)
    print(f"  {value:.3f}, {seconds:.1f} s", flush=True)
    return {"perplexity": value, "seconds": seconds}


def after_rounding(params: PyTree, names: list[str], bits: int) -> PyTree:
    """Plain rounding, one scale for each output."""
    grid = lambda x: jnp.abs(x).max(-1, keepdims=True) / (2 ** (bits - 1) - 0.5)
    plain = lambda x: jnp.clip(jnp.round(x / grid(x)), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * grid(x)
    blocks = {name: plain(x) if f"blocks/{name}" in names else x for name, x in params["blocks"].items()}
    return {**params, "blocks": blocks}


def masks_and_repairs(subject: Subject) -> Row:
    """Perplexity by criterion and repair, and by integers in one sweep or rounded afterwards."""
    params = stacked(subject.params)
    stats = calibrate(scanned, params, subject.calibration(), where=KERNELS)
    names = ["/".join(identity) for identity in stats.inputs]
    repaired = lambda sparsity, **how: reconstruct(params, stats, sparsity, **how).params
    swept = lambda bits, sparsity, **how: dequantise(quantise(params, stats, sparsity, bits=bits, **how).params)
    rounded = lambda bits, sparsity, **how: after_rounding(repaired(sparsity, **how), names, bits)
    out: Row = {"dense": {"perplexity": perplexity(scanned, params, subject.text.test)}}
    settings: list[tuple[str, Any, Row]] = [
        ("50 %", 0.5, {}),
        ("70 %", 0.7, {}),
        ("2:4", None, {"pattern": masks.NM(2, 4)}),
    ]
    for setting, sparsity, how in settings:
        ways: dict[str, Row] = {
            "magnitude": {"method": "magnitude"},
            "wanda": {"method": "wanda"},
            "wanda, least squares": {"method": "least_squares"},
            "sparsegpt": {},
            "alps": {"method": "alps"},
            "obs": {"method": "obs"},
        }
        for name, way in ways.items():
            print(setting, name, flush=True)
            out[f"{setting} {name}"] = measured(subject, partial(repaired, sparsity, **how, **way))
        for bits in (8, 4):
            for name, way in (("in one sweep", swept), ("sparsegpt, then rounded", rounded)):
                print(setting, bits, name, flush=True)
                make = partial(way, bits, sparsity, **how)
                found = measured(subject, make)
                errors = reconstruction.relative_errors(params, make(), stats)
                out[f"{setting}, {bits} bits, {name}"] = {**found, "errors": errors}
    return out


def order(subject: Subject) -> Row:
    """2:4 before and after the search for an order of channels."""
    fn, params, where = subject.fn, subject.params, ["model.layers.*_proj.weight"]
    batches = subject.calibration()
    began = time.perf_counter()
    new = slimming.permute_channels(fn, params, 2, 4, batches[0], key=jax.random.key(subject.seed))
    out: Row = {"seconds": time.perf_counter() - began}
    for name, tree in (("before", params), ("after", new)):
        stats = calibrate(fn, tree, batches, where=where)
        for method in ("magnitude", "wanda", "sparsegpt"):
            pruned = reconstruct(tree, stats, method=method, pattern=masks.NM(2, 4)).params
            errors = list(reconstruction.relative_errors(tree, pruned, stats).values())
            value = perplexity(scanned, stacked(pruned), subject.text.test)
            out[f"{name}, {method}"] = {"perplexity": value, "error": float(np.mean(errors))}
            print(name, method, value, np.mean(errors), flush=True)
    return out


def search(subject: Subject) -> Row:
    """Three of eight blocks dropped, and 60 % shared among 56 kernels, by each search at the same total."""
    params, test = stacked(subject.params), subject.text.test
    text = jnp.concatenate(subject.calibration(4))
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    nats = lambda logits: cross_entropy(logits[:, :-1], text[:, 1:]).mean()
    dropped = jax.jit(lambda levels: nats(states(params, text, levels == 0)[0]))
    kept_perplexity = lambda levels: perplexity(
        scanned, {**params, "blocks": slimming.keep_blocks(params["blocks"], np.asarray(levels) == 0)}, test
    )
    out: Row = {}
    began = time.perf_counter()
    every = [np.asarray([i >> b & 1 for b in range(BLOCKS)]) for i in range(2**BLOCKS) if i.bit_count() == 3]
    best = min(every, key=lambda levels: float(dropped(levels)))
    out["exhaustive"] = {"nats": float(dropped(best)), "perplexity": kept_perplexity(best), "evaluations": len(every)}
    out["exhaustive"]["seconds"] = time.perf_counter() - began
    calls: list[int] = []

    def counted(levels: np.ndarray, samples: int) -> float:
        calls.append(samples)
        return float(dropped(levels))

    key = jax.random.key(subject.seed)
    began = time.perf_counter()
    found = sensitivity.evolve_levels(counted, [[1, 0]] * BLOCKS, 5, key=key, generations=8, offspring=6)
    out["evolution"] = {"nats": found.loss, "perplexity": kept_perplexity(found.chosen), "evaluations": len(calls)}
    out["evolution"]["seconds"] = time.perf_counter() - began
    influence = slimming.block_influence(jax.jit(states)(params, text)[1])
    levels = 1 - slimming.keep_influential(influence, 3).astype(int)
    out["block influence"] = {"nats": float(dropped(levels)), "perplexity": kept_perplexity(levels)}
    print(out, flush=True)
    return out | shares(subject, params, nats, text)


def shares(subject: Subject, params: PyTree, nats: Callable[[jax.Array], jax.Array], text: jax.Array) -> Row:
    """60 % of all kernels' weights, shared by each allocation."""
    stats = calibrate(scanned, params, subject.calibration(), where=KERNELS)
    names = ["/".join(identity).removeprefix("blocks/") for identity in stats.inputs]
    levels = np.array([0.4, 0.5, 0.6, 0.7, 0.8])
    by_level = [reconstruct(params, stats, float(level)).params["blocks"] for level in levels]
    shelves = {name: jnp.stack([params["blocks"][name], *(tree[name] for tree in by_level)]) for name in names}

    def mixed(chosen: jax.Array) -> PyTree:
        own = {n: shelves[n][chosen[k], jnp.arange(BLOCKS)] for k, n in enumerate(names)}
        return {**params, "blocks": {**params["blocks"], **own}}

    value = jax.jit(lambda chosen: nats(scanned(mixed(chosen), text)))
    sizes = np.repeat([params["blocks"][name][0].size for name in names], BLOCKS).astype(float)
    costs, budget = sizes[:, None] * (1 - levels), 0.4 * sizes.sum()
    shape = (len(names), BLOCKS)
    at = lambda flat: value(jnp.asarray(flat.reshape(shape) + 1))
    out: Row = {}

    def add(name: str, flat: np.ndarray, began: float) -> None:
        new = mixed(jnp.asarray(flat.reshape(shape) + 1))
        found = {"nats": float(at(flat)), "perplexity": perplexity(scanned, new, subject.text.test)}
        kept = float(costs[np.arange(len(flat)), flat].sum() / sizes.sum())
        out[f"60 %, {name}"] = found | {"seconds": time.perf_counter() - began, "kept": kept}
        print(name, out[f"60 %, {name}"], flush=True)

    add("uniform", np.full(len(sizes), 2), time.perf_counter())
    began = time.perf_counter()
    table = np.zeros(costs.shape)
    for leaf in range(len(sizes)):
        for level in range(len(levels)):
            alone = np.zeros(len(sizes), int)
            alone[leaf] = level + 1  # 0 on the shelf is dense
            table[leaf, level] = float(value(jnp.asarray(alone.reshape(shape))))
    add("dynamic programming", sensitivity.cheapest_loss(table, costs, budget).chosen, began)
    began = time.perf_counter()
    found = sensitivity.evolve_levels(
        lambda flat, samples: at(flat),
        costs,
        budget,
        key=jax.random.key(subject.seed),
        start=np.full(len(sizes), 2),
        generations=40,
        offspring=8,
    )
    add("evolution", found.chosen, began)
    began = time.perf_counter()
    scores = criteria.wanda(params, stats=stats)
    owl = allocation.owl(scores, 0.6, where=KERNELS, batch_axes={KERNELS: 1}, layer_of=lambda name: "block")
    pruned = reconstruct(params, stats, owl.sparsities)
    out["60 %, OWL"] = {
        "nats": float(nats(scanned(pruned.params, text))),
        "perplexity": perplexity(scanned, pruned.params, subject.text.test),
        "seconds": time.perf_counter() - began,
        "kept": float(sum(pruned.masks["blocks"][name].sum() for name in names) / sizes.sum()),
    }
    print(out["60 %, OWL"], flush=True)
    return out


def heal(subject: Subject, steps: int = 150) -> Row:
    """Students after the same number of steps on labels, on a teacher's logits, and on its hidden states as well."""
    teacher, test = stacked(subject.params), subject.text.test
    stats = calibrate(scanned, teacher, subject.calibration(), where=KERNELS)
    influence = slimming.block_influence(jax.jit(states)(teacher, jnp.concatenate(subject.calibration(2)))[1])
    keep = slimming.keep_influential(influence, 3)
    fewer = {**teacher, "blocks": slimming.keep_blocks(teacher["blocks"], keep)}
    shape = jax.ShapeDtypeStruct((2, 32), jnp.int32)
    groups = slimming.find_groups(scanned, teacher, shape)
    [mlp] = [g.name for g in groups if any(m.name.endswith("down_proj.weight") and m.axis == 2 for m in g.members)]
    scores = slimming.group_scores(groups, criteria.wanda(teacher, stats=stats), reduce="sum")
    narrow = slimming.slim(scanned, teacher, slimming.choose(groups, scores, {mlp: 0.5}), shape).params
    sparse = reconstruct(teacher, stats, pattern=masks.NM(2, 4))
    every = list(range(BLOCKS + 1))
    students = {
        "5 of 8 blocks": (fewer, None, [*map(int, np.flatnonzero(keep)), BLOCKS]),
        "half the MLP": (narrow, None, every),
        "2:4": (sparse.params, sparse.masks, every),
    }
    out: Row = {}
    for name, (params, kept, layer_map) in students.items():
        out[name] = {"at once": perplexity(scanned, params, test)}

        def labels(p: PyTree, batch: jax.Array) -> jax.Array:
            return loss(scanned, p, batch)

        def logits(p: PyTree, batch: jax.Array, layer_map: Any = None) -> jax.Array:
            tokens, targets = batch[:, :-1], batch[:, 1:]
            goal, goals = states(teacher, tokens)
            own, hidden = states(p, tokens)
            top = ensembles.TopLogits.of(goal, 16)
            value = ensembles.distillation_loss(own, top, targets, weight=0.5)
            if layer_map is None:
                return value
            return value + ensembles.hidden_loss(list(hidden), list(goals), layer_map)

        objectives = {"labels": labels, "logits": logits, "logits and states": partial(logits, layer_map=layer_map)}
        for way, objective in objectives.items():
            method = optimizer(steps, 1e-3)
            method = method if kept is None else jaxprune.sparsify(method, training.fixed(kept))
            began = time.perf_counter()
            new = train(objective, params, method, subject.text.train, steps, 100 + subject.seed)
            out[name][way] = perplexity(scanned, new, test)
            print(name, way, out[name], f"{time.perf_counter() - began:.0f} s", flush=True)
    return out


PARTS: dict[str, Callable[[Subject], Row]] = {
    "layers": layers,
    "masks": masks_and_repairs,
    "order": order,
    "search": search,
    "heal": heal,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"of {', '.join(PARTS)}; default all")
    parser.add_argument("--text", type=Path, required=True, help="any plain text; a tenth is held out")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, required=True, help="a folder for decoders and results")
    options = parser.parse_args()
    for part in options.parts:
        for seed in options.seeds:
            path = options.output / f"{part}_{seed}.json"
            if path.exists():
                continue
            print(f"{part}, seed {seed}", flush=True)
            found = PARTS[part](trained(options.text, seed, options.output))
            _ = path.write_text(json.dumps(found, indent=1) + "\n")
    for part in options.parts:
        print_table([options.output / f"{part}_{seed}.json" for seed in options.seeds])


if __name__ == "__main__":
    main()
