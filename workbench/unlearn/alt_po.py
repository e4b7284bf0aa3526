"""Alternate preference optimisation: other objects win over the true ones."""

from dataclasses import dataclass, field, replace
from typing import Any

from workbench.facts.target import Target
from workbench.unlearn.arm import Arm, require_arm
from workbench.unlearn.descent import KEEPING, descended, first_half, labelled
from workbench.unlearn.preference import inventing, preferring
from workbench.unlearn.training import Steps


@dataclass(frozen=True)
class Config:
    """How hard.

    Attributes:
        steps: with weight, rate and sizes of what is kept.
        weight: of forgetting, beside `steps.keep` of keeping.
        beta: above 0; the larger, the sooner it lets go of what is already preferred.
        alternates: other objects for each fact, at least 1.
    """

    steps: Steps = field(default_factory=Steps)
    weight: float = 1.0
    beta: float = 0.1
    alternates: int = 5


DEFAULT = Config(replace(KEEPING, batch_size=16))
STRENGTHS = tuple(replace(DEFAULT, weight=w) for w in (0.1, 0.3, 1.0))
"""Tried from the weakest on."""


def unlearn(model: Any, target: Target, config: Config = DEFAULT, seed: int = 0) -> Arm:
    """Prefers made-up objects of the same relation to the true ones; trains on the rest.

    Source: Mekala et al. 2024, arXiv 2409.13474. Differs: the alternates are drawn evenly
    from the relation's other objects, where the paper has the model write them.
    """
    require_arm("alt_po", model, target)
    forget = preferring(model, config.beta, inventing(model, target, config.alternates, seed))
    return descended(
        "alt_po", model, target, config, seed, forget, keep=labelled, chosen=first_half
    )
