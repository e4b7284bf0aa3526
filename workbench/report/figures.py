"""Figures of an audit: a report in, a plotly figure out. Nothing is measured or decided here.

Every figure draws a model role in the same colour and symbol. All text that a report brings along
is escaped, because plotly reads some HTML tags in labels.
"""

from collections.abc import Mapping, Sequence
from math import ceil, log2
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import hex_to_rgb
from plotly.subplots import make_subplots

from workbench.audit.probes import best_place
from workbench.audit.schema import AuditReport, Endpoint, Measurement
from workbench.audit.statistics import Key, Scores
from workbench.audit.verdict import RECOVERED_RHO
from workbench.errors import DataError
from workbench.report.drawing import (
    INK,
    add_curves,
    dodge,
    is_new,
    label,
    laid_out,
    nothing,
    traits,
)
from workbench.report.roles import STYLES, Point, Style, by_role, figure_role, role_names

NOT_VALID = Style("#767676", "circle-open", "solid", "")
RETAINED = Style("#E69F00", "circle", "solid", "")

FAMILIES = {
    "train": "training<br>templates",
    "audit": "audit-only<br>templates",
    "centred": "audit-only,<br>centred",
}
RETAINED_SETS = {
    "N1": "N1 same entity, other relation",
    "N2": "N2 same relation, other entity",
    "N3": "N3 same object, other relation",
    "N4": "N4 same type of entity",
    "N5": "N5 chain neighbours",
    "U": "U unrelated",
    "R_te": "R_te same relations, held-out fold",
}
POSITIONS = {"subject": "last token of the subject", "last": "last token of the prompt"}
SHARE_RANGE = (-0.04, 1.06)


def residual_figure(report: AuditReport) -> go.Figure:
    """The residual fraction ρ of every endpoint with its interval, by access level.

    Endpoints that are not valid are drawn open and grey: they decide nothing.
    """
    if not report.endpoints:
        return nothing("This audit has no endpoints.")
    figure, names = go.Figure(), {**role_names(report), "not valid": "not valid"}
    places = {e.id: i for i, e in enumerate(report.endpoints)}
    for role, endpoints in _endpoints_by_role(report.endpoints).items():
        style = STYLES.get(role, NOT_VALID)
        points = [Point(e.rho, e.low, e.high, e.rho, e.rho, e.n, e.n_entities) for e in endpoints]
        figure.add_scatter(
            x=[e.rho for e in endpoints],
            y=[places[e.id] for e in endpoints],
            mode="markers",
            marker={"color": style.color, "symbol": style.symbol, "size": 10},
            **traits(role, names[role], points, axis="x", color=style.color),
        )
    for at, dash in ((0.0, "solid"), (RECOVERED_RHO, "dot"), (1.0, "solid")):
        figure.add_vline(x=at, line={"color": "#555555", "width": 1, "dash": dash}, layer="below")
    # Intervals may be unbounded; beyond this range they leave the frame.
    left = max(-0.55, min([-0.15, *(e.low - 0.05 for e in report.endpoints)]))
    right = min(1.55, max([1.15, *(e.high + 0.05 for e in report.endpoints)]))
    figure.update_xaxes(
        title="residual fraction ρ<br>(0 = gold, 1 = original)", range=[left, right]
    )
    _list_on_y(figure, "endpoint", [f"{e.access} {e.id}" for e in report.endpoints])
    return laid_out(figure, 150 + 44 * len(places))


def recall_figure(report: AuditReport) -> go.Figure:
    """Recall of the forget facts (V fold) by template family, one bar for each role."""
    rows = [r for r in report.rows if _is(r, "recall", "V") and r.detail in FAMILIES]
    if not rows:
        return nothing("This audit asked no questions about the V fold.")
    figure, names = go.Figure(), role_names(report)
    for role, points in by_role(rows, lambda r: r.detail).items():
        shown = {FAMILIES[d]: points[d] for d in FAMILIES if d in points}
        # Without an outline a bar of height 0 is not drawn at all, and an opaque fill would hide
        # the lower half of its whisker.
        marker = {
            "color": f"rgba{(*hex_to_rgb(STYLES[role].color), 0.5)}",
            "line": {"color": STYLES[role].color, "width": 2},
            "pattern": {"shape": STYLES[role].pattern, "fgcolor": "white", "size": 6},
        }
        figure.add_bar(
            x=list(shown),
            y=[p.value for p in shown.values()],
            marker=marker,
            **traits(role, names[role], list(shown.values()), color=INK),
        )
    figure.update_layout(barmode="group", bargap=0.25, bargroupgap=0.1)
    figure.update_xaxes(title="template family (V fold)", type="category", showgrid=False)
    figure.update_yaxes(title="recall (share of questions)", range=[0, 1.06])
    return laid_out(figure, 440)


