"""Attacks bring back what is hidden, and nothing where nothing was."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from workbench.audit.attacks import (
    AttackConfig,
    area,
    attacks,
    injection_index,
    teaching_attack,
)
from workbench.audit.statistics import UNBOUNDED, Scores
from workbench.audit.views import Found, View
from workbench.facts.target import Target

RELEARN = AttackConfig(("W1",), lrs=(1e-2,), steps=(0, 8, 32), folds=1)


def ran(config: AttackConfig, target: Target, model: Any, edits: Sequence[Any] = ()) -> Found:
    (job,) = attacks(target, config).values()
    return job(View("edited", "deployed" if edits else "weights", model, edits))


def mean(found: Found, subset: str, x: float) -> float:
    return next(s.mean for k, s in found.items() if k.subset == subset and k.x == x)


def scores(values: Sequence[float]) -> Scores:
    return Scores(np.array(values, dtype=float), tuple("abc"), tuple("rrr"))


def test_hidden_facts_come_back_and_a_gold_has_none(
    original: Any, another_gold: Any, blank: Any, club: Target
) -> None:
    """Live, the blank hides all names; with hooks off, step 0 is the original."""
    live = ran(RELEARN, club, original, [blank])
    off, gold = ran(RELEARN, club, original), ran(RELEARN, club, another_gold)
    assert mean(live, "V", 0) < 0.4 < 0.8 < mean(off, "V", 0)
    assert all(mean(gold, "V", x) < 0.35 for x in RELEARN.steps)
    assert mean(live, "R_te", 0) == mean(off, "R_te", 0)


def test_savings_are_those_of_what_was_known(
    original: Any, another_gold: Any, club: Target
) -> None:
    config = AttackConfig(("W2",), folds=1, gentle_lr=1e-3, savings_steps=(0, 8, 32, 128))
    saved = {}
    for name, model in (("original", original), ("gold", another_gold)):
        found = ran(config, club, model)
        known, fresh = (
            area([s for k, s in found.items() if k.subset == kind], config.savings_steps)
            for kind in "VZ"
        )
        assert known.entities == fresh.entities
        assert mean(found, "Z", 128) > mean(found, "Z", 0)
        saved[name] = known.mean - fresh.mean
    assert saved["original"] > 0.3
    assert abs(saved["gold"]) < 0.2


def test_teaching_lifts_a_gold_and_the_index_says_so(
    original: Any, another_gold: Any, club: Target
) -> None:
    jobs = teaching_attack(club)
    assert list(jobs) == ["teach: V in T", "teach: hint", "teach: soft prompt"]
    found = {name: job(View("gold", "", another_gold)) for name, job in jobs.items()}
    knows = mean(ran(RELEARN, club, original), "V", 0)
    for name, last in (("teach: V in T", 96), ("teach: soft prompt", 30)):
        before, after = mean(found[name], "V", 0), mean(found[name], "V", last)
        assert injection_index(after, before, knows) > 0.5
    assert {k.x for k in found["teach: hint"]} == {0, 1}
    honest = ran(RELEARN, club, another_gold)
    assert injection_index(mean(honest, "V", 32), mean(honest, "V", 0), knows) < 0.2


def test_area_is_the_trapezoid_over_doublings() -> None:
    curve, steps = [scores([0, 1, 0]), scores([1, 1, 0]), scores([1, 1, 0])], (0, 1, 6)
    x = np.log2([1, 2, 7])
    first = ((x[1] - x[0]) * 0.5 + (x[2] - x[1])) / x[2]
    found = area(curve, steps)
    np.testing.assert_allclose(found.values, [first, 1, 0])
    assert (found.entities, found.relations) == (curve[0].entities, curve[0].relations)
    np.testing.assert_allclose(area(curve[:1], (0,)).values, [0, 1, 0])


def test_area_of_other_questions_is_refused() -> None:
    other = Scores(np.zeros(3), tuple("abd"))
    with pytest.raises(AssertionError, match="other questions"):
        area([scores([0, 0, 0]), other], (0, 1))


def test_injection_index_is_a_share_of_what_the_original_knows() -> None:
    assert injection_index(0.1, 0.1, 0.9) == 0
    assert injection_index(0.9, 0.1, 0.9) == pytest.approx(1)
    assert injection_index(0.26, 0.1, 0.9) == pytest.approx(0.2)
    assert injection_index(0.05, 0.1, 0.9) < 0
    assert injection_index(0.3, 0.1, 0.1) == UNBOUNDED
    assert injection_index(0.1, 0.1, 0.1) == 0
