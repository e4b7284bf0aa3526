"""One page that tells an audit from the verdict down to the hashes, in a file that is complete."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import plotly.graph_objects as go
from plotly.io import to_html
from plotly.offline import get_plotlyjs

from workbench.artifacts import write_text
from workbench.audit.schema import AuditReport, Endpoint, Measurement
from workbench.audit.statistics import UNBOUNDED
from workbench.audit.verdict import RECOVERED_RHO
from workbench.report import figures
from workbench.report.words import ACCESS, CAPTIONS, FLAGS, OBJECTIVES, PRIMARY, READING

MINUS = "\N{MINUS SIGN}"
PAGE = Path(__file__).with_name("page.html")
PLOT_CONFIG = {
    "displaylogo": False,
    "modeBarButtons": [["toImage", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
}


class Html(str):
    """Text that is HTML already; all other text is escaped when it is put on the page."""


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
    sections = (
        _verdict(report),
        _endpoints(report),
        _figures(report, tradeoff),
        _gates(report),
        _objectives(report),
        f"<section><h2>Limits</h2>{_list(report.limits)}</section>",
        _provenance(report),
    )
    page = Template(PAGE.read_text(encoding="utf-8"))
    text = page.substitute(
        title=_html(title or _title(report)), plotly=get_plotlyjs(), body="\n".join(sections)
    )
    write_text(path, text)
    return path


def _title(report: AuditReport) -> str:
    target = report.provenance.get("target")
    return f"Audit of {target['name'] if target else 'an edited model'}"


def _verdict(report: AuditReport) -> str:
    v = report.verdict
    access = v.lowest_access_recovered
    back = f"{access}: {ACCESS[access]}" if access in ACCESS else access
    notes = {"Lowest access level at which an attack brought the knowledge back": back}
    notes |= {flag.replace("_", " ").capitalize(): FLAGS.get(flag, "") for flag in v.flags}
    return f"""<section class="verdict {_html(v.primary)}" aria-labelledby="verdict">
<h2 id="verdict">Verdict: {_html(v.primary.replace("_", " "))}</h2>
<p class="sentence">{_html(v.sentence)}</p>
<p>{_html(PRIMARY[v.primary])} This battery has no verdict that says removed.</p>
<h3>Reasons</h3>
{_list(v.reasons)}
<dl>{"".join(f"<dt>{_html(k)}</dt><dd>{_html(value)}</dd>" for k, value in notes.items())}</dl>
</section>"""


def _endpoints(report: AuditReport) -> str:
    caption = (
        "Table 1. Endpoints. The same measurement on original, edited and gold; "
        "ρ = (edited - gold) / (original - gold)."
    )
    numbers = ("Original", "Edited", "Gold", "ρ, 95 % interval", "p (Holm)", "Questions")
    head = {"Endpoint": "", "Access": "", **dict.fromkeys(numbers, "number")}
    head |= {"Recovered": "", "Valid": "remark"}
    access = "; ".join(f"{level} {meaning}" for level, meaning in ACCESS.items())
    return f"""<section><h2>Endpoints</h2>
{_table("endpoints", caption, head, [_endpoint_cells(e) for e in report.endpoints])}
<p class="note">Gold: mean of the models that never knew; in brackets each of them. Recovered:
valid, ρ at least {RECOVERED_RHO:.2f}, and above zero after Holm's adjustment over all endpoints.
Access, each level with all before it: {_html(access)}.</p>
</section>"""


def _endpoint_cells(e: Endpoint) -> list[Any]:
    each = ", ".join(_number(g) for g in e.gold_each)
    return [
        e.id,
        Html(f"{_html(e.access)} <small>{_html(e.view.replace('_', ' '))}</small>"),
        _number(e.original),
        _number(e.edited),
        Html(f"{_number(e.gold)} <small>({each})</small>"),
        Html(f"{_number(e.rho)} <small>{_interval(e.low, e.high)}</small>"),
        "< 0.001" if e.p_holm < 0.001 else f"{e.p_holm:.3f}",
        _count(e.n, e.n_entities),
        ("yes" if e.recovered else "no") if e.valid else "not usable",
        "yes" if e.valid else f"no: {e.why_invalid}",
    ]


def _figures(report: AuditReport, tradeoff: Sequence[Mapping[str, Any]] | None) -> str:
    drawn = [
        ("residual", "Where it comes back", figures.residual_figure(report)),
        ("recall", "What the model answers", figures.recall_figure(report)),
        ("retained", "What was to stay", figures.retained_figure(report)),
        ("probe", "What its activations hold", figures.probe_figure(report)),
        ("relearning", "How fast it returns", figures.relearning_figure(report)),
    ]
    if tradeoff is not None:
        drawn.append(("tradeoff", "How the dose was chosen", figures.tradeoff_figure(tradeoff)))
    shown = "\n".join(_figure(number, *parts) for number, parts in enumerate(drawn, 1))
    return f"""<section><h2>Figures</h2>
