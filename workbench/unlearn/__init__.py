"""Ways of unlearning, one file each, that hand over what the audit takes."""

from workbench.unlearn.arm import Arm, Spent
from workbench.unlearn.choose import Trial, choose_strength
from workbench.unlearn.methods import FAMILIES, METHODS, Method, method, method_from
from workbench.unlearn.read import read_edited
from workbench.unlearn.save import load_arm, save_arm
from workbench.unlearn.system import system_recall

__all__ = [
    "FAMILIES",
    "METHODS",
    "Arm",
    "Method",
    "Spent",
    "Trial",
    "choose_strength",
    "load_arm",
    "method",
    "method_from",
    "read_edited",
    "save_arm",
    "system_recall",
]
