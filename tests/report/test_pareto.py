"""Edits side by side: the front by hand, and a page that shows them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from workbench.audit.schema import AuditReport
from workbench.cli import main
from workbench.errors import DataError
from workbench.report import pareto_figure, write_pareto
from workbench.report.pareto import front, hypervolume, spots


def test_front_holds_what_no_other_beats() -> None:
    points = [(0.2, 0.9), (0.5, 0.5), (0.4, 0.4), (0.9, 0.1), (0.5, 0.3)]
    assert [points[i] for i in front(points)] == [(0.2, 0.9), (0.5, 0.5), (0.9, 0.1)]
    assert front([(1.0, 1.0), (1.0, 1.0), (0.0, 1.0)]) == [0, 1]
    assert front([]) == []


def test_hypervolume_by_hand() -> None:
    """0.2 wide at 0.9, then 0.3 at 0.5, then 0.4 at 0.1; what is beaten adds nothing."""
    points = [(0.2, 0.9), (0.5, 0.5), (0.4, 0.4), (0.9, 0.1)]
    assert hypervolume(points) == pytest.approx(0.2 * 0.9 + 0.3 * 0.5 + 0.4 * 0.1)
    assert (hypervolume([(1.0, 1.0)]), hypervolume([(1.0, 0.0)]), hypervolume([])) == (1, 0, 0)
    assert hypervolume([(-0.5, -0.2)]) == 0


Make = Callable[..., AuditReport]


@pytest.fixture
def reports(make_report: Make) -> dict[str, AuditReport]:
    return {"hooked": make_report(), "<img src=x onerror=alert(1)>": make_report()}


def test_every_edit_stands_in_the_figure_with_its_intervals(
    reports: dict[str, AuditReport],
) -> None:
    found = spots(reports, "robustness")
    assert [s.name for s in found] == list(reports)
    assert all(s.x[1] <= s.x[0] <= s.x[2] and s.y[1] <= s.y[0] <= s.y[2] for s in found)
    drawn = pareto_figure(reports)
    texts = [t.text[0] for t in drawn.data if t.text]  # pyright: ignore[reportAttributeAccessIssue]
    assert "hooked" in texts and not any("<img" in t for t in texts)
    names = {t.name for t in drawn.data}  # pyright: ignore[reportAttributeAccessIssue]
    assert {"a gold", "the original", "random weights"} <= names


def test_edits_of_different_targets_are_not_compared(reports: dict[str, AuditReport]) -> None:
    first = next(iter(reports.values()))
    other = replace(first.card, target=replace(first.card.target, id="guild"))
    with pytest.raises(DataError, match="reports of 2 targets"):
        pareto_figure({**reports, "other": replace(first, card=other)})


def test_audits_that_tried_less_are_not_compared_with_those_that_tried_more(
    reports: dict[str, AuditReport],
) -> None:
    first = next(iter(reports.values()))
    for change in ({"profile": "full"}, {"battery_sha256": "0" * 64}):
        other = replace(first, card=replace(first.card, **change))
        with pytest.raises(DataError, match="differ in nothing but the edit"):
            pareto_figure({**reports, "other": other})


def test_page_is_written_by_one_command(
    reports: dict[str, AuditReport], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i, report in enumerate(reports.values()):
        report.save(tmp_path / f"edit-{i}")
    out = tmp_path / "pareto.html"
    folders = [str(tmp_path / f"edit-{i}") for i in range(len(reports))]
    assert main(["pareto", *folders, "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    page = out.read_text()
    assert "edit-0" in page and "Robust removal" in page
    assert main(["pareto", *folders, "--out", str(tmp_path / "page")]) == 2


def test_names_are_escaped(reports: dict[str, AuditReport], tmp_path: Path) -> None:
    page = write_pareto(reports, tmp_path / "pareto.html").read_text()
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page
