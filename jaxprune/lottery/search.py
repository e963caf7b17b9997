"""`iterative_pruning`: iterative magnitude pruning (IMP), which searches lottery tickets; `ticket` takes one round.

`Rewinding` says from which weights a round starts: `initial_weights`, `early_weights`, `learning_rate_only` and
`fine_tuning` return one.
"""

import importlib
import json
import platform
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import _progress, _tree, allocation, checkpoints
from jaxprune import masks as masks_
from jaxprune.prune import How, Selector

PyTree = Any
Train = Callable[[PyTree, PyTree, Any], Any]
# `(start, masks, key of the round, key of the search) -> (start, masks)`
Control = Callable[[PyTree, PyTree, Any, Any], tuple[PyTree, PyTree]]


class Rewinding(NamedTuple):
    """How weights are rewound between rounds. You can make a rewinding from your own functions.

    Attributes:
      anchor: `(params, key) -> params`: returns the weights to rewind to. It is called once, before the first round,
        which also starts from these weights.
      start: `(anchor, trained) -> params`: returns the weights from which the next round starts, before masking.
      later: the train function of all rounds but the first; default None: the same function.
    """

    anchor: Callable[[PyTree, Any], PyTree]
    start: Callable[[PyTree, PyTree], PyTree]
    later: Train | None = None


def initial_weights() -> Rewinding:
    """Rewinds to the initial weights: Frankle and Carbin 2019, arXiv 1803.03635, strategy 1.

    Returns:
      A rewinding: each round starts from the weights passed to `iterative_pruning`.

    Example:
      >>> initial_weights().start('first', 'trained')
      'first'
    """
    return Rewinding(lambda params, key: params, lambda anchor, trained: anchor)


def early_weights(train: Callable[[PyTree, Any], PyTree]) -> Rewinding:
    """Rewinds to the weights at step k (weight rewinding): Frankle et al. 2020, arXiv 1912.05671.

    Args:
      train: `(params, key) -> params`: the first k steps, dense. The train function of `iterative_pruning` runs the
        steps from k on, also in the first round.

    Returns:
      A rewinding.

    Example:
      >>> early_weights(lambda params, key: 0.5 * params).anchor(3.0, None)
      1.5
    """
    _tree.check_function(train, "train", "train(params, key) -> params, which trains for the early steps")
    return Rewinding(train, lambda anchor, trained: anchor)


def learning_rate_only() -> Rewinding:
    """Keeps the trained weights and rewinds the schedule of the learning rate: Renda et al. 2020, arXiv 2003.02389.

    Returns:
      A rewinding: each round starts from the final weights of the last round, under the new masks.

    Example:
      >>> learning_rate_only().start('first', 'trained')
      'trained'
    """
    return Rewinding(lambda params, key: params, lambda anchor, trained: trained)


def fine_tuning(train: Train) -> Rewinding:
    """Does not rewind: keeps the trained weights, and trains them by another function from the second round on.

    Args:
      train: `(params, masks, key) -> params`, such as a training at the final learning rate. The train function of
        `iterative_pruning` is used only in the first round.

    Returns:
      A rewinding.

    Example:
      >>> fine_tuning(lambda params, masks, key: params).start('first', 'trained')
      'trained'
    """
    _tree.check_function(train, "train", "train(params, masks, key) -> params")
    return Rewinding(lambda params, key: params, lambda anchor, trained: trained, train)


Evaluate = Callable[[PyTree, PyTree], Mapping[str, Any]]
_METRICS = "metrics"


@dataclass(frozen=True)
class Training:
    """How to train and evaluate the networks of a search.

    Attributes:
      train: `(params, masks, key) -> params`, a complete training. It should keep removed weights at zero (use
        `sparsify(optimizer, training.fixed(masks))`); the search sets them to zero after training in any case.
      evaluate: `(params, masks) -> metrics`, a dict of arrays or numbers, for the trained weights. None: no metrics.
      has_aux: whether `train` returns `(params, metrics)`, for values known only during training, such as the step of
        the lowest validation loss. These metrics, a dict of arrays, are added to the metrics of `evaluate`. Default
        False.
      traceable: whether JAX can trace `train` and `evaluate`. Default True.
    """

    train: Train
    evaluate: Evaluate | None = None
    has_aux: bool = False
    traceable: bool = True


