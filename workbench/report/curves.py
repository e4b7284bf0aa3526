"""Figures over dose and depth: relearning, savings, probes, and the choice of an edit's dose."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import ceil, log2
from typing import Any

import plotly.graph_objects as go

from workbench.audit.schema import AuditReport, Measurement
from workbench.errors import DataError
from workbench.report.drawing import (
    INK,
    LINE,
    SHARE_RANGE,
    add_curves,
    add_gap,
    dodge,
    is_new,
    label,
    laid_out,
    nothing,
    panels,
)
from workbench.report.roles import STYLES, Point, Style, by_role, role_names

KEPT = Style("#882255", "circle", "solid")
POSITIONS = {"subject": "last token of the subject", "last": "last token of the prompt"}
FITTED_ON = {"both": "fitted on retained facts and T", "forget": "fitted on T alone"}
PLACE = re.compile(r"(?:(?P<fitted>.*), )?layer (?P<layer>[0-9]+)(?:, (?P<position>.*))?")


def relearning_figure(report: AuditReport) -> go.Figure:
    """W1: hits on V while each model is fine-tuned on T, one panel for each learning rate.

    The area between the edited model and the golds is shaded.
    """
    rows = _hits(report, "W1", "V")
    if not rows:
        return nothing("This audit ran no relearning attack.")
    settings = sorted({r.setting for r in rows}, key=_size)
    figure, names = panels(len(settings)), role_names(report)
    for panel, setting in enumerate(settings, 1):
        curves = by_role((r for r in rows if r.setting == setting), lambda r: r.x)
        if "edited" in curves and "gold" in curves:
            pair, color = (curves["edited"], curves["gold"]), STYLES["edited"].color
            add_gap(figure, pair, "edited less gold", color, _doublings, panel)
        add_curves(figure, curves, names, _doublings, panel)
        title = f"{label(setting, 30)}{_chosen(report, setting)}<br>centred hits on V"
        figure.update_yaxes(title=title, row=panel, col=1)
    _steps_axis(figure, sorted({r.x for r in rows}), len(settings))
    figure.update_yaxes(range=list(SHARE_RANGE))
    return laid_out(figure, 140 + 300 * len(settings))


def savings_figure(report: AuditReport) -> go.Figure:
    """W2: hits on the very facts that are taught again, beside fresh ones; one panel per role."""
    known, fresh = (by_role(_hits(report, "W2", s), lambda r: r.x) for s in ("V", "Z"))
    roles = [role for role in STYLES if role in known and role in fresh]
    if not roles:
        return nothing("This audit did not teach the forget facts again.")
    figure, names = panels(len(roles)), role_names(report)
    for panel, role in enumerate(roles, 1):
        pair, style = (known[role], fresh[role]), STYLES[role]
        add_gap(figure, pair, "savings", style.color, _doublings, panel)
        add_curves(figure, {role: known[role]}, {role: "forget facts"}, _doublings, panel)
        add_curves(figure, {role: fresh[role]}, {role: "fresh facts"}, _doublings, panel, True)
        title = f"{label(names[role], 24)}<br>centred hits"
        figure.update_yaxes(title=title, row=panel, col=1)
    steps = sorted({x for role in roles for x in known[role]})
    _steps_axis(figure, steps, len(roles))
    figure.update_yaxes(range=list(SHARE_RANGE))
    return laid_out(figure, 170 + 230 * len(roles))


def probe_figure(report: AuditReport, kind: str = "P1") -> go.Figure:
    """What a probe reads of the forget facts by depth, one panel for each token position.

    A ring marks the places that the endpoint M3 reads: the edited model's best on S.

    Args:
        kind: the probe, P1 to P5.
    """
    subsets = ("F", "V")
    rows = [
        (r, place)
        for r in report.rows
        if r.endpoint == kind and r.metric == "hit" and r.subset in subsets
        if (place := PLACE.fullmatch(r.setting))
    ]
    if not rows:
        return nothing(f"This audit did not run the probe {kind}.")
    shown: dict[tuple[str, str], dict[str, dict[float, Point]]] = {}
    read = [(r, (p["fitted"] or "", p["position"] or "")) for r, p in rows]
    for panel in sorted({name for _, name in read}, key=_panel_order):
        shown[panel] = by_role((r for r, name in read if name == panel), _depth)
    figure = panels(len(shown))
    for panel, ((fitted, position), curves) in enumerate(shown.items(), 1):
        add_curves(figure, curves, role_names(report), panel=panel)
        words = (POSITIONS.get(position, position), FITTED_ON.get(fitted, fitted))
        title = "<br>".join([*(label(w, 30) for w in words if w), "hits (share of facts)"])
        figure.update_yaxes(title=title, row=panel, col=1)
    _ring_chosen(figure, report, kind, shown)
    deepest = max(_depth(r) for r, _ in rows)
    figure.update_xaxes(dtick=ceil((deepest + 1) / 14), tick0=0)
    title = "blocks below the reading point<br>(0 = embeddings)"
    figure.update_xaxes(title=title, row=len(shown), col=1)
    figure.update_yaxes(range=list(SHARE_RANGE))
    return laid_out(figure, 150 + 280 * len(shown))


def _ring_chosen(
    figure: go.Figure,
    report: AuditReport,
    kind: str,
    shown: Mapping[tuple[str, str], dict[str, dict[float, Point]]],
) -> None:
    chosen = Counter(
        place
        for e in report.endpoints
        if e.id == "M3" and e.view == "deployed"
        for place in e.selection.chosen
    )
    for panel, ((fitted, position), curves) in enumerate(shown.items(), 1):
        for layer, point in curves.get("edited", {}).items():
            parts = (fitted, f"layer {layer:g}", position)
            times = chosen[f"{kind} {', '.join(p for p in parts if p)}"]
            if times:
                name = "read by the endpoint M3"
                figure.add_scatter(
                    x=[layer + dodge("edited", curves)], y=[point.value],
                    mode="markers", name=name, showlegend=is_new(figure, name),
                    hovertemplate=f"chosen in {times} rotations<extra></extra>",
                    marker={"symbol": "circle-open", "size": 20, "color": INK, "line_width": 2},
                    row=panel, col=1,
                )  # fmt: skip


def _hits(report: AuditReport, attack: str, subset: str) -> list[Measurement]:
    wanted = (attack, subset, "centred")
    return [r for r in report.rows if (r.endpoint, r.subset, r.metric) == wanted]


def _chosen(report: AuditReport, setting: str) -> str:
    """In how many rotations the edited model's endpoint was read at this setting."""
    picks = [p for e in report.endpoints if (e.id, e.view) == ("M4", "deployed")
             for p in e.selection.chosen]  # fmt: skip
    times = picks.count(f"W1 {setting}".strip())
    return f"<br>(M4 in {times} of {len(picks)} rotations)" if picks else ""


