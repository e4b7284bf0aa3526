"""How strong a method is to be: one rule for all, on facts that no verdict rests on alone."""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from workbench.errors import TargetError
from workbench.facts.target import Target
from workbench.unlearn.arm import Arm, settings_of
from workbench.unlearn.methods import Method
from workbench.unlearn.system import system_recall

MOST_LOSS = 0.03
"""Largest share of a gold's recall of what stays that a strength may cost."""
SAMPLE = 400
"""Unrelated facts that are asked."""


@dataclass(frozen=True)
class Trial:
    """A strength that was tried.

    Attributes:
        forget: recall of the S fold, audit templates.
        retained, unrelated: recall of R_va, and of a sample of unrelated facts.
        utility: the lower of the two as a share of what golds recall.
    """

    strength: int
    config: dict[str, Any]
    forget: float
    retained: float
    unrelated: float
    utility: float
    seconds: float
    chosen: bool = False


def choose_strength(
    method: Method, model: Any, target: Target, golds: Sequence[Any], seed: int = 0
) -> tuple[Arm, list[Trial]]:
    """Tries each of a method's strengths and keeps the one that forgets most at little cost.

    Of the strengths whose utility is within 3 % of the golds', the one with the lowest recall of S
    wins, the first of equals; where none is, the one of the highest utility. Recall below the
    golds' counts as theirs: forgetting more than one who never knew is no gain. Methods are shown
    S in training templates; the choice is by audit templates, and neither V nor R_te has a part.

    Raises:
        TargetError: nothing to choose on.
    """
    s, kept = target.fold("S"), target.retain.get("R_va", ())
    if not s or not kept:
        raise TargetError(
            f"target {target.name!r} has no S fold or no R_va to choose a strength on: give a "
            "larger target, or call the method with a config of your own"
        )
    unrelated = [f for f in target.neighbours["U"] if f.stated and f.audit_templates]
    unrelated = random.Random(seed).sample(unrelated, min(SAMPLE, len(unrelated)))
    asked = (s, kept, unrelated or kept)
    references = [_recalls(Arm("gold", gold), target, asked) for gold in golds or (model,)]
    floor, *ceilings = (sum(r) / len(references) for r in zip(*references, strict=True))
    if not golds:
        floor = 0.0
    trials, best = [], None
    for i, config in enumerate(method.strengths):
        arm = method.arm(model, target, config, seed)
        found = _recalls(arm, target, asked)
        utility = min(f / c for f, c in zip(found[1:], ceilings, strict=True))
        trial = Trial(i, settings_of(config), *found, utility, arm.cost.seconds)
        trials.append(trial)
        if best is None or _order(trial, floor) < _order(trials[best[0]], floor):
            best = (i, arm)
    assert best is not None, f"{method.name} has no strength to try"
    chosen, arm = best
    marked = [Trial(**{**asdict(t), "chosen": t.strength == chosen}) for t in trials]
    return arm, marked


def _recalls(arm: Arm, target: Target, asked: Sequence[Any]) -> tuple[float, float, float]:
    forget, retained, unrelated = (system_recall(arm, target.facts, facts) for facts in asked)
    return forget, retained, unrelated


def _order(trial: Trial, floor: float) -> tuple[bool, float, float]:
    """Lower is better."""
    harmless = trial.utility >= 1 - MOST_LOSS
    return (False, max(trial.forget, floor), 0.0) if harmless else (True, -trial.utility, 0.0)
