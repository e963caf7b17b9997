"""Which 20 of MADELON's 500 features matter: what each way of scoring features finds, and what a network makes of it.

    python examples/features_madelon.py --data ../shared/data/madelon/madelon.npz

For each seed 2,000 of the 2,600 rows are for training, and everything is fitted on them: means, scores, gates, the
strength of a penalty (chosen on a fifth of the training rows), the network. The other 600 rows are looked at once. The
table shows precision and recall of the 20 features that each method keeps (of the gates also of those that are open
at the end, which may be fewer) and the accuracy of the same network trained on them; beside it the network on all
features, on 20 random ones, on the true 20, and on the other 480. `--permuted` deals out all labels anew first: then
nothing may help.

The file does not say which features matter. `true_features` finds them from all rows and without the labels.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune import features

PyTree = Any
KEEP, WIDTH, BATCH, RATE = 20, 128, 250, 1e-3
GATES = features.StochasticGates()
LASSO_STRENGTHS, GATE_STRENGTHS = (0.1, 0.2, 0.4), (6e-3, 1.2e-2)


class Split(NamedTuple):
    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def true_features(x: np.ndarray) -> tuple[np.ndarray, str]:
    """The 20 features that matter, from all rows and no labels, and the figures that show it.

    MADELON is 5 informative features, 15 linear combinations of them with a little noise, and 480 features of
    independent noise (Guyon et al. 2004, the NIPS 2003 challenge). So the 20 span five dimensions and are like each
    other, and the 480 are like nothing.
    """
    found = np.asarray(np.corrcoef(x.T.astype(np.float64)))
    most = np.where(np.eye(len(found), dtype=bool), 0, np.abs(found)).max(1)
    order = np.argsort(-most)
    mask = np.zeros(len(most), bool)
    mask[order[:KEEP]] = True
    size = np.sort(np.linalg.eigvalsh(found[np.ix_(mask, mask)]))[::-1]
    return mask, (
        f"largest correlation with another feature: {most[order[17]]:.2f} or more for 18, {most[order[18]]:.2f} and "
        f"{most[order[19]]:.2f} for two, {most[order[20]]:.2f} or less for the other 480; eigenvalues of the 20: "
        f"{', '.join(f'{v:.2f}' for v in size[:5])}, then {size[5]:.2f} or less"
    )


def split(x: np.ndarray, y: np.ndarray, seed: int, train: int) -> Split:
    order = np.random.default_rng(seed).permutation(len(x))
    a, b = order[:train], order[train:]
    mean, sd = x[a].mean(0), x[a].std(0)
    scaled = (x - mean) / sd
    return Split(scaled[a], y[a], scaled[b], y[b])


def network(params: PyTree, x: Any) -> jax.Array:
    hidden = jax.nn.relu(x @ params["first"]["kernel"] + params["first"]["bias"])
    hidden = jax.nn.relu(hidden @ params["second"]["kernel"] + params["second"]["bias"])
    return hidden @ params["out"]["kernel"] + params["out"]["bias"]


def start(key: jax.Array, features: int) -> PyTree:
    def layer(key: jax.Array, fan_in: int, fan_out: int) -> PyTree:
        kernel = jax.random.normal(key, (fan_in, fan_out)) * (2 / fan_in) ** 0.5
        return {"kernel": kernel, "bias": jnp.zeros(fan_out)}

    keys = jax.random.split(key, 3)
    sizes = {"first": (features, WIDTH), "second": (WIDTH, WIDTH), "out": (WIDTH, 2)}
    return {name: layer(k, *size) for k, (name, size) in zip(keys, sizes.items(), strict=True)}


def losses(logits: jax.Array, y: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, y)


@partial(jax.jit, static_argnames=("kind", "steps"))
def train(key: jax.Array, x: jax.Array, y: jax.Array, strength: Any, *, kind: str, steps: int) -> PyTree:
    """Trains by Adam: the network, with a lasso on its inputs' rows ("lasso") or with gates before them ("gates")."""
    params = start(jax.random.fold_in(key, 0), x.shape[1])
    rate = optax.cosine_decay_schedule(RATE, steps)
    adam = optax.adamw(rate, weight_decay=1e-2)
    if kind == "lasso":
        # A step's shrinkage falls with the learning rate; one that stayed would have the last word, and leave no row.
        adam = optax.chain(adam, features.input_lasso(lambda step: strength * rate(step), "first/kernel"))
    if kind == "gates":
        params["gates"] = GATES.start(x.shape[1])
        adam = optax.chain(GATES.add_penalty(lambda _: strength, "gates"), optax.adam(3 * RATE))

    def loss(params: PyTree, x: jax.Array, y: jax.Array, key: jax.Array) -> jax.Array:
        if kind == "gates":
            x = x * GATES.draw(params["gates"], key, len(x))
        if kind == "lasso":
            x = x + 0.5 * jax.random.normal(key, x.shape)  # against learning rows by heart
        return losses(network(params, x), y).mean()

    def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
        params, state = carry
        pick, noise = jax.random.split(key)
        rows = jax.random.randint(pick, (BATCH,), 0, len(x))
        grads = jax.grad(loss)(params, x[rows], y[rows], noise)
        updates, state = adam.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, adam.init(params)), jax.random.split(key, steps))[0][0]


