"""Gradient difference: up the loss of forget facts, down that of what is to stay."""

from dataclasses import replace
from typing import Any

from workbench.facts.target import Target
from workbench.unlearn.arm import Arm
from workbench.unlearn.descent import KEEPING, DescentConfig, descended, first_half, labelled
from workbench.unlearn.grad_ascent import forget

Config = DescentConfig
DEFAULT = Config(KEEPING)
STRENGTHS = tuple(replace(DEFAULT, weight=w) for w in (0.1, 0.3, 1.0))
"""Tried from the weakest on."""


def unlearn(model: Any, target: Target, config: Config = DEFAULT, seed: int = 0) -> Arm:
    """Makes the answers to forget facts unlikely, without a bound, and trains on the rest.

    Source: Liu et al. 2022, arXiv 2203.12817; as GradDiff in Maini et al. 2024, arXiv 2401.06121.
    Differs: the loss of what is to stay is that of answers and of texts, each with its weight.
    """
    return descended(
        "grad_diff", model, target, config, seed, forget, keep=labelled, chosen=first_half
    )
