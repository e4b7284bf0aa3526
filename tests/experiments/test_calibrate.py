"""The calibration: what it asks of a report, what it keeps, and the table it prints."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.audit.synthetic import Synthetic
from workbench.audit import AuditReport
from workbench.cli import main
from workbench.errors import WorkbenchError
from workbench.experiments import calibrate
from workbench.experiments.calibrate import (
    CalibrateConfig,
    audit_case,
    chosen,
    run,
    table,
)
from workbench.experiments.known_models import BY_NAME, CASES, Built, Trap
from workbench.experiments.known_models.checks import MUST_HOLD, must_hold
from workbench.facts import load_facts

WORLD = Synthetic()
KNOWS_ALL = {"shown": 1, "probe": 0.85, "relearned": 1, "saved": 1, "perturbed": 1}
HOLDS: dict[str, dict[str, Any]] = {
    "untouched": KNOWS_ALL,
    "gold": {},
    "logit bias": {"shown": 0.3, "centred": 1},
    "push-down": {"last": 0.95, "below": True},
    "random weights": {"kept": 0.1},
    "noise": {"kept": 0.1},
    "partly relearned": {"shown": 0.15, "probe": 0.15, "relearned": 0.15, "saved": 0.15},
}
FAILS: dict[str, dict[str, Any]] = {
    "untouched": {**KNOWS_ALL, "relearned": 0.5},
    "gold": KNOWS_ALL,
    "logit bias": {"shown": 0.9, "centred": 0.9},
    "push-down": {"shown": 0.2},
    "random weights": {"relearned": 0.5},
    "noise": {"relearned": 0.5},
    "partly relearned": {"shown": 0.4, "probe": 0.4, "relearned": 0.4, "saved": 0.4},
}


@cache
def report(**knows: Any) -> AuditReport:
    return WORLD.report(WORLD.found(7, **knows))


def holds(name: str, knows: dict[str, Any]) -> bool:
    checks = must_hold(BY_NAME[name], report(**knows))
    assert checks
    return all(c["holds"] for c in checks.values())


@pytest.mark.parametrize("name", HOLDS)
def test_what_must_hold_is_told_from_what_does_not(name: str) -> None:
    assert holds(name, HOLDS[name])
    assert not holds(name, FAILS[name])


def test_an_ablation_must_hide_and_leave_the_weights() -> None:
    world = WORLD.report(WORLD.found(7, probe=0.8), identical=True)
    off = replace(next(e for e in world.endpoints if e.id == "open"), id="off", view="weights")
    hidden = replace(world, endpoints=(*world.endpoints, replace(off, rho=1.0)))
    shown = WORLD.report(WORLD.found(7, shown=0.5), identical=True)
    found = {
        name: [c["holds"] for c in must_hold(BY_NAME["ablation"], r).values()]
        for name, r in (("hidden", hidden), ("shown", shown))
    }
    assert found == {"hidden": [True, True], "shown": [False, False]}


def test_cases_are_named_by_number_or_name_and_others_are_refused() -> None:
    assert [c.name for c in chosen(["8", "gold"])[0]] == ["gold", "random weights", "noise"]
    assert [name for name, _ in chosen(["12"])[1]] == ["teaching attacks"]
    assert {c.number for c in chosen([])[0]} == set(range(1, 11))
    assert len(chosen([], every=True)[0]) == len(CASES)
    assert set(MUST_HOLD) <= set(BY_NAME)
    with pytest.raises(WorkbenchError, match="no case \\['sold'\\]: wanted some of"):
        chosen(["sold"])


@pytest.mark.parametrize(("knows", "right"), [(KNOWS_ALL, True), ({}, False)])
def test_an_entry_says_whether_the_audit_was_right(
    knows: dict[str, Any], right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "build", lambda *_args, **_kwargs: Built((), ()))
    monkeypatch.setattr(calibrate, "audited", lambda *_: report(**knows))
    target = load_facts("valley").target("toxins")
    entry = audit_case(BY_NAME["untouched"], 3, None, (), target, CalibrateConfig())
    assert (entry["ok"], entry["seed"], entry["expected"]) == (right, 3, "NOT_REMOVED")
    assert entry["verdict"] == report(**knows).verdict.primary
    assert entry["evidence"]["endpoints"]["M4 deployed"]["rho"] == pytest.approx(
        next(e.rho for e in report(**knows).endpoints if e.id == "M4")
    )
    assert json.loads(json.dumps(entry)) == entry


def entry(name: str, seed: int, verdict: str = "NOT_REMOVED") -> dict[str, Any]:
    at = {"rho": 0.5 + seed / 10, "valid": seed < 2}
    return {
        "case": name, "number": BY_NAME[name].number, "expected": BY_NAME[name].expected,
        "expected_flags": list(BY_NAME[name].flags), "verdict": verdict, "flags": [],
        "seed": seed, "ok": verdict == BY_NAME[name].expected,
        "evidence": {"endpoints": {"M1 deployed": at}},
    }  # fmt: skip


def test_a_verdict_that_is_honest_too_is_counted_apart() -> None:
    assert BY_NAME["gold tuned on"].also == ("INCONCLUSIVE",)
    right, other = entry("gold tuned on", 0, "REMOVED"), entry("gold tuned on", 1, "INCONCLUSIVE")
    told = table([right, {**other, "ok": True}]).splitlines()[-1]
    assert "REMOVED or INCONCLUSIVE" in told and "| 1/2 and 1 as honest |" in told


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What was audited; the audits themselves take no time."""
    audited: list[tuple[str, int]] = []

    def instead(case: Any, seed: int, *_: Any) -> dict[str, Any]:
        audited.append((case.name, seed))
        return entry(case.name, seed, case.expected)

    monkeypatch.setattr(calibrate, "audit_case", instead)
    return audited


