"""The rule of each equation: by the kind of its primitive, or by its name where its parameters mean something."""

from typing import Any

from jaxprune._jaxprs import primitives as table
from jaxprune.slimming._labels.rules import control, custom, entrywise, indexing, moving, products
from jaxprune.slimming._labels.rules.base import Rule

_BY_NAME: dict[str, Rule] = {**indexing.TABLE, **control.TABLE, **custom.TABLE}
_BY_KIND: dict[type, Rule] = {
    table.Entrywise: entrywise.ENTRYWISE,
    table.Reduce: entrywise.REDUCE,
    table.Mix: entrywise.MIX,
    table.Moves: moving.MOVES,
    table.Make: moving.MAKE,
    table.Product: products.PRODUCT,
    table.Convolution: products.CONVOLUTION,
}
_ALONE = entrywise.ENTRYWISE._replace(ragged=True)  # one operand: nothing meets another layer


def rule_of(eqn: Any) -> Rule | None:
    """The rule of an equation; None if nothing is known of its primitive."""
    name = eqn.primitive.name
    if name in _BY_NAME:
        return _BY_NAME[name]
    what = table.PRIMITIVES.get(name)
    if isinstance(what, table.Entrywise) and len(eqn.invars) == 1:
        return _ALONE
    if isinstance(what, table.Moves) and what.each:
        return moving.EACH
    return _BY_KIND.get(type(what))
