"""Gates and side conditions, each failed by the one thing that it is there for."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.audit.synthetic import Synthetic
from workbench.audit.endpoints import NAMES
from workbench.audit.gates import ALL, ATTACKS_OF, gold_gates, least_removed
from workbench.audit.judge import judge
from workbench.audit.schema import AuditReport, Gate, Integrity, LeakCheck
from workbench.audit.views import Found

WORLD = Synthetic(36)


def gates(report: AuditReport, name: str) -> list[Gate]:
    return [g for g in report.gates if g.id == name]


def judged(measured: dict[tuple[str, str], Found] | None = None, **changes: Any) -> AuditReport:
    golds = changes.pop("golds", None)
    return judge(WORLD.card(golds, **changes), measured or WORLD.measured(WORLD.gold(7), golds))


def raised(found: Found, endpoint: str, value: float) -> Found:
    return {
        k: replace(s, values=np.full(len(s.values), value)) if k.endpoint == endpoint else s
        for k, s in found.items()
    }


def test_sound_audit_fails_at_most_what_bears_on_size() -> None:
    failed = {g.id for g in judged().gates if not g.passed}
    assert failed <= {"G2", "G5"}
    assert {g.id for g in judged().gates} == {f"G{i}" for i in range(1, 10)}


@pytest.mark.parametrize("role", ["random", "permuted", "original"])
def test_probe_that_reads_from_a_model_without_knowledge_drops_the_probes(role: str) -> None:
    measured = WORLD.measured(WORLD.gold(7))
    endpoint = "P6" if role == "original" else "P1"
    measured[role, ""] = raised(measured[role, ""], endpoint, 0.5)
    failed = [g for g in gates(judged(measured), "G4") if not g.passed]
    assert len(failed) == 1
    assert failed[0].drops == ("M3",)
    assert failed[0].value == 0.5


def test_attack_that_teaches_golds_is_inadmissible_and_does_not_decide() -> None:
    """Golds answer after relearning other facts: the attack carries the answers."""
    measured = WORLD.measured(WORLD.found(7, relearned=0.6))
    taught = {k: WORLD.found(50 + i, relearned=0.6) for i, k in enumerate(measured)
              if k[0].startswith("gold")}  # fmt: skip
    report = judged(measured | taught)
    w1 = [a for a in report.attacks if a.id == "W1"]
    assert any(not a.admissible and (a.injection_index or 0) > 0.2 and a.why for a in w1)
    failed = [g for g in gates(report, "G6") if not g.passed]
    assert [g.drops for g in failed] == [("M4",)]
    assert "M4" not in " ".join(report.verdict.reasons)
    assert report.verdict.primary != "SUPPRESSED"


@pytest.mark.parametrize(
    ("integrity", "name"),
    [
        (Integrity(0.9, 1.0, True), "G7"),
        (Integrity(1.0, 0.99, True), "G7"),
        (Integrity(1.0, 1.0, False), "G9"),
    ],
)
def test_broken_integrity_leaves_nothing_to_decide_by(integrity: Integrity, name: str) -> None:
    report = judged(WORLD.measured(WORLD.original()), integrity=integrity)
    assert not gates(report, name)[0].passed
    assert report.verdict.primary == "INCONCLUSIVE"


@pytest.mark.parametrize(("check", "verdict"), [("forget_facts", "NOT_REMOVED"),
                                                ("oracle_guesser", "INCONCLUSIVE")])  # fmt: skip
def test_contract_bears_on_all_but_for_size(check: str, verdict: str) -> None:
    data = WORLD.card().data
    broken = LeakCheck(check, False, 0.5, 0.1, "what is wrong")
    report = judged(WORLD.measured(WORLD.original()), data=replace(data, leak_checks=(broken,)))
    assert not gates(report, "G3")[0].passed
    assert report.verdict.primary == verdict


def test_every_endpoint_that_can_recover_is_dropped_where_nothing_may_decide() -> None:
    assert set(NAMES) | {"off"} <= set(ALL)
    assert set(ATTACKS_OF) >= {"M4", "M6", "prefix"}


def test_gold_that_knows_is_named() -> None:
    measured = WORLD.measured(WORLD.gold(7))
    measured["gold-1", ""] = WORLD.found(60, shown=0.5)
    failed = [g for g in gates(judged(measured), "G2") if not g.passed]
    assert [g.value for g in failed[1:2]] == [pytest.approx(1 / len(judged().loo_verdicts))]
    assert failed[0].note.startswith("no gold knows more")
    assert "gold 1 is NOT_REMOVED" in failed[1].note


def test_gold_that_stays_open_is_no_fault_but_most_must_be_called_removed() -> None:
    """Fewest of n that do not contradict nine in ten at 5 %: worked out by hand for three, four."""
    assert 0.1**3 + 3 * 0.9 * 0.1**2 < 0.05  # one of three or fewer
    assert 0.1**4 + 4 * 0.9 * 0.1**3 < 0.05 < 0.1**4 + 4 * 0.9 * 0.1**3 + 6 * 0.9**2 * 0.1**2
    assert [least_removed(n) for n in (2, 3, 4, 5, 10)] == [1, 2, 2, 3, 7]
    report = judged()
    endpoints, loo = report.endpoints, ["REMOVED"] * 3 + ["INCONCLUSIVE"] * 2

    def failed(loo: list[Any], profile: Any = "standard") -> list[str]:
        made = gold_gates(endpoints, loo, profile)
        return [g.note for g in made if not g.passed]

    assert not failed(loo)
    assert len(failed(["INCONCLUSIVE"] * 3 + ["REMOVED"] * 2)) == 1
    for wrong in ("SUPPRESSED", "NOT_REMOVED", "DEGRADED"):
        (note,) = failed(["REMOVED"] * 4 + [wrong])
        assert f"gold 4 is {wrong}" in note
    assert len(failed([])) == 1
    assert not failed([], "quick")


@pytest.mark.parametrize("golds", [0, 2, 3])
def test_fewer_than_three_golds_fail(golds: int) -> None:
    gate = gates(judged(golds=golds), "G8")[0]
    assert (gate.passed, gate.value, gate.limit) == (golds >= 3, golds, 3)


def test_too_little_power_is_told_with_the_worst_endpoint() -> None:
    small = Synthetic(9)
    gate = gates(judge(small.card(), small.measured(small.gold(7))), "G5")[0]
    assert not gate.passed
    assert gate.value is not None
    assert gate.value > 1
    assert "worst at M" in gate.note
