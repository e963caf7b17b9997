"""Exact numbers: counts beyond 31 bits, sums whose bits do not depend on the layout, and where arrays lie on devices.

A mask must have the same bits on one device and on a thousand, so nothing that decides about it may depend on rounding
in an order that the layout sets. JAX has no 64-bit integers unless enabled, and floating sums change with their order,
so:

    counts   how many entries a sparsity removes, floor(s n + 1/2), and sums of such numbers: two limbs of 16 bits
             that reach 2^47. `Count` is public; all arithmetic on it is here.
    keys     floating numbers as integers in the same order: NaN lowest, -0.0 equal to 0.0, denormals distinct.
             Selection compares keys, never floats.
    sums     sums of floats, computed as integer multiples of a power of two near the largest number.
    shards   `Shards`: how the devices of a `jax.shard_map` share an array. Counting, ranking and drawing ask it for the
             shape of the whole array, and add up the results of all devices over the axes of the mesh.
    axes     splits and joins axes of arrays whose type names their devices (Explicit meshes), and puts one array on the
             devices of another.

`axes` imports none of the others; `shards` builds on `counts`, `sums` on `shards`.
"""
