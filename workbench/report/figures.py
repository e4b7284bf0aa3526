"""Figures of the endpoints: a report in, a plotly figure out. Nothing is measured or decided here.

Every figure draws a model role in the same colour and symbol. All text that a report brings along
is escaped, because plotly reads some HTML tags in labels.
"""

from collections.abc import Sequence

import plotly.graph_objects as go

from workbench.audit.endpoints import RECOVERED_RHO
from workbench.audit.schema import AuditReport, Endpoint
from workbench.report.drawing import LINE, label, laid_out, list_on_y, nothing, opened, traits
from workbench.report.roles import STYLES, Point, Style, gold_rhos, role_names, standing, usable
from workbench.report.words import ACCESS

NOT_USED = Style("#767676", "circle-open", "solid")
MARGIN_COLOR = "#D6E4F0"
LEFT, RIGHT = -0.55, 1.55
"""Intervals of rho may be unbounded; beyond these ends they leave the frame."""


def endpoint_figure(report: AuditReport) -> go.Figure:
    """The residual fraction ρ of every endpoint: intervals, margins, and the golds' own ρ.

    Endpoints that are not valid, or that a failed gate drops, are open and grey.
    """
    endpoints = ranked(report.endpoints)
    if not endpoints:
        return nothing("This audit has no endpoints.")
    figure, names = go.Figure(), role_names(report)
    _add_margins(figure, endpoints)
    groups: dict[tuple[str, str], list[int]] = {}
    for place, e in enumerate(endpoints):
        role = ("weights" if e.view == "weights" else "edited") if usable(report, e) else ""
        groups.setdefault((role, standing(report, e) if role else "not usable"), []).append(place)
    for (role, word), places in groups.items():
        name = f"{names[role]}: {word}" if role else word
        style = STYLES.get(role, NOT_USED)
        _add_intervals(figure, [(place, endpoints[place]) for place in places], name, style)
    _add_lines(figure, "v")
    ends = [end for e in endpoints for end in (e.low, e.high)]
    figure.update_xaxes(
        title="residual fraction ρ<br>(0 = gold, 1 = original)",
        range=[max(LEFT, min(-0.25, *ends)), min(RIGHT, max(1.1, *ends))],
    )
    list_on_y(figure, "endpoint", [_endpoint_label(report, e) for e in endpoints], 24)
    return laid_out(figure, 170 + 50 * len(endpoints))


def ranked(endpoints: Sequence[Endpoint]) -> list[Endpoint]:
    """The confirmatory ones of the deployed model first, then the others, then hooks off."""
    return sorted(endpoints, key=lambda e: (e.view == "weights", e.role != "confirmatory"))


def _endpoint_label(report: AuditReport, e: Endpoint) -> str:
    off = ", hooks off" if e.view == "weights" and e.id != "off" else ""
    return f"{e.id} {e.name}{off} ({e.access}; {standing(report, e)})"


SYMBOLS = {
    "recovered": "star",
    "equivalent": "square-cross-open",
    "below guessing": "triangle-left",
    "neither": "square",
    "not usable": "circle-open",
}


def _add_intervals(
    figure: go.Figure, rows: list[tuple[int, Endpoint]], name: str, style: Style
) -> None:
    """ρ with a thick 90 % and a thin 95 % interval for each endpoint of a group."""
    points = [Point(e.rho, e.low, e.high, 0.0, 0.0, e.n_facts, e.n_entities) for _, e in rows]
    figure.add_scatter(
        x=[x for _, e in rows for x in (*e.ci90, None)],
        y=[y for place, _ in rows for y in (place, place, None)],
        mode="lines", line={"color": style.color, "width": 5}, opacity=0.45,
        hoverinfo="skip", showlegend=False, legendgroup=name,
    )  # fmt: skip
    symbol = SYMBOLS[name.rsplit(": ", 1)[-1]]
    figure.add_scatter(
        x=[e.rho for _, e in rows],
        y=[place for place, _ in rows],
        mode="markers",
        marker={"color": style.color, "symbol": symbol, "size": 13 if symbol == "star" else 10},
        **{**traits("edited", name, points, axis="x", color=style.color), "legendgroup": name},
    )


