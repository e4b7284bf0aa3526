"""UNDO: suppressed, perturbed, and taught again by itself without the forget facts."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.facts.target import Target
from workbench.models.copies import copied
from workbench.unlearn.arm import Arm, made, metered, require_arm
from workbench.unlearn.descent import descended
from workbench.unlearn.training import (
    HELD_OUT,
    Steps,
    Told,
    answer_logp,
    changed,
    everything,
    kept,
)


@dataclass(frozen=True)
class Config:
    """How the facts are suppressed, how much is forgotten with them, and how it is taught again.

    Attributes:
        alpha: share of the weights that is lost: 0 perturbs nothing, 1 leaves nothing of them.
        beta: size of the noise in their place, 1 for that of a new model.
        weight: of suppressing, beside `steps.keep` of keeping.
        steps: of suppressing.
        teach: steps of teaching; its `keep` has no part.
    """

    alpha: float = 0.05
    beta: float = 0.1
    weight: float = 1.0
    steps: Steps = field(default_factory=lambda: Steps(100, 1e-3, keep=6.0, near=4))
    teach: Steps = field(default_factory=lambda: Steps(120, 5e-4, asked=32, texts=32, near=4))


DEFAULT = Config()
STRENGTHS = (replace(DEFAULT, alpha=0.02, weight=0.3), DEFAULT, replace(DEFAULT, alpha=0.1))


def unlearn(model: Any, target: Target, config: Config = DEFAULT, seed: int = 0) -> Arm:
    """Passes on what a suppressed model says of the rest to a damaged copy of it.

    What was suppressed and not erased is not passed on, so far as the damage reached it; with a
    small alpha that is not far.

    Source: Lee et al. 2025, arXiv 2506.06278, algorithm 1. Differs: the facts are suppressed by
    gradient ascent with the rest kept by divergence; noise has the size of Xavier's by matrix,
    norms and biases are drawn to their first values 1 and 0, and teaching lasts a fixed number of
    steps.
    """
    require_arm("undo", model, target, ("R_tr",))

    def forget(now: Any, batch: list[Told]) -> Float[Tensor, ""]:
        return answer_logp(now, batch).mean()

    with metered(model) as meter:
        suppressed = descended("undo", model, target, config, seed, forget)
        damaged = perturbed(suppressed.model, config.alpha, config.beta, seed)
        passed_on = kept(suppressed.model, target, config.teach, seed, HELD_OUT)
        taught = changed(damaged, passed_on, config.teach, everything)
    return made(replace(suppressed, model=taught), meter, config, seed)


@torch.no_grad()
def perturbed(model: Any, alpha: float, beta: float, seed: int) -> Any:
    """A copy of weights (1 - alpha) * weights + alpha * beta * noise.

    Norms and biases, which new models start at 1 and 0, are drawn there in place of noise.
    """
    found, generator = copied(model), torch.Generator().manual_seed(seed)
    for name, weight in found.named_parameters():
        if not weight.is_floating_point():
            continue
        fresh = _noise(name, weight, beta, generator)
        weight.copy_((1 - alpha) * weight + alpha * fresh.to(weight))
    return found


def _noise(
    name: str, weight: Tensor, beta: float, generator: torch.Generator
) -> Float[Tensor, "..."]:
    """Of a weight's shape, on the CPU, so that a seed means the same on every device."""
    if weight.ndim < 2:
        return torch.zeros(weight.shape) if name.endswith("bias") else torch.ones(weight.shape)
    scale = (2 / (weight.shape[-1] + weight.shape[-2])) ** 0.5
    return beta * scale * torch.randn(weight.shape, generator=generator)