def test_what_was_audited_is_kept_until_something_it_rests_on_changes(
    done: list[tuple[str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CalibrateConfig(cases=("9",), seeds=2)
    first = run(config, tmp_path)
    assert done == [("relearned", 0), ("relearned", 1)]
    assert run(config, tmp_path) == first == json.loads((tmp_path / "calibration.json").read_text())
    assert len(done) == 2
    more = run(replace(config, seeds=3), tmp_path)
    assert (more[:2], done[2:]) == (first, [("relearned", 2)])
    run(replace(config, cases=("untouched",)), tmp_path)
    kept = json.loads((tmp_path / "calibration.json").read_text())
    assert sorted((e["case"], e["seed"]) for e in kept) == [
        ("relearned", 0), ("relearned", 1), ("relearned", 2), ("untouched", 0),
    ]  # fmt: skip
    monkeypatch.setattr(calibrate, "source_sha256", lambda *_: "other cases")
    run(config, tmp_path)
    assert len(done) == 6


def test_a_run_that_is_cut_keeps_what_is_done(
    done: list[tuple[str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = calibrate.audit_case

    def cut(case: Any, seed: int, *rest: Any) -> Any:
        if seed == 1 and len(done) == 1:
            raise KeyboardInterrupt
        return quick(case, seed, *rest)

    monkeypatch.setattr(calibrate, "audit_case", cut)
    config = CalibrateConfig(cases=("relearned",), seeds=3)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path)
    monkeypatch.setattr(calibrate, "audit_case", quick)
    assert [e["seed"] for e in run(config, tmp_path)] == [0, 1, 2]
    assert done == [("relearned", 0), ("relearned", 1), ("relearned", 2)]


@pytest.mark.parametrize("content", ["", "[{]", "[3]", '{"case": 1}', '[{"case": "gold"}]'])
def test_entries_that_cannot_be_read_are_left_and_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "calibration.json"
    file.write_text(content)
    with pytest.raises(WorkbenchError, match=r"calibration\.json: not the entries"):
        run(CalibrateConfig(cases=("gold",)), tmp_path)
    assert file.read_text() == content


def test_a_trap_is_void_only_where_every_broken_reading_is_beyond_its_limit(
    done: list[tuple[str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for broken, verdict in ((0.9, "void"), (0.1, "valid")):
        trap = Trap(12, "teaching attacks", 0.2, {"a": 0.9, "b": broken}, {"a": 0.0})
        monkeypatch.setitem(calibrate.TRAPS, ("12", "teaching attacks"), lambda *_, trap=trap: trap)
        (found,) = run(CalibrateConfig(cases=("12",)), tmp_path / verdict)
        assert (found["verdict"], found["ok"]) == (verdict, verdict == "void")
    assert done == []


def test_the_table_counts_verdicts_and_gives_the_range() -> None:
    rows = [entry("relearned", 0), entry("relearned", 1), entry("untouched", 2, "REMOVED")]
    text = table(rows).splitlines()
    assert text[2].startswith("| 9 relearned | NOT_REMOVED | NOT_REMOVED 2 | 2/2 |")
    assert "| 0.50 to 0.60 |" in text[2]
    assert "| REMOVED 1 | 0/1 |" in text[3] and "| (0.70) |" in text[3]


def test_the_command_prints_the_table(
    done: list[tuple[str, int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", "--cases", "untouched", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "untouched seed 0: NOT_REMOVED, right" in printed
    assert "| 1 untouched | NOT_REMOVED | NOT_REMOVED 1 | 1/1 |" in printed
    assert main(["calibrate", "--cases", "sold", "--out", str(tmp_path)]) == 2
