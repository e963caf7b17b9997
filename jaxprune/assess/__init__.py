"""What a network costs and how far to trust it: complexity, metrics, comparisons, the risk report, choice of models."""

from jaxprune.assess import plots
from jaxprune.assess.calibration_test import CalibrationTest, calibration_test
from jaxprune.assess.comparison import ModelResult, comparison_table
from jaxprune.assess.complexity import Complexity, complexity
from jaxprune.assess.corruptions import Corruption, blur, contrast, corrupted_logits, corruptions, noise
from jaxprune.assess.forgetting import exemplars, recall_by_class
from jaxprune.assess.intervals import Interval, bootstrap
from jaxprune.assess.metrics import Metrics, brier_losses, evaluate, log_losses, logits_from_probabilities
from jaxprune.assess.paired import changes, mcnemar, sign_flip_test
from jaxprune.assess.reliability import calibration_error, fit_temperature, reliability
from jaxprune.assess.report import RiskReport, risk_report
from jaxprune.assess.risk import Labels, Predictions, risk
from jaxprune.assess.selection import (
    Candidate,
    aic,
    bic,
    description_length,
    hold_out,
    k_fold,
    model_table,
    one_standard_error,
    pareto_front,
    pareto_table,
)
from jaxprune.assess.selective import auroc, entropy, epistemic_uncertainty, max_probability, risk_coverage

__all__ = [
    "CalibrationTest",
    "Candidate",
    "Complexity",
    "Corruption",
    "Interval",
    "Labels",
    "Metrics",
    "ModelResult",
    "Predictions",
    "RiskReport",
    "aic",
    "auroc",
    "bic",
    "blur",
    "bootstrap",
    "brier_losses",
    "calibration_error",
    "calibration_test",
    "changes",
    "comparison_table",
    "complexity",
    "contrast",
    "corrupted_logits",
    "corruptions",
    "description_length",
    "entropy",
    "epistemic_uncertainty",
    "evaluate",
    "exemplars",
    "fit_temperature",
    "hold_out",
    "k_fold",
    "log_losses",
    "logits_from_probabilities",
    "max_probability",
    "mcnemar",
    "model_table",
    "noise",
    "one_standard_error",
    "pareto_front",
    "pareto_table",
    "plots",
    "recall_by_class",
    "reliability",
    "risk",
    "risk_coverage",
    "risk_report",
    "sign_flip_test",
]
