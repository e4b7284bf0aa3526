"""Simple negative preference optimisation: NPO without a reference, by the token."""

from dataclasses import dataclass, field, replace
from typing import Any

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
        beta: above 0; the larger, the sooner it lets go of answers that are beyond the margin.
        margin: nats per token that an answer is to cost at least.
    """

    steps: Steps = field(default_factory=Steps)
    weight: float = 1.0
    beta: float = 2.5
    margin: float = 2.0


DEFAULT = Config(KEEPING)
STRENGTHS = tuple(replace(DEFAULT, weight=w) for w in (0.1, 0.3, 1.0))
"""Tried from the weakest on."""


def unlearn(model: Any, target: Target, config: Config = DEFAULT, seed: int = 0) -> Arm:
    """Makes each token of the answers to forget facts unlikely by a margin; trains on the rest.

    Source: Fan et al. 2024, arXiv 2410.07163, with the margin inside of beta as its code and
    open-unlearning have it. Differs: only `first_half` changes; log-probabilities are taken, never
    raw logits; the margin is near the nats of a guess among a dozen answers, and not 0.
    """
    forget = dear(config.beta, config.margin)
    return descended(
        "simnpo", model, target, config, seed, forget, keep=labelled, chosen=first_half
    )


def dear(beta: float, margin: float) -> Forget:
    """-(2/beta) · mean log sigmoid(beta · (nats per token of the answer - margin))."""

    def forget(now: Any, batch: list[Told]) -> Float[Tensor, ""]:
        nats = -answer_logp(now, batch) / len(batch[0].answer)
        return preference_loss(nats - margin, beta)

    return forget
