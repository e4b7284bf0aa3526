"""Negative preference optimisation: gradient ascent that lets go of what is forgotten."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.facts.target import Target
from workbench.unlearn.arm import Arm
from workbench.unlearn.descent import KEEPING, Forget, descended, first_half, labelled
from workbench.unlearn.preference import preference_loss
from workbench.unlearn.training import Steps, Told, answer_logp


@dataclass(frozen=True)
class Config:
    """How hard.

    Attributes:
        steps: with weight, rate and sizes of what is kept.
        weight: of forgetting, beside `steps.keep` of keeping.
        beta: above 0. Near 0 this is gradient ascent; the larger, the sooner it lets go.
    """

    steps: Steps = field(default_factory=Steps)
    weight: float = 1.0
    beta: float = 0.5


DEFAULT = Config(KEEPING)
STRENGTHS = tuple(replace(DEFAULT, weight=w) for w in (0.1, 0.3, 1.0))
"""Tried from the weakest on."""


def unlearn(model: Any, target: Target, config: Config = DEFAULT, seed: int = 0) -> Arm:
    """Makes the answers to forget facts less likely than the original has them; trains on the rest.

    Source: Zhang et al. 2024, arXiv 2404.05868, eq. 3, as NPO+RT. Differs: only `first_half`
    changes; the ratio is of log-probabilities, never of raw logits as in muse_bench; beta is larger
    than their 0.1, so that it lets go within few steps.
    """
    forget = below(model, config.beta)
    return descended("npo", model, target, config, seed, forget, keep=labelled, chosen=first_half)


def below(model: Any, beta: float) -> Forget:
    """(2/beta) · mean log(1 + (p/p0)^beta), with p0 of `model` and p of the whole answer."""

    def forget(now: Any, batch: list[Told]) -> Float[Tensor, ""]:
        with torch.no_grad():
            before = answer_logp(model, batch)
        return preference_loss(before - answer_logp(now, batch), beta)

    return forget
