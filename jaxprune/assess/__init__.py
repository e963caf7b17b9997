"""What a network costs and how far to trust it: complexity, metrics, intervals, paired comparisons, the risk report."""

from jaxprune.assess import plots
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
from jaxprune.assess.selective import auroc, entropy, epistemic_uncertainty, max_probability, risk_coverage

__all__ = [
    "Complexity",
    "Corruption",
    "Interval",
    "Labels",
    "Metrics",
    "ModelResult",
    "Predictions",
    "RiskReport",
    "auroc",
    "blur",
    "bootstrap",
    "brier_losses",
    "calibration_error",
    "changes",
    "comparison_table",
    "complexity",
    "contrast",
    "corrupted_logits",
    "corruptions",
    "entropy",
    "epistemic_uncertainty",
    "evaluate",
    "exemplars",
    "fit_temperature",
    "log_losses",
    "logits_from_probabilities",
    "max_probability",
    "mcnemar",
    "noise",
    "plots",
    "recall_by_class",
    "reliability",
    "risk",
    "risk_coverage",
    "risk_report",
    "sign_flip_test",
]