def accuracy(data: Split, mask: np.ndarray, key: jax.Array, steps: int) -> float:
    """Of the plain network, trained on some of the features, on the rows that are not for training."""
    params = train(key, data.x[:, mask], data.y, 0.0, kind="plain", steps=steps)
    return float((np.asarray(network(params, data.x_test[:, mask])).argmax(1) == data.y_test).mean())


def tuned(
    score: Callable[[Split, float], np.ndarray], data: Split, strengths: tuple[float, ...], key: jax.Array, steps: int
) -> tuple[np.ndarray, float]:
    """The scores at the strength whose 20 features serve a held-out fifth of the training rows best."""
    inner = int(0.8 * len(data.x))
    part = Split(data.x[:inner], data.y[:inner], data.x[inner:], data.y[inner:])
    found = [accuracy(part, features.top(score(part, s), KEEP), key, steps) for s in strengths]
    best = strengths[int(np.argmax(found))]
    return score(data, best), best


def methods(data: Split, key: jax.Array, steps: int) -> dict[str, Callable[[], Any]]:
    """By name a function that gives a mask from training rows alone, and the strength if one was chosen."""
    x, y = data.x, data.y
    inner = int(0.8 * len(x))
    relevance, alike = np.asarray(features.pearson(x, y)), np.asarray(features.correlations(x))
    plain = cache(lambda: train(key, x, y, 0.0, kind="plain", steps=steps))
    held = cache(lambda: train(key, x[:inner], y[:inner], 0.0, kind="plain", steps=steps))
    one_each = features.one_of_each(relevance, features.clusters(alike, 0.5))

    def lasso(data: Split, strength: float) -> Any:
        params = train(key, data.x, data.y, strength, kind="lasso", steps=2 * steps)
        return features.input_norms(params["first"]["kernel"])

    gate = lambda data, strength: train(key, data.x, data.y, strength, kind="gates", steps=2 * steps)["gates"]
    gates = cache(lambda: tuned(gate, data, GATE_STRENGTHS, key, steps))
    top = lambda scores: (features.top(scores, KEEP), None)
    best = lambda found: (features.top(found[0], KEEP), found[1])
    return {
        "Pearson": lambda: top(relevance),
        "Spearman": lambda: top(features.spearman(x, y)),
        "ANOVA F": lambda: top(features.anova_f(x, y)),
        "mutual information": lambda: top(features.mutual_information(x, y)),
        "mRMR": lambda: (np.isin(np.arange(x.shape[1]), features.mrmr(relevance, alike, KEEP)), None),
        "one of each cluster": lambda: top(np.where(one_each, relevance, -1)),
        "gradient": lambda: top(features.gradient_saliency(network, plain(), x, y, losses)),
        "permutation, held-out rows": lambda: top(
            features.permutation(network, held(), x[inner:], y[inner:], losses, key=key)
        ),
        "first-layer norm": lambda: top(features.input_norms(plain()["first"]["kernel"])),
        "first-layer lasso": lambda: best(tuned(lasso, data, LASSO_STRENGTHS, key, steps)),
        "stochastic gates": lambda: best(gates()),
        "gates that are open": lambda: ((np.asarray(gates()[0]) > 0) | features.top(gates()[0], 1), gates()[1]),
        "relatedness (no labels)": lambda: top(features.relatedness(alike)),
    }