def retained_figure(report: AuditReport) -> go.Figure:
    """Recall of every set of facts that was to stay: original, edited and gold."""
    rows = [
        r
        for r in report.rows
        if r.endpoint == "recall" and r.subset != "V" and figure_role(r) != "hooks_off"
    ]
    if not rows:
        return nothing("This audit asked no questions about facts that were to stay.")
    present = {r.subset for r in rows}
    subsets = [s for s in RETAINED_SETS if s in present]
    subsets += sorted(present - set(subsets))
    figure, names = go.Figure(), role_names(report)
    curves = by_role(rows, lambda r: r.subset)
    for role, points in curves.items():
        figure.add_scatter(
            x=[p.value for p in points.values()],
            y=[subsets.index(s) + 4 * dodge(role, curves) for s in points],
            mode="markers",
            marker={"color": STYLES[role].color, "symbol": STYLES[role].symbol, "size": 9},
            **traits(role, names[role], list(points.values()), axis="x"),
        )
    figure.update_xaxes(title="recall (share of questions)", range=list(SHARE_RANGE))
    labels = [RETAINED_SETS.get(s, s.replace("kind:", "kind: ", 1)) for s in subsets]
    _list_on_y(figure, "set of retained facts", labels)
    return laid_out(figure, 130 + 48 * len(subsets))


def probe_figure(report: AuditReport) -> go.Figure:
    """Accuracy of the transfer probe on the V fold by depth, one panel for each token position.

    A ring marks the place that the probe's endpoint reads: the edited model's best on the S fold
    among those at which the original can be read.
    """
    rows = [r for r in report.rows if _is(r, "probe", "V")]
    if not rows:
        return nothing("This audit ran no transfer probe.")
    panels = {
        position: by_role((r for r in rows if r.detail == position), lambda r: float(r.x))
        for position in dict.fromkeys(r.detail for r in rows)
    }
    figure = _panels(len(panels))
    for panel, (position, curves) in enumerate(panels.items(), 1):
        add_curves(figure, curves, role_names(report), panel=panel)
        title = f"{label(POSITIONS.get(position, position), 30)}<br>accuracy (share of facts)"
        figure.update_yaxes(title=title, row=panel, col=1)
    _ring_chosen_place(figure, report, panels)
    figure.update_xaxes(dtick=ceil((max(r.x for r in rows) + 1) / 14), tick0=0)
    title = "blocks below the reading point<br>(0 = embeddings)"
    figure.update_xaxes(title=title, row=len(panels), col=1)
    figure.update_yaxes(range=list(SHARE_RANGE))
    return laid_out(figure, 130 + 300 * len(panels))


def relearning_figure(report: AuditReport) -> go.Figure:
    """Centred hits on the V fold while each model is fine-tuned on the T fold."""
    rows = [r for r in report.rows if _is(r, "relearn", "V")]
    if not rows:
        return nothing("This audit ran no relearning attack.")
    figure, steps = _panels(1), sorted({r.x for r in rows})
    curves = by_role(rows, lambda r: float(r.x))
    add_curves(figure, curves, role_names(report), lambda step: log2(1 + step))
    figure.update_xaxes(
        title="optimiser steps of the attack<br>(scale: log2 of 1 + steps)",
        tickvals=[log2(1 + s) for s in steps],
        ticktext=[f"{s:g}" for s in steps],
    )
    figure.update_yaxes(title="centred hits on V (share of questions)", range=list(SHARE_RANGE))
    return laid_out(figure, 460)


