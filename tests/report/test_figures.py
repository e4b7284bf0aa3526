"""Figures are checked on their data, and on what they say where there is none."""

from dataclasses import replace
from typing import Any

import plotly.graph_objects as go
import pytest

from workbench.audit.schema import Measurement
from workbench.report import access_figure, endpoint_figure, recall_figure, retained_figure
from workbench.report.roles import STYLES, gold_rhos, standing, usable

ROLES = {
    "original": "original",
    "edited, hooks on": "edited",
    "edited, hooks off": "weights",
    "edited, behind its filter": "text",
    "gold, mean of 3": "gold",
    "random weights": "random",
    "shuffled weights": "permuted",
}


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


def ends(trace: Any, axis: str = "y") -> list[tuple[float, float]]:
    values, error = trace[axis], trace[f"error_{axis}"]
    return [
        (value - less, value + more)
        for value, less, more in zip(values, error.arrayminus, error.array, strict=True)
    ]


def labels(figure: go.Figure) -> list[str]:
    return [" ".join(t.split("<br>")) for t in figure.layout.yaxis.ticktext]


def with_off(report: Any) -> Any:
    """With the endpoint of the weights alone, hooks off, at rho 1."""
    shown = next(e for e in report.endpoints if e.id == "open")
    means = replace(shown.m, E=shown.m.O)
    off = replace(
        shown, id="off", name="hooks removed", access="A3", view="weights", m=means, rho=1.0,
        ci90=(0.95, 1.05), ci95=(0.9, 1.1), recovered=True, equivalent=False,
    )  # fmt: skip
    return replace(report, endpoints=(*(e for e in report.endpoints if e.id != "off"), off))


def test_every_endpoint_has_a_row_and_the_confirmatory_ones_stand_first(report) -> None:
    figure = endpoint_figure(with_off(report))
    names = [name.split()[0] for name in labels(figure)]
    assert names == [*(f"M{i}" for i in range(1, 7)), "open", "text", "off"]
    first, last = figure.layout.yaxis.range
    assert first > last, "the first endpoint stands on top"
    assert "(A4; recovered)" in labels(figure)[3]
    drawn = {
        (place, x)
        for t in figure.data
        if t.error_x.array is not None
        for place, x in zip(t.y, t.x, strict=True)
    }
    by_id = {e.id: e.rho for e in with_off(report).endpoints}
    assert drawn == {(i, by_id[name]) for i, name in enumerate(names)}


def test_endpoints_are_marked_by_what_became_of_them(report) -> None:
    figure = endpoint_figure(with_off(report))
    shown = traces(figure)
    groups = {"recovered": "recovered", "equivalent": "equivalent", "neither": "neither"}
    for word in groups:
        rhos = [
            e.rho for e in report.endpoints if standing(report, e) == word and e.view == "deployed"
        ]
        name = f"edited, hooks on: {word}"
        assert sorted(shown[name].x) == sorted(rhos) if rhos else name not in shown
    assert list(shown["edited, hooks off: recovered"].x) == [1.0]
    invalid = [e.rho for e in report.endpoints if not e.valid]
    assert list(shown["not usable"].x) == invalid
    assert shown["not usable"].marker.symbol == "circle-open"
    assert shown["not usable"].marker.color not in {s.color for s in STYLES.values()}
    used = [shown[n].marker.symbol for n in shown if n.startswith("edited, hooks on: ")]
    assert len(set(used)) == len(used) > 1


def test_thin_intervals_are_95_and_thick_ones_90_per_cent(report) -> None:
    figure = endpoint_figure(report)
    dots = traces(figure)["edited, hooks on: recovered"]
    by_rho = {e.rho: e for e in report.endpoints}
    assert ends(dots, "x") == [pytest.approx(by_rho[x].ci95) for x in dots.x]
    (thick,) = (t for t in figure.data if t.mode == "lines" and t.legendgroup == dots.legendgroup)
    spans = [x for x in thick.x if x is not None]
    assert list(zip(spans[::2], spans[1::2], strict=True)) == [by_rho[x].ci90 for x in dots.x]


def test_margins_and_golds_stand_behind_each_endpoint(report) -> None:
    figure = endpoint_figure(report)
    boxes = [s for s in figure.layout.shapes if s.type == "rect"]
    margins = [s for s in boxes if s.opacity == 1.0]
    wanted = {e.id: e.delta for e in report.endpoints}
    assert [s.x1 for s in margins] == [wanted[n.split()[0]] for n in labels(figure)]
    assert all(s.x0 == -s.x1 for s in margins)
    golds = traces(figure)["each gold against the others"]
    assert len(golds.x) == 3 * len(report.endpoints)
    m1 = next(e for e in report.endpoints if e.id == "M1")
    a, b, c = m1.m.G_each
    others = (b + c) / 2
    assert golds.x[0] == pytest.approx((a - others) / (m1.m.O - others))
    assert gold_rhos(m1) == list(golds.x[:3])
    lines = [s.x0 for s in figure.layout.shapes if s.type == "line"]
    assert lines == [0.0, 0.1, 1.0]


