"""Probes: what readers of the residual stream can tell of facts they were not fitted on."""

from workbench.audit.probes.battery import KINDS, probes, template_split_probe
from workbench.audit.probes.copies import permuted, random_init
from workbench.audit.probes.linear import RIDGES

__all__ = ["KINDS", "RIDGES", "permuted", "probes", "random_init", "template_split_probe"]