class Trained(NamedTuple):
    """One trained network of a search.

    Attributes:
      masks: the masks of the network.
      params: the trained weights, exactly zero where the masks are False.
      metrics: the metrics of `evaluate` and, with `has_aux`, of the training.
    """

    masks: PyTree
    params: PyTree
    metrics: dict[str, Any]


class Rounds(NamedTuple):
    """All rounds of a search. Each array has a leading axis of rounds; round 0 is the dense network.

    Attributes:
      sparsity: float32, the requested total sparsity of each round.
      start: the weights from which each round started, zero where its masks are False.
      ticket: the trained tickets.
      controls: the trained control experiments, by name.
    """

    sparsity: jax.Array
    start: PyTree
    ticket: Trained
    controls: dict[str, Trained]

    def __str__(self) -> str:
        """Returns a table of the metrics that are numbers; for a vmapped search their means over the searches."""
        shape = np.shape(self.sparsity)
        mean = lambda values: np.asarray(values).reshape(-1, shape[-1]).mean(0)
        trained = {"": self.ticket, **{f"{name}: ": own for name, own in self.controls.items()}}
        columns = {
            f"{of}{name}": [f"{x:.4g}" for x in mean(values)]
            for of, own in trained.items()
            for name, values in own.metrics.items()
            if np.shape(values) == shape
        }
        levels = [f"{level:.1%}" for level in mean(self.sparsity)]
        rows = zip(map(str, range(shape[-1])), levels, *columns.values(), strict=True)
        return _tree.table(["round", "sparsity", *columns], [*rows])


class _Carry(NamedTuple):
    """The masks of the next round, and its start weights before masking."""

    start: PyTree
    masks: PyTree


class _Search(NamedTuple):
    training: Training
    select: Selector
    rewind: Rewinding
    controls: Mapping[str, Control]
    levels: jax.Array
    anchor: PyTree
    key: Any