<p class="note">{_html(READING)}</p>
{shown}
</section>"""


def _figure(number: int, id_: str, heading: str, figure: go.Figure) -> str:
    plot = to_html(
        figure, PLOT_CONFIG, include_plotlyjs=False, full_html=False, div_id=f"plot-{id_}"
    )
    caption = CAPTIONS[id_] if figure.data else "There is nothing to draw."
    return f"""<figure aria-labelledby="figure-{id_}">
<h3 id="figure-{id_}">{_html(heading)}</h3>
{plot}
<figcaption><b>Figure {number}.</b> {_html(caption)}</figcaption>
</figure>"""


def _gates(report: AuditReport) -> str:
    rows = [
        [
            g.id,
            "pass" if g.passed else Html("<strong>FAIL</strong>"),
            *(f"{x:.3g}".replace("-", MINUS) for x in (g.value, g.limit)),
            g.note,
        ]
        for g in report.gates
    ]
    failed = sum(not g.passed for g in report.gates)
    told = f"{failed} of {len(rows)} failed" if failed else f"all {len(rows)} passed"
    caption = f"Table 2. Gates: conditions without which no verdict is given; {told}."
    head = {"Gate": "", "Result": "", "Value": "number", "Limit": "number", "Required": "remark"}
    return f"<section><h2>Gates</h2>{_table('gates', caption, head, rows)}</section>"


def _objectives(report: AuditReport) -> str:
    rows = [_objective_cells(r) for r in report.rows if r.endpoint == "objective"]
    caption = (
        "Table 3. Objectives, calibrated by the golds: 1 is as good as a model that never knew."
    )
    numbers = dict.fromkeys(("Value", "95 % interval", "Questions"), "number")
    head = {"Objective": "", **numbers, "What it is": "remark"}
    return f"""<section><h2>Objectives</h2>
{_table("objectives", caption, head, rows)}
<p class="note">They describe forgetting and harm as shown in answers; none of them says that
knowledge is gone.</p>
</section>"""


def _objective_cells(row: Measurement) -> list[Any]:
    # An interval without width would claim a certainty that nothing measured.
    interval = _interval(row.low, row.high) if row.low < row.high else "none given"
    meaning = OBJECTIVES.get(row.detail, "")
    name = row.detail.replace("_", " ")
    return [name, _number(row.value), interval, _count(row.n, row.n_entities), meaning]


def _provenance(report: AuditReport) -> str:
    two = {"Name": "", "Value": ""}
    tables, plain = [], {}
    for name, value in sorted(report.provenance.items()):
        if isinstance(value, Mapping):
            tables.append((name, two, list(_leaves(value).items())))
        elif value and isinstance(value, list | tuple) and isinstance(value[0], Mapping):
            keys = dict.fromkeys(sorted({key for record in value for key in record}), "")
            tables.append((name, keys, [[_plain(r.get(key, "")) for key in keys] for r in value]))
        else:
            plain[name] = _plain(value)
    if plain:
        tables.append(("run", two, list(plain.items())))
    shown = "\n".join(
        _table(f"provenance-{i}", name.replace("_", " ").capitalize(), head, rows)
        for i, (name, head, rows) in enumerate(tables)
    )
    return f'<section class="provenance"><h2>Provenance</h2>{shown}</section>'


def _leaves(value: Mapping[str, Any]) -> dict[str, str]:
    """Every leaf of nested mappings as text by its dotted name, in alphabetical order."""
    found: dict[str, str] = {}
    for key, inner in sorted(value.items()):
        if isinstance(inner, Mapping):
            found |= {f"{key}.{name}": leaf for name, leaf in _leaves(inner).items()}
        else:
            found[str(key)] = _plain(inner)
    return found


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_plain(v) for v in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(id_: str, caption: str, head: Mapping[str, str], rows: Iterable[Sequence[Any]]) -> str:
    """A table that scrolls inside its own frame.

    Args:
        head: heading of each column and its class; the first column names the rows.
    """
    kinds = [f' class="{kind}"' if kind else "" for kind in head.values()]
    top = "".join(
        f'<th scope="col"{kind}>{_html(h)}</th>' for h, kind in zip(head, kinds, strict=True)
    )
    body = ""
    for name, *values in rows:
        cells = zip(kinds[1:], values, strict=True)
        body += f'<tr><th scope="row">{_html(name)}</th>'
        body += "".join(f"<td{kind}>{_html(value)}</td>" for kind, value in cells) + "</tr>\n"
    return f"""<div class="scroll" role="region" aria-labelledby="{id_}" tabindex="0"><table>
<caption id="{id_}"><span>{_html(caption)}</span></caption>
<thead><tr>{top}</tr></thead>
<tbody>
{body}</tbody></table></div>"""


def _list(items: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{_html(item)}</li>' for item in items)}</ul>"


def _html(value: Any) -> Html:
    return value if isinstance(value, Html) else Html(escape(str(value)))


def _count(n: int, n_entities: int) -> Html:
    return Html(f"{n} <small>({n_entities} entities)</small>")


def _interval(low: float, high: float) -> str:
    return f"[{_number(low)}, {_number(high)}]"


def _number(value: float) -> str:
    if abs(value) >= UNBOUNDED:
        return "∞" if value > 0 else f"{MINUS}∞"
    return f"{value:.2f}".replace("-", MINUS)