def tradeoff_figure(rows: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Forgetting against harm over dose, one panel for each choice of sites and feature count.

    Args:
        rows: each with `dose`, `forget` (recall of forget facts on the S fold) and `retained`
            (lowest recall of a retained kind); optionally `control_forget` (`forget` under matched
            random features), `sites`, `k`, and `chosen` (True for the dose that was taken).

    Raises:
        DataError: a row lacks one of the first three.
    """
    if not rows:
        return nothing("No doses were compared.")
    for i, row in enumerate(rows):
        if missing := {"dose", "forget", "retained"} - set(row):
            raise DataError(f"trade-off row {i} has no {sorted(missing)}; it has {sorted(row)}")
    panels: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["dose"]):
        panels.setdefault(_setting(row), []).append(row)
    figure = _panels(len(panels))
    for panel, (setting, members) in enumerate(panels.items(), 1):
        _add_doses(figure, members, panel)
        title = f"{setting}<br>recall (share of questions)".removeprefix("<br>")
        figure.update_yaxes(title=title, row=panel, col=1)
    figure.update_xaxes(title="dose of the edit", row=len(panels), col=1)
    figure.update_yaxes(range=list(SHARE_RANGE))
    return laid_out(figure, 120 + 280 * len(panels))


def _is(row: Measurement, endpoint: str, subset: str) -> bool:
    return row.endpoint == endpoint and row.subset == subset


def _panels(n: int) -> go.Figure:
    """Panels one above the other, so that they stay legible on a narrow screen."""
    figure = make_subplots(rows=n, cols=1, shared_xaxes=True, vertical_spacing=0.3 / (2 + n))
    return figure.update_xaxes(showticklabels=True)


def _list_on_y(figure: go.Figure, title: str, labels: Sequence[str]) -> None:
    """Labels down the y axis, the first one on top."""
    figure.update_yaxes(
        title=title,
        tickvals=list(range(len(labels))),
        ticktext=[label(text) for text in labels],
        range=[len(labels) - 0.5, -0.5],
    )


def _endpoints_by_role(endpoints: Sequence[Endpoint]) -> dict[str, list[Endpoint]]:
    groups: dict[str, list[Endpoint]] = {}
    for e in endpoints:
        role = "hooks_off" if e.view == "hooks_off" else "edited"
        groups.setdefault(role if e.valid else "not valid", []).append(e)
    return groups


def _ring_chosen_place(
    figure: go.Figure, report: AuditReport, panels: dict[str, dict[str, Any]]
) -> None:
    found, original = (
        {
            Key(r.endpoint, r.subset, r.detail, r.x): Scores(np.array([r.value]), ("",))
            for r in report.rows
            if r.endpoint == "probe" and figure_role(r) == role
        }
        for role in ("edited", "original")
    )
    if not any(key.subset == "S" for key in found):
        return
    place = best_place(found, original)
    if place in found:
        figure.add_scatter(
            x=[place.x + dodge("edited", panels[place.detail])], y=[found[place].mean],
            mode="markers", name="read by the endpoint (chosen on S)", hoverinfo="skip",
            marker={"symbol": "circle-open", "size": 20, "color": INK, "line": {"width": 2}},
            row=list(panels).index(place.detail) + 1, col=1,
        )  # fmt: skip


def _setting(row: Mapping[str, Any]) -> str:
    """Sites and number of features as an axis title; empty where rows have neither."""
    parts = []
    if "sites" in row:
        sites = row["sites"]
        parts.append(sites if isinstance(sites, str) else ", ".join(str(s) for s in sites))
    if "k" in row:
        parts.append(f"{row['k']} features")
    return "<br>".join(label(part, 34) for part in parts)


def _add_doses(figure: go.Figure, rows: list[Mapping[str, Any]], panel: int) -> None:
    lines = {
        "forget": ("forget facts, fold S", STYLES["edited"]),
        "control_forget": ("forget facts, random features", STYLES["control"]),
        "retained": ("lowest retained kind", RETAINED),
    }
    for key, (name, style) in lines.items():
        known = [row for row in rows if row.get(key) is not None]
        if known:
            figure.add_scatter(
                x=[row["dose"] for row in known], y=[row[key] for row in known],
                mode="lines+markers", name=name, legendgroup=key, showlegend=is_new(figure, name),
                line={"color": style.color, "dash": style.dash, "width": 2},
                marker={"symbol": style.symbol, "size": 8},
                hovertemplate="dose %{x}: %{y:.3f}", row=panel, col=1,
            )  # fmt: skip
    for row in rows:
        if row.get("chosen"):
            line = {"color": "#555555", "width": 1, "dash": "dash"}
            figure.add_vline(
                x=row["dose"],
                line=line,
                row=panel,  # pyright: ignore[reportArgumentType]
                col=1,  # pyright: ignore[reportArgumentType]
                annotation={"text": "chosen"},
                annotation_position="top right",
            )
