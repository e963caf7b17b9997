"""`compensated`: the kept weights and the bias of a layer take over what the inputs that `slim` removes contributed."""

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import cho_factor, cho_solve

from jaxprune import _tree
from jaxprune._jaxprs import factors as fx
from jaxprune._jaxprs import sub_jaxprs
from jaxprune._jaxprs import views as vw
from jaxprune._jaxprs.factors import Axis, Factor, NotFollowed, position
from jaxprune._jaxprs.primitives import PRIMITIVES, Convolution, Entrywise, Moves, Product, Zero
from jaxprune._jaxprs.views import View
from jaxprune._jaxprs.walk import Sub, Values, walk
from jaxprune.calibration import Stats
from jaxprune.calibration.stats import Inputs
from jaxprune.slimming.groups import Groups
from jaxprune.slimming.manifest import Kept, Manifest, spread

PyTree = Any
Equation = Any
Pairs = list[tuple[Factor, Factor]]

_DAMPING = 1e-2  # relative to the mean of the diagonal


def compensated(groups: Groups, params: PyTree, manifest: Manifest, stats: Any) -> PyTree:
    r"""Returns parameters that make up for the inputs that a manifest removes.

    With the kept inputs K and the removed inputs R of a layer, the means m, and the Gram matrices C of the inputs minus
    their means (or G without this subtraction, where no bias can change):

        W[K] += (C[K, K] + damping)^-1 C[K, R] W[R]                  if the Gram matrices are known
        b += sum over inputs i of m[i] (W before - W after)[i, :]    if the means are known

    The first is the least-squares prediction of the removed inputs by the kept ones. The second alone is the "baseline
    bias compensation" of An et al. 2024 (FLAP), arXiv 2312.11983. A leaf that is subtracted from the output of a layer,
    such as the running mean of a batch normalisation behind a convolution without bias, loses the same sum. Weights
    that are multiplied by data entry by entry and then summed, without a product, are not seen as a layer.

    Args:
      groups: the groups of the function.
      params: its parameters, as arrays.
      manifest: the positions that stay.
      stats: the result of `calibrate` with "gram", "total" or both.

    Returns:
      The parameters, in their whole shapes.

    Raises:
      TypeError: `stats` is not the result of `calibrate`, or parameters are not arrays.
      ValueError: no layer that loses inputs can be compensated, neither means nor Gram matrices were collected, or
        experts are removed.
    """
    _tree.check_instance(
        stats, Stats, "stats", 'the result of calibrate(fn, params, batches, collect=("gram", "total")), for compensate'
    )
    _check_experts(groups, manifest)
    leaves, structure = jax.tree.flatten(params)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
        raise TypeError("compensate needs numbers: params must be arrays; got jax.ShapeDtypeStruct")
    biases, names = _find_biases(groups), [leaf.name for leaf in manifest.leaves]
    reasons: dict[str, str] = {}
    done = 0
    known, partly = stats.leaves(params), dict(stats.partly)
    for k, kept in enumerate(manifest.leaves):
        inputs = known[k]
        role = groups.roles.leaves[k]
        odd = inputs is None and role.role == "other" and bool(kept.axes)
        axes = role.inputs if inputs is None else inputs.layout.input_axes
        if not odd and not set(axes) & set(kept.axes):
            continue
        found = biases.of(k, names)
        if inputs is None:
            why = "it was not followed to a product, so its inputs are not known" if odd else "it was not calibrated"
            reasons[kept.name] = why if odd else dict(stats.uncovered).get(kept.name, why)
        elif kept.name in partly:
            reasons[kept.name] = f"calibration missed some of its uses: {partly[kept.name]}"
        elif inputs.gram is None and isinstance(found, str):
            reasons[kept.name] = found
        else:
            whole = jnp.asarray(leaves[k])
            wide = whole.astype(jnp.promote_types(whole.dtype, jnp.float32))
            added = None if isinstance(found, str) or (inputs.total is None and inputs.gram is not None) else found
            new = _fitted(wide, kept, inputs, centred=added is not None)
            leaves[k] = new.astype(whole.dtype)
            if added is not None:
                lost = (wide - new) * inputs.layout.along_inputs(inputs.mean.astype(wide.dtype))
                bias = jnp.asarray(leaves[added.bias])
                change = added.sign * _as_bias(lost, added.pairs, bias.shape)
                leaves[added.bias] = (bias.astype(change.dtype) + change).astype(bias.dtype)
            done += 1
    lines = "".join(f"\n  {name}: {why}" for name, why in reasons.items())
    if reasons and not done:
        raise ValueError(
            "compensate moves what is removed into the kept weights and the biases of the next layers, but no layer "
            'can take it; calibrate with collect=("gram", "total") for layers without biases, or leave compensate out:'
            f"{lines}"
        )
    if reasons:
        warnings.warn(f"these layers lose inputs that are not compensated:{lines}", UserWarning, stacklevel=3)
    return jax.tree.unflatten(structure, leaves)


