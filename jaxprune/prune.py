"""Pruning in one call: `prune`; `How` and `Selector`: the options for the choice of weights."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Unpack

import jax
import numpy as np

from jaxprune import _tree, criteria, masks
from jaxprune import allocation as allocations
from jaxprune.allocation.shares import Allocate
from jaxprune.calibration import Stats
from jaxprune.criteria._scores import is_within_outputs
from jaxprune.masks.patterns import PER_OUTPUT, UNSTRUCTURED

PyTree = Any


class How(masks.Units, total=False):
    """How weights are chosen: the keyword arguments that `prune`, the training methods and the searches share.

    Each keyword is optional. `masks.Units` documents the keywords for what is pruned: `pattern`, `where`, `batch_axes`,
    `specs` and `roles`.

    Attributes:
      criterion: a function `(params, *, grads, stats, key, **signals) -> scores`. The scores have the structure and
        shapes of `params`; weights with larger scores are kept. Default: `criteria.magnitude`. If you pass a keyword
        that is not an option but an argument of the criterion, the criterion receives it:
        `prune(params, 0.5, criterion=criteria.obd, hessian_diagonal=h)`.
      allocation: a function `(scores, sparsity, **units) -> Allocation` that gives each leaf its part of the total
        sparsity. Default: `allocation.uniform`, unless the function that takes it names another default.
      key: a key of `jax.random`, for criteria that draw random numbers. Default: None.
    """

    criterion: criteria.Criterion
    allocation: Allocate
    key: Any


@dataclass(frozen=True, init=False)
class Selector:
    """Chooses weights: computes scores, shares a sparsity among the leaves, and selects the masks.

    Every function that takes `**how` makes a `Selector(**how)`. A call with parameters and a sparsity returns masks;
    `scores` and `masks` are the two steps of the call, for methods that change the scores between the two steps.

    Attributes:
      criterion: see `How`.
      allocation: see `How`.
      pattern: see `masks.Units`.
      where: see `masks.Units`.
      batch_axes: see `masks.Units`.
      key: see `How`.
      specs: see `masks.Units`.
      roles: see `masks.Units`.

    Example:
      >>> select = Selector(allocation=allocations.erk)
      >>> select({'w': jnp.array([[3.0, -1.0], [2.0, -4.0]])}, 0.5)['w'].tolist()
      [[True, False], [False, True]]
    """

    criterion: criteria.Criterion
    allocation: Allocate
    pattern: masks.Patterns
    where: _tree.Where
    batch_axes: _tree.BatchAxes
    key: Any
    specs: PyTree
    roles: _tree.Roles | None

    def __init__(self, **how: Unpack[How]) -> None:
        defaults: How = {
            "criterion": criteria.magnitude,
            "allocation": allocations.uniform,
            "pattern": masks.Unstructured(),
            "where": None,
            "batch_axes": 0,
            "key": None,
            "specs": None,
            "roles": None,
        }
        options = {**defaults, **{name: value for name, value in how.items() if name in defaults}}
        signals = {name: value for name, value in how.items() if name not in defaults}
        _tree.check_function(options["criterion"], "criterion", "criteria.magnitude")
        if signals:
            options["criterion"] = _bound(options["criterion"], signals, list(defaults))
        for name, value in options.items():
            object.__setattr__(self, name, value)
        _tree.check_function(self.allocation, "allocation", "allocation.erk or allocation.by_path({...})")
        _tree.check_key(self.key)
        if self.roles is not None:
            _tree.check_instance(
                self.roles, _tree.Roles, "roles", "what jaxprune.find_roles(fn, params, *inputs) returns"
            )

    @property
    def units(self) -> masks.Units:
        """What is pruned, to pass on as `**selector.units`; without `specs` and `roles` if they are None.

        Criteria marked `criteria.within_outputs` rank each output separately, unless the pattern names axes or the
        allocation is `one_ranking`, which compares all weights.
        """
        pattern: Any = self.pattern
        if is_within_outputs(self.criterion) and self.allocation is not allocations.one_ranking:
            within = lambda own: PER_OUTPUT if own == UNSTRUCTURED else own
            rules = isinstance(pattern, Mapping)
            pattern = {k: within(v) for k, v in pattern.items()} | {"*": PER_OUTPUT} if rules else within(pattern)
        units: masks.Units = {"pattern": pattern, "where": self.where, "batch_axes": self.batch_axes}
        if self.specs is not None:
            units["specs"] = self.specs
        if self.roles is not None:
            units["roles"] = self.roles
        return units

    def chosen(self, params: PyTree) -> list[bool]:
        """Returns whether each leaf is pruned, in the order of `jax.tree.leaves`; raises if no leaf is."""
        return _tree.selected(params, self.where, self.roles, self.batch_axes)

    def scores(
        self, params: PyTree, *, grads: PyTree = None, stats: PyTree = None, key: Any = None, **signals: Any
    ) -> PyTree:
        """Returns the scores of the criterion, checked.

        Args:
          params: the parameters.
          grads: gradients in the structure of `params`, or None.
          stats: the result of `jaxprune.calibrate`, or None.
          key: the key that the criterion gets; None passes the selector's own key.
          **signals: passed on to the criterion.

        Returns:
          A tree of scores in the structure of `params`.

        Raises:
          ValueError: no leaf is selected by `where`; the scores have another structure or other shapes than `params`.
          TypeError: scores of pruned leaves are not floating arrays; the criterion does not take `**signals`.
        """
        sharding = {} if self.specs is None else {"specs": self.specs}
        key = self.key if key is None else key
        chosen = self.chosen(params)
        given = {"grads": grads, "stats": stats, "key": key, **sharding, **signals}
        try:
            scores = self.criterion(params, **given)
        except Exception as error:
            if isinstance(error, TypeError):
                _check_signature(self.criterion, given)
            _note_absent(error, self.criterion, given)
            raise
        return _checked(scores, params, self.criterion, chosen)

    def masks(self, scores: PyTree, sparsity: Any) -> PyTree:
        """Returns the masks that remove the lowest scores: the allocation shares the sparsity, `masks.select` selects.

        Args:
          scores: a tree of scores.
          sparsity: the total fraction to remove, in [0, 1): a number, or a floating scalar array. Or a mapping from
            globs over leaf names to the sparsity of each leaf, 0 where no glob matches, used without an allocation. Or
            None, if the pattern of each pruned leaf fixes its sparsity.

        Returns:
          bool masks in the structure of the scores.

        Raises:
          ValueError: a glob matches no leaf; the sparsity is None, and a pattern does not fix it.
          TypeError: the sparsity is a mapping or None, and an allocation was also given.
        """
        structure = jax.tree.structure(scores)
        if sparsity is None or isinstance(sparsity, Mapping):
            if self.allocation is not allocations.uniform:
                what = "no sparsity" if sparsity is None else "a mapping of sparsities"
                raise TypeError(
                    f"{what} leaves nothing to allocate; leave allocation out, or pass the total sparsity with "
                    "allocation=allocation.by_path({...})"
                )
            if sparsity is None:
                of_leaves = fixed_sparsities(masks.leaves(scores, **self.units), structure.num_leaves)
            else:
                of_leaves = _tree.resolve(sparsity, scores, default=0.0, what="sparsity")
            return masks.select(scores, structure.unflatten(of_leaves), **self.units)
        form = "allocation(scores, sparsity, **units)"
        shared = _tree.call(self.allocation, "allocation", form, scores, sparsity, **self.units)
        if not isinstance(shared, allocations.Allocation):
            raise TypeError(f"allocation must return an allocation.Allocation; got {_tree.shown(shared)}")
        return masks.select(scores, shared.sparsities, **self.units)

    def __call__(
        self, params: PyTree, sparsity: Any, *, grads: PyTree = None, stats: PyTree = None, **signals: Any
    ) -> PyTree:
        """Returns masks for parameters: `self.masks(self.scores(params, ...), sparsity)`, with the roles of `stats`."""
        select = self.following(params, stats)
        return select.masks(select.scores(params, grads=grads, stats=stats, **signals), sparsity)

    def following(self, params: PyTree, stats: PyTree) -> "Selector":
        """Returns the selector with the roles that calibration found, unless the selector has roles already.

        Args:
          params: the parameters.
          stats: the result of `jaxprune.calibrate` for these parameters; any other value changes nothing.

        Returns:
          A selector with `roles`.

        Raises:
          ValueError: the statistics belong to other parameters.
        """
        if self.roles is not None or not isinstance(stats, Stats) or stats.roles is None:
            return self
        try:
            _ = stats.roles.of(params, parts=self.specs is not None)
        except ValueError as error:
            there = ", ".join(leaf.name for leaf in stats.roles.leaves[:10])
            raise ValueError(
                f"stats belongs to another network, or these parameters have other shapes; calibrate the parameters "
                f"that you prune: {str(error).partition(':')[2].strip()}\nThe leaves of stats are: {there}"
            ) from None
        return replace(self, roles=stats.roles)


def prune(
    params: PyTree, sparsity: Any = None, *, grads: PyTree = None, stats: PyTree = None, **how: Unpack[How]
) -> masks.Pruned:
    """Removes the lowest-scoring weights: returns the parameters with exact zeros, and the masks.

    Args:
      params: any pytree of parameters. For Flax variables pass only `variables["params"]`, because leaves of other
        collections, such as batch statistics, would be treated as parameters.
      sparsity: the fraction to remove, in [0, 1), of the leaves that `where` selects; a number, or a floating scalar
        array that may be traced. Or a mapping from globs over leaf names to the sparsity of each leaf, and 0 where no
        glob matches, such as `Levels.sparsities` returns. Or None (default) for patterns that fix it, such as NM(2, 4).
      grads: gradients in the structure of `params`, for criteria that need them; default None.
      stats: the result of `jaxprune.calibrate`, for criteria on activations; default None.
      **how: how weights are chosen: criterion, allocation, pattern, where, batch_axes, key, specs, roles; see
        `jaxprune.How`. Signals that the criterion names among its arguments may stand here too.

    Returns:
      `Pruned(params, masks)`; `print` shows the sparsity of each leaf, and why a leaf was not pruned.

    Raises:
      ValueError: a sparsity is outside [0, 1), the criterion needs a signal that was not given, a pattern does not fit
        a leaf, there is no leaf to prune, or scores do not fit the parameters.
      TypeError: `where` selects a leaf that is not floating; the criterion or allocation is not a function; the pattern
        is not a pattern.

    The function works under jit: params, arrays and keys may be traced, all other arguments are static. The counts are
    exact, and if scores are equal, the lowest index is kept. NaN scores rank lowest, so their weights are removed
    first: check the scores for NaN if gradients may have diverged.

    Example:
      >>> pruned = prune({'w': jnp.array([[3.0, -1.0], [2.0, -4.0]])}, 0.5)
      >>> pruned.params['w'].tolist()
      [[3.0, 0.0], [0.0, -4.0]]
    """
    select = Selector(**how).following(params, stats)
    chosen = select.masks(select.scores(params, grads=grads, stats=stats), sparsity)
    patterns: dict[int, Any] = {leaf.place: leaf.pattern for leaf in masks.leaves(params, **select.units)}
    roles = _tree.leaf_roles(params, select.roles, select.batch_axes, parts=True)
    return masks.Pruned(masks.apply(params, chosen), chosen, roles, tuple(map(patterns.get, range(len(roles)))))


def fixed_sparsities(pruned: Iterable[masks.Leaf], number: int) -> list[Any]:
    """Returns the sparsity that its pattern fixes for each of `number` leaves, and 0 for the others.

    Raises:
      ValueError: a pruned leaf has a pattern that does not fix its sparsity.
    """
    found: list[Any] = [0.0] * number
    for leaf in pruned:
        if leaf.pattern.fixed_sparsity is None:
            raise ValueError(
                f"{leaf.name} has no sparsity: pass a sparsity, or a pattern that fixes it, such as masks.NM(2, 4)"
            )
        found[leaf.place] = leaf.pattern.fixed_sparsity
    return found


def _signature(criterion: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(criterion)
    except (TypeError, ValueError):  # some functions written in C have no signature
        return inspect.signature(lambda *args, **signals: None)


def _bound(criterion: criteria.Criterion, signals: Mapping[str, Any], options: list[str]) -> criteria.Criterion:
    """Returns the criterion with the signals bound; raises if a signal is not among the criterion's arguments."""
    given = list(_signature(criterion).parameters.values())[1:]
    named = {each.name for each in given if each.kind in (each.KEYWORD_ONLY, each.POSITIONAL_OR_KEYWORD)}
    named -= {"grads", "stats"}
    for unknown in signals.keys() - named:
        close = get_close_matches(unknown, [*options, *named], n=1)
        way_out = (
            f"did you mean {close[0]}?"
            if close
            else f"to pass it to the criterion, name it there: def {_name(criterion)}(params, *, {unknown}, **signals)"
        )
        raise TypeError(
            f"{unknown} is not one of the options {', '.join(options)}, nor an argument of criterion "
            f"{_name(criterion)}; {way_out}"
        )
    return functools.partial(criterion, **signals)


