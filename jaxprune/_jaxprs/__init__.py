"""Walking a jaxpr: the jaxprs inside equations, tracing from shapes, following parameters, FLOPs."""

from jaxprune._jaxprs.counts import MultiplyAdds as MultiplyAdds
from jaxprune._jaxprs.counts import multiply_adds as multiply_adds
from jaxprune._jaxprs.effective import Share as Share
from jaxprune._jaxprs.effective import shares as shares
from jaxprune._jaxprs.flops import Flops as Flops
from jaxprune._jaxprs.flops import Operation as Operation
from jaxprune._jaxprs.flops import count_flops as count_flops
from jaxprune._jaxprs.states import Constant as Constant
from jaxprune._jaxprs.states import Data as Data
from jaxprune._jaxprs.states import Lost as Lost
from jaxprune._jaxprs.states import State as State
from jaxprune._jaxprs.states import Weight as Weight
from jaxprune._jaxprs.subs import Sub as Sub
from jaxprune._jaxprs.subs import is_jaxpr as is_jaxpr
from jaxprune._jaxprs.subs import open_jaxpr as open_jaxpr
from jaxprune._jaxprs.subs import sub_jaxprs as sub_jaxprs
from jaxprune._jaxprs.tracing import Traced as Traced
from jaxprune._jaxprs.tracing import is_array as is_array
from jaxprune._jaxprs.tracing import trace as trace
from jaxprune._jaxprs.walk import Met as Met
from jaxprune._jaxprs.walk import follow as follow