def _check_experts(groups: Groups, manifest: Manifest) -> None:
    removed = [
        group.name
        for group in groups
        if group.routed and any(m.axis in manifest.leaves[m.leaf].axes for m in group.members)
    ]
    if removed:
        raise ValueError(
            "compensate does not apply to units that a router or a softmax chooses among, because their inputs go to "
            f"the other units: remove units of {', '.join(removed)} in a call of their own"
        )


def _fitted(weight: jax.Array, kept: Kept, inputs: Inputs, *, centred: bool) -> jax.Array:
    """Returns a kernel with zeros for the removed inputs; with Gram matrices, the others predict the removed ones."""
    layout = inputs.layout
    stays = np.ones((), bool)
    for axis in set(layout.input_axes) & set(kept.axes):
        stays = stays & spread(kept.stay(axis), axis, weight.ndim)
    masked = jnp.where(stays, weight, 0)
    if inputs.gram is None:
        return masked
    gram = inputs.gram.astype(weight.dtype)
    if centred:
        total = inputs.total.astype(weight.dtype)
        gram = gram - total[:, :, None] * total[:, None, :] / jnp.maximum(inputs.count.max(-1), 1)[:, None, None]
    # An axis may have outputs among its factors too: outputs that go with their whole unit say nothing about inputs.
    alive = layout.matrices(jnp.broadcast_to(stays, weight.shape)).any(-1)
    diagonal = jnp.where(alive, jnp.diagonal(gram, axis1=1, axis2=2), 0)
    mean = diagonal.sum(-1, keepdims=True) / jnp.maximum(alive.sum(-1, keepdims=True), 1)
    mean = jnp.where(mean > 0, mean, 1)
    ridge = jnp.where(alive, _DAMPING * mean, mean)
    system = jnp.where(alive[:, :, None] & alive[:, None, :], gram, 0) + ridge[:, :, None] * jnp.eye(gram.shape[-1])
    removed = jnp.where(alive[:, :, None], 0, layout.matrices(weight))
    right = jnp.where(alive[:, :, None], jnp.matmul(gram, removed, precision=lax.Precision.HIGHEST), 0)
    change = layout.leaf(jax.vmap(lambda a, b: cho_solve(cho_factor(a), b))(system, right))
    return jnp.where(stays, weight + change, 0)


def _as_bias(lost: jax.Array, pairs: Pairs, shape: tuple[int, ...]) -> jax.Array:
    """Sums over the inputs of a kernel; returns the sums in the shape of the bias."""
    mine = _cuts(lost.shape, [own for own, _ in pairs])
    sums = lost.reshape([size for size, _ in mine]).sum([i for i, (_, own) in enumerate(mine) if own is None])
    left = [own for _, own in mine if own is not None]
    theirs = _cuts(shape, [other for _, other in pairs])
    kernel_of = {other: own for own, other in pairs}
    sums = sums.transpose([left.index(kernel_of[other]) for _, other in theirs if other is not None])
    sums = sums.reshape([1 if other is None else size for size, other in theirs])
    return jnp.broadcast_to(sums, [size for size, _ in theirs]).reshape(shape)


