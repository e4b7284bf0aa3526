"""One page that tells an audit from the verdict down to the hashes, in a file that is complete."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import plotly.graph_objects as go
from plotly.io import to_html
from plotly.offline import get_plotlyjs

from workbench.artifacts import write_text
from workbench.audit.schema import AuditReport
from workbench.report import beside, tables
from workbench.report.card import claims_table, verdict_card
from workbench.report.curves import (
    probe_figure,
    relearning_figure,
    savings_figure,
    tradeoff_figure,
)
from workbench.report.dots import recall_figure, retained_figure
from workbench.report.drawing import in_words
from workbench.report.figures import access_figure, endpoint_figure
from workbench.report.markup import (
    Html,
    contents,
    folded,
    html,
    listed,
    note,
    section,
    under,
)
from workbench.report.pareto import compared_table, pareto_figure
from workbench.report.provenance import provenance
from workbench.report.words import CAPTIONS, NO_GOLDS, PROBES, READING

PAGE = Path(__file__).with_name("page.html")
TABLES = {
    "access": "endpoint-table",
    "endpoints": "endpoint-table",
    "recall": "family-table",
    "probe": "probe-table",
    "relearning": "attacks",
    "savings": "attacks",
    "retained": "kept",
}
"""The table that stands beside each kind of figure."""
PLOT_CONFIG = {
    "displaylogo": False,
    "responsive": True,
    "modeBarButtons": [["toImage", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
}


def write_html(
    report: AuditReport,
    out: Path | str,
    tradeoff: Sequence[Mapping[str, Any]] | None = None,
    title: str | None = None,
) -> Path:
    """Writes the page of an audit and says where it is.

    The file holds its scripts and styles itself and forbids the browser any connection.

    Args:
        out: a folder, in which it becomes `report.html`, or a path that ends in `.html`.
        tradeoff: rows for `tradeoff_figure`; without them that figure is left out.
        title: heading of the page; without it, the name of the target.
    """
    path = Path(out) if Path(out).suffix == ".html" else Path(out) / "report.html"
    return write_page(
        path, title or f"Audit of {report.card.target.id}", _sections(report, tradeoff)
    )


def write_pareto(reports: Mapping[str, AuditReport], out: Path | str) -> Path:
    """Writes a page that compares audited edits of one target, in a file that is complete.

    Args:
        reports: by the name that the page gives each edit.
        out: a path that ends in `.html`.
    """
    shown = figure_html("pareto", "What is removed against what is left", pareto_figure(reports))
    body = section("Edits compared", shown, compared_table(reports))
    targets = ", ".join(sorted({r.card.target.id for r in reports.values()}))
    return write_page(Path(out), f"Edits of {targets}", [body])


def write_page(path: Path, title: str, sections: Sequence[str]) -> Path:
    """Writes a page with its scripts and styles; the title is escaped, the sections are not."""
    page = Template(PAGE.read_text(encoding="utf-8"))
    told = {"title": html(title), "contents": contents(sections), "body": "\n".join(sections)}
    write_text(path, page.substitute(told, plotly=get_plotlyjs()))
    return path


def _sections(report: AuditReport, tradeoff: Sequence[Mapping[str, Any]] | None) -> list[str]:
    """The story of an audit: the verdict, what it rests on, what it cost, and its limits."""
    return [
        verdict_card(report),
        section(
            "Where it came back",
            note(READING if report.card.models.gold else READING + NO_GOLDS),
            figure_html("access", "By access of the reader", access_figure(report)),
        ),
        section(
            "Evidence by endpoint",
            figure_html("endpoints", "All endpoints", endpoint_figure(report)),
            tables.endpoints_table(report),
            _answers(report),
            _activations(report),
        ),
        section(
            "Attacks and their controls",
            figure_html("relearning", "Relearning other facts", relearning_figure(report)),
            figure_html("savings", "Relearning these facts", savings_figure(report)),
            tables.attacks_table(report),
        ),
        _collateral(report, tradeoff),
        section("Claims", claims_table(report)),
        section(
            "Limits",
            listed(report.limits),
            under("Gates", tables.gates_table(report)),
            under("Objectives", tables.objectives_table(report)),
            under("What averages hide", tables.distribution_part(report)),
            beside.coverage_table(report),
        ),
        section("Provenance", provenance(report), beside.costs_table(report)),
    ]


def _answers(report: AuditReport) -> Html:
    dropped = report.card.data.guessable_dropped
    told = f"""
{len(dropped)} facts that models which never knew them can guess are not scored; the dots of these
figures hold them still, the tables do not.
"""
    return under(
        "What the model answers",
        figure_html("recall-text", "Answers as text", recall_figure(report, "text")),
        figure_html("recall-raw", "Choices among the candidates", recall_figure(report)),
        figure_html("recall-centred", "Choices without biases", recall_figure(report, "centred")),
        note(told) if dropped else "",
        tables.families_table(report),
        beside.derivation_part(report),
        beside.concept_part(report),
    )


def _activations(report: AuditReport) -> Html:
    run = {r.endpoint for r in report.rows if r.metric == "hit"}
    others = [kind for kind in PROBES if kind != "P1" and kind in run]
    more = "\n".join(
        figure_html(f"probe-{kind}", f"{kind}: {PROBES[kind]}", probe_figure(report, kind))
        for kind in others
    )
    return under(
        "What its activations hold",
        figure_html("probe-P1", f"P1: {PROBES['P1']}", probe_figure(report)),
        folded(f"Other probes: {', '.join(others)}", more) if others else "",
        tables.probes_table(report),
        tables.hooks_part(report),
        beside.depth_part(report),
        beside.readings_table(report),
    )


def _collateral(report: AuditReport, tradeoff: Sequence[Mapping[str, Any]] | None) -> Html:
    dose = "" if tradeoff is None else tradeoff_figure(tradeoff)
    return section(
        "Collateral damage",
        under(
            "What was to stay",
            figure_html("retained", "Facts that were to stay", retained_figure(report)),
            tables.kept_part(report),
            beside.text_table(report),
        ),
        under("What it gives away", beside.leaks_table(report)),
        under(
            "How the dose was chosen",
            figure_html("tradeoff", "Forgetting against harm", dose) if dose else "",
        ),
    )


def figure_html(id_: str, title: str, figure: go.Figure) -> Html:
    """A figure with its title, the caption that says how to read it, and its numbers in words."""
    plot = to_html(
        figure, PLOT_CONFIG, include_plotlyjs=False, full_html=False, div_id=f"plot-{id_}"
    )
    words = CAPTIONS.get(id_, CAPTIONS["other probe"])
    caption = " ".join(words.split()) if figure.data else "There is nothing to draw."
    return Html(f"""<figure id="figure-{id_}" aria-labelledby="title-{id_}">
<p class="title" id="title-{id_}">{html(title)}</p>
<div class="plot">{plot}</div>
<p class="unseen">Numbers of this figure. {html(in_words(figure))}</p>
<figcaption>{html(caption)}{_where(id_) if figure.data else ""}</figcaption>
</figure>""")


def _where(id_: str) -> Html:
    """A link to the table that holds the numbers of a figure; nothing where there is none."""
    found = TABLES.get(id_.split("-")[0])
    return Html(f' <a class="where" href="#{found}">Table of these numbers</a>' if found else "")
