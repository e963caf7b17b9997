"""Selection by counting: the k largest of n scores, exactly, without a sort and without moving the scores.

A sort gathers a sharded array and takes n log n work. Counting takes one pass over the scores for one question: how
many of them lie above each of these eight values? The answer is a few integers, whatever the layout of the scores.

    keys     Scores become integers in the same order (`_exact.keys`). An entry's place is its key, and then, where
             keys tie, minus its index, so that of equal scores the lowest index ranks first. In a slice of 2^31
             entries or more the index is two digits.
    rows     `Leaf` describes one array: its leading axes are slices, and each slice is a row that loses its own
             number of entries. Its kernels count the places above probes, draw a sample, and write the mask.
    search   A bracket holds each row's threshold: at least k keys above its low end, fewer than k above its high end.
             The first eight probes come from a sample, which settles most rows in one more pass; later probes lie
             around the place that the counts suggest, or evenly where that did not help. A bracket is settled when
             exactly k keys lie above its low end, or when its ends are neighbours: then the keys tie at the threshold,
             and the index decides, by the same search over the next part of the places.
    ranking  `keep_largest` drives the search over all arrays at once: rows of different arrays are independent, or
             form segments with one common threshold (one ranking over all leaves; ties go to the earliest array).
             Small arrays of one shape are stacked first, since it is the number of kernels that takes long to compile.
    groups   `keep_in_groups` keeps n of every m neighbours, by comparing the members of a group pair by pair.

Counts are `_exact.counts.Count`, two limbs of 16 bits, so they are exact to 2^47 entries on any number of devices. In
a `jax.shard_map` each device counts its part, and the counts are added up over the mesh (`_exact.shards`).
"""

from jaxprune.masks._rank.groups import keep_in_groups as keep_in_groups
from jaxprune.masks._rank.ranking import keep_largest as keep_largest
