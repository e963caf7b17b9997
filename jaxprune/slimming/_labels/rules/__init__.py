"""The rules of slimming for each primitive: how labels and zeros pass, and how it runs with smaller arrays."""

from jaxprune.slimming._labels.rules.table import rule_of as rule_of
