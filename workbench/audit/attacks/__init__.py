"""Tampering: can what was to be forgotten be brought back with the weights in hand?"""

from workbench.audit.attacks.config import (
    FULL,
    QUICK,
    STANDARD,
    AttackConfig,
    Perturbing,
    setting_name,
)
from workbench.audit.attacks.curves import area, injection_index
from workbench.audit.attacks.jobs import attacks
from workbench.audit.attacks.soft import CONTROL
from workbench.audit.attacks.teach import teaching_attack
from workbench.audit.attacks.training import Course, finetuned

__all__ = [
    "CONTROL",
    "FULL",
    "QUICK",
    "STANDARD",
    "AttackConfig",
    "Course",
    "Perturbing",
    "area",
    "attacks",
    "finetuned",
    "injection_index",
    "setting_name",
    "teaching_attack",
]
