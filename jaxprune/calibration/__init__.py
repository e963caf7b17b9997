"""Calibration: `calibrate` sums up the activations that each parameter is multiplied by.

An interpreter (`interpreter`) runs the jaxpr of the function and computes every value as the function does. It follows
each parameter to its matrix products and convolutions (`jaxprune._jaxprs.views`), and sums moments of the other operand
(`stats`): Gram matrices, squares, sums, counts of zeros. `values` defines what the interpreter records of a value, and
`routing` follows a router's choice of experts. `Stats` holds the sums of each leaf and its `layout`, which says which
axes are inputs. `accumulate_gradients` averages gradients over batches.
"""

from jaxprune.calibration.run import calibrate, calibrator
from jaxprune.calibration.stats import Stats, accumulate_gradients

__all__ = ["Stats", "accumulate_gradients", "calibrate", "calibrator"]
