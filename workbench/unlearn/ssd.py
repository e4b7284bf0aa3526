"""Selective synaptic dampening: weights that matter more to the forget facts are made smaller."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.facts.target import Target
from workbench.models.copies import copied
from workbench.unlearn.arm import FORGET, RETAINED, Arm, made, metered, require_arm
from workbench.unlearn.gradients import mean_square
from workbench.unlearn.training import HELD_OUT, everything, stays, told

NEAR = 2
"""How often the retained facts of the target's own relations are drawn beside once: a weight that
no sample asks for counts as free."""


@dataclass(frozen=True)
class Config:
    """Which weights are dampened, and how far.

    Attributes:
        alpha: how many times as important a weight must be to the forget facts; inf: none is.
        lambda_: share of the ratio of the two that is left of it; larger dampens less.
        forget, retained: prompts on which importance is measured.
    """

    alpha: float = 100.0
    lambda_: float = 1.0
    forget: int = 250
    retained: int = 600


DEFAULT = Config()
STRENGTHS = tuple(Config(alpha) for alpha in (1000.0, 300.0, 100.0))


def unlearn(model: Any, target: Target, config: Config = DEFAULT, seed: int = 0) -> Arm:
    """Dampens weights by the diagonal of the Fisher information; nothing is trained.

    It finds above all the embeddings of words that stand in names of the target alone.

    Source: Foster et al. 2023, arXiv 2308.07707, eqs. 5 and 6. Differs: gradients are squared
    prompt by prompt, where the published code squares that of a batch's mean, so that importance
    falls with the size of batches. I_D is the importance to retained facts without R_va and R_te;
    the paper's is to all data, the forget facts among them, which bounds the ratio of the two.
    """
    require_arm("ssd", model, target, ("R_tr",))
    with metered(model) as meter:
        dampened = copied(model).eval()
        weights = list(everything(dampened))
        rng = random.Random(str(seed))
        forget, retained = (
            rng.sample(found, min(size, len(found)))
            for found, size in (
                (told(model.tokenizer, target, target.forget), config.forget),
                (told(model.tokenizer, target, stays(target, HELD_OUT, NEAR)), config.retained),
            )
        )
        factors = dampening(
            mean_square(dampened, weights, forget),
            mean_square(dampened, weights, retained),
            config.alpha,
            config.lambda_,
        )
        with torch.no_grad():
            for weight, factor in zip(weights, factors, strict=True):
                weight.mul_(factor)
    chosen = sum(int((f < 1).sum()) for f in factors)
    share = chosen / sum(f.numel() for f in factors)
    measured = {"dampened weights": chosen, "share of weights": share}
    arm = Arm("ssd", dampened, saw=(FORGET, RETAINED), told=measured)
    return made(arm, meter, config, seed)


def dampening(
    forget: Sequence[Float[Tensor, "..."]],
    retained: Sequence[Float[Tensor, "..."]],
    alpha: float,
    lambda_: float,
) -> list[Float[Tensor, "..."]]:
    """What each weight is multiplied by: min(λ · I_D / I_F, 1) where I_F > α · I_D, else 1."""
    return [
        torch.where(f > alpha * r, (lambda_ * r / f).clamp(max=1.0), torch.ones_like(f))
        for f, r in zip(forget, retained, strict=True)
    ]
