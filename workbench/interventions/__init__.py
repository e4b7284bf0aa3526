"""Edits: pure functions of the residual stream."""

from workbench.interventions.control import random_control
from workbench.interventions.features import Clamp, Rescale
from workbench.interventions.gate import Gate, calibrated, fit_gate_weights
from workbench.interventions.save import load_edit, save_edit

__all__ = [
    "Clamp",
    "Gate",
    "Rescale",
    "calibrated",
    "fit_gate_weights",
    "load_edit",
    "random_control",
    "save_edit",
]
