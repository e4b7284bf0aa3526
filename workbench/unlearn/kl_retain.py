"""Gradient ascent with KL divergence: up the loss of forget facts, near the original elsewhere."""

from dataclasses import replace
from typing import Any

from workbench.facts.target import Target
from workbench.unlearn.arm import Arm
from workbench.unlearn.descent import KEEPING, DescentConfig, descended, first_half
from workbench.unlearn.grad_ascent import forget

Config = DescentConfig
DEFAULT = Config(KEEPING)
STRENGTHS = tuple(replace(DEFAULT, weight=w) for w in (0.1, 0.3, 1.0))
"""Tried from the weakest on."""


def unlearn(model: Any, target: Target, config: Config = DEFAULT, seed: int = 0) -> Arm:
    """Makes the answers to forget facts unlikely, without a bound, and keeps all other answers.

    Source: Maini et al. 2024, arXiv 2401.06121, section 3 ("KL minimization"). Differs: the
    divergence is that of log-probabilities, not of raw logits as in muse_bench, and of the next
    token after a question and of all tokens of a text, none of them padding.
    """
    return descended("kl_retain", model, target, config, seed, forget, chosen=first_half)
