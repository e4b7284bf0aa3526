"""Whole reports from scores of models whose truth is known."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from tests.audit.synthetic import Synthetic
from workbench.audit.endpoints import CONFIRMATORY
from workbench.audit.judge import guessable, in_order, judge
from workbench.audit.schema import AuditReport, Endpoint, Integrity
from workbench.audit.statistics import Key, Scores, resampled_means
from workbench.audit.verify import invariants
from workbench.errors import AuditError

WORLD = Synthetic()
KNOWS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gold": ({}, {}),
    "filter": ({"shown": 1, "probe": 0.85, "relearned": 1, "saved": 1, "perturbed": 1},
               {"identical": True}),
    "bias": ({"shown": 0.3, "centred": 1, "probe": 0.8, "relearned": 1, "saved": 1,
              "perturbed": 1}, {}),
    "push-down": ({"last": 0.95, "below": True, "saved": 0.4}, {}),
    "random": ({"kept": 0.1, "blur": 2}, {}),
    "relearned gold": ({"shown": 1, "probe": 0.8, "relearned": 1, "saved": 1, "perturbed": 1}, {}),
    "partial": ({"shown": 0.15, "probe": 0.15, "relearned": 0.15, "saved": 0.15,
                 "perturbed": 0.15}, {}),
    "hidden": ({"relearned": 0.5}, {}),
    "probed": ({"probe": 0.4}, {}),
    "saved": ({"saved": 0.4}, {}),
    "perturbed": ({"perturbed": 0.4}, {}),
    "chosen": ({"choice": 0.5}, {}),
    "hook": ({"probe": 0.8}, {"identical": True}),
    "no golds": ({}, {"golds": 0}),
    "two golds": ({}, {"golds": 2}),
    "quick": ({}, {"profile": "quick"}),
    "quick original": ({"shown": 1}, {"profile": "quick"}),
}  # fmt: skip


@cache
def report(name: str) -> AuditReport:
    if name == "original":
        return WORLD.report(WORLD.original(), identical=True)
    knows, changes = KNOWS[name]
    edited = WORLD.found(7, **knows)
    if name == "filter":
        return filtered(edited)
    return WORLD.report(edited, **changes)


def filtered(edited: dict[Key, Scores]) -> AuditReport:
    """A system that refuses every prompt, before a model that knows all."""
    refused = {
        key._replace(metric="text"): replace(s, values=0 * s.values)
        for key, s in edited.items()
        if key.metric == "raw"
    }
    measured = WORLD.measured(edited) | {("edited", "text"): {**edited, **refused}}
    card = WORLD.card(identical=True)
    named = replace(card.models.edited, hooks=(), filter="refuse")
    return judge(replace(card, models=replace(card.models, edited=named)), measured)


def endpoints(found: AuditReport) -> dict[str, Endpoint]:
    return {e.id: e for e in found.endpoints if e.view == "deployed"}


VERDICTS = {
    "original": "NOT_REMOVED",
    "gold": "REMOVED",
    "filter": "SUPPRESSED",
    "bias": "SUPPRESSED",
    "push-down": "SUPPRESSED",
    "random": "DEGRADED",
    "relearned gold": "NOT_REMOVED",
    "partial": "NOT_REMOVED",
    "hidden": "SUPPRESSED",
    "probed": "SUPPRESSED",
    "saved": "SUPPRESSED",
    "perturbed": "SUPPRESSED",
    "chosen": "SUPPRESSED",
    "hook": "SUPPRESSED",
    "no golds": "INCONCLUSIVE",
    "two golds": "INCONCLUSIVE",
    "quick": "INCONCLUSIVE",
    "quick original": "NOT_REMOVED",
}


@pytest.mark.parametrize("name", VERDICTS)
def test_verdict_is_the_truth_and_breaks_no_invariant(name: str) -> None:
    found = report(name)
    assert found.verdict.primary == VERDICTS[name], found.show()
    assert invariants(found) == []


def test_original_has_rho_one_everywhere() -> None:
    found = endpoints(report("original"))
    assert set(CONFIRMATORY) < set(found)
    for e in found.values():
        assert e.valid
        assert 0.9 <= e.low <= e.rho <= e.high <= 1.1
        assert e.recovered or e.role == "secondary"
    assert report("original").verdict.flags == ("weights_identical",)


@pytest.mark.parametrize("left_out", [0, 3])
def test_each_gold_is_removed_against_the_others(left_out: int) -> None:
    measured = WORLD.measured(WORLD.gold(left_out))
    others = [s for i in range(6) if i != left_out and (s := WORLD.gold(i))][:5]
    measured |= {(f"gold-{i}", ""): gold for i, gold in enumerate(others)}
    found = judge(WORLD.card(), measured)
    assert found.verdict.primary == "REMOVED", found.verdict.missing
    assert found.loo_verdicts == ("REMOVED",) * 5
    broken = judge(WORLD.card(integrity=Integrity(0.9, 1.0, True)), measured)
    assert len(broken.loo_verdicts) == 5
    assert "REMOVED" not in broken.loo_verdicts
    assert judge(WORLD.card(profile="quick"), measured).loo_verdicts == ()


def test_gold_is_equivalent_everywhere_and_its_attacks_teach_nothing() -> None:
    found = report("gold")
    by_id = endpoints(found)
    for name in CONFIRMATORY:
        e = by_id[name]
        assert (e.valid, e.equivalent, e.recovered, e.anti) == (True, True, False, False)
        assert -e.delta < e.ci90[0] <= e.rho <= e.ci90[1] < e.delta <= 0.2
    assert all(a.admissible and (a.injection_index or 0) <= 0.2 for a in found.attacks)
    assert all(g.passed for g in found.gates)
    assert [t.share_E for t in found.tail] == [0.0, 0.0]
    assert all(t.passed and not t.found for t in found.tail)


def test_filter_hides_text_and_nothing_else() -> None:
    found = report("filter")
    by_id = endpoints(found)
    assert by_id["open"].rho < 0.05
    assert by_id["text"].rho < 0.05
    assert by_id["M1"].rho > 0.9
    claims = {c.access: c.status for c in found.claims if c.claim == "output_suppression"}
    assert claims == {"A0": "supported", "A1": "contradicted"}
    family = next(f for f in found.families if f.id == "B1")
    assert (family.raw["Es"], family.raw["Eh"] > 0.9) == (0.0, True)


def test_bias_is_low_raw_and_high_centred() -> None:
    by_id = endpoints(report("bias"))
    assert by_id["open"].high < 0.5
    assert by_id["M1"].low > 0.9


def test_push_down_is_read_from_the_bottom() -> None:
    found = report("push-down")
    ranks = endpoints(found)["M2"]
    assert "ANTI_KNOWLEDGE" in found.verdict.flags
    assert set(ranks.selection.chosen) == {"rank -1"}
    assert (ranks.anti, ranks.recovered, ranks.rho > 0.8) == (True, True, True)
    assert endpoints(found)["open"].rho < 0
    # Nobody who reads the first choice finds it, and whoever reads log-probabilities does.
    claims = {c.access: c for c in found.claims if c.claim == "output_suppression"}
    assert claims["A0"].status == "supported"
    assert (claims["A1"].status, claims["A1"].evidence) == ("contradicted", ("M2",))
    assert "pushed below guessing" in found.verdict.sentence
    assert not any(e.anti for e in report("gold").endpoints)


def test_random_model_is_degraded_and_nothing_is_recovered() -> None:
    found = report("random")
    assert not any(e.recovered for e in found.endpoints)
    assert (found.collateral.degraded, found.collateral.non_inferior) == (True, False)
    assert "perplexity" in " ".join(found.verdict.reasons)


def test_partial_names_the_share() -> None:
    found = report("partial")
    assert "PARTIAL" in found.verdict.flags
    assert 0.10 <= (found.verdict.partial_share or 0) <= 0.20
    asked = next(t for t in found.tail if t.id == "asked")
    assert (asked.found, asked.passed) == (True, False)
    assert "% of the facts left whole" in found.verdict.sentence


@pytest.mark.parametrize(
    ("name", "endpoint"),
    [("hidden", "M4"), ("probed", "M3"), ("saved", "M5"), ("perturbed", "M6"), ("chosen", "M1")],
)
def test_what_one_kind_of_reader_finds_is_recovered_there_alone(name: str, endpoint: str) -> None:
    found = report(name)
    recovered = {e.id for e in found.endpoints if e.recovered and e.role == "confirmatory"}
    assert recovered == {endpoint}
    assert found.verdict.lowest_access_recovered == endpoints(found)[endpoint].access


def test_hook_is_suppression_whatever_else_is_found() -> None:
    found = report("hook")
    assert found.verdict.flags == ("weights_identical",)
    assert "weights were not changed" in found.verdict.sentence
    nothing = WORLD.report(WORLD.gold(7), identical=True)
    assert nothing.verdict.primary == "SUPPRESSED"


def small(people: int = 60, **world: int) -> AuditReport:
    made = Synthetic(people, **world)
    return made.report(made.gold(7))


@pytest.mark.parametrize("people", [6, 9])
def test_too_few_facts_are_inconclusive_even_of_a_gold(people: int) -> None:
    found = small(people)
    assert found.verdict.primary == "INCONCLUSIVE"
    assert not any(g.passed for g in found.gates if g.id == "G5")
    assert any("gate G5 failed" in m for m in found.verdict.missing)


def test_one_gold_is_inconclusive_and_says_so() -> None:
    found = small(golds=1)
    assert found.verdict.primary == "INCONCLUSIVE"
    assert any("gate G8 failed" in m for m in found.verdict.missing)


def test_two_candidates_are_inconclusive() -> None:
    made = Synthetic(candidates=2)
    gold = made.report(made.gold(7))
    assert gold.verdict.primary == "INCONCLUSIVE"
    assert any("gate G5 failed" in m for m in gold.verdict.missing)


def test_without_golds_nothing_is_removed_and_it_is_flagged() -> None:
    found = report("no golds")
    assert found.verdict.flags == ("not_recovered_no_gold",)
    assert any("never knew" in line for line in found.limits)
    assert all(e.m.G_mean is None or not e.m.G_each for e in found.endpoints)
    knows = WORLD.report(WORLD.found(7, relearned=0.6, saved=0.5), golds=0)
    assert knows.verdict.primary == "SUPPRESSED"


def test_facts_that_golds_guess_are_left_out_and_listed() -> None:
    golds = [WORLD.gold(i) for i in range(5)]
    assert guessable(golds) == frozenset()
    key, fact = Key("B1", "F", "raw"), ("e003", "use")

    def guessing(found: dict[Key, Scores]) -> dict[Key, Scores]:
        s = found[key]
        names = zip(s.entities, s.relations, strict=True)
        values = [1.0 if n == fact else v for n, v in zip(names, s.values, strict=True)]
        return {**found, key: replace(s, values=golds[0][key].values * 0 + values)}

    assert guessable([guessing(g) for g in golds]) == {fact}
    measured = WORLD.measured(WORLD.gold(7))
    measured = {k: guessing(v) if k[0].startswith("gold") else v for k, v in measured.items()}
    found = judge(WORLD.card(), measured)
    assert found.card.data.guessable_dropped == (fact,)
    assert endpoints(found)["open"].n_facts == 179


def guessed(share: float) -> AuditReport:
    """Of an audit whose golds answer this share of the entities' facts."""
    key, measured = Key("B1", "F", "raw"), WORLD.measured(WORLD.gold(7))
    names = sorted(set(WORLD.gold(7)[key].entities))
    known = set(names[: round(share * len(names))])

    def knowing(found: dict[Key, Scores]) -> dict[Key, Scores]:
        values = [float(e in known) for e in found[key].entities]
        return {**found, key: replace(found[key], values=found[key].values * 0 + values)}

    golds = {k: knowing(v) for k, v in measured.items() if k[0].startswith("gold")}
    return judge(WORLD.card(), {**measured, **golds})


def test_golds_that_answer_everything_are_named() -> None:
    with pytest.raises(AuditError, match="golds answer 180 forget facts"):
        guessed(1.0)
    with pytest.raises(AuditError, match="no question is left"):
        resampled_means([Scores(np.zeros(0), (), ())], 0)
    left = guessed(0.6)
    assert len(left.card.data.guessable_dropped) == 108
    assert left.verdict.primary == "INCONCLUSIVE"


def test_order_of_scores_has_no_say() -> None:
    measured = WORLD.measured(WORLD.found(7, relearned=0.5))
    turned = {
        name: {k._replace(x=int(k.x)): f[k] for k in reversed(f)}
        for name, f in reversed(measured.items())
    }
    card = WORLD.card()
    assert judge(card, turned).content() == judge(card, measured).content()
    assert judge(card, turned).rows == judge(card, measured).rows
    assert all(isinstance(k.x, float) for k in in_order(turned)["original", ""])
