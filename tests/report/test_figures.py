"""Figures are checked on their data, and on what they say where there is none."""

from dataclasses import replace
from itertools import pairwise
from math import log2
from typing import Any

import plotly.graph_objects as go
import pytest

from workbench.audit import Measurement
from workbench.errors import DataError
from workbench.report import (
    probe_figure,
    recall_figure,
    relearning_figure,
    residual_figure,
    retained_figure,
    tradeoff_figure,
)
from workbench.report.drawing import DODGE
from workbench.report.figures import FAMILIES
from workbench.report.roles import STYLES, by_role

ROLES = {
    "original": "original",
    "edited, hooks on": "edited",
    "edited, hooks off": "hooks_off",
    "gold, mean of 3": "gold",
    "shuffled weights": "control",
}
OF_REPORTS = (residual_figure, recall_figure, retained_figure, probe_figure, relearning_figure)


def traces(figure: go.Figure) -> dict[str, Any]:
    """The first trace of each name; bands have none."""
    found: dict[str, Any] = {}
    for trace in figure.data:
        if trace.name:
            found.setdefault(trace.name, trace)
    return found


def color(trace: Any) -> str:
    if trace.type == "bar":
        return trace.marker.line.color
    return trace.line.color or trace.marker.color


def find(report: Any, **wanted: Any) -> Measurement:
    (found,) = (r for r in report.rows if all(getattr(r, k) == v for k, v in wanted.items()))
    return found


def text(figure: go.Figure) -> str:
    return " ".join(a.text for a in figure.layout.annotations)


def test_recall_bars_are_the_rows(report) -> None:
    shown = traces(recall_figure(report))
    assert list(shown) == list(ROLES)[:4]
    for name, role, view in (
        ("original", "original", ""),
        ("edited, hooks on", "edited", "hooks_on"),
        ("edited, hooks off", "edited", "hooks_off"),
    ):
        bar = shown[name]
        assert list(bar.x) == list(FAMILIES.values())
        for i, detail in enumerate(FAMILIES):
            row = find(report, endpoint="recall", role=role, view=view, subset="V", detail=detail)
            assert bar.y[i] == row.value
            assert bar.y[i] + bar.error_y.array[i] == pytest.approx(row.high)
            assert bar.y[i] - bar.error_y.arrayminus[i] == pytest.approx(row.low)
            assert list(bar.customdata[i]) == [row.low, row.high, row.n, row.n_entities]


def test_gold_is_the_mean_with_an_interval_over_all_golds(report) -> None:
    golds = [
        find(report, endpoint="recall", role=f"gold-{i}", subset="V", detail="train")
        for i in range(3)
    ]
    bar = traces(recall_figure(report))["gold, mean of 3"]
    assert bar.y[0] == pytest.approx(sum(g.value for g in golds) / 3)
    assert bar.customdata[0][0] == min(g.low for g in golds)
    assert bar.customdata[0][1] == max(g.high for g in golds)


def test_a_row_with_the_golds_mean_is_preferred_to_our_own_interval(make_report) -> None:
    mean = Measurement("recall", "gold", "", "V", "train", 0.0, 0.08, 0.07, 0.09, 120, 40, 0)
    bar = traces(recall_figure(make_report(rows=(mean,))))["gold, mean of 3"]
    assert (bar.y[0], *bar.customdata[0][:2]) == (0.08, 0.07, 0.09)


def test_bars_of_height_zero_have_an_outline(report) -> None:
    assert all(bar.marker.line.width for bar in recall_figure(report).data)


def test_retained_dots_are_the_rows_and_every_set_has_a_label(report) -> None:
    figure = retained_figure(report)
    shown = traces(figure)
    assert list(shown) == ["original", "edited, hooks on", "gold, mean of 3"]
    labels = [" ".join(t.split("<br>")) for t in figure.layout.yaxis.ticktext]
    assert labels[:2] == ["N1 same entity, other relation", "N2 same relation, other entity"]
    assert labels[-4:] == [
        "R_te same relations, held-out fold",
        *("kind: person", "kind: substance", "kind: town"),
    ]
    dots = shown["edited, hooks on"]
    for x, y, more, less in zip(
        dots.x, dots.y, dots.error_x.array, dots.error_x.arrayminus, strict=True
    ):
        subset = labels[round(y)].replace("kind: ", "kind:").split()[0]
        row = find(report, endpoint="recall", view="hooks_on", subset=subset)
        assert (x, x + more, x - less) == pytest.approx((row.value, row.high, row.low))
    first, last = figure.layout.yaxis.range
    assert first > last, "the first set stands on top"


