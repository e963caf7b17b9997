"""Exact numbers: counts beyond 31 bits, sums whose bits do not depend on the layout, and where arrays lie on devices.

A mask must have the same bits on one device and on a thousand, so nothing that decides about it may depend on rounding
in an order that the layout sets. JAX has no 64-bit integers unless enabled, and floating sums change with their order,
so:

    counts   how many entries a sparsity removes, floor(s n + 1/2), and sums of such numbers: two limbs of 16 bits
             that reach 2^47. `Count` is public; all arithmetic on it is here. `ordered` turns floats into keys, which
             are integers in the same order: NaN lowest, -0.0 equal to 0.0, denormals distinct. Selection compares
             keys, never floats.
    shards   `Shards`: how the devices of a `jax.shard_map` share an array. Counting, ranking and drawing ask it for the
             shape of the whole array, and add up the results of all devices over the axes of the mesh. `split` and
             `join` change the axes of arrays whose type names their devices (Explicit meshes), `place_like` puts one
             array on the devices of another, and `exact_sum` adds floats as integer multiples of a power of two.
"""
