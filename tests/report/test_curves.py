"""Curves are checked on their data."""

from dataclasses import replace
from math import log2, sqrt
from typing import Any

import plotly.graph_objects as go
import pytest

from workbench.audit.schema import Measurement, Selection
from workbench.errors import DataError
from workbench.report import probe_figure, relearning_figure, savings_figure, tradeoff_figure
from workbench.report.drawing import DODGE
from workbench.report.roles import STYLES

ROLES = {
    "original": "original",
    "edited, hooks on": "edited",
    "edited, hooks off": "weights",
    "edited, behind its filter": "text",
    "gold, mean of 3": "gold",
    "random weights": "random",
    "shuffled weights": "permuted",
}
STEPS = (0, 1, 4, 16, 64)


def traces(figure: go.Figure, axis: str | None = None) -> dict[str, Any]:
    """The first trace of each name, on a y axis if one is given; bands have no name."""
    found: dict[str, Any] = {}
    for trace in figure.data:
        if trace.name and axis in (None, trace.yaxis):
            found.setdefault(trace.name, trace)
    return found


def find(report: Any, **wanted: Any) -> list[Measurement]:
    found = [r for r in report.rows if all(getattr(r, k) == v for k, v in wanted.items())]
    assert found, wanted
    return found


def mean(rows: list[Measurement]) -> float:
    return sum(r.n * r.value for r in rows) / sum(r.n for r in rows)


def ends(trace: Any) -> list[tuple[float, float]]:
    whiskers = zip(trace.y, trace.error_y.arrayminus, trace.error_y.array, strict=True)
    return [(value - less, value + more) for value, less, more in whiskers]


def test_probe_has_a_panel_for_each_position_and_a_line_for_each_role(report) -> None:
    figure = probe_figure(report)
    roles = [name for name in ROLES if name != "edited, behind its filter"]
    lines = [t for t in figure.data if t.name in ROLES]
    assert [(t.name, t.yaxis) for t in lines] == [(n, y) for y in ("y", "y2") for n in roles]
    assert sum(t.showlegend for t in lines) == len(roles)
    assert "subject" in figure.layout.yaxis.title.text
    assert "prompt" in figure.layout.yaxis2.title.text
    for line in lines:
        role = {"edited, hooks on": "edited", "shuffled weights": "permuted"}.get(line.name)
        if role:
            view = "deployed" if role == "edited" else ""
            for i, (x, y) in enumerate(zip(line.x, line.y, strict=True)):
                assert x == pytest.approx(i, abs=3 * DODGE)
                place = f"layer {i}, {'subject' if line.yaxis == 'y' else 'last'}"
                wanted = {"endpoint": "P1", "metric": "hit", "setting": place, "subset": "F"}
                assert y == find(report, role=role, view=view, **wanted)[0].value


def test_probe_fitted_within_rotations_is_pooled_over_them(report) -> None:
    line = traces(probe_figure(report, "P2"))["original"]
    wanted = {"endpoint": "P2", "subset": "V", "setting": "both, layer 2, subject"}
    rows = find(report, role="original", **wanted)
    assert len(rows) == 3
    assert line.y[2] == pytest.approx(mean(rows))
    n = sum(r.n for r in rows)
    below = sqrt(sum((r.n / n * (r.value - r.low)) ** 2 for r in rows))
    assert ends(line)[2][0] == pytest.approx(mean(rows) - below)
    assert line.customdata[2][2] == n == 60


def test_rings_are_where_the_endpoint_reads(report) -> None:
    chosen = Selection("S", 9, ("P1 layer 2, last", "P1 layer 2, last", "P4 layer 1"))
    moved = tuple(replace(e, selection=chosen) if e.id == "M3" else e for e in report.endpoints)
    figure = probe_figure(replace(report, endpoints=moved))
    ring = traces(figure)["read by the endpoint M3"]
    edited = traces(figure, "y2")["edited, hooks on"]
    assert ring.yaxis == "y2"
    assert (ring.x[0], ring.y[0]) == (edited.x[2], edited.y[2])
    assert "2 rotations" in ring.hovertemplate
    other = traces(probe_figure(replace(report, endpoints=moved), "P4"))
    assert other["read by the endpoint M3"].y[0] == other["edited, hooks on"].y[1]


