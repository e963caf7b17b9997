"""Pruned members as one model: run by vmap; their uncertainty; cheap ways to make them and to merge them."""

from jaxprune.ensembles.choosing import Chosen as Chosen
from jaxprune.ensembles.choosing import greedy as greedy
from jaxprune.ensembles.combining import Combine as Combine
from jaxprune.ensembles.combining import majority as majority
from jaxprune.ensembles.combining import mean_logit as mean_logit
from jaxprune.ensembles.combining import mean_probability as mean_probability
from jaxprune.ensembles.distilling import distillation as distillation
from jaxprune.ensembles.distilling import softened as softened
from jaxprune.ensembles.exploration import FreeTickets as FreeTickets
from jaxprune.ensembles.exploration import free_tickets as free_tickets
from jaxprune.ensembles.members import Members as Members
from jaxprune.ensembles.members import from_seeds as from_seeds
from jaxprune.ensembles.members import kept as kept
from jaxprune.ensembles.members import make as make
from jaxprune.ensembles.members import stack as stack
from jaxprune.ensembles.members import take as take
from jaxprune.ensembles.model import logits_of as logits_of
from jaxprune.ensembles.model import predictor as predictor
from jaxprune.ensembles.soups import soup as soup
from jaxprune.ensembles.uncertainty import Uncertainty as Uncertainty
from jaxprune.ensembles.uncertainty import disagreement as disagreement
from jaxprune.ensembles.uncertainty import pairwise_disagreement as pairwise_disagreement
from jaxprune.ensembles.uncertainty import uncertainty as uncertainty
