"""Gradient difference: up the loss of forget facts, while what is to stay is kept."""

from dataclasses import replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from workbench.facts.target import Target
from workbench.unlearn.arm import Arm
from workbench.unlearn.descent import DescentConfig, descended
from workbench.unlearn.training import Steps, Told, answer_logp

Config = DescentConfig
DEFAULT = Config(Steps(120, 1e-3, keep=3.0, near=1))
STRENGTHS = tuple(replace(DEFAULT, weight=w) for w in (0.3, 1.0, 3.0))
"""Tried from the weakest on."""


def unlearn(model: Any, target: Target, config: Config = DEFAULT, seed: int = 0) -> Arm:
    """Makes the answers to forget facts unlikely, without a bound, and keeps the rest.

    Source: Liu et al. 2022, arXiv 2203.12817; as GradDiff in Maini et al. 2024, arXiv 2401.06121.
    Differs: what is retained is kept by divergence from the original's answers, not by its labels.
    """

    def forget(now: Any, batch: list[Told]) -> Float[Tensor, ""]:
        return answer_logp(now, batch).mean()

    return descended("grad_diff", model, target, config, seed, forget)
