"""Iterative pruning: train, remove a share of what is left, rewind, and again."""

import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import _tree, criteria, masks
from jaxprune import allocation as allocations
from jaxprune.lottery import saved
from jaxprune.lottery.controls import Control
from jaxprune.lottery.records import Carry, Rounds, Trained, pack, unpack
from jaxprune.lottery.rewinding import Rewinding, Train, initial

PyTree = Any
Evaluate = Callable[[PyTree, PyTree], Mapping[str, Any]]
_INITIAL = initial()


class _Search(NamedTuple):
    train: Train
    evaluate: Evaluate | None
    choose: Callable[[PyTree, PyTree, Any, Any], PyTree]
    rewind: Rewinding
    controls: Mapping[str, Control]
    has_aux: bool


def iterative_pruning(
    train: Train,
    params: PyTree,
    *,
    rounds: int,
    key: Any,
    rate: float = 0.2,
    rewind: Rewinding = _INITIAL,
    controls: Mapping[str, Control] | None = None,
    evaluate: Evaluate | None = None,
    criterion: criteria.Criterion = criteria.magnitude,
    allocation: allocations.Allocate = allocations.one_ranking,
    pattern: masks.Patterns = masks.Unstructured(),
    where: _tree.Where = None,
    batch_axes: masks.BatchAxes = 0,
    has_aux: bool = False,
    traceable: bool = True,
    folder: Any = None,
    progress: bool = True,
) -> Rounds:
    """Searches winning tickets by iterative pruning.

        s_r = 1 - (1 - rate)^r,    m_r = the largest scores of what m_{r-1} keeps, in round r = 0, ..., rounds

    Frankle and Carbin 2019, arXiv 1803.03635. Each round trains from the rewound weights under its masks, and scores
    the trained weights for the next. Round r uses `fold_in(key, r)`: the same key gives the same bits.

    Without a folder and with a traceable train function the whole search is one `lax.scan`: it may be jitted and
    vmapped, over keys and parameters. Otherwise it runs round by round with a progress bar; with a folder each round is
    saved as it ends (Orbax), and a call with the same arguments goes on after the last finished round, to the same
    bits as without a break. A folder belongs to one search; what is in it and was not written by that search is left
    alone, and an error says so. The check compares numbers, names and the first weights; it cannot see what is inside
    functions.

    Args:
      train: `(params, masks, key) -> params`, a whole training. It should hold removed weights at zero (with
        `sparsify(optimizer, training.fixed(masks))`); they are set to zero after it in any case.
      params: the first weights.
      rounds: how often is pruned, 0 or more; there is one training more than that.
      key: a JAX key.
      rate: the share of what is left that each round removes, in (0, 1).
      rewind: `initial()`, `early(train)`, `learning_rate()` or `continued(finetune)`.
      controls: control experiments by name: `{"random": random_masks()}`. Each is trained beside the ticket in every
        round, and has no influence on it.
      evaluate: `(params, masks) -> metrics`, a dict of arrays or numbers, of the trained weights.
      criterion: as in `jaxprune.prune`, of the trained weights; it gets a key and no gradients.
      allocation: as in `jaxprune.prune`: `one_ranking` or one by leaf.
      pattern: as in `jaxprune.prune`; masks of NM do not thin out in rounds.
      where: as in `jaxprune.prune`.
      batch_axes: as in `jaxprune.prune`.
      has_aux: whether the train functions return `(params, metrics)`: what is known only while training, such as the
        step of the lowest validation loss. The metrics, a dict of arrays, are put beside those of `evaluate`.
      traceable: whether `train`, `evaluate` and the rest can be traced by JAX.
      folder: where rounds are saved; None for nowhere.
      progress: whether a loop shows a progress bar; needs tqdm.

    Returns:
      `Rounds`, with a leading axis of `rounds + 1`.

    Raises:
      ValueError: numbers out of range; a folder of another search; metrics of the same name from `train` and
        `evaluate`.
      FileExistsError: a folder with other things in it.
      ImportError: orbax or tqdm is missing.

    Example:
      >>> train = lambda params, masks, key: jax.tree.map(lambda w: 2 * w, params)
      >>> found = iterative_pruning(train, {'w': jnp.arange(1.0, 5).reshape(2, 2)}, rounds=1, rate=0.5,
      ...                           key=jax.random.key(0))
      >>> found.ticket.params['w'].tolist()
      [[[2.0, 4.0], [6.0, 8.0]], [[0.0, 0.0], [6.0, 8.0]]]
    """
    _check(rounds, rate)
    options = {"where": where, "pattern": pattern, "batch_axes": batch_axes}
    choose = partial(_choose, criterion=criterion, allocation=allocation, options=options)
    search = _Search(train, evaluate, choose, rewind, dict(controls or {}), has_aux)
    # In float32, traced or not, so that all ways to run count alike.
    levels = jnp.asarray([1 - (1 - rate) ** r for r in range(rounds + 1)], jnp.float32)
    _tree.selected(params, where)
    first = masks.ones(params, where=where, pattern=pattern, batch_axes=batch_axes)
    make_anchor = lambda: rewind.anchor(params, _key(key, "anchor"))
    if traceable and folder is None:
        anchor = make_anchor()
        return _scan(search, anchor, Carry(anchor, first), levels, key)
    store = None
    if folder is not None:
        names = [getattr(f, "__qualname__", type(f).__name__) for f in (train, criterion, allocation)]
        asked = {"rounds": rounds, "rate": rate, "functions": names, "controls": sorted(search.controls)}
        store = saved.Store(folder, saved.fingerprint(params, key, asked | {"options": repr(options)}))
    return _loop(search, make_anchor(), first, levels, key, traceable, store, progress)


