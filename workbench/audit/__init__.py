"""Audits: what is left of a target in an edited model, with intervals, gates and a verdict."""

from workbench.audit.run import AuditConfig, audit
from workbench.audit.schema import AuditReport, Endpoint, Gate, Measurement, Verdict

__all__ = ["AuditConfig", "AuditReport", "Endpoint", "Gate", "Measurement", "Verdict", "audit"]
