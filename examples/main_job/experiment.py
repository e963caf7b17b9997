"""The experiment: which networks are trained, from where, for how long, and the lines in which jaxprune prunes them.

    initial --steps--> dense --steps--> dense, trained on
                         |--steps, pruning on the way--> gradual          }
                         |--prune--> one-shot --steps--> fine-tuned       } at each sparsity
                         |--prune at random --steps--> random, fine-tuned }
                         `--remove channels--> slim --steps--> slim, fine-tuned    with 2 and 4 times fewer FLOPs
    initial --three rounds of training and pruning, each from the initial weights--> ticket

Every arrow of training takes the same number of steps. Those that start at the dense network see the same batches in
the same order, under the same learning rates, and the networks of one sparsity keep equally many weights of each layer.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune
from jaxprune import allocation, criteria, lottery, schedules, slimming, training

from .networks import Model, Trainer, batches, predict

DENSE = "dense"
LONGER = "dense, trained on"
GRADUAL = "gradual"
ONE_SHOT = "one-shot, not trained on"
FINE_TUNED = "one-shot, fine-tuned"
RANDOM = "random, fine-tuned"
SLIM = "slim, fine-tuned"
TICKET = "ticket"
PRUNED = (GRADUAL, FINE_TUNED, RANDOM, ONE_SHOT)

SAME_CHANCE = (
    "Gradual pruning, fine-tuning after one-shot, random masks, slim networks and 'dense, trained on' all start from"
    " the same dense network and take the same number of steps with the same batches and learning rates; all pruned"
    " networks of one sparsity keep equally many weights of each layer (Erdos-Renyi-Kernel)."
)
SMALLER = (
    "Masks make zeros, not speed. A slim network has whole channels and neurons removed, so its arrays are smaller: it"
    " is an ordinary dense network of 2 or 4 times fewer FLOPs."
)
TICKET_CHOICE = (
    "The ticket is the sparsest of one search (60, 84 and 94 %) whose accuracy on the validation images is within one"
    " standard error of the best of them; each of its rounds starts from the first weights."
)

RATE = 3e-3
"""Adam's learning rate; chosen on digits held out of the training images, by `benchmarks/demo_rate.py`."""
REVISIONS = 20
"""How often gradual pruning chooses its masks anew on its way."""
TICKET_SPARSITIES = 0.6, 0.84, 0.936
"""60, 84 and 94 % sparse."""


# The optimizers. The two that prune differ from the dense one in ONE line each: the last. Each takes what differs
# between its runs (a sparsity, masks) as an argument that may be traced, so that its training step is compiled once.


