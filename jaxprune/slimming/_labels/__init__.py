"""How slimming finds what can be removed together, and runs a function with smaller shapes.

Every position of every axis of every parameter gets a label. The labels are followed through the function's jaxpr,
from shapes alone, and what has to keep the same positions gets the same labels. Afterwards a label is one unit: all
positions that carry it, in whatever leaf, are removed together or not at all. Nothing is known of layers or modules.

1. Labels (`labels`, `grids`). A union-find over integers. A label is an atom, or the conjunction of two labels: a
   position so labelled stays only if both stay. Atoms can be frozen, with a reason: they never go. Where conjunctions
   meet, `grids` finds which parts belong together by how they vary over the positions.
2. Axes (`axes`). An axis is a product of factors (`jaxprune._jaxprs.factors`), each with an array of labels. An axis
   of heads times dimensions has two, so that removing a head and removing a dimension of every head are both
   possible. Cutting an axis of one factor rewrites its labels as conjunctions. In a scan over stacked layers labels
   have an axis more, so that each layer may lose other positions, as long as each loses as many.
3. Frames (`frames`, `analysis`). `follow` goes through a jaxpr and keeps the axes of every variable in a `Frame`,
   with a frame for each jaxpr inside. Each equation's rule passes labels on, couples them (an addition: position by
   position; a contraction: the two contracted axes) or freezes them (a softmax, an index, an output, an unknown
   primitive).
4. Zeros (`zeros`). Whether removing equals masking. Masked, a removed position holds zeros; `follow_zeros` tells
   whether they are still zeros where positions meet (bias and ReLU: yes, 1 + x: no), and marks the units for which
   they are not.
5. Running smaller (`keeps`, `decide`, `evaluate`). `labels_that_go` turns positions into labels, `keep_of` turns
   labels into the positions that stay of any axis. `evaluate` runs the jaxpr again on smaller arrays: most primitives
   as they are, those with shapes or positions among their parameters with new ones.

The three passes are clients of one engine, `jaxprune._jaxprs`: its loop goes through the equations, its table says
what each primitive does. `rules` has, for each kind of primitive in that table, the three functions that a pass needs
(`Rule(follow, zero, shrink)`), so that a primitive that is described there is known here. Primitives that index,
control flow and functions with derivatives of their own have rules by name.
"""
