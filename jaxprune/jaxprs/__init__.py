"""Walking a jaxpr: the jaxprs inside equations, tracing from shapes, following parameters, FLOPs."""

from jaxprune.jaxprs.counts import MultiplyAdds as MultiplyAdds
from jaxprune.jaxprs.counts import multiply_adds as multiply_adds
from jaxprune.jaxprs.effective import Share as Share
from jaxprune.jaxprs.effective import shares as shares
from jaxprune.jaxprs.flops import Flops as Flops
from jaxprune.jaxprs.flops import Operation as Operation
from jaxprune.jaxprs.flops import count_flops as count_flops
from jaxprune.jaxprs.states import Constant as Constant
from jaxprune.jaxprs.states import Data as Data
from jaxprune.jaxprs.states import Lost as Lost
from jaxprune.jaxprs.states import State as State
from jaxprune.jaxprs.states import Weight as Weight
from jaxprune.jaxprs.subs import Sub as Sub
from jaxprune.jaxprs.subs import is_jaxpr as is_jaxpr
from jaxprune.jaxprs.subs import open_jaxpr as open_jaxpr
from jaxprune.jaxprs.subs import sub_jaxprs as sub_jaxprs
from jaxprune.jaxprs.tracing import Traced as Traced
from jaxprune.jaxprs.tracing import is_array as is_array
from jaxprune.jaxprs.tracing import trace as trace
from jaxprune.jaxprs.walk import Met as Met
from jaxprune.jaxprs.walk import follow as follow
