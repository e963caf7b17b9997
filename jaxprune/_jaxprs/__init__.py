"""One engine that walks jaxprs, for FLOPs, calibration, roles and slimming.

`trace` traces a function from shapes. A client then visits the equations in order and derives a value for every
variable of the jaxpr. This package contains what all clients need:

- The loop (`walk`). `Values` is the environment: it stores the client's value of each variable, and asks the client for
  the value of a literal. The client supplies one function, from an equation and the values of its operands to the
  values of its results. `walk(..., only_live=True)` skips dead code, `settle` repeats the body of a loop until the
  carried values no longer change, and `scan_again` rebuilds a scan with another body.
- The table (`primitives.PRIMITIVES`). It says what each primitive does to the axes and entries of its operands: an
  entrywise function (where its result is zero, in which operands it is linear, what it costs), a move of entries (which
  NumPy arrays also accept), a sum of products, a reduction, a mix along axes, a read or a write by index. A new
  primitive is described in this table, and every client then follows it.
- The jaxprs inside equations (`sub_jaxprs`): which operand is which input, which values are stacked or carried, and how
  often the jaxpr runs, for jit, remat, custom derivatives, scan, while, cond, shard_map, in every JAX version.
- Axes as products of factors (`factors`): `Factor`, `split`, `merge` and `blocks` make reshapes exact, and `Layout`
  shows a leaf as a stack of matrices.

Clients differ in the value that they derive, and in what they do at products and loops:

| client | of each value it carries | at a product | at a loop |
| --- | --- | --- | --- |
| `weights`, `flops` | a `Weight`: maps arrays of the leaf's shape to the value's | counts multiply-adds | settles |
| `calibration` | the array, and `View`s: which axes of a leaf its axes are | sums the other operand | scans again |
| `roles` | `View`s, and whether it depends on data | notes which axes are summed over | settles |
| `slimming` | labels of positions; then zeros; then smaller arrays | couples labels | all of these |

Two things are written twice on purpose. `Weight` and `View` both follow a leaf. `Weight` follows entries: it survives
every move and every mask, but needs arrays of the leaf's size. `View` follows axes: its cost does not depend on the
size of the leaf, but it is lost where a reshape cuts an axis unevenly. Slimming runs the primitives that have shapes
among their parameters by its own rules (`slimming._labels`).
"""

from jaxprune._jaxprs.flops import Flops as Flops
from jaxprune._jaxprs.flops import MultiplyAdds as MultiplyAdds
from jaxprune._jaxprs.flops import Operation as Operation
from jaxprune._jaxprs.flops import Share as Share
from jaxprune._jaxprs.flops import count_flops as count_flops
from jaxprune._jaxprs.flops import is_product as is_product
from jaxprune._jaxprs.flops import multiply_adds as multiply_adds
from jaxprune._jaxprs.flops import shares as shares
from jaxprune._jaxprs.roles import find_roles as find_roles
from jaxprune._jaxprs.roles import leaves_of as leaves_of
from jaxprune._jaxprs.roles import roles_of as roles_of
from jaxprune._jaxprs.walk import Sub as Sub
from jaxprune._jaxprs.walk import Traced as Traced
from jaxprune._jaxprs.walk import is_jaxpr as is_jaxpr
from jaxprune._jaxprs.walk import live as live
from jaxprune._jaxprs.walk import open_jaxpr as open_jaxpr
from jaxprune._jaxprs.walk import sub_jaxprs as sub_jaxprs
from jaxprune._jaxprs.walk import trace as trace
from jaxprune._jaxprs.weights import Constant as Constant
from jaxprune._jaxprs.weights import Data as Data
from jaxprune._jaxprs.weights import Lost as Lost
from jaxprune._jaxprs.weights import Met as Met
from jaxprune._jaxprs.weights import State as State
from jaxprune._jaxprs.weights import Weight as Weight
from jaxprune._jaxprs.weights import follow as follow
