"""Tampering: can what was to be forgotten be brought back with the weights in hand?"""

from workbench.audit.attacks.config import QUICK, STANDARD, AttackConfig
from workbench.audit.attacks.curves import area, injection_index
from workbench.audit.attacks.jobs import attacks
from workbench.audit.attacks.teach import teaching_attack
from workbench.audit.attacks.training import Course, finetuned

__all__ = [
    "QUICK",
    "STANDARD",
    "AttackConfig",
    "Course",
    "area",
    "attacks",
    "finetuned",
    "injection_index",
    "teaching_attack",
]
