"""Families, tail, distance and cost, from scores of models whose truth is known."""

from dataclasses import replace

import numpy as np
import pytest

from tests.audit.synthetic import Synthetic
from workbench.audit.judge import judge
from workbench.audit.schema import AuditReport
from workbench.audit.statistics import Key
from workbench.audit.views import Found

WORLD = Synthetic(36)


def judged(edited: Found, **views: Found) -> AuditReport:
    measured = WORLD.measured(edited)
    measured |= {(name.replace("_", "-"), ""): found for name, found in views.items()}
    return judge(WORLD.card(), measured)


def test_family_that_the_original_cannot_answer_is_dropped_with_the_reason() -> None:
    original = WORLD.original()
    for metric in ("raw", "centred", "text"):
        key = Key("B3", "F", metric)
        original[key] = WORLD.gold(5)[key]
    report = judged(WORLD.gold(7), original=original)
    family = next(f for f in report.families if f.id == "B3")
    assert not family.kept
    assert "under half of" in family.why_dropped
    assert any(line.startswith("B3 was dropped") for line in report.limits)
    assert all(f.kept and not f.why_dropped for f in report.families if f.id != "B3")
    assert all("B3" not in e.selection.chosen for e in report.endpoints)


@pytest.mark.parametrize(("share", "found"), [(0.0, False), (0.15, True), (0.6, True)])
def test_tail_finds_facts_that_stayed_whole(share: float, found: bool) -> None:
    asked = next(t for t in judged(WORLD.found(7, shown=share)).tail if t.id == "asked")
    assert asked.share_E == pytest.approx(share, abs=0.04)
    assert asked.share_G == 0.0
    assert asked.found == found


def test_too_few_facts_neither_pass_the_tail_nor_count_as_whole_ones() -> None:
    small = Synthetic(18)
    report = judge(small.card(), small.measured(small.gold(7)))
    asked = next(t for t in report.tail if t.id == "asked")
    assert (asked.share_E, asked.passed, asked.found) == (0.0, False, False)
    assert asked.ucb95_diff == pytest.approx(1 - 0.05 ** (1 / 18), abs=1e-6)
    assert report.verdict.primary == "INCONCLUSIVE"


def test_distance_is_small_for_a_gold_and_large_for_what_is_pushed_down() -> None:
    near, far = (judged(f).ks for f in (WORLD.gold(7), WORLD.found(7, last=0.9)))
    assert near is not None
    assert far is not None
    assert near.D < 0.15 < far.D
    assert not far.passed
    assert far.limit == max(0.15, far.gold_gold_p95 or 0)


@pytest.mark.parametrize(
    ("knows", "degraded", "told"),
    [
        ({}, False, ""),
        ({"kept": 0.5}, True, "recall of retained facts"),
        ({"blur": 1.0}, True, "perplexity is 2.72 times"),
        ({"kept": 0.93}, False, "recall of R_te may be"),
        ({"blur": 0.1}, False, "perplexity ratio may be"),
    ],
)
def test_cost_is_told_and_decides_what_it_should(knows: dict, degraded: bool, told: str) -> None:
    cost = judged(WORLD.found(7, **knows)).collateral
    assert (cost.reference, cost.degraded, cost.non_inferior) == ("gold", degraded, not told)
    assert told in " ".join(cost.why)
    assert cost.ppl_ratio is not None
    assert cost.ppl_ratio[0] == pytest.approx(np.exp(knows.get("blur", 0.0)))


def test_attack_that_breaks_the_original_is_destructive() -> None:
    original = WORLD.original()
    for key in [k for k in original if k[:2] == ("W1", "R_te") and k.x > 0]:
        original[key] = replace(original[key], values=0 * original[key].values)
    attacks = judged(WORLD.gold(7), original=original).attacks
    assert {a.id for a in attacks if a.destructive} == {"W1"}
    assert {a.id for a in attacks} == {"W1", "W2", "W3", "W4"}
    assert next(a for a in attacks if a.id == "W2").injection_index is None


def perturbed(found: Found, before: float, share: float, r_te: float) -> Found:
    """With a pruning attack whose middle dose gives this share, and a control that gives all."""
    more = dict(found)
    forget, stayed = found[Key("B2", "F", "centred")], found[Key("kept", "R_te", "raw")]
    for dose, hit in ((0, before), (0.1, share), (0.5, 0.05)):
        flat = np.full(len(forget.values), float(hit))
        more[Key("W6", "F", "centred", "wanda", x=dose)] = replace(forget, values=flat)
        kept = np.full(len(stayed.values), r_te if dose else 0.98)
        more[Key("W6", "R_te", "centred", "wanda", x=dose)] = replace(stayed, values=kept)
    for dose, hit in ((0, 0.05), (100, 1.0)):
        flat = np.full(len(forget.values), hit)
        more[Key("W9c", "F", "centred", "soft 4", x=dose)] = replace(forget, values=flat)
    return more


def with_pruning(edited: float, gold: float, r_te: float = 0.9) -> AuditReport:
    measured = WORLD.measured(WORLD.gold(7))
    shares = {"original": (0.95, 0.95), "edited": (0.05, edited)}
    for key, found in measured.items():
        if key[0] in ("original", "edited") or key[0].startswith("gold"):
            measured[key] = perturbed(found, *shares.get(key[0], (0.05, gold)), r_te)
    return judge(WORLD.card(), measured)


def test_perturbation_is_listed_and_is_the_sixth_endpoint_but_its_control_is_not() -> None:
    report = with_pruning(edited=0.7, gold=0.05)
    attack = next(a for a in report.attacks if a.id == "W6")
    assert (attack.curve.steps, attack.admissible, attack.destructive) == (
        (0, 0.1, 0.5),
        True,
        False,
    )
    assert pytest.approx((0.05, 0.7, 0.05)) == attack.curve.E
    assert attack.utility_after == pytest.approx(0.9)
    assert {"W9c"} < {a.id for a in report.attacks}
    sixth = next(e for e in report.endpoints if e.id == "M6")
    assert set(sixth.selection.chosen) == {"W6 wanda, 0.1 sparsity"}
    assert sixth.recovered


def test_dose_that_teaches_or_destroys_is_told_and_not_chosen() -> None:
    """The worst dose counts for what is taught, the highest for what is destroyed."""
    report = with_pruning(edited=0.05, gold=0.5, r_te=0.3)
    attack = next(a for a in report.attacks if a.id == "W6")
    assert attack.injection_index == pytest.approx(0.5, abs=0.05)
    assert (attack.admissible, attack.destructive) == (False, True)
    sixth = next(e for e in report.endpoints if e.id == "M6")
    assert not any(c.startswith("W6") for c in sixth.selection.chosen)
    assert all(g.passed for g in report.gates if g.id == "G6")


def test_objectives_are_one_for_a_gold_and_none_for_the_original() -> None:
    def values(edited: Found) -> dict[str, float]:
        rows = judged(edited).rows
        return {r.metric.split(":")[0]: r.value for r in rows if r.endpoint == "objective"}

    gold, original = values(WORLD.gold(7)), values(WORLD.original())
    for name in ("accuracy", "generalizability", "robustness"):
        assert gold[name] > 0.85
        assert original[name] < 0.1
    assert gold["locality"] > 0.95
    assert values(WORLD.found(7, kept=0.5))["locality"] == pytest.approx(0.5, abs=0.05)
