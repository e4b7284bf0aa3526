"""Pieces of a page: text that is escaped unless it is HTML already, tables, lists and numbers."""

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from workbench.audit.statistics import UNBOUNDED

MINUS = "\N{MINUS SIGN}"


class Html(str):
    """Text that is HTML already; all other text is escaped when it is put on the page."""


class Part(Html):
    """One part of a page, with the heading and the anchor by which the contents lead to it."""

    heading: str
    anchor: str

    @classmethod
    def of(cls, heading: str, anchor: str, inside: str, kind: str = "") -> "Part":
        """A section that can be jumped to and is announced by its heading."""
        shown = f"""<section class="{kind}" id="{anchor}" aria-labelledby="{anchor}-heading"
 tabindex="-1">
{inside}
</section>"""
        part = cls(shown)
        part.heading, part.anchor = heading, anchor
        return part


def html(value: Any) -> Html:
    """The value as HTML."""
    return value if isinstance(value, Html) else Html(escape(str(value)))


def table(id_: str, caption: str, head: Mapping[str, str], rows: Iterable[Sequence[Any]]) -> Html:
    """A table that scrolls inside its own frame.

    Args:
        head: heading of each column and its class; the first column names the rows.
    """
    kinds = [f' class="{kind}"' if kind else "" for kind in head.values()]
    top = "".join(
        f'<th scope="col"{kind}>{html(h)}</th>' for h, kind in zip(head, kinds, strict=True)
    )
    body = ""
    for name, *values in rows:
        cells = zip(kinds[1:], values, strict=True)
        body += f'<tr><th scope="row">{html(name)}</th>'
        body += "".join(f"<td{kind}>{html(value)}</td>" for kind, value in cells) + "</tr>\n"
    return Html(f"""<div class="scroll" role="region" aria-labelledby="{id_}" tabindex="0"><table>
<caption id="{id_}"><span>{html(caption)}</span></caption>
<thead><tr>{top}</tr></thead>
<tbody>
{body}</tbody></table></div>""")


def listed(items: Iterable[Any]) -> Html:
    """A bulleted list."""
    return Html(f"<ul>{''.join(f'<li>{html(item)}</li>' for item in items)}</ul>")


def terms(pairs: Iterable[tuple[Any, Any]], kind: str = "") -> Html:
    """Terms and what they mean."""
    inside = "".join(f"<div><dt>{html(k)}</dt><dd>{html(v)}</dd></div>" for k, v in pairs)
    return Html(f'<dl class="{kind}">{inside}</dl>' if inside else "")


def note(text: str) -> Html:
    """A paragraph in small type."""
    return Html(f'<p class="note">{html(" ".join(text.split()))}</p>')


def folded(summary: str, inside: str) -> Html:
    """What is shown when asked for, and on paper."""
    return Html(f"<details><summary>{html(summary)}</summary>\n{inside}\n</details>")


def section(heading: str, *parts: str) -> Part:
    """A section with its heading; empty parts are left out."""
    anchor = "part-" + re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")
    inside = "\n".join(part for part in parts if part)
    return Part.of(heading, anchor, f'<h2 id="{anchor}-heading">{html(heading)}</h2>\n{inside}')


def under(heading: str, *parts: str) -> Html:
    """A part of a section with its heading; nothing where all of it is empty."""
    inside = "\n".join(part for part in parts if part)
    return Html(f"<h3>{html(heading)}</h3>\n{inside}" if inside else "")


def contents(parts: Sequence[str]) -> Html:
    """Links to the parts of a page that have an anchor; nothing where there are fewer than two."""
    known = [part for part in parts if isinstance(part, Part)]
    if len(known) < 2:
        return Html()
    links = (Html(f'<li><a href="#{p.anchor}">{html(p.heading)}</a></li>') for p in known)
    return Html(f'<nav aria-label="Parts of this page"><ol>{"".join(links)}</ol></nav>')


def counted(n: int, n_entities: int) -> Html:
    """A number of questions or facts, and of the entities they are about."""
    return Html(f"{n} <small>({n_entities} entities)</small>")


def small(value: Any, below: Any) -> Html:
    """A value with a smaller line below it."""
    return Html(f"{html(value)} <small>{html(below)}</small>")


def interval(low: float, high: float) -> str:
    """Both ends in brackets."""
    return f"[{number(low)}, {number(high)}]"


def number(value: float | None, digits: int = 2) -> str:
    """With a minus sign, a word for what is missing, and the sign of infinity."""
    if value is None or value != value:
        return "none"
    if abs(value) >= UNBOUNDED:
        return "∞" if value > 0 else f"{MINUS}∞"
    text = f"{value:.{digits}f}"
    return (text.removeprefix("-") if float(text) == 0 else text).replace("-", MINUS)


def brief(value: float | None) -> str:
    """Three significant digits; of larger numbers all that stand before the point."""
    if value is None:
        return "none"
    whole = 999.5 <= abs(value) < 1e7
    return f"{value:{'.0f' if whole else '.3g'}}".replace("-", MINUS)


def p_value(value: float) -> str:
    """Three decimals."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def yes(value: bool | None) -> str:
    """A truth in a word; None was not looked at."""
    return "not checked" if value is None else "yes" if value else "no"


def plain(value: Any) -> str:
    """Any value of a plan in a line of text."""
    if isinstance(value, list | tuple):
        return ", ".join(plain(v) for v in value) or "none"
    if isinstance(value, Mapping):
        return "; ".join(f"{k}: {plain(v)}" for k, v in sorted(value.items())) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
