"""Choosing a structure and a model on scikit-learn's digits: sensitivity, budgets, depth, a search, and a choice.

    python examples/structures_digits.py --output output/structures

It trains a residual network on 1,200 of the 1,797 real images, makes every choice on 297 others, and evaluates each row
of the tables once on the last 300. It prints, and draws into the folder:

1. the loss with each leaf pruned alone (sensitivity.png), and sparsities that keep a fifth of the weights: one sparsity
   for all leaves, greedy levels, levels by dynamic programming;
2. the influence of each block (ShortGPT), the accuracy without it, and the layers that represent digits alike;
3. a search over width, depth and learning rate of networks that are trained and pruned, by Optuna with its Hyperband
   pruner (search.png). Every trial is stored in search.db (SQLite): a search that was killed goes on when the same
   command is run again, and `optuna-dashboard sqlite:///output/structures/search.db` shows it in a browser;
4. the models at several sparsities by held-out loss, AIC, BIC and description length, and the Pareto front
   (pareto.png).

With several `--seeds` (of the split, the weights and the batches) each seed has its own folder, and a last table has
the mean, the least and the greatest value of every figure.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optuna
from matplotlib.figure import Figure

import jaxprune
from jaxprune import assess, features, masks, sensitivity, slimming

PyTree = Any
PIXELS, CLASSES, BATCH = 64, 10, 100


def start(key: jax.Array, width: int, depth: int) -> PyTree:
    keys = jax.random.split(key, 4)
    normal = lambda k, *shape: jax.random.normal(k, shape) * (2 / shape[-2]) ** 0.5
    return {
        "stem": normal(keys[0], PIXELS, width),
        "blocks": {
            "in": normal(keys[1], depth, width, 2 * width),
            "out": 0.5 * normal(keys[2], depth, 2 * width, width),
        },
        "head": {"kernel": normal(keys[3], width, CLASSES), "bias": jnp.zeros(CLASSES)},
    }


def hidden_states(params: PyTree, x: jax.Array) -> jax.Array:
    """(depth + 1, n, width): what goes into each block, and what comes out of the last."""

    def block(h: jax.Array, w: PyTree) -> tuple[jax.Array, jax.Array]:
        norm = h / jnp.sqrt(jnp.square(h).mean(-1, keepdims=True) + 1e-6)
        return h + jax.nn.relu(norm @ w["in"]) @ w["out"], h

    last, before = jax.lax.scan(block, x @ params["stem"], params["blocks"])
    return jnp.concatenate([before, last[None]])


def network(params: PyTree, x: jax.Array) -> jax.Array:
    return hidden_states(params, x)[-1] @ params["head"]["kernel"] + params["head"]["bias"]


def loss(params: PyTree, x: jax.Array, y: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(network(params, x), y).mean()


@jax.jit
def train(key: jax.Array, params: PyTree, held: PyTree, x: jax.Array, y: jax.Array, rate: Any, *, steps: Any) -> PyTree:
    """Adam with a cosine; removed weights stay removed. One function is compiled for all numbers of steps."""
    adam = optax.adam(lambda step: rate * (0.5 + 0.5 * jnp.cos(jnp.pi * step / steps)))
    optimizer = jaxprune.sparsify(adam, jaxprune.training.fixed(held))

    def step(i: Any, carry: Any) -> Any:
        params, state = carry
        rows = jax.random.randint(jax.random.fold_in(key, i), (BATCH,), 0, len(x))
        updates, state = optimizer.update(jax.grad(loss)(params, x[rows], y[rows]), state, params)
        return optax.apply_updates(params, updates), state

    return jax.lax.fori_loop(0, steps, step, (params, optimizer.init(params)))[0]


def accuracy(params: PyTree, rows: Any) -> float:
    return float((np.asarray(jax.jit(network)(params, rows[0])).argmax(1) == rows[1]).mean())


def pruned_at(key: jax.Array, params: PyTree, held: PyTree, rows: Any, steps: int) -> PyTree:
    """Masks on, and a short training with them."""
    return train(key, masks.apply(params, held), held, *rows, 1e-3, steps=steps)


def budgets(key: jax.Array, params: PyTree, splits: dict[str, Any], options: Any) -> dict[str, float]:
    evaluate = lambda p: loss(p, *splits["choose"])
    found = sensitivity.leaf_sensitivity(evaluate, params, options.levels, batch_axes={"blocks/*": 1})
    sensitivity.sensitivity_curves(found).savefig(options.output / "sensitivity.png")
    print("\nloss on the rows to choose by, with one leaf pruned alone:")
    print(f"{'leaf':12}" + "".join(f"{level:8.0%}" for level in found.levels))
    for name, values in zip(found.names, found.values, strict=True):
        print(f"{name:12}" + "".join(f"{value:8.3f}" for value in values))
    costs = sensitivity.leaf_costs(network, params, found, splits["choose"][0][:1], batch_axes={"blocks/*": 1})
    budget = options.density * costs[:, 0].sum()
    chosen = {
        "greedy": sensitivity.greedy_levels(found.changes, costs, budget),
        "dynamic programming": sensitivity.cheapest_loss(found.changes, costs, budget),
    }
    sparsities = {"one level for all": dict.fromkeys(found.names, 1 - options.density)}
    sparsities |= {name: levels.sparsities(found) for name, levels in chosen.items()}
    print(f"\n{'levels':20} {'kept':>6}  accuracy at once, and after {options.tune} steps   sparsity by leaf")
    figures = {}
    for name, by_leaf in sparsities.items():
        held = jaxprune.prune(params, by_leaf, batch_axes={"blocks/*": 1}).masks
        kept = sum(int(m.sum()) for m in jax.tree.leaves(held) if m.ndim)
        at_once = accuracy(masks.apply(params, held), splits["test"])
        after = accuracy(pruned_at(key, params, held, splits["train"], options.tune), splits["test"])
        shares = ", ".join(f"{leaf} {share:.0%}" for leaf, share in by_leaf.items())
        print(f"{name:20} {kept:6}  {at_once:16.1%} {after:20.1%}   {shares}")
        figures |= {f"levels: {name}, at once": at_once, f"levels: {name}, after": after}
    return figures


def depth(params: PyTree, splits: dict[str, Any]) -> dict[str, float]:
    hidden = hidden_states(params, splits["choose"][0])
    influence = np.asarray(slimming.block_influence(hidden))
    whole = accuracy(params, splits["test"])
    print(f"\nblock  influence  accuracy without it ({whole:.1%} with all)")
    figures = {"accuracy with all blocks": whole}
    for i, value in enumerate(influence):
        blocks = slimming.keep_blocks(params["blocks"], np.arange(len(influence)) != i)
        without = accuracy({**params, "blocks": blocks}, splits["test"])
        print(f"{i:5}  {value:9.3f}  {without:.1%}")
        figures |= {f"block {i}: influence": float(value), f"block {i}: accuracy without": without}
    layers = {f"before block {i}": h for i, h in enumerate(hidden[:-1])} | {"after the last": hidden[-1]}
    for pair in features.similar_layers(layers, threshold=0.9):
        print(f"alike: {pair.first} and {pair.second}, CKA {pair.cka:.3f}")
    return figures


def search(key: jax.Array, splits: dict[str, Any], options: Any) -> dict[str, float]:
    budgets = [round(options.most / 9), round(options.most / 3), round(options.most)]

    def objective(trial: optuna.Trial) -> float:
        width, depth = trial.suggest_categorical("width", [8, 16, 32]), trial.suggest_int("depth", 1, 3)
        rate = trial.suggest_float("rate", 1e-4, 1e-1, log=True)
        own = jax.random.fold_in(key, trial.number)
        value = np.inf
        for steps in budgets:  # each time from the start, so that every budget has a whole learning-rate schedule
            params = start(own, width, depth)
            params = train(own, params, masks.ones(params), *splits["train"], rate, steps=steps)
            held = jaxprune.prune(params, options.sparsity).masks
            value = float(loss(pruned_at(own, params, held, splits["train"], steps // 2), *splits["choose"]))
            trial.report(value, steps)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    study = optuna.create_study(
        storage=f"sqlite:///{options.output / 'search.db'}",
        study_name="structure",
        load_if_exists=True,
        pruner=optuna.pruners.HyperbandPruner(min_resource=budgets[0], max_resource=budgets[-1], reduction_factor=3),
    )
    for killed in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
        _ = study.tell(killed.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(killed.params)
    done = study.get_trials(states=[optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED])
    # A sampler that starts anew with an old seed would draw the candidates again that it has drawn before.
    study.sampler = optuna.samplers.TPESampler(seed=len(study.trials))
    study.optimize(objective, n_trials=max(0, options.trials - len(done)))

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for trial in study.trials:
        _ = axes.plot(*zip(*trial.intermediate_values.items(), strict=True), marker="o", markersize=3, alpha=0.7)
    axes.set(xlabel="steps", ylabel="loss", xscale="log")
    figure.savefig(options.output / "search.png")
    print(f"\n{len(done)} trials were there, {len(study.trials)} are; the best, pruned to {options.sparsity:.0%}:")
    print(f"{study.best_params}, loss on the rows to choose by {study.best_value:.3f}")
    return {f"search: {name} of the best": float(value) for name, value in study.best_params.items()}


def models(key: jax.Array, params: PyTree, splits: dict[str, Any], options: Any) -> dict[str, float]:
    candidates = {"dense": assess.Candidate(params, None, network)}
    for sparsity in options.models:
        held = jaxprune.prune(params, sparsity).masks
        tuned = pruned_at(key, params, held, splits["train"], options.tune)
        candidates[f"{sparsity:.0%}"] = assess.Candidate(tuned, held, network)
    scores = assess.hold_out(candidates, splits["train"], splits["choose"])
    print("\n" + assess.model_table(scores))
    errors = [1 - accuracy(c.params, splits["test"]) for c in candidates.values()]
    costs = [s.flops for s in scores]
    print("\non the rows for the test:\n" + assess.pareto_table(list(candidates), errors, costs))
    points = {name: (float(c), e) for name, c, e in zip(candidates, costs, errors, strict=True)}
    assess.plots.pareto_plot(points).savefig(options.output / "pareto.png")
    figures = {}
    for score, error in zip(scores, errors, strict=True):
        own = {"gap": score.gap, "held-out loss": score.test, "held-out error": score.error, "test error": error}
        figures |= {f"model {score.name}: {name}": float(value) for name, value in own.items()}
    return figures


def one_seed(seed: int, folder: Path, x: Any, y: Any, options: Any) -> dict[str, float]:
    order = np.random.default_rng(seed).permutation(len(x))
    parts = {"train": order[:1200], "choose": order[1200:1497], "test": order[1497:]}
    splits = {name: (x[rows].astype(np.float32) / 16, y[rows].astype(np.int32)) for name, rows in parts.items()}
    folder.mkdir(parents=True, exist_ok=True)
    options = argparse.Namespace(**{**vars(options), "output": folder})
    key = jax.random.key(seed)
    params = start(key, 32, 3)
    params = train(key, params, masks.ones(params), *splits["train"], 3e-3, steps=options.steps)
    return {
        **budgets(key, params, splits, options),
        **depth(params, splits),
        **search(key, splits, options),
        **models(key, params, splits, options),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/structures"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=600, help="of the first training")
    parser.add_argument("--tune", type=int, default=200, help="steps after pruning")
    parser.add_argument("--trials", type=int, default=17, help="candidates of the search")
    parser.add_argument("--most", type=int, default=360, help="the largest budget of a candidate, in steps")
    parser.add_argument("--levels", type=float, nargs="+", default=[0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95])
    parser.add_argument("--density", type=float, default=0.2)
    parser.add_argument("--sparsity", type=float, default=0.8, help="of the candidates of the search")
    parser.add_argument("--models", type=float, nargs="+", default=[0.5, 0.8, 0.9, 0.95, 0.98])
    options = parser.parse_args(arguments)
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    found = []
    for seed in options.seeds:
        several = len(options.seeds) > 1
        if several:
            print(f"\nseed {seed}")
        found.append(one_seed(seed, options.output / f"seed_{seed}" if several else options.output, x, y, options))
    if len(found) > 1:
        print(f"\n{'over seeds':42} {'mean':>9} {'least':>9} {'most':>9}")
        for name in found[0]:
            values = [each[name] for each in found]
            print(f"{name:42} {np.mean(values):9.4f} {min(values):9.4f} {max(values):9.4f}")


if __name__ == "__main__":
    main()
