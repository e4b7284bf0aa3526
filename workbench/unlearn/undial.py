"""Self-distillation with adjusted logits: the original, but for the true object, is the teacher."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.facts.target import Target
from workbench.models.score import device_of, next_logits
from workbench.unlearn.arm import Arm
from workbench.unlearn.descent import KEEPING, Forget, descended, first_half, labelled
from workbench.unlearn.training import Steps, Told, prompts


@dataclass(frozen=True)
class Config:
    """How hard.

    Attributes:
        steps: with weight, rate and sizes of what is kept.
        weight: of forgetting, beside `steps.keep` of keeping.
        beta: what the teacher's logit of the true token is lowered by.
    """

    steps: Steps = field(default_factory=Steps)
    weight: float = 1.0
    beta: float = 10.0


DEFAULT = Config(KEEPING, weight=3.0)
STRENGTHS = tuple(replace(DEFAULT, weight=w) for w in (0.3, 1.0, 3.0))
"""Tried from the weakest on."""


def unlearn(model: Any, target: Target, config: Config = DEFAULT, seed: int = 0) -> Arm:
    """Teaches the answers that the original gives once the true object is taken from it.

    Source: Dong et al. 2024, arXiv 2402.10052. Differs: the loss is that of answer
    tokens alone, where open-unlearning averages over prompt and padding too, and what is to stay is
    trained on, as its heirs do; `first_half` changes and not adapters.
    """
    forget = distilled(model, config.beta)
    return descended(
        "undial", model, target, config, seed, forget, keep=labelled, chosen=first_half
    )


def distilled(model: Any, beta: float) -> Forget:
    """Cross-entropy with the teacher's distribution, in nats per answer token."""

    def forget(now: Any, batch: list[Told]) -> Float[Tensor, ""]:
        tokens, length = prompts(batch, device_of(now), answered=True), len(batch[0].answer)
        with torch.no_grad():
            before = next_logits(model, tokens)[:, -length - 1 : -1].float()
            wanted = lowered(before, tokens[:, -length:], beta).softmax(-1)
        after = next_logits(now, tokens)[:, -length - 1 : -1].float().log_softmax(-1)
        return -(wanted * after).sum(-1).mean()

    return forget


def lowered(
    logits: Float[Tensor, "n tokens vocab"], answer: Int[Tensor, "n tokens"], beta: float
) -> Float[Tensor, "n tokens vocab"]:
    """The logits with `beta` taken from that of each true token."""
    return logits.scatter_add(-1, answer[..., None], logits.new_full((*answer.shape, 1), -beta))
