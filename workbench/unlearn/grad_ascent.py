"""Gradient ascent: up the loss of forget facts, and nothing else."""

from dataclasses import replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from workbench.facts.target import Target
from workbench.unlearn.arm import Arm
from workbench.unlearn.descent import DescentConfig, descended
from workbench.unlearn.training import Steps, Told, answer_logp

Config = DescentConfig
DEFAULT = Config(Steps(10, 1e-3, keep=0.0))
STRENGTHS = tuple(Config(replace(DEFAULT.steps, steps=n)) for n in (5, 10, 20))


def unlearn(model: Any, target: Target, config: Config = DEFAULT, seed: int = 0) -> Arm:
    """Makes the answers to forget facts unlikely; nothing keeps the rest but an early end.

    Source: Jang et al. 2022, arXiv 2210.01504, eq. 2. Differs: only MLPs change, as in all methods
    here that go down a loss, and the log-probability is that of the answer alone.
    """

    def forget(now: Any, batch: list[Told]) -> Float[Tensor, ""]:
        return answer_logp(now, batch).mean()

    return descended("grad_ascent", model, target, config, seed, forget)
