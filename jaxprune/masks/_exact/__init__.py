"""Exact selection by counting: the k largest of n scores, without a sort and without moving the scores.

A mask must have the same bits on one device and on a thousand, so nothing that decides about it may depend on rounding
in an order that the layout sets. A sort gathers a sharded array and takes n log n work. Counting takes one pass over
the scores to answer one question: how many scores are above each of these eight values? The answer is a few integers
for any layout of the scores. JAX has no 64-bit integers unless enabled, and floating sums change with their order, so:

    counts   how many entries a sparsity removes, floor(s n + 1/2), and sums of such numbers: two limbs of 16 bits
             that reach 2^47. `Count` is public; all arithmetic on it is here. `ordered` turns floats into keys, which
             are integers in the same order: NaN lowest, -0.0 equal to 0.0, denormals distinct. Selection compares
             keys, never floats.
    shards   `Shards`: how the devices of a `jax.shard_map` share an array. Counting, ranking and drawing ask it for the
             shape of the whole array, and add up the results of all devices over the axes of the mesh. `split` and
             `join` change the axes of arrays whose type names their devices (Explicit meshes), `place_like` puts one
             array on the devices of another, and `exact_sum` adds floats as integer multiples of a power of two.
    rows     `Leaf` describes one array: its leading axes are slices, and each slice is a row that loses its own
             number of entries. Its kernels count the places above probes, draw a sample, and write the mask.
             `keep_in_groups` keeps n of every m neighbours, by comparing the members of a group pair by pair.
    ranking  `search` narrows brackets. A bracket contains each row's threshold: at least k keys above its low end,
             fewer than k above its high end. The first eight probes come from a sample, which settles most rows in
             one more pass; later probes are near the position that the counts suggest, or evenly spaced if that did
             not help. A bracket is settled if exactly k keys are above its low end, or if its ends are neighbours: then
             keys tie at the threshold, and the same search over the indices decides.
             `keep_largest` drives the search over all arrays at once: rows of different arrays are independent, or
             form segments with one common threshold (one ranking over all leaves; ties go to the earliest array).
             Small arrays of one shape are stacked first, because the number of kernels determines the compile time.

The place of an entry in the ranking is its key and then, if keys tie, minus its index, so that the lowest index ranks
first among equal scores. In a slice of 2^31 entries or more the index has two digits. Counts are exact to 2^47 entries
on any number of devices: in a `jax.shard_map` each device counts its shard, and the counts are added up over the mesh.
"""
