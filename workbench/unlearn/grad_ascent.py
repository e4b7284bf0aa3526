"""Gradient ascent: up the loss of forget facts, and nothing else."""

from dataclasses import replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from workbench.facts.target import Target
from workbench.unlearn.arm import Arm
from workbench.unlearn.descent import DescentConfig, descended, first_half
from workbench.unlearn.training import Steps, Told, answer_logp

Config = DescentConfig
DEFAULT = Config(Steps(10, 1e-3, keep=0.0))
STRENGTHS = tuple(Config(replace(DEFAULT.steps, steps=n)) for n in (5, 10, 20))
"""Tried from the weakest on."""


def unlearn(model: Any, target: Target, config: Config = DEFAULT, seed: int = 0) -> Arm:
    """Makes the answers to forget facts unlikely; nothing keeps the rest but an early end.

    Source: Jang et al. 2022, arXiv 2210.01504, eq. 2. Differs: only `first_half` changes,
    and the log-probability is that of the answer alone.
    """
    return descended("grad_ascent", model, target, config, seed, forget, chosen=first_half)


def forget(now: Any, batch: list[Told]) -> Float[Tensor, ""]:
    """Mean log-probability of the true objects, in nats: without a bound below."""
    return answer_logp(now, batch).mean()
