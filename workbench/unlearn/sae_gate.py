"""A guardrail: SAE features are clamped in sequences that are found to be about the target."""

from dataclasses import dataclass, replace
from typing import Any

from workbench.facts.target import Target
from workbench.interventions import Clamp
from workbench.unlearn.arm import FORGET, RETAINED, TEXTS, Arm, made, metered, require_arm
from workbench.unlearn.gates import share_open, streams_of
from workbench.unlearn.sae_edits import behind_weights, counted_on, marked, saes_for

PROMPTS_CHECKED = 300
"""Forget prompts of which `told` says how many open the gate."""


@dataclass(frozen=True)
class Config:
    """Which features, what they are set to, and how readily.

    Attributes:
        saes: folders or names of SAEs; none: the bundled ones that were trained on this model.
        features: clamped by each SAE, at most.
        dose: in multiples of each feature's largest activation.
        false_alarms: share of retained prompts on which gates may open, all gates together.
    """

    saes: tuple[str, ...] = ()
    features: int = 100
    dose: float = -4.0
    false_alarms: float = 0.05


DEFAULT = Config()
STRENGTHS = tuple(replace(DEFAULT, dose=dose) for dose in (-0.5, -1.0, -4.0))


def unlearn(model: Any, target: Target, config: Config = DEFAULT, seed: int = 0) -> Arm:
    """Clamps features from the token on at which a prompt is known to be about the target.

    Features are those that fire on the target more often than elsewhere; a gate that has opened
    stays open to the end. Most of what is forgotten is forgotten by the gate and the dose: at the
    default dose random features in their place do nearly the same (`random_features`). No weight
    changes: who takes the hook off has the original.

    Raises:
        SAEError: no SAE fits the model.
        EditError: no feature of an SAE fires often enough on the target.

    Source: dynamic guardrails, Muhamed et al. 2025, arXiv 2504.08192. Differs: the gate's evidence
    is a weighted sum of all features so far instead of the share of tokens on which chosen ones
    fire, so that a continuation cannot close it; its threshold is of retained prompts that it was
    not fitted on; only features that fire are clamped, in multiples of their largest activation.
    """
    require_arm("sae_gate", model, target, ("R_tr",))
    with metered(model) as meter:
        gates, told = [], {"features": [], "open": []}
        saes, counted = saes_for(model, config.saes), counted_on(target, seed)
        for sae in saes:
            chosen = marked(model, sae, counted, config.features)
            clamp = Clamp(sae, chosen, config.dose)
            alarms = config.false_alarms / len(saes)
            gate, given = behind_weights(model, target, clamp, alarms, seed)
            gates.append(gate)
            asked = streams_of(model, given.forget[:PROMPTS_CHECKED], gate.site, sae.W_dec.dtype)
            told["features"].append(chosen.tolist())
            told["open"].append(share_open(gate, asked))
    arm = Arm("sae_gate", model, tuple(gates), saw=(FORGET, RETAINED, TEXTS), told=told)
    return made(arm, meter, config, seed)
