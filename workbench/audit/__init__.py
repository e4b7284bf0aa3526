"""Audits: what is left of a target in an edited model, with intervals, gates and a verdict."""

from workbench.audit.concepts import HigherOrder, read_concept
from workbench.audit.plan import AuditConfig, make_plan, plan_sha256
from workbench.audit.run import audit
from workbench.audit.schema import AuditReport, Endpoint, Gate, Measurement, Verdict
from workbench.audit.verify import verify

__all__ = [
    "AuditConfig",
    "AuditReport",
    "Endpoint",
    "Gate",
    "HigherOrder",
    "Measurement",
    "Verdict",
    "audit",
    "make_plan",
    "plan_sha256",
    "read_concept",
    "verify",
]
