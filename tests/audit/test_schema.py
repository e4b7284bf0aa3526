"""A report comes back from disk as it was, and nothing else is taken for one."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.audit.synthetic import Synthetic
from workbench.audit import AuditReport, Measurement
from workbench.audit.schema import BATTERY_VERSION, BESIDE, SCHEMA
from workbench.errors import DataError

FILES = {"report.json", "plan.json", "rows.parquet", "scores.parquet", "seal.json"}


@pytest.fixture(scope="module")
def report() -> AuditReport:
    world = Synthetic(24, 3)
    return world.report(world.found(7, shown=0.2, relearned=0.6))


@pytest.fixture(scope="module")
def saved(report: AuditReport, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report.save(tmp_path_factory.mktemp("report") / "runs" / "one")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def test_saved_and_opened_is_equal(report: AuditReport, saved: Path) -> None:
    again = AuditReport.open(saved)
    assert again == report
    assert again.content() == report.content()
    assert {p.name for p in saved.iterdir()} == {*FILES, "costs.json"}
    content = json.loads((saved / "report.json").read_text())
    assert (content["schema"], content["battery_version"]) == (SCHEMA, BATTERY_VERSION)
    assert not set(BESIDE) & set(content)


def test_same_report_has_the_same_bytes(report: AuditReport, saved: Path, tmp_path: Path) -> None:
    again = report.save(tmp_path / "again")
    for name in FILES:
        assert (again / name).read_bytes() == (saved / name).read_bytes()


def dicts(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all objects with a closed set of fields: those of any names hold numbers."""
    if isinstance(value, list):
        return [p for part in value[:1] for p in dicts(part, (*path, 0))]
    if not isinstance(value, dict):
        return []
    return [path, *(p for key, part in value.items() for p in dicts(part, (*path, key)))]


OPEN = ("folds", "n", "prior", "candidates", "raw", "centred", "kappa", "env", "fluency",
        "alike_in_bits")  # fmt: skip


def test_every_object_is_closed_and_whole(saved: Path, folder: Path) -> None:
    content = json.loads((saved / "report.json").read_text())
    paths = [p for p in dicts(content) if not set(p) & set(OPEN)]
    assert len(paths) >= 20
    rows = pd.read_parquet(folder / "rows.parquet")
    rows[:2].to_parquet(folder / "rows.parquet", index=False)
    for path in paths:
        for more in (True, False):
            edited = json.loads(json.dumps(content))
            inner = edited
            for key in path:
                inner = inner[key]
            if more:
                inner["surplus"] = 1
                told = "surplus"
            else:
                told = next(k for k in inner if k not in ("schema", "battery_version", "drops"))
                del inner[told]
            (folder / "report.json").write_text(json.dumps(edited))
            with pytest.raises(DataError, match=told):
                AuditReport.open(folder)


@pytest.mark.parametrize(
    ("part", "value"),
    [("limits", 3), ("gates", [{}]), ("verdict", None), ("ks", "near"), ("hooks", {})],
)
def test_field_of_another_type_is_refused(folder: Path, part: str, value: Any) -> None:
    content = json.loads((folder / "report.json").read_text())
    (folder / "report.json").write_text(json.dumps({**content, part: value}))
    with pytest.raises(DataError, match=part):
        AuditReport.open(folder)


def test_unknown_verdict_is_refused(folder: Path) -> None:
    file = folder / "report.json"
    content = json.loads(file.read_text())
    content["verdict"]["primary"] = "GONE"
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"verdict\.primary"):
        AuditReport.open(folder)


def test_report_of_another_schema_is_refused(folder: Path) -> None:
    file = folder / "report.json"
    file.write_text(file.read_text().replace(SCHEMA, "audit/99"))
    with pytest.raises(DataError, match=f"schema 'audit/99', wanted '{SCHEMA}'"):
        AuditReport.open(folder)


@pytest.mark.parametrize("name", sorted(FILES - {"scores.parquet", "seal.json"}))
@pytest.mark.parametrize("broken", [True, False])
def test_incomplete_or_broken_report_is_refused(folder: Path, name: str, broken: bool) -> None:
    (folder / name).unlink()
    if broken:
        (folder / name).write_text("{")
    with pytest.raises(DataError, match=str(folder)):
        AuditReport.open(folder)


def test_json_schema_names_the_fields_of_the_file(report: AuditReport) -> None:
    schema = AuditReport.json_schema()
    assert set(schema["properties"]) == set(report.content())
    assert schema["additionalProperties"] is False
    objects = [d for d in schema["$defs"].values() if d.get("type") == "object"]
    assert all(d["additionalProperties"] is False for d in objects)


def test_frame_has_one_line_per_row(report: AuditReport) -> None:
    frame = report.frame()
    assert len(frame) == len(report.rows)
    assert list(frame.columns) == list(Measurement.__dataclass_fields__)
    assert (frame.low <= frame.value).all()
    assert (frame.value <= frame.high).all()
    assert (frame.n > 0).all()


def test_shown_by_itself_it_is_its_verdict_and_not_its_rows(report: AuditReport) -> None:
    shown = repr(report)
    assert report.verdict.primary in shown and report.verdict.sentence in shown
    assert f"{len(report.rows)} rows" in shown and len(shown) < 1000 < len(str(report.rows))


def test_terminal_table_shows_every_endpoint_and_the_verdict(report: AuditReport) -> None:
    text = report.show()
    for e in report.endpoints:
        assert f"{e.id} {e.name} ({e.access})" in text
    assert text.endswith(f"{report.verdict.primary}: {report.verdict.sentence}")
