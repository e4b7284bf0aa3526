"""Weighted gradient ascent: up the loss of forget facts, the more the surer the model still is."""

from dataclasses import dataclass, field, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from workbench.facts.target import Target
from workbench.unlearn.arm import Arm
from workbench.unlearn.descent import KEEPING, Forget, descended, first_half, labelled
from workbench.unlearn.preference import spoken_logp
from workbench.unlearn.training import Steps, Told


@dataclass(frozen=True)
class Config:
    """How hard.

    Attributes:
        steps: with weight, rate and sizes of what is kept.
        weight: of forgetting, beside `steps.keep` of keeping.
        beta: power of a token's probability that weighs it; 0 is gradient ascent.
    """

    steps: Steps = field(default_factory=Steps)
    weight: float = 1.0
    beta: float = 1.0


DEFAULT = Config(KEEPING)
STRENGTHS = tuple(replace(DEFAULT, weight=w) for w in (0.1, 0.3, 1.0))
"""Tried from the weakest on."""


def unlearn(model: Any, target: Target, config: Config = DEFAULT, seed: int = 0) -> Arm:
    """Makes the answers to forget facts unlikely, ever more slowly; trains on the rest.

    Source: Wang et al. 2025, arXiv 2502.19301. Differs: only `first_half` changes.
    """
    return descended(
        "wga", model, target, config, seed, surest(config.beta), keep=labelled, chosen=first_half
    )


def surest(beta: float) -> Forget:
    """Mean over answer tokens of p^beta · log p, where the weight p^beta has no gradient."""

    def forget(now: Any, batch: list[Told]) -> Float[Tensor, ""]:
        return weighted(spoken_logp(now, batch, [t.answer for t in batch]), beta)

    return forget


def weighted(logp: Float[Tensor, "n tokens"], beta: float) -> Float[Tensor, ""]:
    """Mean of p^beta · log p, the weight detached."""
    return ((beta * logp.detach()).exp() * logp).mean()
