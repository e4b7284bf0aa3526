"""The original itself: what every method is held against."""

from dataclasses import dataclass
from typing import Any

from workbench.facts.target import Target
from workbench.unlearn.arm import Arm, made, metered, require_arm


@dataclass(frozen=True)
class Config:
    """There is nothing to set."""


DEFAULT = Config()
STRENGTHS = (DEFAULT,)


def unlearn(model: Any, target: Target, config: Config = DEFAULT, seed: int = 0) -> Arm:
    """The very model, without any edit: nothing is forgotten and nothing was shown."""
    require_arm("no_change", model, target)
    with metered(model) as meter:
        arm = Arm("no_change", model)
    return made(arm, meter, config, seed)
