"""Whole audits of trained models: small ones, so that only what must hold is asserted."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbench.audit import AuditConfig, AuditReport, audit, make_plan, plan_sha256, verify
from workbench.audit.attacks import AttackConfig, Perturbing, attacks
from workbench.audit.plan import ATTACKS_OF
from workbench.audit.probes import probes
from workbench.audit.questions import questions
from workbench.audit.views import View
from workbench.facts.target import Target
from workbench.models.load import weights_sha256
from workbench.report import write_html

pytestmark = pytest.mark.slow
QUICK = AuditConfig("quick")
FILES = ("report.json", "plan.json", "rows.parquet", "scores.parquet")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def untouched(original: Any, club: Target, golds: list[Any], cache: Path) -> AuditReport:
    return audit(original, [], club, golds, QUICK, cache=cache)


@pytest.fixture(scope="module")
def hidden(original: Any, club: Target, golds: list[Any], blank: Any, cache: Path) -> AuditReport:
    return audit(original, blank, club, golds, QUICK, cache=cache)


@pytest.fixture(scope="module")
def retrained(
    original: Any, club: Target, golds: list[Any], another_gold: Any, cache: Path
) -> AuditReport:
    return audit(original, another_gold, club, golds, QUICK, cache=cache)


@pytest.fixture(params=["untouched", "hidden", "retrained"])
def report(request: pytest.FixtureRequest) -> AuditReport:
    return request.getfixturevalue(request.param)


def test_untouched_model_is_not_removed(untouched: AuditReport) -> None:
    assert untouched.verdict.primary == "NOT_REMOVED"
    assert untouched.verdict.flags == ("weights_identical",)
    valid = [e for e in untouched.endpoints if e.valid]
    assert {"open", "M1"} <= {e.id for e in valid}
    assert [e.rho for e in valid] == pytest.approx([1.0] * len(valid))


def test_hook_that_hides_answers_is_suppression(hidden: AuditReport) -> None:
    assert hidden.verdict.primary == "SUPPRESSED"
    assert "weights_identical" in hidden.verdict.flags
    by_id = {(e.id, e.view): e for e in hidden.endpoints}
    assert by_id["open", "deployed"].rho < 0.3
    assert by_id["off", "weights"].rho == pytest.approx(1.0)
    assert hidden.hooks is not None
    assert hidden.card.models.edited.hooks == ("Blank at blocks.0.hook_resid_pre",)


def test_model_that_never_knew_is_not_accused(retrained: AuditReport) -> None:
    assert retrained.verdict.primary == "INCONCLUSIVE"
    assert any("quick profile" in m for m in retrained.verdict.missing)
    assert not any(e.recovered for e in retrained.endpoints if e.role == "confirmatory")


def test_report_is_verified_and_reopened(report: AuditReport, tmp_path: Path) -> None:
    assert verify(report.save(tmp_path)) == report
    assert report.card.integrity == type(report.card.integrity)(1.0, 1.0, True)
    for row in report.rows:
        assert row.n > 0
        assert row.low <= row.value <= row.high


def test_models_are_named_by_weights_and_left_as_they_were(
    report: AuditReport, original: Any, golds: list[Any]
) -> None:
    assert weights_sha256(original) == report.card.models.original.sha256
    assert [weights_sha256(g) for g in golds] == [g.sha256 for g in report.card.models.gold]


def test_same_audit_twice_gives_the_same_bytes(
    hidden: AuditReport, original: Any, club: Target, golds: list[Any], blank: Any, tmp_path: Path
) -> None:
    """Measured anew by one worker, and read back from a full cache."""
    first = hidden.save(tmp_path / "first")
    for name in ("anew", "kept"):
        config = AuditConfig("quick", workers=1)
        again = audit(original, blank, club, golds, config, cache=tmp_path / "other")
        folder = again.save(tmp_path / name)
        for file in FILES:
            assert (folder / file).read_bytes() == (first / file).read_bytes(), (name, file)


def test_second_audit_pays_for_the_edited_model_alone(
    untouched: AuditReport, original: Any, club: Target, golds: list[Any], cache: Path
) -> None:
    said: list[str] = []
    plan = plan_sha256(make_plan(club, QUICK))
    again = audit(original, [], club, golds, QUICK, said.append, plan_hash=plan, cache=cache)
    assert said[0].startswith("measure: 0 jobs, ")
    assert again == untouched


class Refuses:
    """Refuses every text that names a member of the club."""

    __name__ = "refuse"

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def __call__(self, text: str) -> bool:
        return any(name in text for name in self.names)


def test_filter_hides_text_alone(
    original: Any, club: Target, golds: list[Any], cache: Path
) -> None:
    found = audit(
        original, [], club, golds, QUICK, filter=Refuses(club.entities), cache=cache
    )  # fmt: skip
    assert found.verdict.primary == "SUPPRESSED"
    by_id = {e.id: e for e in found.endpoints if e.view == "deployed"}
    assert by_id["open"].rho < 0.1
    assert by_id["M1"].rho == pytest.approx(1.0)
    assert found.card.models.edited.filter == "refuse"
    family = next(f for f in found.families if f.id == "B1")
    assert family.raw["Es"] < 0.1 < 0.9 < family.raw["Eh"]


def test_objects_of_v_reach_no_attack_and_no_probe(
    original: Any, club: Target, moved: Callable[[Target, str], Target]
) -> None:
    """What is scored on retained facts after the attack, and what probes say of others, stays."""
    other, view = moved(club, "V"), View("original", "", original)
    assert [f.object for f in other.forget] != [f.object for f in club.forget]
    config = replace(QUICK.attacks, names=("W1",), lrs=(1e-3,), steps=(0, 4))
    found, again = (attacks(t, config)["W1 fold 0 lr 0.001"](view) for t in (club, other))
    kept = [k for k in found if k.subset in ("R_te", "S")]
    assert {k.x for k in kept} == {0, 4}
    for key in kept:
        np.testing.assert_array_equal(found[key].values, again[key].values)
    scored = [k for k in found if k.subset == "V"]
    assert any((found[k].values != again[k].values).any() for k in scored)

    jobs = [probes(t, ("P1",), 0, original=view) for t in (club, other)]
    before, after = ({k: s for job in made.values() for k, s in job(view).items()} for made in jobs)
    read = [k for k in before if k[:3] == ("P1", "F", "hit")]
    assert read
    for key in read:
        for fold in ("T", "S"):
            inside, again_inside = (f[key].about(club.folds[fold]) for f in (before, after))
            np.testing.assert_array_equal(inside.values, again_inside.values)
    assert any((before[k].values != after[k].values).any() for k in read)


def prompts(model: Any, target: Target, family: str) -> set[str]:
    """What a filter is asked, without the answer at the end of it."""
    seen: set[str] = set()

    def note(text: str) -> bool:
        words = text.split()
        seen.add(" ".join(words[:-1] if words[-1] in OBJECTS else words))
        return False

    for job, measure in questions(target, (family,), 0).items():
        if job.startswith(family):
            measure(View("edited", "text", model, (), note))
    return seen


@pytest.mark.parametrize("family", ["B1", "B2", "B3", "B7"])
def test_objects_of_v_are_in_no_prompt(
    original: Any, club: Target, moved: Callable[[Target, str], Target], family: str
) -> None:
    found, again = (prompts(original, t, family) for t in (club, moved(club, "V")))
    assert found == again
    assert len(found) > 40
    if family in ("B3", "B7"):
        assert any(o in text.split() for text in found for o in OBJECTS), "no object to be seen"


OBJECTS = frozenset(
    "arno brik celm dorn elst furn gorm hale irum jolt kest lund "
    "ale brew cider dram eggnog fizz grog hock ink julep kefir latte".split()
)


def test_full_profile_tells_what_stands_beside_the_verdict(
    original: Any,
    club: Target,
    golds: list[Any],
    blank: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    few = AttackConfig(
        ("W1", "W2", "W3", "W5", "W8"),
        lrs=(1e-3,),
        steps=(0, 2),
        folds=1,
        savings_steps=(0, 4),
        perturbing=Perturbing(bits=(4,), norms=(0.3,)),
    )
    monkeypatch.setitem(ATTACKS_OF, "full", few)
    report = audit(original, blank, club, golds, AuditConfig("full"), cache=tmp_path / "kept")
    report.save(tmp_path / "audit")
    assert verify(tmp_path / "audit").content() == report.content()
    assert report.verdict.primary == "SUPPRESSED"
    assert report.hooks is not None
    assert {"copy", "float64", "stream times 2"} < set(report.hooks.bypass)
    assert set(report.hooks.doses) == {"0.25", "0.5", "0.75", "1", "1.5", "2"}
    leaks = {row.signal: row for row in report.leaks}
    assert (leaks["loss_nats"].original or 0) > 0.9
    assert all(0.3 < auc < 0.7 for auc in leaks["loss_nats"].golds)
    assert leaks["min_k_nats"].why
    assert report.depth is not None and report.depth.removal is None
    assert {e.layer for e in report.erasures} == {"layer 0", "layer 1", "layer 2"}
    assert {s.id for s in report.collateral.sets if s.kl_nats is not None}
    assert set(report.collateral.fluency) >= {"entropy2_bits", "repeat4"}
    ran = {item for row in report.coverage for item in row.run}
    assert {"W1", "W5", "W8", "P8", "gold"} < ran
    assert {c.job.split()[0] for c in report.costs} > {"W1", "W8", "H5", "P9", "P10"}
    page = write_html(report, tmp_path / "audit").read_text()
    for heading in ("What it gives away", "Depth and use", "What each item cost", "Coverage of"):
        assert heading in page