def run_seed(x: np.ndarray, y: np.ndarray, truth: np.ndarray, seed: int, path: Path, options: Any) -> dict[str, Any]:
    """What each method finds; what the file at `path` has of it is not computed again."""
    if options.permuted:
        y = np.random.default_rng(1000 + seed).permutation(y)
    data, key = split(x, y, seed, options.train), jax.random.key(seed)
    random = np.isin(np.arange(len(truth)), np.random.default_rng(seed).permutation(len(truth))[:KEEP])
    fixed = {"20 random": random, "the true 20": truth, "all 500": np.ones_like(truth), "the other 480": ~truth}
    wanted = methods(data, key, options.steps)
    wanted |= {name: lambda mask=mask: (mask, None) for name, mask in fixed.items()}
    rows = json.loads(path.read_text()) if path.exists() else {}
    for name, find in wanted.items():
        if name not in rows:
            mask, strength = find()
            right = accuracy(data, mask, key, options.steps)
            kept = {"kept": int(mask.sum()), "true": int((mask & truth).sum())}
            rows[name] = {**kept, "accuracy": right, "strength": strength, "features": np.flatnonzero(mask).tolist()}
            _ = path.write_text(json.dumps(rows, indent=1))
    return {name: rows[name] for name in wanted}


def smaller_by(mask: np.ndarray, x: np.ndarray) -> str:
    """The network made smaller: its first layer has fewer rows, and gives what zeros at the others give."""
    params = start(jax.random.key(0), len(mask))
    small = features.narrow(network, params, mask, x[:1])
    off = np.abs(small.fn(small.params, small.take(x)) - network(params, np.where(mask, x, 0))).max()
    shape = small.params["first"]["kernel"].shape
    return f"made smaller by the gates' choice: a first layer of {shape}, off by {off:.1e} from zeros at the others"


def report(results: list[dict[str, Any]]) -> str:
    lines = [f"{'features':26}  precision  recall  true ones kept   accuracy on held-out rows: mean, least, most"]
    for name in results[0]:
        kept, true, right = (np.array([r[name][k] for r in results]) for k in ("kept", "true", "accuracy"))
        figures = f"{(true / kept).mean():9.0%}  {true.mean() / KEEP:6.0%}  {f'{true.min()} to {true.max()}':>14}"
        lines.append(f"{name:26}  {figures}   {right.mean():.1%}, {right.min():.1%}, {right.max():.1%}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="madelon.npz")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=1000, help="of each training; twice as many with a penalty")
    parser.add_argument("--train", type=int, default=2000, help="rows for training; the others are for the test")
    parser.add_argument("--permuted", action="store_true", help="deal out the labels anew: nothing may help")
    parser.add_argument(
        "--output", type=Path, default=Path("output/features_madelon"), help="what was computed is kept"
    )
    options = parser.parse_args(arguments)
    with np.load(options.data) as file:
        x, y = file["x"].astype(np.float32), file["y"].astype(np.int32)
    truth, why = true_features(x)
    print(f"the features that matter, from all rows without labels: {np.flatnonzero(truth).tolist()}\n{why}")
    options.output.mkdir(parents=True, exist_ok=True)
    results = []
    for seed in options.seeds:
        started = time.perf_counter()
        name = f"{'permuted' if options.permuted else 'labels'}-{seed}-{options.steps}-{options.train}.json"
        results.append(run_seed(x, y, truth, seed, options.output / name, options))
        chosen = {name: row["strength"] for name, row in results[-1].items() if row["strength"] is not None}
        print(f"seed {seed}: {time.perf_counter() - started:.0f} s, strengths {chosen}", flush=True)
    print(report(results))
    chosen = np.isin(np.arange(len(truth)), results[-1]["stochastic gates"]["features"])
    print(smaller_by(chosen, split(x, y, options.seeds[-1], options.train).x_test))


if __name__ == "__main__":
    main()