def iterative_pruning(
    train: Train | Training,
    params: PyTree,
    *,
    rounds: int | Sequence[float],
    rewind: Rewinding = initial_weights(),
    controls: Mapping[str, Control] | None = None,
    folder: Any = None,
    progress: bool | None = None,
    **how: Unpack[How],
) -> Rounds:
    """Searches winning tickets: trains, prunes, rewinds the kept weights, and trains again.

        m_r = the largest scores among the weights that m_{r-1} keeps, at the sparsity s_r, in round r = 1, ..., rounds

    Frankle and Carbin 2019, arXiv 1803.03635. Round 0 trains the dense network. Each round trains the rewound weights
    under its masks; the scores of the trained weights give the masks of the next round. Round r uses `fold_in(key, r)`:
    the same key gives the same bits.

    Without a folder and with a traceable training, the whole search is one `lax.scan`: it may be jitted, and vmapped
    over keys and parameters. Otherwise it runs round by round. With a folder, each finished round is saved
    (`checkpoints.Run`), and a call with the same arguments continues after the last saved round, with the same bits as
    an uninterrupted search. A folder belongs to one search: a call with other arguments raises. The check compares the
    initial weights, all options, and functions by their names and the values in their closures. It compares neither the
    code of functions nor lists, sets and global variables that they use.

    Args:
      train: `(params, masks, key) -> params`, a complete training, or a `Training`, which also says how to evaluate.
      params: the initial weights.
      rounds: the number of rounds, 0 or more; each round removes a fifth of the remaining weights. Or the total
        sparsity of each round, ascending, in (0, 1), such as `[0.5, 0.75, 0.9]`. The dense network is trained first.
      rewind: the weights from which a round starts: `initial_weights()` (default), `early_weights(train)`,
        `learning_rate_only()` or `fine_tuning(train)`.
      controls: control experiments by name, such as `{"random": random_masks()}`. Each is trained in every round and
        does not influence the ticket. Default None.
      folder: a new or empty folder, or a folder of the same search; None (default) saves nothing.
      progress: True shows a progress bar, False does not, None shows it on a terminal and in a notebook.
      **how: how weights are chosen: criterion, allocation, pattern, where, batch_axes, key, specs; see `jaxprune.How`.
        `key` is required: everything random in the search depends on it. `allocation` is `allocation.one_ranking` by
        default.

    Returns:
      `Rounds`, each array with a leading axis of rounds.

    Raises:
      ValueError: sparsities are out of range or not ascending; the folder belongs to another search or is damaged;
        `train` and `evaluate` return metrics of the same name.
      TypeError: the key is missing.
      FileExistsError: the folder contains other files.
      ImportError: the package orbax-checkpoint is missing, or tqdm for `progress=True`.

    Example:
      >>> train = lambda params, masks, key: jax.tree.map(lambda w: 2 * w, params)
      >>> found = iterative_pruning(train, {'w': jnp.arange(1.0, 5).reshape(2, 2)}, rounds=[0.5], key=jax.random.key(0))
      >>> found.ticket.params['w'].tolist()
      [[[2.0, 4.0], [6.0, 8.0]], [[0.0, 0.0], [6.0, 8.0]]]
    """
    sparsities = _sparsities(rounds)
    training = train if isinstance(train, Training) else Training(train)
    if not callable(training.train):
        swapped = "; train and params are swapped" if callable(params) else ""
        raise TypeError(f"train must be a function {_TRAIN}; got {_tree.shown(training.train)}{swapped}")
    _tree.check_instance(rewind, Rewinding, "rewind", "what lottery.initial_weights() or early_weights(...) returns")
    if controls is not None:
        _tree.check_instance(controls, Mapping, "controls", "a mapping such as {'random': lottery.random_masks()}")
    how.setdefault("allocation", allocation.one_ranking)
    select, key = Selector(**how), how.get("key")
    if key is None:
        raise TypeError(
            "iterative_pruning needs key=, a key of jax.random: everything random in the search depends on the key"
        )
    select.chosen(params)
    first = masks_.ones(params, **select.units)
    run = None
    if folder is not None:
        options = {**vars(training), "criterion": select.criterion, "allocation": select.allocation, **select.units}
        options |= {"sparsities": sparsities, "rewind": rewind, "controls": dict(sorted((controls or {}).items()))}
        run = checkpoints.Run(folder, options, params=params, key=key, kind="search", step="round")
    anchor = rewind.anchor(params, _fold_name(key, "anchor"))
    # Sparsities are float32, traced or not, so that all modes count in the same way.
    search = _Search(training, select, rewind, dict(controls or {}), jnp.asarray(sparsities, jnp.float32), anchor, key)
    if training.traceable and run is None:
        return jax.lax.scan(lambda c, r: _round(search, c, r), _Carry(anchor, first), jnp.arange(len(sparsities)))[1]
    return _loop(search, _Carry(anchor, first), run, progress)


class Ticket(NamedTuple):
    """A sparse network to train.

    `checkpoints.save(path, *ticket)` writes a ticket, and `Ticket(*checkpoints.load(path, params))` reads it.

    Attributes:
      params: the weights to train from, zero where the masks are False.
      masks: bool masks of the parameters.
      provenance: a JSON value: `method`, `seeds`, `round`, `sparsity`, `metrics`, `versions`, and further notes.
    """

    params: PyTree
    masks: PyTree
    provenance: dict[str, Any]

    def __str__(self) -> str:
        lines = (f"{name}: {value}" for name, value in self.provenance.items() if name != "versions")
        return "\n".join(["Ticket(params, masks, provenance)", *lines])


