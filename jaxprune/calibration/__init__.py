"""Calibration: `calibrate` sums up the activations that each parameter meets, for any function.

An interpreter (`interpreter`) runs the jaxpr of the function. It computes every value as the function does, and follows
each parameter to the matrix products and convolutions it takes part in (`jaxprune._jaxprs.views`). There it sums
moments of the other operand (`moments`): Gram matrices, squares, sums, counts of zeros. `Stats` holds the sums of each
leaf and its `layout`, which says which axes are its inputs. `accumulate_gradients` sums gradients over batches instead.
"""

from jaxprune.calibration.gradients import Gradients, accumulate_gradients
from jaxprune.calibration.run import calibrate, calibrator
from jaxprune.calibration.stats import Inputs, Stats

__all__ = ["Gradients", "Inputs", "Stats", "accumulate_gradients", "calibrate", "calibrator"]
