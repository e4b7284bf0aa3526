"""Clamping of SAE features that fire on the target and hardly ever elsewhere."""

from dataclasses import dataclass, replace
from typing import Any

from workbench.facts.target import Target
from workbench.interventions import Clamp, but_bos
from workbench.locate import measure
from workbench.unlearn.arm import FORGET, RETAINED, TEXTS, Arm, made, metered, require_arm
from workbench.unlearn.sae_edits import counted_on, most, saes_for


@dataclass(frozen=True)
class Config:
    """Which features, and what they are set to.

    Attributes:
        saes: folders or names of SAEs; none: the bundled ones that were trained on this model.
        features: clamped by each SAE, at most.
        retain_rate: features that fire on this share of retained tokens or more are left alone.
        dose: in multiples of each feature's largest activation, below 0.
    """

    saes: tuple[str, ...] = ()
    features: int = 20
    retain_rate: float = 0.003
    dose: float = -1.0


DEFAULT = Config()
STRENGTHS = (
    DEFAULT,
    replace(DEFAULT, dose=-4.0),
    Config(features=50, retain_rate=0.01, dose=-0.5),
    Config(features=50, retain_rate=0.01, dose=-2.0),
)


def unlearn(model: Any, target: Target, config: Config = DEFAULT, seed: int = 0) -> Arm:
    """Sets features to a negative value wherever they fire, on any text; the error stays.

    No weight changes: who takes the hook off has the original.

    Raises:
        SAEError: no SAE fits the model.
        EditError: no feature of an SAE fires on the target and rarely enough elsewhere.

    Source: Farrell et al. 2024, arXiv 2410.19278, and the unlearning evaluation of SAEBench,
    Karvonen et al. 2025, arXiv 2503.09532. Differs: features are counted on facts and texts that
    are never scored, the dose is in multiples of each feature's largest activation, and all SAEs
    clamp at once.
    """
    require_arm("sae_clamp", model, target, ("R_tr",))
    with metered(model) as meter:
        counted, edits = counted_on(target, seed), []
        for sae in saes_for(model, config.saes):
            found = measure(
                model, sae, counted, "saebench", retain_threshold=config.retain_rate
            ).scores()
            wanted = f"fires on the target and on less than {config.retain_rate:g} of other tokens"
            chosen = most(found, config.features, sae, wanted)
            edits.append(but_bos(Clamp(sae, chosen, config.dose)))
    told = {"features": [e.edit.features.tolist() for e in edits]}
    arm = Arm("sae_clamp", model, tuple(edits), saw=(FORGET, RETAINED, TEXTS), told=told)
    return made(arm, meter, config, seed)
