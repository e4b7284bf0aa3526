"""A report comes back from disk as it was."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from workbench.audit import AuditReport, Endpoint, Gate, Measurement, Verdict
from workbench.audit.schema import BATTERY_VERSION, SCHEMA
from workbench.errors import DataError


@pytest.fixture
def report() -> AuditReport:
    row = Measurement("recall", "original", "", "V", "open", 0.0, 1 / 3, 0.1, 2 / 3, 120, 33, 0)
    shown = Endpoint(
        "open", "A0", "hooks_on", 0.97, 1 / 3, 0.05, (0.04, 0.05, 0.06), 0.31, 0.2, 1000.0, 1e-3,
        True, True, "", 120, 33,
    )  # fmt: skip
    return AuditReport(
        rows=(row, replace(row, role="edited", view="hooks_on", x=3.0, value=0.1 + 0.2)),
        endpoints=(shown, replace(shown, id="relearning", valid=False, why_invalid="too small")),
        gates=(Gate("G2", True, 0.1, 0.2, "golds know no more than the prior"),),
        verdict=Verdict("SUPPRESSED", "Hidden.", ("one", "two"), ("weights_identical",), "A3"),
        limits=("a lower bound",),
        provenance={"target": {"name": "toxins", "folds": {"V": 33}}, "models": {"original": "ab"}},
    )


def test_saved_and_opened_is_equal(report: AuditReport, tmp_path: Path) -> None:
    folder = report.save(tmp_path / "runs" / "one")
    assert AuditReport.open(folder) == report
    assert {p.name for p in folder.iterdir()} == {"rows.parquet", "report.json"}
    content = json.loads((folder / "report.json").read_text())
    assert (content["schema"], content["battery_version"]) == (SCHEMA, BATTERY_VERSION)


def test_saving_again_replaces_what_stood_there(report: AuditReport, tmp_path: Path) -> None:
    report.save(tmp_path)
    other = replace(report, rows=report.rows[:1], limits=())
    other.save(tmp_path)
    assert AuditReport.open(tmp_path) == other


def test_report_of_another_schema_is_refused(report: AuditReport, tmp_path: Path) -> None:
    file = report.save(tmp_path) / "report.json"
    file.write_text(file.read_text().replace(SCHEMA, "audit/99"))
    with pytest.raises(DataError, match=f"schema 'audit/99', wanted '{SCHEMA}'"):
        AuditReport.open(tmp_path)


@pytest.mark.parametrize("name", ["report.json", "rows.parquet"])
@pytest.mark.parametrize("broken", [True, False])
def test_incomplete_or_broken_report_is_refused(
    report: AuditReport, tmp_path: Path, name: str, broken: bool
) -> None:
    file = report.save(tmp_path) / name
    file.unlink()
    if broken:
        file.write_text("{")
    with pytest.raises(DataError, match=str(tmp_path)):
        AuditReport.open(tmp_path)


def test_frame_has_one_line_per_row(report: AuditReport) -> None:
    frame = report.frame()
    assert len(frame) == 2
    assert list(frame.columns) == list(Measurement.__dataclass_fields__)
    assert frame.loc[1, "value"] == 0.1 + 0.2


def test_terminal_table_shows_every_endpoint_and_the_verdict(report: AuditReport) -> None:
    text = report.show()
    for part in ("open (A0, hooks on)", "relearning (A0, hooks on)", "0.970", "0.31", "120"):
        assert part in text
    assert text.endswith("SUPPRESSED: Hidden.")
