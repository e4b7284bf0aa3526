"""W7: does a little noise on the weights bring the target back?"""

import hashlib
from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.audit.attacks.altered import Change, score_whole, unchanged
from workbench.audit.attacks.config import AttackConfig
from workbench.audit.statistics import Key
from workbench.audit.views import Found, Measure, View
from workbench.facts.target import Target


def noise_jobs(target: Target, config: AttackConfig, seed: int = 0) -> dict[str, Measure]:
    """W7, one job: Gaussian noise on all parameters, in several draws and strengths.

    Each draw is a setting, so that the auditor chooses among them on S and not by what is scored.
    A draw is one direction in the space of weights, gone along by the dose. Nothing is fitted, so
    all forget facts are scored.

    Source: Tice et al. 2024, 2412.01784. Differs: scaled by the
    spread of each tensor, and chosen on other facts than are scored.
    """
    sigmas = config.perturbing.sigmas
    draws = {f"draw {i}": f"{seed}, draw {i}" for i in range(config.perturbing.draws)}
    return {"W7": partial(shake, target=target, draws=draws, sigmas=sigmas)} if sigmas else {}


def shake(view: View, target: Target, draws: dict[str, str], sigmas: Sequence[float]) -> Found:
    """Centred hits on F and R_te before and after each strength of each draw.

    Args:
        draws: setting to the text that its random numbers depend on.
    """
    before, found = unchanged(view, target, "W7"), Found()
    for setting, order in draws.items():
        changes = {sigma: _noise(order, sigma) for sigma in sigmas}
        label = Key("W7", "", "centred", setting)
        found |= score_whole(view, target, changes, label, before)
    return found


def noisy(
    weight: Float[Tensor, "*shape"], sigma: float, generator: torch.Generator
) -> Float[Tensor, "*shape"]:
    """The weights with noise of `sigma` times their own standard deviation.

    A tensor of one value, which has no spread, stays as it is.

    Args:
        generator: on the CPU, so that all devices get the same noise.
    """
    drawn = torch.randn(weight.shape, generator=generator)
    if weight.numel() < 2:
        return weight
    wide = weight.float()
    return (wide + sigma * wide.std() * drawn.to(weight.device)).to(weight.dtype)


def _noise(order: str, sigma: float) -> Change:
    """Draws each parameter by its name, so that their order does not matter."""

    def change(name: str, weight: Tensor) -> Tensor:
        return noisy(weight, sigma, _generator(f"{order}, {name}"))

    return change


def _generator(order: str) -> torch.Generator:
    digest = hashlib.sha256(order.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") % 2**63)
