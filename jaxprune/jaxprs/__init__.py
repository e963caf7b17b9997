"""Walking a jaxpr: the jaxprs inside equations, tracing from shapes."""

from jaxprune.jaxprs.subs import Sub as Sub
from jaxprune.jaxprs.subs import is_jaxpr as is_jaxpr
from jaxprune.jaxprs.subs import open_jaxpr as open_jaxpr
from jaxprune.jaxprs.subs import sub_jaxprs as sub_jaxprs
from jaxprune.jaxprs.trace import Traced as Traced
from jaxprune.jaxprs.trace import is_array as is_array
from jaxprune.jaxprs.trace import trace as trace