def _check_signature(criterion: Callable[..., Any], signals: Mapping[str, Any]) -> None:
    """Raises if the criterion failed because it does not take the signals."""
    try:
        _signature(criterion).bind(None, **signals)
    except TypeError as error:
        raise TypeError(
            f"criterion {_name(criterion)} cannot be called as criterion(params, grads=..., stats=..., "
            f"key=..., **signals): {error}; end its arguments with **signals, pass what a factory such as "
            "criteria.synflow(fn, *inputs) returns, and pass a signal of its own by name: prune(..., name=...), or in "
            "training optimizer.update(grads, state, params, name=...)"
        ) from None


def _note_absent(error: Exception, criterion: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Adds a note to the error of a criterion that was called without a signal that it names with the default None."""
    own = _signature(criterion).parameters.values()
    absent = ", ".join(each.name for each in own if each.default is None and each.name not in given)
    note = (
        f"criterion {_name(criterion)} was called without {absent}; pass a signal by name: prune(..., name=...), or in "
        "training optimizer.update(grads, state, params, name=...)"
    )
    if absent and note not in getattr(error, "__notes__", []):
        error.add_note(note)


def _name(function: Callable[..., Any]) -> str:
    function = function.func if isinstance(function, functools.partial) else function
    return getattr(function, "__name__", repr(function))


def _checked(scores: PyTree, params: PyTree, criterion: Callable[..., Any], chosen: list[bool]) -> PyTree:
    """Returns the scores in the containers of the parameters; raises if a pruned leaf lacks scores of its shape."""
    name = _name(criterion)
    scores = _tree.align(params, scores, what=f"the scores that criterion {name} returned")
    leaves = zip(_tree.named_leaves(params), jax.tree.leaves(scores), chosen, strict=True)
    kinds, shapes = [], []
    for leaf_name, leaf, score in ((name, leaf, score) for (name, leaf), score, yes in leaves if yes):
        if not _tree.is_floating(score) and not isinstance(score, float):
            got = getattr(score, "dtype", type(score).__name__)
            kinds.append(f"  {_tree.label(leaf_name)}: {got}")
        elif np.shape(score) != np.shape(leaf):
            shapes.append(f"  {_tree.label(leaf_name)}: scores {np.shape(score)}, parameter {np.shape(leaf)}")
    if kinds:
        raise TypeError(f"criterion {name} must return floating arrays:\n" + "\n".join(kinds))
    if shapes:
        raise ValueError(
            f"criterion {name} must return scores in the shapes of the parameters:\n"
            + "\n".join(shapes)
            + "\nleave out leaves that it does not score, such as leaves without statistics, by where"
        )
    return scores