def _scan(search: _Search, anchor: PyTree, carry: Carry, levels: jax.Array, key: Any) -> Rounds:
    def body(carry: Carry, r: jax.Array) -> tuple[Carry, Rounds]:
        return _round(search, anchor, carry, levels, r, key, traced=True)

    return jax.lax.scan(body, carry, jnp.arange(len(levels)))[1]


def _loop(
    search: _Search,
    anchor: PyTree,
    first: PyTree,
    levels: jax.Array,
    key: Any,
    traceable: bool,
    store: "saved.Store | None",
    progress: bool,
) -> Rounds:
    step = lambda anchor, carry, r: _round(search, anchor, carry, levels, r, key, traced=traceable)
    step = jax.jit(step) if traceable else step
    carry, done = Carry(anchor, first), []
    for r in saved.bar(len(levels), progress):
        arrays = store.load(r) if store else None
        if arrays is None:
            found = jax.tree.map(np.asarray, step(anchor, carry, jnp.int32(r) if traceable else r))
            if store:
                store.save(r, pack(found))
        else:
            found = unpack(arrays, anchor, search.controls)
        carry, made = Carry(*jax.tree.map(jnp.asarray, tuple(found[0]))), found[1]
        done.append(made)
    return jax.tree.map(lambda *xs: jnp.stack([jnp.asarray(x) for x in xs]), *done)


def _round(
    search: _Search, anchor: PyTree, carry: Carry, levels: jax.Array, r: Any, key: Any, *, traced: bool
) -> tuple[Carry, Rounds]:
    own = jax.random.fold_in(key, r)
    start = masks.apply(carry.start, carry.masks)
    ticket = _train(search, start, carry.masks, _key(own, "train"), r, traced)
    controls = {}
    for name, control in search.controls.items():
        other, held = control(carry.start, carry.masks, _key(own, name), _key(key, name))
        controls[name] = _train(search, masks.apply(other, held), held, _key(own, "train"), r, traced)
    following = levels[jnp.minimum(r + 1, len(levels) - 1)]
    held = search.choose(ticket.params, carry.masks, following, _key(own, "criterion"))
    made = Rounds(levels[r], start, ticket, controls)
    return Carry(search.rewind.start(anchor, ticket.params), held), made


def _train(search: _Search, start: PyTree, held: PyTree, key: Any, r: Any, traced: bool) -> Trained:
    if search.rewind.later is None:
        trained = search.train(start, held, key)
    elif traced:
        trained = jax.lax.cond(r > 0, search.rewind.later, search.train, start, held, key)
    else:
        trained = (search.rewind.later if r > 0 else search.train)(start, held, key)
    trained, noted = trained if search.has_aux else (trained, {})
    _tree.check_same(start, trained, what="what train returned")
    trained = masks.apply(trained, held)
    metrics = {} if search.evaluate is None else search.evaluate(trained, held)
    twice = sorted({*metrics} & {*noted})
    if twice:
        raise ValueError(f"train and evaluate both return metrics named {', '.join(twice)}; rename one of each")
    metrics = {**noted, **metrics}
    return Trained(held, trained, {name: jnp.asarray(value) for name, value in metrics.items()})


def _choose(
    params: PyTree, held: PyTree, sparsity: Any, key: Any, *, criterion: Any, allocation: Any, options: dict[str, Any]
) -> PyTree:
    scores = criterion(params, key=key)
    # What was removed ranks lowest, and a kept NaN above it.
    scores = jax.tree.map(
        lambda s, m: jnp.where(m, jnp.where(jnp.isnan(s), -jnp.inf, s), jnp.nan) if m.ndim else s, scores, held
    )
    return masks.select(scores, allocation(scores, sparsity, **options).sparsities, **options)


def _key(key: Any, name: str) -> Any:
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def _check(rounds: int, rate: float) -> None:
    if rounds < 0:
        raise ValueError(f"rounds must be 0 or more, got {rounds}")
    if not 0 < rate < 1:
        raise ValueError(f"rate is the share of what is left that a round removes and must be in (0, 1), got {rate}")