def test_probe_has_a_panel_for_each_position_and_a_line_for_each_role(report) -> None:
    figure = probe_figure(report)
    lines = [t for t in figure.data if t.name in ROLES]
    assert [(t.name, t.yaxis) for t in lines] == [(n, y) for y in ("y", "y2") for n in ROLES]
    assert sum(t.showlegend for t in lines) == len(ROLES)
    assert "subject" in figure.layout.yaxis.title.text
    assert "prompt" in figure.layout.yaxis2.title.text
    for line in lines:
        role = {"edited, hooks on": "edited", "shuffled weights": "control"}.get(line.name)
        if role:
            detail = "subject" if line.yaxis == "y" else "last"
            view = "hooks_on" if role == "edited" else "permuted"
            for i, (x, y) in enumerate(zip(line.x, line.y, strict=True)):
                assert x == pytest.approx(i, abs=3 * DODGE)
                wanted = {"subset": "V", "detail": detail, "x": i, "role": role, "view": view}
                assert y == find(report, endpoint="probe", **wanted).value


def test_ring_is_on_the_edited_models_best_place_on_s(report) -> None:
    shown = traces(probe_figure(report))
    ring, edited = shown["read by the endpoint (chosen on S)"], shown["edited, hooks on"]
    assert ring.yaxis == "y"
    assert (ring.x[0], ring.y[0]) == (edited.x[2], edited.y[2])
    assert edited.y[2] == max(edited.y)


def test_relearning_stands_on_a_log_axis_with_steps_as_labels(report) -> None:
    figure = relearning_figure(report)
    steps = [0, 1, 2, 4, 8, 16, 32, 64]
    assert list(figure.layout.xaxis.ticktext) == [str(s) for s in steps]
    assert list(figure.layout.xaxis.tickvals) == pytest.approx([log2(1 + s) for s in steps])
    shown = traces(figure)
    assert list(shown) == list(ROLES)[:4]
    for line in shown.values():
        assert list(line.x) == pytest.approx([log2(1 + s) for s in steps], abs=2 * DODGE)
    edited = shown["edited, hooks on"]
    for i, step in enumerate(steps):
        row = find(report, endpoint="relearn", view="hooks_on", subset="V", x=step)
        assert edited.y[i] == row.value
        assert edited.customdata[i][0] == row.low
        assert edited.y[i] - edited.error_y.arrayminus[i] == pytest.approx(row.low)


def test_band_spans_lowest_and_highest_gold(report) -> None:
    (band,) = (t for t in relearning_figure(report).data if t.fill == "toself")
    top, bottom = band.y[:8], band.y[:7:-1]
    for i, step in enumerate((0, 1, 2, 4, 8, 16, 32, 64)):
        golds = [
            find(report, endpoint="relearn", role=f"gold-{g}", subset="V", x=step).value
            for g in range(3)
        ]
        assert (bottom[i], top[i]) == (min(golds), max(golds))


def test_endpoints_are_the_reports_and_invalid_ones_are_grey(report) -> None:
    figure = residual_figure(report)
    shown = traces(figure)
    assert list(shown["not valid"].x) == [0.6]
    assert list(shown["edited, hooks off"].x) == [1.0]
    assert shown["not valid"].marker.color not in {s.color for s in STYLES.values()}
    edited = shown["edited, hooks on"]
    valid = [e for e in report.endpoints if e.valid and e.view == "hooks_on"]
    assert list(edited.x) == [e.rho for e in valid]
    assert [list(c[:2]) for c in edited.customdata] == [[e.low, e.high] for e in valid]
    assert figure.layout.yaxis.ticktext[0] == "A0 open"


def test_unbounded_intervals_leave_the_frame_and_do_not_stretch_it(report) -> None:
    wild = replace(report.endpoints[0], low=-1000.0, high=1000.0)
    figure = residual_figure(replace(report, endpoints=(wild,)))
    assert figure.layout.xaxis.range == (-0.55, 1.55)


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


def test_tradeoff_row_without_a_key_is_refused() -> None:
    with pytest.raises(DataError, match=r"row 0 has no \['retained'\]"):
        tradeoff_figure([{"dose": 1.0, "forget": 0.1}])


