"""What all figures have in common: roles, legibility, escaping, and figures without data."""

from dataclasses import replace

import pytest

from workbench.audit.schema import Measurement
from workbench.errors import DataError
from workbench.report import (
    access_figure,
    endpoint_figure,
    probe_figure,
    recall_figure,
    relearning_figure,
    retained_figure,
    savings_figure,
    tradeoff_figure,
)
from workbench.report.roles import STYLES, by_role, gold_rhos, role_names

OF_REPORTS = (
    *(endpoint_figure, access_figure, recall_figure, retained_figure),
    *(probe_figure, relearning_figure, savings_figure),
)


def test_roles_keep_their_colour_in_all_figures(report, filtered) -> None:
    for each in (report, filtered):
        roles = {name: role for role, name in role_names(each).items()}
        seen = set()
        for draw in OF_REPORTS:
            for trace in draw(each).data:
                if trace.name in roles:
                    style = STYLES[roles[trace.name]]
                    assert (trace.line.color or trace.marker.color) == style.color
                    assert trace.marker.symbol == style.symbol
                    seen.add(roles[trace.name])
        assert {"original", "edited", "gold", "random", "permuted"} < seen


def test_roles_differ_in_colour_symbol_and_dash() -> None:
    for field in ("color", "symbol"):
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


def test_report_without_rows_or_endpoints_gives_figures_that_say_so(report) -> None:
    empty = replace(report, rows=(), endpoints=())
    for draw in OF_REPORTS:
        figure = draw(empty)
        assert not figure.data
        (said,) = figure.layout.annotations
        assert said.text.startswith("This audit")
    assert tradeoff_figure([]).layout.annotations[0].text == "No doses were compared."
    assert not probe_figure(report, "P5").data


def test_edit_without_hooks_has_no_hooks_in_its_name(changed) -> None:
    for draw in (recall_figure, probe_figure, relearning_figure):
        names = [t.name for t in draw(changed).data if t.name]
        assert "edited" in names
        assert not any("hooks" in name for name in names)


def test_without_golds_nothing_stands_for_them(no_golds) -> None:
    for draw in OF_REPORTS:
        names = [t.name for t in draw(no_golds).data if t.name]
        assert names
        assert not any("gold" in name for name in names)
    assert gold_rhos(no_golds.endpoints[0]) == []


def test_depths_of_a_deep_model_are_not_all_labelled(report) -> None:
    row = next(r for r in report.rows if r.endpoint == "P1" and r.metric == "hit")
    rows = tuple(replace(row, setting=f"layer {x}, last") for x in range(27))
    assert probe_figure(replace(report, rows=rows)).layout.xaxis.dtick == 2


def test_text_of_the_report_is_escaped_for_plotly(report) -> None:
    bad = "<i>x</i>&'\""
    renamed = {"layer 1, last": f"layer 1, {bad}", "lr 0.001": bad, "gap": bad}
    rows = tuple(
        replace(
            r,
            setting=renamed.get(r.setting, r.setting),
            subset=f"kind:{bad}" if r.subset == "kind:person" else r.subset,
        )
        for r in report.rows
    )
    kept = report.collateral
    sets = tuple(replace(s, id=s.id.replace("person", bad)) for s in kept.sets)
    families = tuple(replace(f, setting=renamed.get(f.setting, f.setting)) for f in report.families)
    endpoints = tuple(replace(e, id=bad, name=bad) for e in report.endpoints)
    hurt = replace(
        report, rows=rows, endpoints=endpoints, families=families,
        collateral=replace(kept, sets=sets),
    )  # fmt: skip
    settings = [{"dose": 1.0, "forget": 0.1, "retained": 0.9, "sites": bad, "k": bad}]
    escaped = "&lt;i&gt;x&lt;/i&gt;&amp;'\""
    for figure in (*(draw(hurt) for draw in OF_REPORTS), tradeoff_figure(settings)):
        assert "<i>" not in str(figure.to_dict())
    for draw in (endpoint_figure, access_figure, recall_figure, retained_figure, probe_figure):
        assert escaped in draw(hurt).to_json().encode().decode("unicode_escape"), draw


def test_rotations_are_pooled_by_questions_and_golds_by_model() -> None:
    def row(role: str, fold: int, value: float, n: int, half: float) -> Measurement:
        key = ("W1", role, "deployed" if role == "edited" else "", "V", "centred", "", fold, 0.0)
        return Measurement(*key, value, value - half, value + half, n, n, 0)

    rows = [row("edited", 0, 0.2, 30, 0.06), row("edited", 1, 0.5, 10, 0.1)]
    rows += [row(f"gold-{i}", f, 0.1 * i, 10, 0.05) for i in range(2) for f in range(2)]
    points = by_role(rows, lambda r: r.x)
    assert list(points) == ["edited", "gold"]
    edited, gold = points["edited"][0.0], points["gold"][0.0]
    assert edited.value == pytest.approx(0.75 * 0.2 + 0.25 * 0.5)
    half = ((0.75 * 0.06) ** 2 + (0.25 * 0.1) ** 2) ** 0.5
    assert (edited.low, edited.high) == pytest.approx((edited.value - half, edited.value + half))
    assert (edited.n, gold.n) == (40, 20)
    assert (gold.value, gold.least, gold.most) == pytest.approx((0.05, 0.0, 0.1))
    assert gold.low == pytest.approx(-0.05 / 2**0.5)
    assert [by_role(rows[::-1], lambda r: r.x) == points] == [True]


def test_two_rows_of_one_model_at_one_place_are_refused(report) -> None:
    doubled = replace(report, rows=(*report.rows, *report.rows))
    with pytest.raises(DataError, match="two rows for the same place"):
        recall_figure(doubled)


def test_unknown_role_is_refused(report) -> None:
    rows = tuple(replace(r, role="twin") if r.role == "original" else r for r in report.rows)
    with pytest.raises(DataError, match="twin"):
        recall_figure(replace(report, rows=rows))
