"""Exact numbers: counts beyond 31 bits, sums whose bits do not depend on the layout, and where arrays lie on devices.

A mask must have the same bits on one device and on a thousand, so nothing that decides about it may be rounded in an
order that the layout sets. JAX has no 64-bit integers unless asked, and floating sums change with their order, so:

    counts   how many entries a sparsity removes, floor(s n + 1/2), and sums of such numbers: two limbs of 16 bits
             that reach 2^47. `Count` is public; all arithmetic on it is here.
    keys     floating numbers as integers in the same order: NaN lowest, -0.0 equal to 0.0, denormals told apart.
             Selection compares keys, never floats.
    sums     sums of floats, as integer multiples of a power of two that the largest number sets.
    shards   `Shards`: how the devices of a `jax.shard_map` share an array. Everything that counts, ranks or draws asks
             it what the whole looks like, and adds up over the axes of the mesh what each device found.
    axes     axes split in two and joined again, where the type of an array names its devices (Explicit meshes), and
             placing one array like another.

`axes` knows nothing of the others; `shards` builds on `counts`, `sums` on `shards`.
"""
