"""The guardrail's gate and dose on features that have nothing to do with the target."""

from dataclasses import replace
from typing import Any

from workbench.facts.target import Target
from workbench.interventions import random_control
from workbench.unlearn import sae_gate
from workbench.unlearn.arm import Arm, made, metered, require_arm

Config = sae_gate.Config
DEFAULT = sae_gate.DEFAULT
STRENGTHS = sae_gate.STRENGTHS


def unlearn(model: Any, target: Target, config: Config = DEFAULT, seed: int = 0) -> Arm:
    """Clamps matched random features where `sae_gate` clamps the chosen ones: its control.

    The gate and the dose are the same; each feature gives way to one alike in how often and how
    hard it fires. What this forgets, the gate and the dose forget by themselves.

    Raises:
        As `sae_gate.unlearn`; SAEError also where too few other features ever fire.
    """
    require_arm("random_features", model, target, ("R_tr",))
    with metered(model) as meter:
        chosen = sae_gate.unlearn(model, target, config, seed)
        edits = tuple(random_control(edit, seed) for edit in chosen.edits)
    told = {**chosen.told, "features": [e.edit.features.tolist() for e in edits]}
    arm = replace(chosen, method="random_features", edits=edits, told=told)
    return made(arm, meter, config, seed)
