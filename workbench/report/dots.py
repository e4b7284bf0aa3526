"""Figures of answers: what every role says of forget facts, and of facts that were to stay."""

from collections.abc import Sequence

import plotly.graph_objects as go

from workbench.audit.questions import FAMILIES
from workbench.audit.schema import AuditReport, Family
from workbench.report.drawing import SHARE_RANGE, add_dots, laid_out, list_on_y, nothing
from workbench.report.roles import by_role, role_names
from workbench.report.words import SETS

METRICS = {
    "text": "answers as text",
    "raw": "choices",
    "centred": "centred choices",
}


def recall_figure(report: AuditReport, metric: str = "raw") -> go.Figure:
    """Hits on the forget facts by way of asking, a dot for each role.

    Args:
        metric: `text`, what users read; `raw`, which candidate the model prefers; or `centred`,
            the same less what a candidate gains on every prompt alike.
    """
    kept = {(f.id, f.setting): f.kept for f in ordered(report.families)}
    rows = [
        r
        for r in report.rows
        if (r.endpoint, r.setting) in kept
        and r.subset in ("F", "D")
        and r.metric == metric
        and (metric == "text" or r.view != "text")  # a filter refuses text alone
    ]
    if not rows:
        return nothing("This audit asked no questions about the forget facts.")
    figure = go.Figure()
    asked = {(r.endpoint, r.setting) for r in rows}
    places = [place for place in kept if place in asked]
    add_dots(figure, by_role(rows, lambda r: (r.endpoint, r.setting)), role_names(report), places)
    title = f"right {METRICS[metric]}<br>(share of questions)"
    figure.update_xaxes(title=title, range=list(SHARE_RANGE))
    labels = [family_name(*place) + ("" if kept[place] else " (dropped)") for place in places]
    list_on_y(figure, "way of asking", labels, 24)
    return laid_out(figure, 140 + 40 * len(places))


def ordered(families: Sequence[Family]) -> list[Family]:
    """By number, so that B2 comes before B10."""
    return sorted(families, key=lambda f: (len(f.id), f.id, f.setting))


def family_name(id_: str, setting: str) -> str:
    """A way of asking in words."""
    known = FAMILIES[id_].name if id_ in FAMILIES else ""
    return ", ".join(part for part in (f"{id_} {known}".strip(), setting) if part)


def retained_figure(report: AuditReport) -> go.Figure:
    """Recall of every set of facts that was to stay, as text or, where the audit took it, raw."""
    found = {s.id: s.O for s in report.collateral.sets}
    about = [r for r in report.rows if r.endpoint == "kept" and r.subset in found]
    known = {(r.subset, r.metric): r.value for r in about if r.role == "original"}
    taken = {
        s: min(("text", "raw"), key=lambda m: abs(known.get((s, m), 2.0) - value))
        for s, value in found.items()
    }
    rows = [r for r in about if r.metric == taken[r.subset]]
    if not rows:
        return nothing("This audit asked no questions about facts that were to stay.")
    places = sorted(found, key=lambda s: (list(SETS).index(s) if s in SETS else len(SETS), s))
    figure = go.Figure()
    add_dots(figure, by_role(rows, lambda r: r.subset), role_names(report), places)
    figure.update_xaxes(title="right answers<br>(share of questions)", range=list(SHARE_RANGE))
    list_on_y(figure, "set of retained facts", [set_name(s) for s in places])
    return laid_out(figure, 130 + 48 * len(places))


def set_name(id_: str) -> str:
    """A set of retained facts in words."""
    return f"{id_} {SETS[id_]}" if id_ in SETS else id_.replace("kind:", "kind: ", 1)