def adam(steps: int) -> optax.GradientTransformation:
    """The optimizer of all runs, dense or pruned: Adam, its rate constant and then falling to zero along a cosine."""
    half = max(steps // 2, 1)
    falling = optax.cosine_decay_schedule(RATE, max(steps - half, 1))
    return optax.adam(optax.join_schedules([optax.constant_schedule(RATE), falling], [half]))


def dense(steps: int, choice: None = None) -> optax.GradientTransformation:
    """No pruning."""
    del choice
    return adam(steps)


def gradual(steps: int, sparsity: jax.Array) -> optax.GradientTransformation:
    """Gradual magnitude pruning (Zhu and Gupta 2017): from dense to `sparsity` while the rate is high."""
    end = max(steps // 2, 1)
    schedule = schedules.cubic(begin=0, end=end, final=sparsity)
    when = schedules.every(max(end // REVISIONS, 1), begin=0, end=end)
    return jaxprune.sparsify(adam(steps), training.gradual(schedule, when=when, allocation=allocation.erk))


def fine_tune(steps: int, masks: Any) -> optax.GradientTransformation:
    """Training on under masks that stay as they are."""
    return jaxprune.sparsify(adam(steps), training.fixed(masks))


def one_shot(params: Any, sparsity: jax.Array) -> jaxprune.Pruned:
    """Remove the smallest weights at once."""
    return jaxprune.prune(params, sparsity, criterion=criteria.magnitude, allocation=allocation.erk)


def random(params: Any, sparsity: jax.Array, key: jax.Array) -> jaxprune.Pruned:
    """Remove any weights at once, as many of each layer as `one_shot` does: the control."""
    return jaxprune.prune(params, sparsity, criterion=criteria.random, allocation=allocation.erk, key=key)


def slim(model: Model, params: Any, times: float, image: Any) -> slimming.Slimmed:
    """Remove whole channels and neurons, those of least magnitude, until `image` takes `times` fewer FLOPs."""
    groups = jaxprune.find_groups(model.apply, params, image)
    scores = slimming.group_scores(groups, criteria.magnitude(params))
    cost = slimming.costs.flops(model.apply, params, image)
    target = cost(slimming.Choice.remove(groups, {})) / times
    choice = slimming.choose(groups, scores, cost=cost, target=target, scope="global")
    return jaxprune.slim(model.apply, params, choice, image)


class Plan(NamedTuple):
    """What to do: the seed of everything random, steps of each phase, images in a batch, sparsities, times of FLOPs."""

    seed: int = 0
    steps: int = 500
    batch: int = 128
    sparsities: tuple[float, ...] = (0.8, 0.9, 0.95, 0.98)
    slimmer: tuple[float, ...] = (2.0, 4.0)

    @property
    def total_steps(self) -> int:
        """The steps of all phases together, those of the ticket search among them."""
        return self.steps * (2 + 3 * len(self.sparsities) + len(self.slimmer) + len(TICKET_SPARSITIES) + 1)


QUICK = Plan(steps=12, sparsities=(0.8, 0.9), slimmer=(2.0,))
"""A plan that shows whether everything runs, not how good it is."""


class Network(NamedTuple):
    """One network: how it was made, and what came out.

    Attributes:
        method: One of the names above.
        target: The sparsity that was asked for, in [0, 1), or how many times fewer FLOPs, above 1; 0 for a dense one.
        apply: Parameters and images to logits.
        params: Its parameters.
        masks: Its masks; scalar True everywhere for a dense or a slim one.
        steps: The training steps behind it, from the initial parameters on.
        seconds: The time that its own training took, without that of the dense network it started from.
        manifest: What a slim network kept, as JSON; None for the others.
    """

    method: str
    target: float
    apply: Callable[[Any, jax.Array], jax.Array]
    params: Any
    masks: Any
    steps: int = 0
    seconds: float = 0.0
    manifest: str | None = None

    @property
    def name(self) -> str:
        """The method, with the sparsity or the times of FLOPs that were asked for."""
        if not self.target:
            return self.method
        return f"{self.method} {self.target:g}x" if self.target > 1 else f"{self.method} {self.target:.0%}"

    @property
    def slug(self) -> str:
        """The name as that of a folder, such as `gradual-95`."""
        return self.name.replace(",", "").replace("%", "").replace(" ", "-")


class Experiment:
    """The networks, made one after another.

    Attributes:
        compile_seconds: How long each training step took to compile; none of it is in the times of the networks.
    """

    def __init__(
        self,
        model: Model,
        train: tuple[Any, Any],
        validation: tuple[Any, Any],
        plan: Plan,
        tick: Callable[[str, float], None],
    ):
        """Keep what is needed; `tick` is called after every step with the name of the phase and the loss."""
        self._model, self._train, self._validation, self._plan, self._tick = model, train, validation, plan, tick
        self.compile_seconds: dict[str, float] = {}
        self._trainers: dict[str, Trainer] = {}
        self.initial = jax.jit(model.init)(jax.random.key(plan.seed))

    def networks(self) -> Iterator[Network]:
        """Train and yield all networks, the dense ones first, the ticket last."""
        plan, apply = self._plan, self._model.apply
        first = self._fit(DENSE, dense, self.initial, None, DENSE, phase=0)
        start = Network(DENSE, 0.0, apply, first.params, _all_kept(first.params), plan.steps, first.seconds)
        yield start
        longer = self._fit(DENSE, dense, start.params, None, LONGER)
        yield Network(LONGER, 0.0, apply, longer.params, start.masks, 2 * plan.steps, longer.seconds)
        cut, cut_randomly = jax.jit(one_shot), jax.jit(random)
        key = jax.random.fold_in(jax.random.key(plan.seed), 1)
        for sparsity in plan.sparsities:
            fit = self._fit("gradual", gradual, start.params, sparsity, f"{GRADUAL} {sparsity:.0%}")
            masks = jaxprune.get_masks(fit.opt_state)
            yield Network(GRADUAL, sparsity, apply, fit.params, masks, 2 * plan.steps, fit.seconds)
            pruned = cut(start.params, sparsity)
            yield Network(ONE_SHOT, sparsity, apply, pruned.params, pruned.masks, plan.steps)
            yield self._fine_tune(pruned, FINE_TUNED, sparsity)
            yield self._fine_tune(cut_randomly(start.params, sparsity, key), RANDOM, sparsity)
        for times in plan.slimmer:
            yield self._slim(start.params, times)
        yield self._ticket()

    def _fine_tune(self, pruned: jaxprune.Pruned, method: str, sparsity: float) -> Network:
        fit = self._fit("fixed masks", fine_tune, pruned.params, pruned.masks, f"{method} {sparsity:.0%}")
        steps = 2 * self._plan.steps
        return Network(method, sparsity, self._model.apply, fit.params, pruned.masks, steps, fit.seconds)

    def _slim(self, params: Any, times: float) -> Network:
        images, _ = self._train
        small = slim(self._model, params, times, jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype))
        name, model = f"{SLIM} {times:g}x", self._model._replace(apply=small.fn)
        fit = self._fit(name, dense, small.params, None, name, model=model)
        masks, steps = _all_kept(fit.params), 2 * self._plan.steps
        return Network(SLIM, times, small.fn, fit.params, masks, steps, fit.seconds, small.manifest.to_json())

    def _ticket(self) -> Network:
        """Train, prune, go back to the first weights, and again; the best round by the validation images."""
        images, labels = self._validation
        apply, began = self._model.apply, time.perf_counter()

        def train(params: Any, masks: Any, key: Any) -> Any:
            del key
            return self._fit("fixed masks", fine_tune, params, masks, TICKET, phase=0).params

        found = lottery.iterative_pruning(
            lottery.Training(
                train,
                evaluate=lambda params, masks: {"right": (predict(apply, params, images).argmax(1) == labels).mean()},
                traceable=False,
            ),
            self.initial,
            rounds=TICKET_SPARSITIES,
            key=jax.random.fold_in(jax.random.key(self._plan.seed), 2),
            allocation=allocation.erk,
            progress=False,
        )
        number = sparsest_good(np.asarray(found.ticket.metrics["right"]), len(labels))
        take = lambda leaf: jnp.asarray(leaf[number])
        params, masks = jax.tree.map(take, (found.ticket.params, found.ticket.masks))
        seconds = time.perf_counter() - began
        return Network(TICKET, float(found.sparsity[number]), apply, params, masks, self._plan.steps, seconds)

    def _fit(
        self,
        kind: str,
        optimizer: Callable[..., optax.GradientTransformation],
        params: Any,
        choice: Any,
        told: str,
        *,
        phase: int = 1,
        model: Model | None = None,
    ) -> Any:
        """Train from `params`; the step of each kind is compiled once. Phase 0 is the first training, 1 all later."""
        plan = self._plan
        if kind not in self._trainers:
            self._trainers[kind] = Trainer(model or self._model, partial(optimizer, plan.steps))
        trainer = self._trainers[kind]
        data = batches(*self._train, steps=plan.steps, size=plan.batch, seed=[plan.seed, phase])
        fit = trainer.run(params, choice, data, partial(self._tick, told))
        self.compile_seconds[kind] = trainer.compile_seconds
        return fit


def sparsest_good(right: np.ndarray, images: int) -> int:
    """The last round after the dense one that is within one standard error of the best of them.

    Args:
        right: The accuracy of each round on the validation images, the dense round first.
        images: How many validation images there are.

    Returns:
        The number of the round.
    """
    best = right[1:].max()
    error = (best * (1 - best) / images) ** 0.5
    return 1 + int(np.flatnonzero(right[1:] >= best - error)[-1])


def _all_kept(params: Any) -> Any:
    return jax.tree.map(lambda _: jnp.ones((), bool), params)
