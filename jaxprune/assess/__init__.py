"""What a network costs and how far to trust it: complexity, metrics, comparisons, the risk report, choice of models."""

from jaxprune.assess import plots
from jaxprune.assess.calibration_error import calibration_error, calibration_test, reliability
from jaxprune.assess.comparison import ModelResult, changes, comparison_table, exemplars
from jaxprune.assess.complexity import complexity
from jaxprune.assess.corruptions import Corruption, corrupted_logits, corruptions
from jaxprune.assess.intervals import bootstrap
from jaxprune.assess.metrics import evaluate
from jaxprune.assess.report import RiskReport, risk_report
from jaxprune.assess.risk import Labels, Predictions, risk
from jaxprune.assess.selection import Candidate, hold_out, k_fold, model_table, one_standard_error, pareto_table
from jaxprune.assess.uncertainty import auroc, entropy, epistemic_uncertainty, fit_temperature, risk_coverage

__all__ = [
    "Candidate",
    "Corruption",
    "Labels",
    "ModelResult",
    "Predictions",
    "RiskReport",
    "auroc",
    "bootstrap",
    "calibration_error",
    "calibration_test",
    "changes",
    "comparison_table",
    "complexity",
    "corrupted_logits",
    "corruptions",
    "entropy",
    "epistemic_uncertainty",
    "evaluate",
    "exemplars",
    "fit_temperature",
    "hold_out",
    "k_fold",
    "model_table",
    "one_standard_error",
    "pareto_table",
    "plots",
    "reliability",
    "risk",
    "risk_coverage",
    "risk_report",
]
