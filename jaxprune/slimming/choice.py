"""`Choice`: the units of each group that stay; made from unit numbers or from masks, and converted to masks."""

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import _tree
from jaxprune.assess.formatting import quantity
from jaxprune.slimming._labels.flops import flops_of
from jaxprune.slimming.groups import Group, Groups
from jaxprune.slimming.manifest import Kept, Manifest, entries, spread

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Choice:
    """The units of each group that stay. `print` shows how many units each group keeps, and what slimming saves.

    Attributes:
      groups: the groups.
      keep: one bool for each unit of all groups; True keeps the unit.
      empty: whether a group may lose all its units. A residual branch whose inner group is empty adds at most its last
        bias, so whole blocks can be removed in this way. Default: False.
      untouched: the groups that `choose` was asked to shrink but could not, by name, each with the reason.

    Raises:
      ValueError: `keep` is not one bool for each unit, a group would be empty, or the layers of a stacked group would
        keep different numbers of units.
    """

    groups: Groups
    keep: np.ndarray
    empty: bool = False
    untouched: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        _tree.check_instance(self.groups, Groups, "groups", "the groups that find_groups(fn, params, *inputs) returns")
        _tree.check_instance(self.keep, np.ndarray, "keep", "a NumPy array of bools, one for each unit")
        if self.keep.shape != (self.groups.size,) or self.keep.dtype != np.bool_:
            raise ValueError(
                f"keep must be {self.groups.size} bools, one for each unit; got {self.keep.dtype} {self.keep.shape}"
            )
        wrong = [problem for group in self.groups if (problem := _problem(group, self.keep[group.span], self.empty))]
        wrong += _too_few(self.groups, self.keep)
        if wrong:
            raise ValueError("this choice cannot be carried out:\n" + "\n".join(wrong))

    def __repr__(self) -> str:
        shown = [f"{name}: {reason}" for name, reason in list(self.untouched.items())[:3]]
        shown += ["..."] if len(self.untouched) > 3 else []
        untouched = f"; {len(self.untouched)} groups could not shrink: {'; '.join(shown)}" if shown else ""
        return f"Choice({len(self.groups)} groups, {self.keep.sum()} of {self.keep.size} units kept{untouched})"

    def __str__(self) -> str:
        width = max((len(group.name) for group in self.groups), default=0)
        lines = [
            f"{group.name:{width}}  {self.kept(group.name).sum()} of {group.count} units kept"
            + (f": {self.untouched[group.name]}" if group.name in self.untouched else "")
            for group in self.groups
        ]
        return "\n".join([*lines, self._saving()]) if lines else "no groups: nothing can be removed"

    def _saving(self) -> str:
        """Returns the parameters that stay, and the FLOPs of a call with the inputs that the groups were found with."""
        flops, whole = flops_of(self.groups.analysis), Choice(self.groups, np.ones(self.groups.size, bool))
        try:
            (small, large), (few, all_) = entries(self.manifest()), (flops(self), flops(whole))
        except ValueError as error:
            return f"slim cannot carry this choice out: {error}"
        saved = f"kept: {small:,} of {large:,} parameters ({small / max(1, large):.1%})"
        return saved + (f", {quantity(few)} of {quantity(all_)} FLOPs of a call ({few / all_:.1%})" if all_ else "")

    @classmethod
    def remove(cls, groups: Groups, removed: Mapping[str, Any], *, empty: bool = False) -> "Choice":
        """Removes units by their numbers.

        Args:
          groups: the groups.
          removed: the numbers of the units to remove, whole numbers from 0 on, for each group by its name or by any of
            its members ("layer/kernel[3]"). An empty mapping removes nothing.
          empty: whether a group may lose all its units. Default: False.

        Returns:
          The choice.

        Raises:
          KeyError: there is no such group.
          TypeError: the numbers of units are bools or floats.
          ValueError: a number is out of range, a group would be empty, or layers would lose different numbers of units.

        Example:
          >>> from jaxprune.slimming import find_groups
          >>> params = {'a': jnp.ones((3, 4)), 'b': jnp.ones((4, 2))}
          >>> groups = find_groups(lambda p, x: jnp.tanh(x @ p['a']) @ p['b'], params, jnp.ones((5, 3)))
          >>> Choice.remove(groups, {'a[1]': [0, 2]}).kept('a[1]').tolist()
          [False, True, False, True]
        """
        _tree.check_instance(groups, Groups, "groups", "the groups that find_groups(fn, params, *inputs) returns")
        _tree.check_instance(removed, Mapping, "removed", "a mapping from groups to the numbers of units")
        keep = np.ones(groups.size, bool)
        for name, numbers in removed.items():
            group, units = groups[name], np.asarray(numbers)
            if units.size and not np.issubdtype(units.dtype, np.integer):
                way = "give np.flatnonzero(remove) for a mask of units" if units.dtype == np.bool_ else "round them"
                raise TypeError(
                    f"group {name}: units are removed by their numbers, integers from 0 to {group.count - 1}; got "
                    f"{units.dtype}: {way}"
                )
            if units.size and (units.min() < 0 or units.max() >= group.count):
                raise ValueError(f"group {name} has units 0 to {group.count - 1}; got {units.tolist()}")
            keep[group.first + units.astype(int)] = False
        return cls(groups, keep, empty)

    @classmethod
    def from_masks(cls, groups: Groups, masks: PyTree, *, partial: str = "raise") -> "Choice":
        """Removes the units that masks remove.

        Args:
          groups: the groups.
          masks: bools that broadcast to the parameters; True is kept, also for whole leaves.
          partial: the rule for units that the masks remove only in part, such as the masks of
            `prune(pattern=Channel())`, which choose the channels of each leaf separately. "raise" raises an error.
            "complete" lets the leaves vote: among the axes in which the masks remove whole units of a group, if more
            than half remove a unit, the unit is removed from all leaves of its group; a warning names the completed
            units. "keep" keeps every unit that the masks remove only in part. "remove" removes every unit with a
            position that the masks remove entirely on some axis. Default: "raise".

        Returns:
          The choice.

        Raises:
          ValueError: the masks remove parts of units, remove frozen units, or empty a group.

        Example:
          >>> from jaxprune.slimming import find_groups
          >>> params = {'a': jnp.ones((3, 4)), 'b': jnp.ones((4, 2))}
          >>> groups = find_groups(lambda p, x: jnp.tanh(x @ p['a']) @ p['b'], params, jnp.ones((5, 3)))
          >>> masks = {'a': jnp.array([[True, False, True, True]]), 'b': jnp.array(True)}
          >>> Choice.from_masks(groups, masks, partial='remove').kept('a[1]').tolist()
          [True, False, True, True]
        """
        _tree.check_instance(groups, Groups, "groups", "the groups that find_groups(fn, params, *inputs) returns")
        if partial not in ("raise", "complete", "keep", "remove"):
            raise ValueError(f'partial must be "raise", "complete", "keep" or "remove"; got {partial!r}')
        _tree.check_masks(_shapes(groups), masks)
        leaves = [np.asarray(mask) for mask in jax.tree.leaves(masks)]
        touched, whole, votes = _unit_votes(groups, leaves)
        if partial == "remove":
            return cls(groups, ~_closed(groups, touched))
        choice = cls(groups, ~(touched & whole))
        wrong = _differing(choice, leaves) if partial in ("raise", "complete") else []
        if wrong and partial == "complete":
            return _completed(groups, votes, leaves, wrong)
        if wrong:
            raise ValueError(
                "the masks remove parts of units; a unit is removed whole or not at all (Choice.from_masks with "
                'partial="complete", "keep" or "remove" rounds them):\n' + "\n".join(wrong)
            )
        return choice

    def kept(self, group: str | int) -> np.ndarray:
        """Returns whether each unit of a group stays, (units,) bools; takes the group's name, member or number."""
        return self.keep[self.groups[group].span]

    def masks(self) -> PyTree:
        """Returns the choice as masks: bools in the structure of the parameters, each broadcasting to its parameter.

        A leaf that loses nothing has the scalar mask True.
        """
        return unit_masks(self.groups, self.keep)

    def manifest(self) -> Manifest:
        """Returns the positions of each leaf that stay, as plain data.

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
        found, keep = {}, np.append(self.keep, True)
        for axis, units in enumerate(self.groups.units[k]):
            stay = keep[units]
            if not stay.all():
                found[axis] = stay.all(-1)
        return found


def unit_masks(groups: Groups, keep: Any) -> PyTree:
    """Returns the masks of kept units, each broadcasting to its parameter.

    Args:
      groups: the groups.
      keep: (units,) bools, True = kept; an array of NumPy, or of JAX, which may be traced.

    Returns:
      bools in the structure of the parameters; the scalar True for a leaf that is known to lose nothing.
    """
    leaves = []
    for k, leaf in enumerate(groups.analysis.leaves):
        mask = np.ones((), bool)
        for axis, units in enumerate(groups.units[k]):
            if not (units >= 0).any():
                continue
            stay = (np if isinstance(keep, np.ndarray) else jnp).append(keep, True)[units].all(-1)
            if not (isinstance(stay, np.ndarray) and stay.all()):
                mask = mask & spread(stay, axis, len(leaf.shape or ()))
        leaves.append(jnp.asarray(mask))
    return jax.tree.unflatten(_params_tree(groups), leaves)


def _unit_votes(groups: Groups, masks: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns for each unit whether masks remove some of its positions, or all, and whether most axes remove it."""
    touched, whole = np.zeros(groups.size, bool), np.ones(groups.size, bool)
    group_of = np.repeat(np.arange(len(groups)), [group.count for group in groups])
    votes, voters = np.zeros(groups.size, int), np.zeros(len(groups), int)
    for k, (mask, leaf) in enumerate(zip(masks, groups.analysis.leaves, strict=True)):
        for axis, units in enumerate(groups.units[k]):
            gone = _gone(mask, axis, leaf.shape or (), units.shape[:-1])
            stays, goes = np.zeros((2, groups.size), bool)
            stays[units[~gone][units[~gone] >= 0]] = True
            goes[units[gone][units[gone] >= 0]] = True
            touched |= goes
            whole &= ~stays
            removed = goes & ~stays
            votes += removed
            voters[np.unique(group_of[removed])] += 1
    return touched, whole, 2 * votes > voters[group_of]