def _cuts(shape: Sequence[int], own: Sequence[Factor]) -> list[tuple[int, Factor | None]]:
    """Cuts the axes of a leaf at the factors `own`; returns the size of each piece, and its factor, or None."""
    found: list[tuple[int, Factor | None]] = []
    for axis, size in enumerate(shape):
        rest = size
        for factor in sorted((f for f in own if f.of.axis == axis), key=position):
            if rest != factor.size * factor.of.stride:
                found.append((rest // (factor.size * factor.of.stride), None))
            found.append((factor.size, factor))
            rest = factor.of.stride
        if rest != 1:
            found.append((rest, None))
    return found


class _Value(NamedTuple):
    """What is known of a value, after moves and casts only.

    Attributes:
      views: the parameters that the value is.
      products: the products of kernels that are terms of the value, each with its number. The view of a product runs
        along the outputs of its kernel. Nothing but the next term reads the value.
    """

    views: tuple[View, ...] = ()
    products: tuple[tuple[int, View], ...] = ()


class _Added(NamedTuple):
    """A bias: its leaf, the sign of its change, and the outputs of the kernel that its positions belong to."""

    bias: int
    sign: int
    pairs: Pairs


class _Biases:
    """Walks through a jaxpr and finds the leaves that are added to the products of kernels."""

    def __init__(self, shapes: Sequence[tuple[int, ...]]) -> None:
        self._shapes = shapes
        self._kernels: list[int] = []  # of each product
        self._added: dict[int, _Added] = {}  # by product
        self._repeated: set[int] = set()  # kernels with several products in one sum
        self._uses: dict[int, set[frozenset[int]]] = {}  # of each leaf: the kernels of the sums it enters, or nothing

    def of(self, kernel: int, names: Sequence[str]) -> _Added | str:
        """Returns the bias of a kernel, or the reason why it has none."""
        products = [number for number, own in enumerate(self._kernels) if own == kernel]
        found = [self._added[number] for number in products if number in self._added]
        if not found or len(found) < len(products):
            return "no leaf is added to its output as a bias" + (" each time that it is used" if found else "")
        if any(other != found[0] for other in found):
            return "its uses have different biases"
        if kernel in self._repeated:
            return "it is used more than once in one sum"
        uses = self._uses[found[0].bias]
        if len(uses) > 1 or kernel not in next(iter(uses)):
            return f"its bias {names[found[0].bias]} is used elsewhere too"
        return found[0]

    def run(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[_Value], path: tuple[int, ...]) -> list[_Value]:
        """Walks through a jaxpr inside the loops `path`."""
        readers = Counter(map(id, (v for variables in (*jaxpr.eqns, jaxpr) for v in _read(variables))))

        def step(index: int, eqn: Equation, operands: list[_Value]) -> list[_Value]:
            results = self._equation(eqn, operands, (*path, index))
            once = [readers[id(var)] == 1 for var in eqn.outvars]
            return [v if alone else v._replace(products=()) for v, alone in zip(results, once, strict=True)]

        return walk(jaxpr, [*(_Value() for _ in consts), *inputs], Values[_Value](lambda _: _Value()), step)

    def _equation(self, eqn: Equation, operands: list[_Value], path: tuple[int, ...]) -> list[_Value]:
        unknown = [_Value()] * len(eqn.outvars)
        subs = sub_jaxprs(eqn)
        if subs and all(sub.role not in ("unknown", "shard_map") for sub in subs):
            results = [self.run(sub.jaxpr, sub.consts, self._into(sub, operands, path), path) for sub in subs]
            return results[0] if subs[0].role == "call" else unknown
        what = PRIMITIVES.get(eqn.primitive.name)
        if isinstance(what, Entrywise) and what.zero is Zero.SAME:  # a cast
            return operands[: len(eqn.outvars)]
        if isinstance(what, Moves) and (what.each or len(operands) == 1):
            return operands if what.each else self._moved(eqn, what, operands[0])
        if isinstance(what, Product | Convolution):
            return [self._product(eqn, operands)]
        if eqn.primitive.name in ("add", "sub") and not subs:
            return [self._sum(eqn, operands)]
        self._use(operands)
        return unknown

    def _into(self, sub: Sub, operands: list[_Value], path: tuple[int, ...]) -> list[_Value]:
        values, turning = [], {into for _, into in sub.carried}
        for k, place in enumerate(sub.inputs):
            value = _Value() if place is None else operands[place]
            if k in turning:
                self._use([value])
                value = _Value()
            elif k in sub.stacked_inputs:
                rounds, lost = vw.of_round(value.views, path, sub.length)
                self._use([_Value(tuple(view for view, _ in lost))])
                value = _Value(rounds)
            values.append(value)
        return values

    def _moved(self, eqn: Equation, what: Moves, value: _Value) -> list[_Value]:
        shape = tuple(getattr(eqn.invars[0].aval, "shape", ()))
        if value == _Value():
            return [value] * len(eqn.outvars)
        results = []
        for move in what.moves(eqn):
            try:
                views = tuple(v for own in value.views if (v := vw.moved(own, move, shape)) is not None)
                pairs = [(number, vw.moved(own, move, shape)) for number, own in value.products]
                results.append(_Value(views, tuple((number, v) for number, v in pairs if v is not None)))
            except NotFollowed:
                self._use([value])
                results.append(_Value())
        return results

    def _product(self, eqn: Equation, operands: list[_Value]) -> _Value:
        products = []
        for k, value in enumerate(operands):
            for view in value.views:
                axes = _outputs(eqn, view, k)
                if axes is not None and self._is_whole(view):
                    products.append((len(self._kernels), view._replace(axes=axes, start=(0,) * len(axes))))
                self._kernels.append(view.leaf)
        self._use(operands)
        return _Value((), tuple(products) if sum(bool(v.views) for v in operands) == 1 else ())

    def _sum(self, eqn: Equation, operands: list[_Value]) -> _Value:
        shape = tuple(eqn.outvars[0].aval.shape)
        for k, sign in ((0, 1), (1, 1)) if eqn.primitive.name == "add" else ((0, -1),):
            products, views = operands[k].products, operands[1 - k].views
            pairs = {n: _pairs(own, vw.stretched(view, shape)) for n, own in products for view in views}
            if (
                pairs
                and len(views) == 1
                and self._is_whole(views[0])
                and not any(own is None for own in pairs.values())
            ):
                self._added |= {n: _Added(views[0].leaf, sign, own) for n, own in pairs.items() if own is not None}
                kernels = Counter(self._kernels[n] for n in pairs)
                self._repeated |= {kernel for kernel, times in kernels.items() if times > 1}
                self._uses.setdefault(views[0].leaf, set()).add(frozenset(kernels))
                return _Value()
        self._use(operands)
        data = eqn.primitive.name == "add" and not any(value.views for value in operands)
        same = all(getattr(var.aval, "shape", ()) in (shape, ()) for var in eqn.invars)
        return _Value((), (*operands[0].products, *operands[1].products) if data and same else ())

    def _is_whole(self, view: View) -> bool:
        """Returns whether a view runs over all entries of its leaf."""
        runs = [f.size for axis in (*view.axes, (f for _, f in view.scanned)) for f in axis if f.of is not None]
        return math.prod(runs) == math.prod(self._shapes[view.leaf])

    def _use(self, operands: Sequence[_Value]) -> None:
        for view in (view for value in operands for view in value.views):
            self._uses.setdefault(view.leaf, set()).add(frozenset())


def _read(of: Any) -> list[Any]:
    """Returns the variables that an equation reads, or that a jaxpr returns."""
    return list(of.outvars if hasattr(of, "eqns") else of.invars)


def _find_biases(groups: Groups) -> _Biases:
    traced, leaves = groups.analysis.traced, groups.analysis.leaves
    biases = _Biases([leaf.shape or () for leaf in leaves])
    given = [_Value()] * len(traced.closed.jaxpr.invars)
    for k, place in enumerate(traced.inputs[: len(leaves)]):
        if place is not None:
            given[place] = _Value((vw.whole(k, tuple(traced.closed.jaxpr.invars[place].aval.shape)),))
    _ = biases.run(traced.closed.jaxpr, traced.closed.consts, given, ())
    return biases


def _outputs(eqn: Equation, view: View, k: int) -> tuple[Axis, ...] | None:
    """Returns for each axis of a product the factors of a kernel's outputs, or nothing; None for odd convolutions."""
    shape = tuple(eqn.outvars[0].aval.shape)
    axes: list[Axis] = [(Factor(n),) if n != 1 else () for n in shape]
    what = PRIMITIVES[eqn.primitive.name]
    if isinstance(what, Product):
        contract, batch = what.numbers(eqn)
        for place, axis in enumerate(batch[k]):
            axes[place] = view.axes[axis]
        free = [a for a in range(len(view.axes)) if a not in (*contract[k], *batch[k])]
        first = len(batch[k]) if k == 0 else len(shape) - len(free)
        for place, axis in enumerate(free):
            axes[first + place] = view.axes[axis]
    elif k == 1 and eqn.params["batch_group_count"] == 1:
        numbers = eqn.params["dimension_numbers"]
        axes[numbers.out_spec[1]] = view.axes[numbers.rhs_spec[0]]
    else:
        return None
    return tuple(axes)


def _pairs(product: View, bias: View) -> Pairs | None:
    """Returns the outputs of a kernel and the positions of a bias that are added; None if a bias is shared by some."""
    loops = dict(bias.scanned)
    if product.start != bias.start or not loops.keys() <= dict(product.scanned).keys():
        return None
    found: list[tuple[Factor, Factor | None]] = [(own, loops.get(loop)) for loop, own in product.scanned]
    for mine, theirs in zip(product.axes, bias.axes, strict=True):
        if fx.size(mine) != fx.size(theirs):
            return None  # padded, or a part of a concatenation
        finer = [f.size for f in max(mine, theirs, key=len)]
        cut = [fx.split(axis, finer, vw.cut_run) for axis in (mine, theirs)]
        if any(own is None or any(len(axis) > 1 for axis in own) for own in cut):
            return None
        both = zip(*([axis[0] for axis in own or ()] for own in cut), strict=True)
        found += [(own, other) for own, other in both if own.of is not None]
    pairs = [(own, other) for own, other in found if other is not None and other.of is not None]
    return pairs if len(pairs) == len(found) else None