def ticket(rounds: Rounds, r: int, *, method: str, seeds: dict[str, int] | None = None, **notes: Any) -> Ticket:
    """Makes the ticket of one round of a search.

    Args:
      rounds: the rounds of one search. For a vmapped search pass one member: `jax.tree.map(lambda x: x[i], rounds)`.
      r: the number of the round, 0 for the dense network; negative numbers count from the end.
      method: a description of how the ticket was found.
      seeds: the seeds of the search, by name; default None.
      **notes: further entries of the provenance, anything that JSON can hold.

    Returns:
      The ticket. Its provenance also contains the sparsity of the masks, the metrics of the training, and the versions
      of jaxprune, JAX and Python.

    Raises:
      IndexError: the search has no such round.

    Example:
      >>> train = lambda params, masks, key: params
      >>> found = iterative_pruning(train, {'w': jnp.ones((2, 2))}, rounds=[0.5], key=jax.random.key(0))
      >>> ticket(found, -1, method='magnitude', seeds={'search': 0}).provenance['sparsity']
      0.5
    """
    _tree.check_instance(rounds, Rounds, "rounds", "what lottery.iterative_pruning returns")
    size = len(rounds.sparsity)
    if not -size <= r < size:
        raise IndexError(f"round {r} does not exist; the search has {size} rounds, {-size} to {size - 1}")
    held, start, metrics = jax.tree.map(lambda x: x[r], (rounds.ticket.masks, rounds.start, rounds.ticket.metrics))
    provenance = {
        "method": method,
        "seeds": seeds or {},
        "round": range(size)[r],
        "sparsity": float(masks_.sparsity(start, held)),
        "metrics": {name: np.asarray(value).tolist() for name, value in metrics.items()},
        "versions": {
            "jaxprune": importlib.import_module("jaxprune").__version__,
            "jax": jax.__version__,
            "python": platform.python_version(),
        },
        **notes,
    }
    return Ticket(start, held, provenance)


def _loop(search: _Search, carry: _Carry, run: checkpoints.Run | None, progress: bool | None) -> Rounds:
    def step(anchor: PyTree, carry: _Carry, r: Any) -> tuple[_Carry, Rounds]:
        return _round(search._replace(anchor=anchor), carry, r)

    step = jax.jit(step) if search.training.traceable else step
    done = []
    for r in _progress.bar(range(len(search.levels)), progress, what="rounds"):
        arrays = run.load(r) if run else None
        if arrays is None:
            found = jax.tree.map(
                np.asarray, step(search.anchor, carry, jnp.int32(r) if search.training.traceable else r)
            )
            if run:
                run.save(r, _pack(found))
        else:
            found = _unpack(arrays, search.anchor, search.controls)
        carry = _Carry(*jax.tree.map(jnp.asarray, tuple(found[0])))
        done.append(found[1])
    return jax.tree.map(lambda *xs: jnp.stack([jnp.asarray(x) for x in xs]), *done)


def _round(search: _Search, carry: _Carry, r: Any) -> tuple[_Carry, Rounds]:
    own = jax.random.fold_in(search.key, r)
    start = masks_.apply(carry.start, carry.masks)
    ticket = _train(search, start, carry.masks, _fold_name(own, "train"), r)
    controls = {}
    for name, control in search.controls.items():
        form = "control(start, masks, key, search_key), as lottery.random_masks() returns it"
        other, masks = _tree.call(
            control,
            f"controls[{name!r}]",
            form,
            carry.start,
            carry.masks,
            _fold_name(own, name),
            _fold_name(search.key, name),
        )
        controls[name] = _train(search, masks_.apply(other, masks), masks, _fold_name(own, "train"), r)
    sparsity = search.levels[jnp.minimum(r + 1, len(search.levels) - 1)]
    scores = search.select.scores(ticket.params, key=_fold_name(own, "criterion"))
    following = search.select.masks(jax.tree.map(_rank_removed_last, scores, carry.masks), sparsity)
    made = Rounds(search.levels[r], start, ticket, controls)
    return _Carry(search.rewind.start(search.anchor, ticket.params), following), made


