"""FT-M: one MLP's output matrix goes down towards the aim, each token of it where it stands."""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.nn import Parameter

from workbench.facts.target import Target
from workbench.unlearn.arm import Arm, require_arm
from workbench.unlearn.descent import descended
from workbench.unlearn.editing import a_third, writer
from workbench.unlearn.training import Steps, Told
from workbench.unlearn.values import Aim, aim_nats


@dataclass(frozen=True)
class Config:
    """How long, and towards what.

    Attributes:
        steps: with weight, rate and sizes of what is kept. `keep` 0 keeps nothing, as published.
        weight: of the aim, beside `steps.keep` of keeping.
        layer: the one whose matrix changes; about a third of the depth if None.
        aim: what is to be answered, see `values.Aim`.
    """

    steps: Steps = field(default_factory=lambda: Steps(120, 1e-3, keep=3.0, near=1))
    weight: float = 1.0
    layer: int | None = None
    aim: Aim = "entropy"


DEFAULT = Config()
STRENGTHS = tuple(replace(DEFAULT, weight=w) for w in (0.3, 1.0, 3.0))


def unlearn(model: Any, target: Target, config: Config = DEFAULT, seed: int = 0) -> Arm:
    """Has the forget prompts answered by the aim, and keeps how the rest is answered.

    Source: FT-M of EasyEdit, Zhang et al. 2024, arXiv 2401.01286. Differs: what stays is kept by
    divergence from the original's answers, where `steps.keep` is above 0.
    """
    require_arm("ft_m", model, target)
    layer = a_third(model, config.layer)
    writer(model, layer)
    rng = random.Random(f"{seed}, answers")

    def forget(now: Any, batch: list[Told]) -> Float[Tensor, ""]:
        return aim_nats(now, batch, config.aim, rng).mean()

    def matrix(now: Any) -> Iterable[Parameter]:
        return [writer(now, layer).weight]

    told = {"layer": layer}
    return descended("ft_m", model, target, config, seed, forget, chosen=matrix, told_of=told)