def test_relearning_stands_on_a_log_axis_with_steps_as_labels(report) -> None:
    figure = relearning_figure(report)
    assert list(figure.layout.xaxis.ticktext) == [str(s) for s in STEPS]
    assert list(figure.layout.xaxis.tickvals) == pytest.approx([log2(1 + s) for s in STEPS])
    picks = next(e for e in report.endpoints if e.id == "M4").selection.chosen
    for axis, lr in (("y", "lr 0.0003"), ("y2", "lr 0.001")):
        title = figure.layout[axis.replace("y", "yaxis")].title.text
        assert title.startswith(lr)
        assert f"M4 in {picks.count(f'W1 {lr}')} of 3 rotations" in title
        shown = traces(figure, axis)
        assert [n for n in shown if n in ROLES] == [*list(ROLES)[:3], "gold, mean of 3"]
        edited = shown["edited, hooks on"]
        assert list(edited.x) == pytest.approx([log2(1 + s) for s in STEPS], abs=2 * DODGE)
        for i, step in enumerate(STEPS):
            wanted = {"endpoint": "W1", "subset": "V", "setting": lr, "x": step}
            rows = find(report, role="edited", view="deployed", **wanted)
            assert edited.y[i] == pytest.approx(mean(rows))
            assert edited.customdata[i][2] == 120


def test_area_between_edited_and_gold_is_shaded(report) -> None:
    shown = traces(relearning_figure(report))
    gap, n = shown["edited less gold"], len(STEPS)
    assert gap.fill == "toself"
    assert list(gap.y[:n]) == list(shown["edited, hooks on"].y)
    assert list(gap.y[n:])[::-1] == list(shown["gold, mean of 3"].y)
    assert list(gap.x[:n]) == [log2(1 + s) for s in STEPS]


def test_band_spans_lowest_and_highest_gold(report) -> None:
    band = next(t for t in relearning_figure(report).data if t.fill == "toself" and not t.name)
    top, bottom = band.y[: len(STEPS)], band.y[: len(STEPS) - 1 : -1]
    for i, step in enumerate(STEPS):
        wanted = {"endpoint": "W1", "subset": "V", "setting": "lr 0.0003", "x": step}
        golds = [mean(find(report, role=f"gold-{g}", **wanted)) for g in range(3)]
        assert (bottom[i], top[i]) == pytest.approx((min(golds), max(golds)))


def test_savings_shows_forget_and_fresh_facts_of_each_model(report) -> None:
    figure = savings_figure(report)
    titles = [a.title.text.split("<br>")[0] for a in figure.select_yaxes()]
    assert titles == ["original", "edited, hooks on", "edited, hooks off", "gold, mean of 3"]
    shown = traces(figure, "y2")
    for name, subset in (("forget facts", "V"), ("fresh facts", "Z")):
        for i, step in enumerate(STEPS):
            wanted = {"endpoint": "W2", "subset": subset, "x": step}
            rows = find(report, role="edited", view="deployed", **wanted)
            assert shown[name].y[i] == pytest.approx(mean(rows))
        assert shown[name].line.color == STYLES["edited"].color
    assert shown["forget facts"].marker.symbol == "square"
    assert shown["fresh facts"].marker.symbol == "square-open"
    assert list(shown["savings"].y[:5]) == list(shown["forget facts"].y)
    assert sum(bool(t.showlegend) for t in figure.data) == 3


def test_tradeoff_draws_every_dose_in_order_and_marks_the_chosen(doses) -> None:
    figure = tradeoff_figure(doses[::-1])
    shown = traces(figure)
    rows = sorted(doses, key=lambda row: row["dose"])
    for name, key in {
        "forget facts, fold S": "forget",
        "forget facts, random features": "control_forget",
        "lowest retained kind": "retained",
    }.items():
        assert list(shown[name].x) == [-4, -3, -2, -1, 0]
        assert list(shown[name].y) == [row[key] for row in rows]
    (line,) = figure.layout.shapes
    assert (line.x0, line.x1) == (-2, -2)
    assert "64 features" in figure.layout.yaxis.title.text


def test_tradeoff_has_a_panel_for_each_setting_and_needs_no_optional_key(doses) -> None:
    both = [*doses, *({**row, "k": 128, "control_forget": None} for row in doses)]
    figure = tradeoff_figure(both)
    assert {t.yaxis for t in figure.data} == {"y", "y2"}
    assert len(figure.data) == 5
    plain = tradeoff_figure([{k: row[k] for k in ("dose", "forget", "retained")} for row in doses])
    assert len(plain.data) == 2
    assert plain.layout.yaxis.title.text == "recall (share of questions)"
    with pytest.raises(DataError, match=r"row 0 has no \['retained'\]"):
        tradeoff_figure([{"dose": 1.0, "forget": 0.1}])