def _size(setting: str) -> tuple[float, str]:
    """Settings such as `lr 0.001` in the order of their numbers."""
    try:
        return float(setting.rpartition(" ")[2]), setting
    except ValueError:
        return 0.0, setting


def _depth(row: Measurement) -> float:
    place = PLACE.fullmatch(row.setting)
    assert place is not None
    return float(place["layer"])


def _panel_order(panel: tuple[str, str]) -> tuple[str, int, str]:
    """By what the probe was fitted on, then by position: the subject comes before the end."""
    fitted, position = panel
    known = list(POSITIONS)
    return fitted, known.index(position) if position in known else len(known), position


def _doublings(steps: float) -> float:
    return log2(1 + steps)


def _steps_axis(figure: go.Figure, steps: Iterable[float], bottom: int) -> None:
    places = list(steps)
    figure.update_xaxes(
        tickvals=[_doublings(s) for s in places], ticktext=[f"{s:g}" for s in places]
    )
    title = "optimiser steps of the attack<br>(scale: log2 of 1 + steps)"
    figure.update_xaxes(title=title, row=bottom, col=1)


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
    settings: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["dose"]):
        settings.setdefault(_setting(row), []).append(row)
    figure = panels(len(settings))
    for panel, (setting, members) in enumerate(settings.items(), 1):
        _add_doses(figure, members, panel)
        title = f"{setting}<br>recall (share of questions)".removeprefix("<br>")
        figure.update_yaxes(title=title, row=panel, col=1)
    figure.update_xaxes(title="dose of the edit", row=len(settings), col=1)
    figure.update_yaxes(range=list(SHARE_RANGE))
    return laid_out(figure, 120 + 280 * len(settings))


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
        "control_forget": ("forget facts, random features", STYLES["random"]),
        "retained": ("lowest retained kind", KEPT),
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
            line = {"color": LINE, "width": 1, "dash": "dash"}
            figure.add_vline(
                x=row["dose"],
                line=line,
                row=panel,  # pyright: ignore[reportArgumentType]
                col=1,  # pyright: ignore[reportArgumentType]
                annotation={"text": "chosen"},
                annotation_position="top right",
            )
