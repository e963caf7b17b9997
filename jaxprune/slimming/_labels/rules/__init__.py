"""The rules of slimming: how labels and zeros pass a primitive, and how it runs with smaller arrays.

`rule_of` finds the rule of an equation, by the name of its primitive or by its kind in `PRIMITIVES`.
"""

from typing import Any

from jaxprune._jaxprs import primitives as table
from jaxprune.slimming._labels.evaluate import rebind
from jaxprune.slimming._labels.frames import Rule
from jaxprune.slimming._labels.rules import control, entrywise, indexing, moving, products, sharded, writing

# A callback that only looks (jax.debug.print) couples nothing; it gets the smaller arrays.
_LOOK = Rule(lambda site, operands: [], lambda site, known: [], rebind, ragged=True)
_BY_NAME: dict[str, Rule] = {
    **indexing.TABLE,
    **writing.TABLE,
    **control.TABLE,
    **sharded.TABLE,
    "cumsum": entrywise.CUMSUM,
    **dict.fromkeys(("cumprod", "cummax", "cummin", "cumlogsumexp"), entrywise.CUMULATIVE),
    **dict.fromkeys(("debug_print", "debug_callback"), _LOOK),
}
_BY_KIND: dict[type, Rule] = {
    table.Reduce: entrywise.REDUCE,
    table.Mix: entrywise.MIX,
    table.Moves: moving.MOVES,
    table.Make: moving.MAKE,
    table.Product: products.PRODUCT,
    table.Ragged: products.RAGGED,
    table.Convolution: products.CONVOLUTION,
}


def rule_of(eqn: Any) -> Rule | None:
    """Returns the rule of an equation; None for an unknown primitive."""
    name = eqn.primitive.name
    rule = _BY_NAME.get(name)
    if rule is not None:
        return rule
    what = table.PRIMITIVES.get(name)
    if isinstance(what, table.Entrywise):
        return (entrywise.ENTRYWISE if len(eqn.invars) > 1 else entrywise.ALONE)[what.zero]
    if isinstance(what, table.Moves) and what.each:
        return moving.EACH
    return _BY_KIND.get(type(what))
