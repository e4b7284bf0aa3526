"""Edits side by side: what each removes for good against what it leaves of the rest."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import plotly.graph_objects as go

from workbench.audit.schema import AuditReport, Measurement
from workbench.errors import DataError
from workbench.report.drawing import INK, is_new, label, laid_out, nothing, panels
from workbench.report.markup import Html, interval, number, small, table
from workbench.report.roles import STYLES

PANELS = {"robustness": "robust removal (M3 to M6)", "accuracy": "forgetting when asked (M1)"}
"""Objectives on the y axis, one panel each."""
VERDICTS = {
    "REMOVED": ("#117733", "star"),
    "SUPPRESSED": ("#CC6677", "square"),
    "NOT_REMOVED": ("#882255", "x"),
    "DEGRADED": ("#999933", "triangle-down"),
    "INCONCLUSIVE": ("#555555", "circle"),
}
MANY = 12
"""Edits beyond which only those that no other one beats are named in the figure."""
CORNERS = {
    "a gold": (1.0, 1.0, STYLES["gold"].color, "star"),
    "the original": (1.0, 0.0, STYLES["original"].color, "diamond"),
    "random weights": (0.0, 1.0, STYLES["random"].color, "cross"),
}
"""Where models of known kind stand by definition."""


@dataclass(frozen=True)
class Spot:
    """One audited edit: locality to the right, an objective upward, both 1 as in a gold."""

    name: str
    verdict: str
    x: tuple[float, float, float]
    y: tuple[float, float, float]


def spots(reports: Mapping[str, AuditReport], objective: str) -> list[Spot]:
    """The edits for which locality and the objective were measured, with 95 % intervals."""
    found = []
    for name, report in reports.items():
        rows = {r.metric: r for r in report.rows if r.endpoint == "objective"}
        if "locality" in rows and objective in rows:
            at = _interval(rows["locality"]), _interval(rows[objective])
            found.append(Spot(name, report.verdict.primary, *at))
    return found


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points no other one beats on both axes, from left to right.

    Equal points are all on it.
    """
    best = [
        i
        for i, (x, y) in enumerate(points)
        if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points)
    ]
    return sorted(best, key=lambda i: points[i])


def hypervolume(points: Sequence[tuple[float, float]]) -> float:
    """Area between (0, 0) and the front: 1 if one of the points is a gold, 0 if none is any good.

    Source: Zitzler and Thiele 1998.
    """
    area, left = 0.0, 0.0
    for x, y in (points[i] for i in front(points)):
        area += (max(0.0, x) - left) * max(0.0, y)
        left = max(0.0, x)
    return area


def pareto_figure(reports: Mapping[str, AuditReport]) -> go.Figure:
    """Locality against removal, one panel each for robust removal and for forgetting when asked.

    Boxes are 95 % intervals of both; the line joins the edits that no other one beats. The strength
    of an edit is chosen elsewhere, on facts that are not scored: this figure chooses nothing.

    Args:
        reports: by the name that the figure gives each edit.

    Raises:
        DataError: reports of different targets, profiles or batteries, which cannot be compared:
            what was not tried brings nothing back.
    """
    for what, told in _alike(reports.values()).items():
        if len(told) > 1:
            raise DataError(
                f"reports of {len(told)} {what} ({', '.join(sorted(map(str, told)))}): wanted "
                "reports that differ in nothing but the edit"
            )
    read = {name: spots(reports, name) for name in PANELS}
    read = {name: found for name, found in read.items() if found}
    if not read:
        return nothing("No report holds both objectives.")
    figure = panels(len(read))
    for panel, (name, found) in enumerate(read.items(), 1):
        _add_corners(figure, panel)
        _add_front(figure, found, panel)
        named = front([(s.x[0], s.y[0]) for s in found])
        for i, spot in enumerate(found):
            _add_spot(figure, spot, panel, named=len(found) <= MANY or i in named)
        area = hypervolume([(s.x[0], s.y[0]) for s in found])
        title = f"{PANELS[name]}<br>1 = as a gold; area {area:.2f}"
        figure.update_yaxes(title=title, range=[-0.05, 1.08], row=panel, col=1)
    figure.update_xaxes(range=[-0.05, 1.08])
    figure.update_xaxes(title="locality: what was to stay<br>(1 = as a gold)", row=len(read), col=1)
    return laid_out(figure, 140 + 420 * len(read))