def _completed(groups: Groups, remove: np.ndarray, masks: Sequence[np.ndarray], wrong: list[str]) -> Choice:
    """Returns the choice that the leaves vote for; warns of the removed positions that stay."""
    choice, stay = Choice(groups, ~remove), []
    for k, (mask, leaf) in enumerate(zip(masks, groups.analysis.leaves, strict=True)):
        removed = np.zeros(leaf.shape or (), bool)
        for axis, units in enumerate(groups.units[k]):
            gone = _gone(mask, axis, leaf.shape or (), units.shape[:-1])
            removed |= spread(gone, axis, len(leaf.shape or ()))
            still = gone & np.append(choice.keep, True)[units].all(-1)
            if still.any():
                stay.append(f"  {leaf.name}[{axis}]: {still.sum()} of the {gone.sum()} removed positions stay")
        if (~np.broadcast_to(mask, removed.shape) & ~removed).any():
            remove = np.zeros_like(remove)  # single entries, which no unit is made of
    if not remove.any():
        raise ValueError(
            "the masks remove parts of units, and no unit by a majority of its leaves; choose units with "
            "slimming.choose, or round the masks by Choice.from_masks(groups, masks, partial=...):\n" + "\n".join(wrong)
        )
    text = f"the masks remove parts of units and were completed: {remove.sum()} of {groups.size} units are removed, "
    text += "each from all leaves of its group"
    if stay:
        text += ". Positions that the masks remove stay where most leaves of their unit keep it or it is frozen:\n"
    warnings.warn(text + "\n".join(stay), UserWarning, stacklevel=2)
    return choice


