"""Whole audits of edits whose truth is known."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from workbench.audit import AuditConfig, AuditReport, audit
from workbench.audit.relearn import RelearnConfig
from workbench.errors import AuditError
from workbench.facts.schema import Fact
from workbench.facts.target import Target
from workbench.models import weights_sha256

pytestmark = pytest.mark.slow
CONFIG = AuditConfig(RelearnConfig(lr=1e-3, steps=(0, 1, 3, 6), batch_size=16))


@pytest.fixture(scope="module", autouse=True)
def one_ridge() -> Iterator[None]:
    """The choice of the penalty is tested elsewhere and would take most of the time here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module("workbench.audit.probes"), "RIDGE", (1e-1,))
        yield


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def untouched(original: Any, club: Target, golds: list[Any], said: list[str]) -> AuditReport:
    return audit(original, [], club, golds, CONFIG, said.append)


@pytest.fixture(scope="module")
def retrained(original: Any, club: Target, golds: list[Any], another_gold: Any) -> AuditReport:
    return audit(original, another_gold, club, golds, CONFIG)


@pytest.fixture(scope="module")
def hidden(original: Any, club: Target, golds: list[Any], blank: Any) -> AuditReport:
    return audit(original, blank, club, golds, CONFIG)


@pytest.fixture(params=["untouched", "retrained", "hidden"])
def report(request: pytest.FixtureRequest) -> AuditReport:
    return request.getfixturevalue(request.param)


def rhos(report: AuditReport) -> dict[str, float]:
    return {e.id: e.rho for e in report.endpoints if e.valid}


def values(report: AuditReport, view: str) -> dict[tuple[str, str, str, float], float]:
    """Everything measured on the original, or on the edited model in one view."""
    role = "edited" if view else "original"
    return {
        (r.endpoint, r.subset, r.detail, r.x): r.value
        for r in report.rows
        if (r.role, r.view) == (role, view) and r.endpoint not in ("objective", "weights")
    }


def test_untouched_model_is_not_removed(untouched: AuditReport) -> None:
    assert untouched.verdict.primary == "NOT_REMOVED"
    assert untouched.verdict.flags == ("weights_identical",)
    assert len(rhos(untouched)) >= 5
    assert rhos(untouched) == pytest.approx(dict.fromkeys(rhos(untouched), 1.0))
    assert values(untouched, "weights") == values(untouched, "")


def test_model_that_never_knew_is_inconclusive(retrained: AuditReport) -> None:
    """This battery cannot show absence."""
    assert retrained.verdict.primary == "INCONCLUSIVE"
    assert retrained.verdict.lowest_access_recovered == "none"
    assert all(g.passed for g in retrained.gates)
    assert not any(e.recovered for e in retrained.endpoints)
    assert {"open", "relearning"} <= set(rhos(retrained))
    assert all(abs(rho) < 0.25 for rho in rhos(retrained).values())


def test_hook_that_hides_answers_is_suppression(hidden: AuditReport) -> None:
    assert hidden.verdict.primary == "SUPPRESSED"
    assert hidden.verdict.flags == ("weights_identical",)
    assert abs(rhos(hidden)["open"]) < 0.25
    assert rhos(hidden)["hooks removed"] == pytest.approx(1.0)
    assert "hooks removed (A3) brings back 100 %" in hidden.verdict.sentence
    assert values(hidden, "hooks_off") == values(hidden, "")
    assert values(hidden, "hooks_on") != values(hidden, "")


def test_what_was_to_stay_is_reported_for_the_edit(
    untouched: AuditReport, hidden: AuditReport
) -> None:
    for report in (untouched, hidden):
        found = {r.detail.split(":")[0]: r.value for r in report.rows if r.endpoint == "objective"}
        assert found["locality"] > 0.95
        accuracy = 0.0 if report is untouched else 1.0
        assert found["accuracy"] == pytest.approx(accuracy, abs=0.25)
        assert found["generalizability"] == pytest.approx(accuracy, abs=0.25)


def test_every_number_has_its_counts_and_an_interval_around_it(report: AuditReport) -> None:
    for row in report.rows:
        assert row.n > 0
        assert row.low <= row.value <= row.high
    for e in report.endpoints:
        assert (e.n > 0, e.n_entities) == (True, 8)
        assert e.low <= e.rho <= e.high
        assert len(e.gold_each) == 3


def test_every_model_is_measured_alike(report: AuditReport) -> None:
    views = {(r.role, r.view) for r in report.rows if r.endpoint == "recall"}
    found = {
        view: {
            (r.endpoint, r.subset, r.detail, r.x, r.n)
            for r in report.rows
            if (r.role, r.view) == view and r.endpoint not in ("objective", "weights")
        }
        for view in views
    }
    assert {"original", "edited", "gold-0", "gold-1", "gold-2"} == {role for role, _ in views}
    assert all(keys == found["original", ""] for keys in found.values())


def test_report_comes_back_from_disk_as_it_was(report: AuditReport, tmp_path: Path) -> None:
    assert AuditReport.open(report.save(tmp_path)) == report


def test_gates_of_a_sound_world_hold(untouched: AuditReport) -> None:
    assert {g.id for g in untouched.gates} == {"G2", "G3", "G4", "G7"}
    assert all(g.passed for g in untouched.gates)