def test_roles_keep_their_colour_in_all_figures(report) -> None:
    for draw in OF_REPORTS:
        for trace in draw(report).data:
            if trace.name in ROLES:
                assert color(trace) == STYLES[ROLES[trace.name]].color, (draw, trace.name)


def test_roles_differ_in_colour_and_in_symbol_dash_and_pattern() -> None:
    for field in ("color", "symbol", "pattern"):
        assert len({getattr(s, field) for s in STYLES.values()}) == len(STYLES), field
    curves = [(s.symbol, s.dash) for s in STYLES.values()]
    assert len(set(curves)) == len(curves)


def test_axes_have_titles_and_legible_fonts(report, doses) -> None:
    for figure in (*(draw(report) for draw in OF_REPORTS), tradeoff_figure(doses)):
        *_, bottom = figure.select_xaxes()
        assert bottom.title.text
        assert all(a.title.text for a in figure.select_yaxes())
        assert figure.layout.font.size >= 12
        assert bottom.title.font.size >= 12


@pytest.mark.parametrize(
    ("draw", "lacks", "says"),
    [
        (probe_figure, {"probe": False}, "no transfer probe"),
        (relearning_figure, {"relearn": False}, "no relearning attack"),
    ],
)
def test_missing_endpoint_is_said_and_does_not_fail(draw, lacks, says, make_report) -> None:
    figure = draw(make_report(**lacks))
    assert not figure.data
    assert says in text(figure).replace("<br>", " ")


def test_report_without_rows_or_endpoints_gives_figures_that_say_so(report) -> None:
    empty = replace(report, rows=(), endpoints=())
    for draw in OF_REPORTS:
        assert not draw(empty).data
        assert text(draw(empty)).startswith("This audit")
    assert text(tradeoff_figure([])) == "No doses were compared."


def test_edit_without_hooks_has_no_hooks_in_its_name(make_report) -> None:
    without = make_report(hooks=False)
    for draw in (recall_figure, probe_figure, relearning_figure):
        names = [t.name for t in draw(without).data if t.name]
        assert "edited" in names
        assert not any("hooks" in name for name in names)


def test_depths_of_a_deep_model_are_not_all_labelled(make_report) -> None:
    rows = tuple(
        Measurement("probe", "original", "", "V", "last", float(x), 0.5, 0.4, 0.6, 9, 3, 0)
        for x in range(27)
    )
    assert probe_figure(make_report(probe=False, rows=rows)).layout.xaxis.dtick == 2


def test_text_of_the_report_is_escaped_for_plotly(make_report) -> None:
    bad = "<b>x</b>&'\""
    rows = tuple(
        Measurement(endpoint, role, view, subset, bad, 0.0, 0.5, 0.4, 0.6, 9, 3, 0)
        for endpoint, subset in (("recall", f"kind:{bad}"), ("probe", "V"))
        for role, view in (("original", ""), ("edited", "hooks_on"))
    )
    hurt = make_report(rows=rows)
    hurt = replace(hurt, endpoints=(replace(hurt.endpoints[0], id=bad),))
    settings = [{"dose": 1.0, "forget": 0.1, "retained": 0.9, "sites": bad, "k": bad}]
    for figure in (*(draw(hurt) for draw in OF_REPORTS), tradeoff_figure(settings)):
        assert "<b>" not in str(figure.to_dict())
    assert "&lt;b&gt;x&lt;/b&gt;&amp;'\"" in str(probe_figure(hurt).layout.yaxis3.title.text)


def test_two_rows_of_one_model_at_one_place_are_refused(report) -> None:
    doubled = replace(report, rows=(*report.rows, *report.rows))
    with pytest.raises(DataError, match="two rows for the same place"):
        recall_figure(doubled)


def test_unknown_role_is_refused(make_report) -> None:
    row = Measurement("recall", "twin", "", "V", "train", 0.0, 0.5, 0.4, 0.6, 9, 3, 0)
    with pytest.raises(DataError, match="twin"):
        recall_figure(make_report(rows=(row,)))


def test_roles_come_in_one_order_whatever_the_order_of_rows(report) -> None:
    rows = [r for r in report.rows if r.endpoint == "relearn" and r.subset == "V"]
    orders = [list(by_role(order, lambda r: r.x)) for order in (rows, rows[::-1])]
    assert all(a == b for a, b in pairwise(orders))