def _closed(groups: Groups, touched: np.ndarray) -> np.ndarray:
    # A removed position may belong to several units, such as a head and a dimension; then neither unit is chosen.
    alone = np.zeros(groups.size, bool)
    for axes in groups.units:
        for units in axes:
            single = (units >= 0).sum(-1, keepdims=True) == 1
            alone[units[single & (units >= 0)]] = True
    return touched & alone


def _differing(choice: Choice, masks: Sequence[np.ndarray]) -> list[str]:
    """Returns a line for each leaf whose mask differs from the choice's mask, with the first difference."""
    groups, wrong = choice.groups, []
    wanted = [np.asarray(mask) for mask in jax.tree.leaves(choice.masks())]
    for k, (mask, want, leaf) in enumerate(zip(masks, wanted, groups.analysis.leaves, strict=True)):
        shape = leaf.shape or ()
        more = np.argwhere(~np.broadcast_to(mask, shape) & np.broadcast_to(want, shape)).tolist()
        less = np.argwhere(np.broadcast_to(mask, shape) & ~np.broadcast_to(want, shape)).tolist()
        if not more and not less:
            continue
        names = [g.name for g in groups if any(m.leaf == k for m in g.members)]
        text = "a mask removes" if more else "a mask keeps"
        entries = f"{len(more or less)} of {math.prod(shape)} entries, the first at {tuple((more or less)[0])}"
        why = (
            f"whose units of {', '.join(names)} {'stay' if more else 'go'}"
            if names
            else "and it is in no group: frozen"
        )
        wrong.append(f"  {leaf.name}: {text} {entries}, {why}")
    return wrong


