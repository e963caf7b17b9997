"""What a network costs and how far to trust it: complexity, metrics, comparisons and plots."""

from jaxprune.assess.comparison import Report as Report
from jaxprune.assess.comparison import Result as Result
from jaxprune.assess.comparison import table as table
from jaxprune.assess.complexity import Complexity as Complexity
from jaxprune.assess.complexity import LeafComplexity as LeafComplexity
from jaxprune.assess.complexity import Unattributed as Unattributed
from jaxprune.assess.complexity import complexity as complexity
from jaxprune.assess.metrics import Metrics as Metrics
from jaxprune.assess.metrics import evaluate as evaluate
from jaxprune.assess.plots import accuracy_by_sparsity as accuracy_by_sparsity
from jaxprune.assess.plots import sparsity_by_leaf as sparsity_by_leaf
from jaxprune.assess.sizes import LeafSize as LeafSize
from jaxprune.assess.sizes import leaf_sizes as leaf_sizes
