"""Not-known answers: training on refusals in the place of the objects of forget facts."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.facts.target import Target
from workbench.unlearn.arm import Arm, require_arm
from workbench.unlearn.descent import KEEPING, Forget, descended, first_half, labelled
from workbench.unlearn.preference import REFUSALS, Winners, refusing, spoken_logp
from workbench.unlearn.training import Steps, Told


@dataclass(frozen=True)
class Config:
    """How hard.

    Attributes:
        steps: with weight, rate and sizes of what is kept.
        weight: of forgetting, beside `steps.keep` of keeping.
        refusals: what is said instead; see `preference.refusals` for models without words for it.
    """

    steps: Steps = field(default_factory=Steps)
    weight: float = 1.0
    refusals: tuple[str, ...] = REFUSALS


DEFAULT = Config(KEEPING, weight=3.0)
STRENGTHS = tuple(replace(DEFAULT, weight=w) for w in (0.3, 1.0, 3.0))
"""Tried from the weakest on."""


def unlearn(model: Any, target: Target, config: Config = DEFAULT, seed: int = 0) -> Arm:
    """Teaches the model to refuse after forget prompts; the objects are not spoken of.

    Source: Maini et al. 2024, arXiv 2401.06121, section 3 ("I don't know"), as IdkNLL in
    open-unlearning. Differs: refusals are drawn anew for each prompt; a model of few words refuses
    in words of the facts' neutral sentences.
    """
    require_arm("idk_nll", model, target)
    forget = saying(refusing(model, target, config.refusals, seed))
    return descended(
        "idk_nll", model, target, config, seed, forget, keep=labelled, chosen=first_half
    )


def saying(winners: Winners) -> Forget:
    """Nats per token of the answers that are wanted."""

    def forget(now: Any, batch: list[Told]) -> Float[Tensor, ""]:
        answers = winners(batch)
        nats = -spoken_logp(now, batch, answers).sum(-1)
        return (nats / torch.tensor([len(a) for a in answers], device=nats.device)).mean()

    return forget
