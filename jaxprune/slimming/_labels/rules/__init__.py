"""What slimming knows of each primitive: how labels pass, whether zero stays zero, how it runs when smaller."""

from jaxprune.slimming._labels.rules.table import rule_of as rule_of
