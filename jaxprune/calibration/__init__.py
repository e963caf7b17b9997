"""Calibration: the activations that each weight meets, for any function."""

from jaxprune._jaxprs.layouts import Layout as Layout
from jaxprune.calibration.gradients import Gradients as Gradients
from jaxprune.calibration.gradients import accumulate_gradients as accumulate_gradients
from jaxprune.calibration.run import calibrate as calibrate
from jaxprune.calibration.run import calibrator as calibrator
from jaxprune.calibration.stats import Inputs as Inputs
from jaxprune.calibration.stats import Stats as Stats
from jaxprune.calibration.stats import Together as Together
