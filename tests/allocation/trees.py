"""Trees of scores, and what masks made of them hold."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import masks

RESNET = {
    "stem/kernel": (3, 3, 3, 16),
    "block/conv_0/kernel": (3, 3, 16, 32),
    "block/conv_1/kernel": (3, 3, 32, 32),
    "block/bias": (32,),
    "head/kernel": (32, 10),
    "wide/kernel": (40, 200),
}


def scores(shapes=None, seed=0, dtype=jnp.float32):
    """Positive scores; the leaves' scales differ, so that rankings over leaves are no accident."""
    rng = np.random.default_rng(seed)
    shapes = RESNET if shapes is None else shapes
    return {
        name: jnp.asarray(np.abs(rng.normal(size=shape)) * rng.uniform(0.1, 3), dtype) for name, shape in shapes.items()
    }


def removed_fraction(tree, allocated, **options):
    """The fraction of entries that the masks of an allocation remove, counted."""
    found = masks.select(tree, allocated.sparsities, **options)
    pruned = [(x.size, m) for x, m in zip(jax.tree.leaves(tree), jax.tree.leaves(found), strict=True) if m.ndim]
    kept = sum(int(np.broadcast_to(m, m.shape).sum()) * (size // m.size) for size, m in pruned)
    total = sum(size for size, _ in pruned)
    return (total - kept) / total
