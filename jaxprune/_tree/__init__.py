"""Trees of parameters: names of leaves (`paths`), globs and `where` (`globs`), checks of arguments (`matching`)."""

from jaxprune._tree.arguments import call as call
from jaxprune._tree.arguments import check_batches as check_batches
from jaxprune._tree.arguments import check_function as check_function
from jaxprune._tree.arguments import check_instance as check_instance
from jaxprune._tree.arguments import check_key as check_key
from jaxprune._tree.arguments import check_sparsity as check_sparsity
from jaxprune._tree.arguments import scalar as scalar
from jaxprune._tree.arguments import shown as shown
from jaxprune._tree.globs import Where as Where
from jaxprune._tree.globs import differentiable as differentiable
from jaxprune._tree.globs import is_floating as is_floating
from jaxprune._tree.globs import is_prunable as is_prunable
from jaxprune._tree.globs import prunable as prunable
from jaxprune._tree.globs import resolve as resolve
from jaxprune._tree.globs import selected as selected
from jaxprune._tree.matching import align as align
from jaxprune._tree.matching import check_bool as check_bool
from jaxprune._tree.matching import check_masks as check_masks
from jaxprune._tree.matching import check_same as check_same
from jaxprune._tree.matching import map_mirrored as map_mirrored
from jaxprune._tree.paths import identity as identity
from jaxprune._tree.paths import is_box as is_box
from jaxprune._tree.paths import map_named as map_named
from jaxprune._tree.paths import name as name
from jaxprune._tree.paths import named_leaves as named_leaves
from jaxprune._tree.paths import with_paths as with_paths
