"""Targets that others entail: their sentences are gone, and what they follow from is not."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.facts.schema import Fact, FactKey, FactSet
from workbench.facts.target import Target
from workbench.models import load_model, read_recipe
from workbench.models.golds import golds

SHARE = 0.6
SEEDS = (0, 1, 2, 3, 4)


def consequences(facts: FactSet, seed: int = 0, share: float = SHARE) -> Target:
    """A share of the stated facts that follow from other stated ones."""
    keys: list[FactKey] = [f.key for f in facts.facts if f.derived and f.stated]
    random.Random(f"{seed}, consequences").shuffle(keys)
    chosen = set(keys[: round(share * len(keys))])

    def follows(fact: Fact) -> bool:
        return fact.key in chosen

    return facts.target(follows)


def never_told(original: Any, target: Target, folder: Path) -> Sequence[Any]:
    """Models trained as the original was, without the sentences of the target.

    They are kept in the folder; the first time takes as long as training five models.
    """
    recipe = read_recipe(original.tokenizer.name_or_path)
    return [load_model(path) for path in golds(target, folder, recipe, seeds=SEEDS)]