def test_endpoint_that_a_failed_gate_drops_is_grey(report) -> None:
    gates = tuple(replace(g, passed=False) if "M3" in g.drops else g for g in report.gates)
    hurt = replace(report, gates=gates)
    m3 = next(e for e in hurt.endpoints if e.id == "M3")
    assert m3.valid and not usable(hurt, m3)
    assert m3.rho in traces(endpoint_figure(hurt))["not usable"].x
    assert "dropped by G3, G4" in " ".join(labels(endpoint_figure(hurt)))


def test_unbounded_intervals_leave_the_frame_and_do_not_stretch_it(report) -> None:
    wild = replace(report.endpoints[0], ci95=(-1000.0, 1000.0), ci90=(-1000.0, 1000.0))
    figure = endpoint_figure(replace(report, endpoints=(wild,)))
    assert figure.layout.xaxis.range == (-0.55, 1.55)
    assert access_figure(replace(report, endpoints=(wild,))).layout.yaxis.range == (-0.55, 1.55)


def test_access_shows_usable_endpoints_at_their_level_and_the_best_so_far(report) -> None:
    report = with_off(report)
    figure = access_figure(report)
    levels = list(figure.layout.xaxis.ticktext)
    assert levels == ["A0", "A1", "A2", "A3", "A4"]
    drawn = {
        (levels[round(x)], rho)
        for t in figure.data
        if t.error_y.array is not None
        for x, rho in zip(t.x, t.y, strict=True)
    }
    used = [e for e in report.endpoints if usable(report, e)]
    assert drawn == {(e.access, e.rho) for e in used}
    steps = traces(figure)["best up to this level"]
    for place, level in enumerate(levels):
        best = max(e.rho for e in used if e.access <= level)
        at = [y for x, y in zip(steps.x, steps.y, strict=True) if abs(x - place) == 0.5]
        assert best in at
    assert list(steps.y) == sorted(steps.y)
    assert traces(figure)["edited, hooks off"].x == (3.0,)
    named = {t.replace("<b>", "").replace("</b>", "") for d in figure.data for t in d.text or ()}
    best = {max((e for e in used if e.access == a), key=lambda e: e.rho).id for a in levels}
    assert named - {""} == best


def test_recall_dots_are_the_rows(report) -> None:
    for metric in ("text", "raw", "centred"):
        figure = recall_figure(report, metric)
        shown = traces(figure)
        assert list(shown) == [*list(ROLES)[:3], "gold, mean of 3"]
        assert labels(figure)[:3] == ["B1 direct", "B2 paraphrase", "B3 cloze, gap"]
        for name, role, view in (
            ("original", "original", ""),
            ("edited, hooks on", "edited", "deployed"),
            ("edited, hooks off", "edited", "weights"),
        ):
            wanted = {"endpoint": "B2", "subset": "F", "metric": metric, "setting": ""}
            (row,) = find(report, role=role, view=view, **wanted)
            at = [round(y) for y in shown[name].y].index(1)
            assert shown[name].x[at] == row.value
            assert ends(shown[name], "x")[at] == pytest.approx((row.low, row.high))
            told = [row.low, row.high, row.n, row.n_entities]
            assert list(shown[name].customdata[at]) == pytest.approx(told)


def test_families_that_the_original_cannot_answer_are_marked(report) -> None:
    dropped = {f.id for f in report.families if not f.kept}
    assert dropped == {"B10"}
    marked = {t.split()[0] for t in labels(recall_figure(report)) if t.endswith("(dropped)")}
    assert marked == dropped


def test_a_filter_changes_the_text_alone(filtered) -> None:
    assert list(traces(recall_figure(filtered))) == ["original", "edited", "gold, mean of 3"]
    shown = traces(recall_figure(filtered, "text"))
    assert list(shown) == ["original", "edited", "edited, behind its filter", "gold, mean of 3"]
    assert shown["edited, behind its filter"].x[0] == 0.0
    assert shown["edited"].x[0] > 0.9


def test_gold_is_the_mean_with_an_interval_over_all_golds(report) -> None:
    wanted = {"endpoint": "B1", "subset": "F", "metric": "raw"}
    golds = [find(report, role=f"gold-{i}", **wanted)[0] for i in range(3)]
    dots = traces(recall_figure(report))["gold, mean of 3"]
    assert dots.x[0] == pytest.approx(sum(g.value for g in golds) / 3)
    assert dots.customdata[0][0] == pytest.approx(min(g.low for g in golds))
    assert dots.customdata[0][1] == pytest.approx(max(g.high for g in golds))


def test_retained_dots_are_the_rows_and_every_set_has_a_label(report) -> None:
    figure = retained_figure(report)
    assert labels(figure) == [
        *("N1 same entity, other relation", "N2 same relation, other entity", "U unrelated"),
        *("R_te same relations, held-out fold", "kind: person"),
    ]
    dots = traces(figure)["edited, hooks on"]
    for x, y in zip(dots.x, dots.y, strict=True):
        subset = labels(figure)[round(y)].replace("kind: ", "kind:").split()[0]
        wanted = {"endpoint": "kept", "role": "edited", "view": "deployed", "metric": "text"}
        assert x == find(report, subset=subset, **wanted)[0].value
