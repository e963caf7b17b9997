"""How slimming finds what can be removed together, and runs a function with smaller shapes.

Every position of every axis of every parameter gets a label. The labels are followed through the function's jaxpr, from
shapes alone, and positions that must be kept together get equal labels. Afterwards a label is one unit: all positions
with this label, in all leaves, are removed together or not at all. The analysis knows nothing of layers or modules.

1. Labels (`labels`). A union-find over integers. A label is an atom, or the conjunction of two labels: its
   position stays only if both stay. Atoms can be frozen, with a reason: they are never removed. If two conjunctions are
   made equal, `match` finds the parts that belong together from how they vary over the positions.
2. Axes (`axes`). An axis is a product of factors (`jaxprune._jaxprs.factors`), each with an array of labels. An axis
   of heads times dimensions has two, so that removing a head and removing a dimension of every head are both
   possible. Cutting an axis of one factor rewrites its labels as conjunctions. In a scan over stacked layers labels
   have an additional axis, so that each layer may lose different positions, as long as each loses equally many. An axis
   that a shard_map cuts has one too, for its shards (`rules.sharded`).
3. Frames (`frames`, `analysis`). `follow` visits the equations of a jaxpr and stores the axes of every variable in a
   `Frame`; each inner jaxpr has its own frame. The rule of an equation passes labels on, couples them (an addition:
   position by position; a contraction: the two contracted axes) or freezes them (an index, an output, an unknown
   primitive). Integers that are positions on an axis, such as the experts that a router chooses, are followed too
   (`pointing`): what they index is coupled with that axis. An index whose numbers follow from constants alone
   (`constants`) is a move of known positions.
4. Zeros (`frames`). Removing a unit equals masking it if the values at its positions are still zero in every sum and
   every contraction over them. `follow_zeros` checks this: a ReLU keeps a zero, 1 + x does not. It marks the units
   for which a value is not zero. Units from which a softmax or a top-k chooses are not masked: their logits are minus
   infinity instead.
5. Units (`units`). `units_of` numbers the units kind by kind (`numbering`), computing once for all axes with equal
   labels. `members` finds units that each member of a stack, such as each expert, may lose for itself.
6. Smaller program (`evaluate`). `decided` (`analysis`) turns the positions that a manifest removes into removed labels,
   and `keep_of` turns labels into the kept positions of an axis. `evaluate` runs the jaxpr on smaller arrays. Most
   primitives run unchanged; a primitive that has shapes or positions among its parameters gets new parameters. `flops`
   counts its FLOPs from the kept positions alone.

Labels, zeros and the smaller program are three clients of one engine, `jaxprune._jaxprs`: its loop visits the
equations, and its table says what each primitive does. `rules` has three functions (`Rule(follow, zero, shrink)`) for
each kind of primitive in that table, so a primitive that the table describes needs no rule here. Primitives that index,
control flow, and functions with custom derivatives have rules by name.
"""
