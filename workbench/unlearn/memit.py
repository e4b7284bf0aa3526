"""MEMIT: all keys get their new values at once, a share in each of several layers."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.facts.target import Target
from workbench.unlearn.arm import Arm
from workbench.unlearn.spread import spread
from workbench.unlearn.values import Values


@dataclass(frozen=True)
class Config:
    """How far values are moved, and what holds them.

    Attributes:
        last: the highest layer that is edited; about a third of the depth if None.
        layers: how many are edited, up to the last.
        hold: weight of the second moment of retained keys, in tokens.
        texts: retained texts that it is taken from, at most.
    """

    last: int | None = None
    layers: int = 2
    values: Values = field(default_factory=Values)
    hold: float = 1.5e5
    texts: int = 2500


DEFAULT = Config()
STRENGTHS = tuple(replace(DEFAULT, hold=h) for h in (3e5, 1.5e5, 6e4))


def unlearn(model: Any, target: Target, config: Config = DEFAULT, seed: int = 0) -> Arm:
    """Gives the subjects' keys values that say the aim, in one least-squares fit per layer.

    The claim is none: what is read elsewhere than at the subject's last token is as it was.

    Source: Meng et al. 2023, arXiv 2210.07229, eq. 14 and algorithm 1. Differs: one change
    of value per subject, for all its facts, found as `found_changes` says; a key for each of its
    contexts, not their mean; the second moment is of the world's retained texts; prefixes are its
    neutral sentences, by seed.
    """

    def solve(residual: Tensor, keys: Tensor, moment: Tensor) -> tuple[Tensor, dict[str, Any]]:
        return fitted(residual, keys, moment, config.hold), {}

    return spread("memit", model, target, config, seed, solve)


def fitted(
    residual: Float[Tensor, "n d_model"],
    keys: Float[Tensor, "n k"],
    moment: Float[Tensor, "k k"],
    hold: float,
) -> Float[Tensor, "d_model k"]:
    """The change D that has the least sum of |D key - residual|² + hold · E|D retained key|²."""
    normal = hold * moment + keys.T @ keys
    return torch.linalg.solve(normal, keys.T @ residual).T
