"""A choice: which units stay."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import _tree
from jaxprune.slimming.groups import Group, Groups
from jaxprune.slimming.manifest import Kept, Manifest

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
    """Which units of which groups stay.

    Attributes:
      groups: the groups.
      keep: one bool for each unit of all groups.
      empty: whether a group may lose all its units. Where it is the inside of a residual branch the branch then adds
        no more than its last bias: this is how whole blocks go.
    """

    groups: Groups
    keep: np.ndarray
    empty: bool = False

    def __post_init__(self) -> None:
        if self.keep.shape != (self.groups.size,) or self.keep.dtype != np.bool_:
            raise ValueError(
                f"keep must be {self.groups.size} bools, one a unit; got {self.keep.dtype} {self.keep.shape}"
            )
        wrong = [problem for group in self.groups if (problem := _problem(group, self.keep[group.span], self.empty))]
        if wrong:
            raise ValueError("this choice cannot be carried out:\n" + "\n".join(wrong))

    def kept(self, group: str | int) -> np.ndarray:
        """For each unit of a group whether it stays."""
        return self.keep[self.groups[group].span]

    def masks(self) -> PyTree:
        """The same choice as masks: a tree of bools with the structure of the parameters; True for whole leaves.

        Each mask broadcasts to its parameter.
        """
        analysis = self.groups.analysis
        leaves = []
        for k in range(len(analysis.leaves)):
            mask = np.ones((), bool)
            for axis, stay in self._axes(k).items():
                mask = mask & _spread(stay, axis, len(analysis.leaves[k].shape or ()))
            leaves.append(jnp.asarray(mask))
        return jax.tree.unflatten(_params_tree(self.groups), leaves)

    def manifest(self) -> Manifest:
        """What stays of each leaf, as plain data.

        Raises:
          ValueError: the layers of a stacked leaf keep different numbers of positions.
        """
        kept = []
        for k, leaf in enumerate(self.groups.analysis.leaves):
            stays = self._axes(k)
            axes = {axis: _positions(_of_layers_left(stay, stays), leaf.name, axis) for axis, stay in stays.items()}
            kept.append(Kept(leaf.name, leaf.identity, leaf.shape, axes))
        return Manifest(tuple(kept))

    def _axes(self, k: int) -> dict[int, np.ndarray]:
        found = {}
        for axis, units in enumerate(self.groups.units[k]):
            stay = np.append(self.keep, True)[units].all(-1)
            if not stay.all():
                found[axis] = stay
        return found


def choice_from(groups: Groups, removed: Mapping[str, Any], *, empty: bool = False) -> Choice:
    """A choice from the units to be removed.

    Args:
      groups: the groups.
      removed: for each group, by its name, the numbers of the units to be removed.
      empty: whether a group may lose all its units.

    Raises:
      KeyError: there is no such group.
      ValueError: a number is out of range, a group would be empty, or layers would lose different numbers of units.

    Example:
      >>> from jaxprune.slimming import find_groups
      >>> params = {'a': jnp.ones((3, 4)), 'b': jnp.ones((4, 2))}
      >>> groups = find_groups(lambda p, x: jnp.tanh(x @ p['a']) @ p['b'], params, jnp.ones((5, 3)))
      >>> choice_from(groups, {'a[1]': [0, 2]}).kept('a[1]').tolist()
      [False, True, False, True]
    """
    keep = np.ones(groups.size, bool)
    for name, numbers in removed.items():
        group, units = groups[name], np.asarray(numbers, int)
        if units.size and (units.min() < 0 or units.max() >= group.count):
            raise ValueError(f"group {name} has units 0 to {group.count - 1}; got {units.tolist()}")
        keep[group.first + units] = False
    return Choice(groups, keep, empty)


def choice_from_masks(groups: Groups, masks: PyTree, *, partial: str = "raise") -> Choice:
    """A choice from masks: a unit goes if the masks remove all of it.

    Args:
      groups: the groups.
      masks: bools that broadcast to the parameters; True, also for whole leaves, is kept.
      partial: what to do with positions that the masks remove without the rest of their unit: "raise"; "keep"
        keeps such units whole; "remove" removes every unit of which the masks remove an entire position of some
        axis.

    Raises:
      ValueError: the masks cut a unit in part, remove what is frozen, or empty a group.
    """
    if partial not in ("raise", "keep", "remove"):
        raise ValueError(f'partial must be "raise", "keep" or "remove"; got {partial!r}')
    _tree.check_masks(_shapes(groups), masks)
    leaves = [np.asarray(mask) for mask in jax.tree.leaves(masks)]
    touched, whole = np.zeros(groups.size, bool), np.ones(groups.size, bool)
    for k, (mask, leaf) in enumerate(zip(leaves, groups.analysis.leaves, strict=True)):
        for axis, units in enumerate(groups.units[k]):
            gone = _gone(mask, axis, leaf.shape or (), units.shape[:-1])
            kept = np.unique(units[~gone])
            whole[kept[kept >= 0]] = False
            lost = units[gone]
            touched[lost[lost >= 0]] = True
    remove = _closed(groups, touched) if partial == "remove" else touched & whole
    choice = Choice(groups, ~remove)
    if partial == "raise":
        _check_masks(choice, leaves)
    return choice


def _closed(groups: Groups, touched: np.ndarray) -> np.ndarray:
    # A position that is removed takes one unit with it, or several; of heads times dimensions neither is meant.
    alone = np.zeros(groups.size, bool)
    for axes in groups.units:
        for units in axes:
            single = (units >= 0).sum(-1, keepdims=True) == 1
            alone[units[single & (units >= 0)]] = True
    return touched & alone


def _check_masks(choice: Choice, leaves: list[np.ndarray]) -> None:
    groups, wrong = choice.groups, []
    wanted = [np.asarray(mask) for mask in jax.tree.leaves(choice.masks())]
    for k, (mask, want, leaf) in enumerate(zip(leaves, wanted, groups.analysis.leaves, strict=True)):
        shape = leaf.shape or ()
        if (np.broadcast_to(mask, shape) != np.broadcast_to(want, shape)).any():
            names = [g.name for g in groups if any(m.leaf == k for m in g.members)]
            wrong.append(f"  {leaf.name}: of {', '.join(names) if names else 'no group: it is frozen'}")
    if wrong:
        raise ValueError(
            "the masks remove parts of units; a unit is removed whole or not at all (choice_from_masks with "
            'partial="keep" or "remove" rounds them):\n' + "\n".join(wrong)
        )


def _gone(mask: np.ndarray, axis: int, shape: tuple[int, ...], lead: tuple[int, ...]) -> np.ndarray:
    """Which positions of an axis (of each layer) the mask removes entirely."""
    mask = np.broadcast_to(mask, shape)
    layers = len(lead) - 1
    others = tuple(i for i in range(len(shape)) if i != axis and i >= layers)
    return np.asarray(~mask.any(others) if others else ~mask)


def _spread(stay: np.ndarray, axis: int, rank: int) -> np.ndarray:
    shape = [1] * rank
    for i in range(stay.ndim - 1):
        shape[i] = stay.shape[i]
    shape[axis] = stay.shape[-1]
    return stay.reshape(shape)


def _of_layers_left(stay: np.ndarray, stays: dict[int, np.ndarray]) -> np.ndarray:
    # Where whole layers go, nothing is said of the positions in them.
    for axis in range(stay.ndim - 1):
        if axis in stays:
            stay = np.compress(stays[axis], stay, axis)
    return stay


def _positions(stay: np.ndarray, name: str, axis: int) -> np.ndarray:
    counts = stay.sum(-1)
    if counts.min() != counts.max():
        raise ValueError(f"{name}: its layers keep from {counts.min()} to {counts.max()} positions of axis {axis}")
    return np.nonzero(stay)[-1].reshape(*stay.shape[:-1], int(counts.flat[0]))


def _problem(group: Group, keep: np.ndarray, empty: bool) -> str | None:
    leaves = ", ".join(sorted({m.name for m in group.members}))
    if group.layer is None:
        return None if empty or keep.any() else f"  {group.name}: no unit would be left, of {leaves}"
    counts = np.bincount(group.layer[keep], minlength=group.layers)
    if counts.min() != counts.max():
        return f"  {group.name}: layers would keep from {counts.min()} to {counts.max()} units, of {leaves}"
    return None if empty or counts.min() else f"  {group.name}: no unit would be left, of {leaves}"


def _params_tree(groups: Groups) -> Any:
    # The arguments are (params, *inputs).
    return groups.analysis.traced.in_tree.children()[0]


def _shapes(groups: Groups) -> PyTree:
    leaves = [jax.ShapeDtypeStruct(x.shape or (), x.dtype or np.float32) for x in groups.analysis.leaves]
    return jax.tree.unflatten(_params_tree(groups), leaves)