def _train(search: _Search, start: PyTree, masks: PyTree, key: Any, r: Any) -> Trained:
    training, later = search.training, search.rewind.later
    if later is None:
        trained = _tree.call(training.train, "train", _TRAIN, start, masks, key)
    elif training.traceable:
        trained = jax.lax.cond(r > 0, later, training.train, start, masks, key)
    else:
        trained = (later if r > 0 else training.train)(start, masks, key)
    trained, noted = trained if training.has_aux else (trained, {})
    _tree.check_same(start, trained, what="what train returned")
    trained = masks_.apply(trained, masks)
    metrics = {} if training.evaluate is None else _evaluate(training, trained, masks)
    twice = sorted({*metrics} & {*noted})
    if twice:
        raise ValueError(f"train and evaluate both return metrics named {', '.join(twice)}; rename one of each")
    return Trained(masks, trained, {name: jnp.asarray(value) for name, value in {**noted, **metrics}.items()})


def _evaluate(training: Training, trained: PyTree, masks: PyTree) -> dict[str, Any]:
    try:
        return _tree.call(training.evaluate, "evaluate", "evaluate(params, masks)", trained, masks)
    except jax.errors.ConcretizationTypeError as error:
        error.add_note(
            "evaluate is traced: return arrays in place of Python numbers, or pass Training(traceable=False)"
        )
        raise


def _rank_removed_last(score: Any, mask: Any) -> Any:
    """Sets scores to NaN at removed weights, which rank lowest, and to -inf at kept weights whose score is NaN."""
    if not mask.ndim:
        return score
    return jnp.where(mask, jnp.where(jnp.isnan(score), -jnp.inf, score), jnp.nan)


def _sparsities(rounds: int | Sequence[float]) -> list[float]:
    """Returns the total sparsity of each training, starting with 0 for the dense one."""
    if isinstance(rounds, float | str) or not isinstance(rounds, int | Sequence | np.ndarray):
        raise TypeError(f"rounds must be a number of rounds or a list of sparsities; got {_tree.shown(rounds)}")
    if isinstance(rounds, int):
        if rounds < 0:
            raise ValueError(f"rounds must be 0 or more, got {rounds}")
        return [1 - (1 - 0.2) ** r for r in range(rounds + 1)]
    levels = [float(sparsity) for sparsity in rounds]
    if not all(0 < level < 1 for level in levels) or levels != sorted(levels):
        raise ValueError(f"rounds as sparsities must be ascending numbers in (0, 1), got {levels}")
    return [0.0, *levels]


_TRAIN = "train(params, masks, key)"


def _fold_name(key: Any, name: str) -> Any:
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def _pack(found: tuple[_Carry, Rounds]) -> dict[str, np.ndarray]:
    """Converts a finished round to named arrays."""
    arrays = {f"{i:06d}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(found))}
    names = json.dumps(sorted(found[1].ticket.metrics)).encode()
    return arrays | {_METRICS: np.frombuffer(names, np.uint8)}


def _unpack(arrays: dict[str, Any], params: PyTree, controls: Mapping[str, Control]) -> tuple[_Carry, Rounds]:
    """Converts the arrays of `_pack` back to a round."""
    metrics = dict.fromkeys(json.loads(bytes(arrays[_METRICS])), 0)
    one = Trained(params, params, metrics)
    like = (_Carry(params, params), Rounds(jnp.zeros(()), params, one, dict.fromkeys(controls, one)))
    leaves = [arrays[name] for name in sorted(arrays) if name != _METRICS]
    carry, made = jax.tree.unflatten(jax.tree.structure(like), leaves)
    return carry, made