def test_small_target_and_small_battery_are_named_as_limits(untouched: AuditReport) -> None:
    text = " ".join(untouched.limits)
    for part in ("lower bound", "REMOVED cannot be given", "48 facts about 24 entities"):
        assert part in text


def test_provenance_names_models_by_their_weights(
    hidden: AuditReport, original: Any, golds: list[Any], club: Target
) -> None:
    models = hidden.provenance["models"]
    assert models["original"] == models["edited hooks_on"] == weights_sha256(original)
    assert [models[f"gold-{i}"] for i in range(3)] == [weights_sha256(g) for g in golds]
    assert models["control permuted"] != models["original"]
    assert hidden.provenance["edits"] == ["Blank at blocks.0.hook_resid_pre"]
    assert hidden.provenance["target"]["facts_sha256"] == club.facts.sha256


def test_steps_are_announced(untouched: AuditReport, said: list[str]) -> None:
    assert said[:3] == ["ask original", "probe original", "relearn original"]
    assert "probe control permuted" in said
    assert "relearn control permuted" not in said


def test_models_are_left_as_they_were(
    report: AuditReport, original: Any, golds: list[Any], another_gold: Any
) -> None:
    made = report.provenance["models"]
    assert weights_sha256(original) == made["original"]
    assert [weights_sha256(g) for g in golds] == [made[f"gold-{i}"] for i in range(3)]
    assert all(not m.training for m in (original, another_gold, *golds))


@pytest.mark.parametrize("workers", [1, 2])
def test_attack_that_leaks_into_the_model_fails_its_gate(
    original: Any,
    golds: list[Any],
    person: Target,
    workers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = import_module("workbench.audit.run")
    asked = run.recall_scores
    leaking = copy.deepcopy(golds[0])

    def ask_and_change(model: Any, *rest: Any) -> Any:
        found = asked(model, *rest)
        if weights_sha256(model) == weights_sha256(leaking):
            model.unembed.W_U.data[0, 0] += 1
        return found

    config = replace(CONFIG, workers=workers)
    sound = audit(original, [], person, [leaking, *golds[1:]], config)
    monkeypatch.setattr(run, "recall_scores", ask_and_change)
    leaked = audit(original, [], person, [leaking, *golds[1:]], config)
    before, after = (next(g for g in r.gates if g.id == "G7") for r in (sound, leaked))
    assert before.passed
    assert not after.passed
    assert after.value < 1


@pytest.fixture(scope="module")
def person(club: Target) -> Target:
    """One person: nothing to train an attack or a probe on, so an audit only asks."""
    return club.facts.target("person:f003")


def test_one_entity_is_never_enough(original: Any, golds: list[Any], person: Target) -> None:
    report = audit(original, [], person, golds, CONFIG)
    assert report.verdict.primary == "INCONCLUSIVE"
    assert {e.id for e in report.endpoints} == {
        "open", "training templates", "audit-only templates", "centred answers",
    }  # fmt: skip
    for row in report.rows:
        if row.n_entities == 1:
            assert (row.low, row.high) == (0.0, 1.0)
    text = " ".join(report.limits)
    assert "no relearning was run" in text
    assert "no transfer probe was run" in text


def test_one_edit_and_a_list_of_it_are_the_same(
    original: Any, golds: list[Any], person: Target, blank: Any
) -> None:
    one, listed = (audit(original, e, person, golds, CONFIG) for e in (blank, [blank]))
    assert one.rows == listed.rows
    assert one.endpoints == listed.endpoints
    assert {r.view for r in one.rows if r.role == "edited"} == {"hooks_on", "hooks_off"}


def test_seed_decides_the_shuffled_control(original: Any, golds: list[Any], person: Target) -> None:
    def control(seed: int) -> str:
        report = audit(original, [], person, golds, replace(CONFIG, seed=seed))
        return report.provenance["models"]["control permuted"]

    assert control(0) == control(0) != control(1)


@pytest.mark.parametrize("count", [0, 2])
def test_fewer_than_three_golds_are_refused(
    original: Any, golds: list[Any], club: Target, count: int
) -> None:
    with pytest.raises(AuditError, match=f"{count} golds were given; wanted three or more"):
        audit(original, [], club, golds[:count], CONFIG)


@pytest.mark.parametrize("fold", ["V", "S", "R_va", "R_te"])
def test_target_without_audit_only_prompts_is_refused(
    original: Any, golds: list[Any], club: Target, fold: str
) -> None:
    def mute(fact: Fact) -> Fact:
        within = club.retain.get(fold) or club.fold(fold)
        return replace(fact, audit_templates=()) if fact in within else fact

    retain = {name: tuple(map(mute, facts)) for name, facts in club.retain.items()}
    target = replace(club, forget=tuple(map(mute, club.forget)), retain=retain)
    with pytest.raises(AuditError, match="needs audit-only prompts"):
        audit(original, [], target, golds, CONFIG)


def test_target_with_nothing_to_score_is_refused(
    original: Any, golds: list[Any], club: Target
) -> None:
    with pytest.raises(AuditError, match="V needs a fact"):
        audit(original, [], replace(club, folds={**club.folds, "V": ()}), golds, CONFIG)
