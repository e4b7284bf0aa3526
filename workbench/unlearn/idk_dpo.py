"""Direct preference of not-known answers: refusals win over the objects of forget facts."""

from dataclasses import dataclass, field, replace
from typing import Any

from workbench.facts.target import Target
from workbench.unlearn.arm import Arm, require_arm
from workbench.unlearn.descent import KEEPING, descended, first_half, labelled
from workbench.unlearn.preference import REFUSALS, preferring, refusing
from workbench.unlearn.training import Steps


@dataclass(frozen=True)
class Config:
    """How hard.

    Attributes:
        steps: with weight, rate and sizes of what is kept.
        weight: of forgetting, beside `steps.keep` of keeping.
        beta: above 0; the larger, the sooner it lets go of what is already preferred.
        refusals: what is said instead; see `preference.refusals` for models without words for it.
    """

    steps: Steps = field(default_factory=Steps)
    weight: float = 1.0
    beta: float = 0.1
    refusals: tuple[str, ...] = REFUSALS


DEFAULT = Config(replace(KEEPING, batch_size=16))
STRENGTHS = tuple(replace(DEFAULT, weight=w) for w in (0.1, 0.3, 1.0))
"""Tried from the weakest on."""


def unlearn(model: Any, target: Target, config: Config = DEFAULT, seed: int = 0) -> Arm:
    """Prefers refusals to the true objects, by more than the original does; trains on the rest.

    Source: Maini et al. 2024, arXiv 2401.06121, section 3 ("preference optimization"), as IdkDPO in
    open-unlearning. Differs: refusals as in `idk_nll`; only `first_half` changes.
    """
    require_arm("idk_dpo", model, target)
    forget = preferring(model, config.beta, refusing(model, target, config.refusals, seed))
    return descended(
        "idk_dpo", model, target, config, seed, forget, keep=labelled, chosen=first_half
    )
