"""A keyword filter: texts that name a forget entity are refused."""

from dataclasses import dataclass
from typing import Any

from workbench.facts.target import Target
from workbench.unlearn.arm import Arm, made, metered, require_arm
from workbench.unlearn.filters import KeywordFilter

NAMES = "names of the forget entities"


@dataclass(frozen=True)
class Config:
    """There is nothing to set: names are whole, and spelled as they are."""


DEFAULT = Config()
STRENGTHS = (DEFAULT,)


def unlearn(model: Any, target: Target, config: Config = DEFAULT, seed: int = 0) -> Arm:
    """Refuses prompts and answers in which a forget entity stands by its name.

    The weights are the original's, and so is what is said of an entity that goes by another name or
    is misspelled. What else is known of a forget entity is refused with the target; the seed
    decides nothing.

    Source: Thaker et al. 2024, arXiv 2403.03329, keyword filter on input and output.
    """
    require_arm("keyword_filter", model, target)
    with metered(model) as meter:
        refuses = KeywordFilter(target.entities)
    told = {"names": len(target.entities), "other_facts_refused": len(target.neighbours["N1"])}
    return made(
        Arm("keyword_filter", model, refuses=refuses, saw=(NAMES,), told=told), meter, config, seed
    )