def _alike(reports: Iterable[AuditReport]) -> dict[str, set[Any]]:
    """What reports must have in common to stand in one figure."""
    cards = [report.card for report in reports]
    return {
        "targets": {c.target.id for c in cards},
        "versions of the facts": {c.target.facts_sha256[:12] for c in cards},
        "profiles": {c.profile for c in cards},
        "batteries": {c.battery_sha256[:12] for c in cards},
    }


def compared_table(reports: Mapping[str, AuditReport]) -> Html:
    """One row per edit: verdict, and each objective with its interval."""
    columns = {"locality": "Locality", "robustness": "Robust removal", "accuracy": "Forgetting"}
    rows = []
    for name, report in reports.items():
        found = {r.metric: _interval(r) for r in report.rows if r.endpoint == "objective"}
        cells = [
            small(number(at[0]), interval(at[1], at[2])) if (at := found.get(key)) else number(None)
            for key in columns
        ]
        rows.append([name, report.verdict.primary, *cells])
    head = {"Edit": "", "Verdict": "", **dict.fromkeys(columns.values(), "number")}
    return table("compared", "Objectives with 95 % intervals: 1 is as good as a gold.", head, rows)


def _add_corners(figure: go.Figure, panel: int) -> None:
    for name, (x, y, color, symbol) in CORNERS.items():
        figure.add_scatter(
            x=[x], y=[y], mode="markers", name=name, legendgroup=name,
            showlegend=is_new(figure, name), hovertemplate=f"{name}<extra></extra>",
            marker={"symbol": symbol, "size": 16, "color": color, "line": {"width": 1}},
            row=panel, col=1,
        )  # fmt: skip


def _add_front(figure: go.Figure, found: Sequence[Spot], panel: int) -> None:
    points = [(s.x[0], s.y[0]) for s in found]
    best, name = [points[i] for i in front(points)], "no edit beats these on both"
    figure.add_scatter(
        x=[x for x, _ in best], y=[y for _, y in best], mode="lines", name=name,
        line={"color": INK, "width": 1, "dash": "dot", "shape": "vh"}, hoverinfo="skip",
        legendgroup=name, showlegend=is_new(figure, name), row=panel, col=1,
    )  # fmt: skip


def _add_spot(figure: go.Figure, spot: Spot, panel: int, *, named: bool) -> None:
    color, symbol = VERDICTS[spot.verdict]
    (x, left, right), (y, low, high) = spot.x, spot.y
    figure.add_scatter(
        x=[left, right, right, left, left], y=[low, low, high, high, low], mode="lines",
        line={"color": color, "width": 1}, fill="toself", fillcolor=color, opacity=0.15,
        hoverinfo="skip", showlegend=False, legendgroup=spot.verdict, row=panel, col=1,
    )  # fmt: skip
    shown = escape(spot.name)
    figure.add_scatter(
        x=[x], y=[y], mode="markers+text", text=[label(spot.name, 24) if named else ""],
        textposition="bottom left", name=spot.verdict, legendgroup=spot.verdict,
        showlegend=is_new(figure, spot.verdict),
        marker={"symbol": symbol, "size": 11, "color": color},
        hovertemplate=f"{shown}: {spot.verdict}<br>locality {x:.3f} [{left:.3f}, {right:.3f}]"
        f"<br>removal {y:.3f} [{low:.3f}, {high:.3f}]<extra></extra>",
        row=panel, col=1,
    )  # fmt: skip


def _interval(row: Measurement) -> tuple[float, float, float]:
    return row.value, row.low, row.high
