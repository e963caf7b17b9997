"""The experiment: which networks are trained, from where, for how long. All pruned ones get the same chance.

    initial --steps--> dense --steps--> dense, trained on
                         |--steps, pruning on the way--> gradual          }
                         |--prune--> one-shot --steps--> fine-tuned       } at each sparsity
                         `--prune at random --steps--> random, fine-tuned }

Every arrow of training takes the same number of steps; those that start at the dense network see the same batches in
the same order, under the same rates, and the pruned ones keep equally many weights of each layer.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxprune

from . import methods
from .fitting import Trainer, batches
from .models import Model

DENSE = "dense"
LONGER = "dense, trained on"
GRADUAL = "gradual"
ONE_SHOT = "one-shot, not trained on"
FINE_TUNED = "one-shot, fine-tuned"
RANDOM = "random, fine-tuned"
PRUNED = (GRADUAL, FINE_TUNED, RANDOM, ONE_SHOT)

SAME_CHANCE = (
    "Gradual pruning, fine-tuning after one-shot, random masks and 'dense, trained on' all start from the same dense"
    " network and take the same number of steps with the same batches and learning rates; all pruned networks of one"
    " sparsity keep equally many weights of each layer (Erdos-Renyi-Kernel)."
)


class Plan(NamedTuple):
    """What to do: the seed of everything random, steps of each phase, images in a batch, sparsities."""

    seed: int = 0
    steps: int = 500
    batch: int = 128
    sparsities: tuple[float, ...] = (0.8, 0.9, 0.95, 0.98)

    @property
    def total_steps(self) -> int:
        """The steps of all phases together."""
        return self.steps * (2 + 3 * len(self.sparsities))


class Network(NamedTuple):
    """One network: how it was made, and what came out.

    Attributes:
        method: One of the names above.
        target: The sparsity that was asked for; 0 for a dense one.
        params: Its parameters.
        masks: Its masks; scalar True everywhere for a dense one.
        steps: The training steps behind it, from the initial parameters on.
        seconds: The time that its own training took, without that of the dense network it started from.
    """

    method: str
    target: float
    params: Any
    masks: Any
    steps: int = 0
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """The method, with the sparsity that was asked for."""
        return f"{self.method} {self.target:.0%}" if self.target else self.method

    @property
    def slug(self) -> str:
        """The name as that of a folder, such as `gradual-95`."""
        return self.name.replace(",", "").replace("%", "").replace(" ", "-")


class Experiment:
    """The networks, made one after another."""

    def __init__(self, model: Model, train: tuple[Any, Any], plan: Plan, tick: Callable[[str, float], None]):
        """Keep what is needed; `tick` is called after every step with the name of the phase and the loss."""
        self._train, self._plan, self._tick = train, plan, tick
        make = lambda optimizer: Trainer(model, partial(optimizer, plan.steps))
        self._dense, self._gradual, self.fixed = make(methods.dense), make(methods.gradual), make(methods.fine_tune)
        self._one_shot, self._random = jax.jit(methods.one_shot), jax.jit(methods.random)
        self._init = jax.jit(model.init)

    @property
    def compile_seconds(self) -> dict[str, float]:
        """How long each of the three training steps took to compile; none of it is in the times of the networks."""
        trainers = {"dense": self._dense, "gradual": self._gradual, "fixed masks": self.fixed}
        return {name: trainer.compile_seconds for name, trainer in trainers.items()}

    def initial(self) -> Any:
        """The first weights."""
        return self._init(jax.random.key(self._plan.seed))

    def networks(self) -> Iterator[Network]:
        """Train and yield all networks, the dense ones first."""
        steps, seed = self._plan.steps, self._plan.seed
        first = self._dense.run(self.initial(), None, self.batches(0), partial(self._tick, DENSE))
        dense = Network(DENSE, 0.0, first.params, _whole(first.params), steps, first.seconds)
        yield dense
        longer = self._dense.run(dense.params, None, self.batches(1), partial(self._tick, LONGER))
        yield Network(LONGER, 0.0, longer.params, dense.masks, 2 * steps, longer.seconds)
        for sparsity in self._plan.sparsities:
            yield self._prune_gradually(dense, sparsity)
            pruned = self._one_shot(dense.params, sparsity)
            yield Network(ONE_SHOT, sparsity, pruned.params, pruned.masks, steps)
            yield self._train_on(pruned, FINE_TUNED, sparsity)
            key = jax.random.fold_in(jax.random.key(seed), 1)
            yield self._train_on(self._random(dense.params, sparsity, key), RANDOM, sparsity)

    def _prune_gradually(self, dense: Network, sparsity: float) -> Network:
        tick = partial(self._tick, f"{GRADUAL} {sparsity:.0%}")
        fit = self._gradual.run(dense.params, sparsity, self.batches(1), tick)
        masks = jaxprune.get_masks(fit.opt_state)
        return Network(GRADUAL, sparsity, fit.params, masks, 2 * self._plan.steps, fit.seconds)

    def _train_on(self, pruned: jaxprune.Pruned, method: str, sparsity: float) -> Network:
        tick = partial(self._tick, f"{method} {sparsity:.0%}")
        fit = self.fixed.run(pruned.params, pruned.masks, self.batches(1), tick)
        return Network(method, sparsity, fit.params, pruned.masks, 2 * self._plan.steps, fit.seconds)

    def batches(self, phase: int) -> Iterator[tuple]:
        """The batches of the first training (0), or of those that start from the dense network (1)."""
        plan = self._plan
        return batches(*self._train, steps=plan.steps, size=plan.batch, seed=[plan.seed, phase])


def _whole(params: Any) -> Any:
    return jax.tree.map(lambda _: jnp.ones((), bool), params)
