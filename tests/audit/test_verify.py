"""A saved report is what its scores give, down to the last figure, or it is refused."""

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.audit.synthetic import Synthetic
from workbench.audit import AuditReport, verify
from workbench.audit.judge import judge
from workbench.audit.statistics import Key, Scores
from workbench.audit.store import load_scores, save_scores
from workbench.audit.verify import invariants
from workbench.errors import AuditError, WorkbenchError

WORLD = Synthetic(24)


@pytest.fixture(scope="module")
def report() -> AuditReport:
    return WORLD.report(WORLD.found(7, shown=0.2, relearned=0.6))


@pytest.fixture(scope="module")
def saved(report: AuditReport, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report.save(tmp_path_factory.mktemp("report"))


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


@pytest.fixture(scope="module")
def again(report: AuditReport) -> AuditReport:
    return judge(report.card, report.scores)


@pytest.fixture
def once(report: AuditReport, again: AuditReport, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the untouched scores give is worked out once: edits of the report leave them."""

    def remembered(card: Any, scores: Any) -> AuditReport:
        return again if card == report.card else judge(card, scores)

    monkeypatch.setattr(import_module("workbench.audit.verify"), "judge", remembered)


def test_report_that_follows_from_its_scores_is_verified(saved: Path, report: AuditReport) -> None:
    assert verify(saved) == report
    assert verify(str(saved)).content() == report.content()


def test_a_fold_without_facts_has_no_row_and_is_verified(tmp_path: Path) -> None:
    empty = Key("P2", "S", "hit", "forget, layer 0, last", 0)
    found = WORLD.report({**WORLD.found(7), empty: Scores(np.zeros(0), ())})
    assert verify(found.save(tmp_path)) == found
    assert not [r for r in found.rows if (r.endpoint, r.subset) == ("P2", "S")]


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in items:
        if isinstance(part, dict | list) and part:
            yield from leaves(part, (*path, key))
        else:
            yield (*path, key), part


def other(value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    return ["x"] if value == [] else {"x": {"x": 1.0}} if value == {} else 0.5


def put(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    content = copy.deepcopy(content)
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return content


NAMED = {"battery_version": "battery_version", "verdict": "the sentence", "claims": "the claim"}
"""Where an invariant that is broken is told in other words than the path."""


def test_any_edit_of_any_field_outside_the_card_is_refused_and_named(
    saved: Path, folder: Path, once: None
) -> None:
    content = json.loads((saved / "report.json").read_text())
    paths = [(p, v) for p, v in leaves(content) if p[0] not in ("card", "schema")]
    tried = paths[:: max(1, len(paths) // 100)]
    assert {p[0] for p, _ in paths} >= {
        "gates", "endpoints", "attacks", "families", "probes", "tail", "ks", "collateral",
        "loo_verdicts", "verdict", "claims", "limits",
    }  # fmt: skip
    firsts = {p[0]: (p, v) for p, v in reversed(paths)}
    for path, value in [*firsts.values(), *tried]:
        edited = json.dumps(put(content, path, other(value)))
        (folder / "report.json").write_text(edited)
        with pytest.raises(WorkbenchError) as refused:
            verify(folder)
        named = str(refused.value)
        assert str(path[0]) in named or NAMED.get(path[0], "-") in named, (path, named)


VERDICT_EDITS = {
    "verdict": (("verdict", "primary"), "REMOVED", "REMOVED with"),
    "sentence": (("verdict", "sentence"), "All is gone.", "sentence"),
    "flag": (("verdict", "flags"), ["ANTI_KNOWLEDGE"], "verdict.flags"),
    "claim": (("claims", 0, "status"), "supported", "claim of removal contradicts"),
    "gate": (("gates", 0, "passed"), False, r"gates\[0\].passed"),
    "rho": (("endpoints", 0, "rho"), 0.0, r"endpoints\[0\].rho"),
    "folds": (("card", "data", "folds", 0, "V", 0), "e999", "the plan's folds is another"),
    "dropped facts": (("card", "data", "guessable_dropped"), [["e001", "use"]], "guessable"),
    "profile": (("card", "profile"), "quick", "the plan's profile is another"),
    "seed": (("card", "seed"), 1, "the plan's seed is another"),
    "battery": (("card", "battery_sha256"), "00", "the plan's battery_sha256 is another"),
    "target": (("card", "target", "id"), "foods", "the plan's target is another"),
    "facts": (("card", "target", "facts_sha256"), "00", "the plan's target_sha256"),
    "plan": (("card", "prereg_sha256"), "00", "plan.json does not have the hash"),
    "weights": (("card", "models", "edited", "weights_identical"), True, "weights_identical"),
    "prior": (("card", "data", "prior", "use"), 0.9, "gates"),
}


@pytest.mark.parametrize("what", VERDICT_EDITS)
def test_edit_of_what_decides_is_refused_by_name(saved: Path, folder: Path, what: str) -> None:
    path, value, told = VERDICT_EDITS[what]
    content = json.loads((saved / "report.json").read_text())
    (folder / "report.json").write_text(json.dumps(put(content, path, value)))
    with pytest.raises(AuditError, match=told):
        verify(folder)


def test_edited_plan_is_refused(folder: Path, once: None) -> None:
    plan = json.loads((folder / "plan.json").read_text())
    for path, value in list(leaves(plan))[::7]:
        (folder / "plan.json").write_text(json.dumps(put(plan, path, other(value))))
        with pytest.raises(AuditError, match=r"plan\.json does not have the hash"):
            verify(folder)


@pytest.mark.parametrize("column", ["value", "role", "n"])
def test_edited_row_is_refused(folder: Path, once: None, column: str) -> None:
    frame = pd.read_parquet(folder / "rows.parquet")
    frame.loc[5, column] = other(frame.loc[5, column].item() if column not in ("role",) else "x")
    frame.to_parquet(folder / "rows.parquet", index=False)
    with pytest.raises(AuditError, match=r"rows\.parquet is not what the scores give"):
        verify(folder)


def test_left_out_row_is_refused(folder: Path, once: None) -> None:
    frame = pd.read_parquet(folder / "rows.parquet")
    frame[:-1].to_parquet(folder / "rows.parquet", index=False)
    with pytest.raises(AuditError, match=r"rows\.parquet"):
        verify(folder)


@pytest.mark.parametrize("role", ["edited", "gold-2", "original"])
def test_one_edited_score_is_refused(folder: Path, role: str) -> None:
    measured = load_scores(folder / "scores.parquet")
    view = next(name for name in measured if name[0] == role)
    key = next(k for k in measured[view] if k[:3] == ("B2", "F", "raw"))
    scores = measured[view][key]
    values = scores.values.copy()
    values[3] = 1 - values[3]
    measured[view][key] = replace(scores, values=values)
    save_scores(measured, folder / "scores.parquet")
    with pytest.raises(AuditError, match="the scores give"):
        verify(folder)


def test_missing_model_is_refused(folder: Path) -> None:
    measured = load_scores(folder / "scores.parquet")
    del measured["original", ""]
    save_scores(measured, folder / "scores.parquet")
    with pytest.raises(AuditError, match="do not make a report"):
        verify(folder)


def removed_quick(r: AuditReport) -> AuditReport:
    return replace(r, card=replace(r.card, profile="quick"))


BREAKS: dict[str, tuple[Callable[[AuditReport], AuditReport], str]] = {
    "quick": (removed_quick, "REMOVED with the quick profile"),
    "latent": (
        lambda r: replace(r, card=replace(r.card, target=replace(r.card.target, type="latent"))),
        "REMOVED with a target that is not observed",
    ),
    "golds": (
        lambda r: replace(
            r, card=replace(r.card, models=replace(r.card.models, gold=r.card.models.gold[:2]))
        ),
        "REMOVED with fewer than three golds",
    ),
    "gate": (
        lambda r: replace(r, gates=(replace(r.gates[0], passed=False), *r.gates[1:])),
        "REMOVED with a failed gate",
    ),
    "endpoints": (
        lambda r: replace(r, endpoints=tuple(e for e in r.endpoints if e.id != "M6")),
        "REMOVED with fewer than six endpoints",
    ),
    "tail": (
        lambda r: replace(r, tail=(replace(r.tail[0], passed=False),)),
        "REMOVED with a tail",
    ),
    "distance": (lambda r: replace(r, ks=None), "REMOVED with a distance"),
    "utility": (
        lambda r: replace(r, collateral=replace(r.collateral, non_inferior=False)),
        "REMOVED with a loss of utility",
    ),
    "reason": (
        lambda r: replace(
            r, families=(replace(r.families[0], kept=False, why_dropped=""), *r.families[1:])
        ),
        "dropped without a reason",
    ),
}


@pytest.fixture(scope="module")
def removed() -> AuditReport:
    world = Synthetic()
    report = world.report(world.gold(7))
    assert report.verdict.primary == "REMOVED"
    assert invariants(report) == []
    return report


@pytest.mark.parametrize("what", BREAKS)
def test_removal_that_breaks_a_rule_is_no_report(removed: AuditReport, what: str) -> None:
    change, told = BREAKS[what]
    faults = invariants(change(removed))
    assert any(told in fault for fault in faults), faults


def test_a_file_that_was_touched_breaks_its_seal(folder: Path) -> None:
    """Also where no score contradicts the edit, as in the name of a model."""
    file = folder / "report.json"
    content = json.loads(file.read_text())
    content["card"]["models"]["original"]["name"] = "another"
    file.write_text(json.dumps(content))
    with pytest.raises(AuditError, match=r"report\.json is not the file that was sealed"):
        verify(folder)
