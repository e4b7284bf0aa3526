"""Edits: pure functions of the residual stream."""

from workbench.interventions.bake import bake, everywhere, save_baked
from workbench.interventions.clamp import Clamp
from workbench.interventions.control import random_control, random_controls
from workbench.interventions.evidence import Always, Firing, Probe, Weighted
from workbench.interventions.gate import Gate, but_bos, calibrated, fit_gate_weights, gate_peaks
from workbench.interventions.mean_ablate import MeanAblate
from workbench.interventions.project import Project
from workbench.interventions.replace import Replace
from workbench.interventions.rescale import Rescale
from workbench.interventions.save import load_edit, save_edit
from workbench.interventions.sequence import Sequence
from workbench.interventions.steer import Steer
from workbench.interventions.substitute import Substitute

__all__ = [
    "Always",
    "Clamp",
    "Firing",
    "Gate",
    "MeanAblate",
    "Probe",
    "Project",
    "Replace",
    "Rescale",
    "Sequence",
    "Steer",
    "Substitute",
    "Weighted",
    "bake",
    "but_bos",
    "calibrated",
    "everywhere",
    "fit_gate_weights",
    "gate_peaks",
    "load_edit",
    "random_control",
    "random_controls",
    "save_baked",
    "save_edit",
]