def _add_margins(figure: go.Figure, endpoints: list[Endpoint]) -> None:
    """Behind each endpoint its margin of equivalence, and the golds' own ρ with its range."""
    for place, e in enumerate(endpoints):
        _add_box(figure, (-e.delta, e.delta), (place - 0.42, place + 0.42), MARGIN_COLOR)
        golds = gold_rhos(e)
        if golds:
            box = (place + 0.2, place + 0.4)
            _add_box(figure, (min(golds), max(golds)), box, STYLES["gold"].color, 0.3)
    marker = {"color": MARGIN_COLOR, "symbol": "square", "size": 14}
    figure.add_scatter(x=[None], y=[None], mode="markers", marker=marker, name="margin ±δ")
    dots = [(rho, place + 0.3) for place, e in enumerate(endpoints) for rho in gold_rhos(e)]
    if dots:
        marker = {"color": STYLES["gold"].color, "symbol": STYLES["gold"].symbol, "size": 6}
        figure.add_scatter(
            x=[rho for rho, _ in dots], y=[y for _, y in dots], mode="markers", marker=marker,
            name="each gold against the others", hovertemplate="%{x:.3f}<extra></extra>",
        )  # fmt: skip


def _add_box(
    figure: go.Figure,
    x: tuple[float, float],
    y: tuple[float, float],
    color: str,
    opacity: float = 1.0,
) -> None:
    figure.add_shape(
        type="rect", x0=x[0], x1=x[1], y0=y[0], y1=y[1],
        fillcolor=color, opacity=opacity, line={"width": 0}, layer="below",
    )  # fmt: skip


def _add_lines(figure: go.Figure, direction: str) -> None:
    """ρ of a gold, the least that counts as recovered, and ρ of the original."""
    draw = figure.add_vline if direction == "v" else figure.add_hline
    for at, dash in ((0.0, "solid"), (RECOVERED_RHO, "dot"), (1.0, "solid")):
        draw(at, line={"color": LINE, "width": 1, "dash": dash}, layer="below")


def access_figure(report: AuditReport) -> go.Figure:
    """ρ of every usable endpoint by what its reader must have, and the best up to each level."""
    endpoints = [e for e in report.endpoints if usable(report, e)]
    if not endpoints:
        return nothing("This audit has no endpoint that can be used.")
    figure, names, levels = go.Figure(), role_names(report), list(ACCESS)
    at = {level: [e for e in endpoints if e.access == level] for level in levels}
    best = {level: max(found, key=lambda e: e.rho) for level, found in at.items() if found}
    _add_steps(figure, best)
    for role, kind in (("edited", "confirmatory"), ("edited", "secondary"), ("weights", "")):
        rows = [
            (levels.index(level) + 0.17 * (i - (len(found) - 1) / 2), e)
            for level, found in at.items()
            for i, e in enumerate(found)
            if (e.view == "weights") == (role == "weights") and kind in ("", e.role)
        ]
        if rows:
            style = STYLES[role]
            symbol = opened(style.symbol) if kind == "secondary" else style.symbol
            name = f"{names[role]}, {kind}".removesuffix(", ")
            points = [Point(e.rho, *e.ci95, 0.0, 0.0, e.n_facts, e.n_entities) for _, e in rows]
            figure.add_scatter(
                x=[x for x, _ in rows], y=[e.rho for _, e in rows], mode="markers+text",
                text=[f"<b>{label(e.id)}</b>" if best[e.access] is e else "" for _, e in rows],
                textposition=["top left" if x > 0.5 else "top right" for x, _ in rows],
                cliponaxis=False,
                marker={"color": style.color, "symbol": symbol, "size": 10},
                **{**traits(role, name, points), "legendgroup": name},
            )  # fmt: skip
    _add_lines(figure, "h")
    ends = [end for e in endpoints for end in (e.low, e.high)]
    low, high = max(LEFT, min(-0.2, *ends)), min(RIGHT, max(1.15, *ends))
    figure.update_yaxes(title="residual fraction ρ<br>(0 = gold, 1 = original)", range=[low, high])
    figure.update_xaxes(
        title="access of the reader,<br>each with all before it",
        tickvals=list(range(len(levels))), ticktext=levels,
        range=[-0.6, len(levels) - 0.4], showgrid=False,
    )  # fmt: skip
    return laid_out(figure, 460)


def _add_steps(figure: go.Figure, best: dict[str, Endpoint]) -> None:
    """The highest ρ of this level and all below it."""
    x, y = [], []
    for place in range(len(ACCESS)):
        known = [best[level].rho for level in list(ACCESS)[: place + 1] if level in best]
        if known:
            x += [place - 0.5, place + 0.5]
            y += [max(known)] * 2
    figure.add_scatter(
        x=x, y=y, mode="lines", line={"color": STYLES["edited"].color, "width": 2, "dash": "dash"},
        opacity=0.6, name="best up to this level", hovertemplate="%{y:.3f}<extra></extra>",
    )  # fmt: skip