def _gone(mask: np.ndarray, axis: int, shape: tuple[int, ...], lead: tuple[int, ...]) -> np.ndarray:
    """Returns the positions of an axis (of each layer) that the mask removes entirely."""
    mask = np.broadcast_to(mask, shape)
    layers = len(lead) - 1
    others = tuple(i for i in range(len(shape)) if i != axis and i >= layers)
    return np.asarray(~mask.any(others) if others else ~mask)


def _of_layers_left(stay: np.ndarray, stays: dict[int, np.ndarray]) -> np.ndarray:
    # The positions of layers, and of experts of a layer, that are removed as a whole do not count.
    for axis in range(stay.ndim - 1):
        if axis in stays:
            left = _of_layers_left(stays[axis], stays)
            order = np.argsort(~left, -1, kind="stable")[..., : int(left.sum(-1).min())]
            stay = np.take_along_axis(stay, order.reshape(*order.shape, *(1,) * (stay.ndim - order.ndim)), axis)
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


def _too_few(groups: Groups, keep: np.ndarray) -> list[str]:
    """Returns the axes that keep fewer positions than an operation chooses."""
    wrong = []
    for units, count, name in groups.chosen:
        left = int(np.append(keep, True)[units].all(-1).sum(-1).min())
        if left < count:
            names = [g.name for g in groups if ((units >= g.first) & (units < g.first + g.count)).any()]
            wrong.append(
                f"  {', '.join(names)}: {name} chooses {count} of {units.shape[-2]} units, and {left} would stay"
            )
    return list(dict.fromkeys(wrong))


def _params_tree(groups: Groups) -> Any:
    # The arguments are (params, *inputs).
    return groups.analysis.traced.in_tree.children()[0]


def _shapes(groups: Groups) -> PyTree:
    leaves = [jax.ShapeDtypeStruct(x.shape or (), x.dtype or np.float32) for x in groups.analysis.leaves]
    return jax.tree.unflatten(_params_tree(groups), leaves)
