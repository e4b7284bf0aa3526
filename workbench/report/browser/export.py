"""The feature browser as one file, which works from a disk and is no larger than it may be."""

import base64
import gzip
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from tqdm.auto import tqdm

from workbench.artifacts import write_text
from workbench.dashboards import Dashboards
from workbench.errors import DataError
from workbench.report.browser import parts
from workbench.report.browser.figures import (
    LOGARITHMIC,
    NAMES,
    column_names,
    feature_figures,
    map_figure,
)
from workbench.report.browser.nodes import node, to_html
from workbench.report.browser.view import first_column, read_bookmarks
from workbench.report.html import PLOT_CONFIG

PAGE, SCRIPT, CSS = (
    Path(__file__).with_name(name) for name in ("export.html", "export.js", "browser.css")
)
ROWS = 25
"""Features of a page of the table."""
CHUNK = 64
"""Features that are unpacked together when one of them is opened."""
LEADING = ("effect_forget", "effect_retain", "density", "rate_forget", "rate_retain")
"""Columns of the table that come first."""
RULE = "given ones, then bookmarked ones, then {effect}those that fire on most tokens"
EFFECT = "those whose ablation takes most from the forget facts, then "


def export_browser(
    dashboards: Dashboards, out: Path, budget_mb: float = 20.0, first: Sequence[int] = ()
) -> Path:
    """Writes the browser of a run as one HTML file, and says where it is.

    The file holds its scripts and data, forbids the web browser any connection, and is at most
    `budget_mb` large. Its table and map hold every feature; passages and figures, which are those
    of the other doors, are there of as many features as fit, and the page says of how many.

    Args:
        out: a path that ends in `.html`.
        budget_mb: in millions of bytes; `math.inf` sets no bound.
        first: features that are included before others, such as those that were located.

    Raises:
        DataError: the budget holds no table and map, `first` names a feature that is not there, or
            `out` does not end in `.html`.
    """
    _require(dashboards, out, first)
    marks = read_bookmarks(dashboards.folder)
    order = ranked(dashboards, [*first, *marks])
    tables = _tables(dashboards, marks)
    total = len(dashboards)
    fixed = len(_page(dashboards, tables, [], total).encode())
    room = budget_mb * 1e6 - fixed
    if not room >= 0:
        raise DataError(
            f"budget {budget_mb:g} MB: the table and the map of {total} features and what draws "
            f"them take {math.ceil(fixed / 1e4) / 100} MB; wanted that at least"
        )
    chunks = list(_chunks(dashboards, order, room))
    included = sum(size for size, _ in chunks)
    page = _page(dashboards, tables, [text for _, text in chunks], included)
    assert len(page.encode()) <= budget_mb * 1e6
    write_text(out, page)
    return Path(out)


def ranked(dashboards: Dashboards, first: Sequence[int] = ()) -> list[int]:
    """All features, in the order in which an exported file includes them.

    The given ones in their order, then by falling effect on the forget facts where that is known,
    then by falling density; equal ones by number.
    """
    overview = dashboards.overview
    density = overview["density"].to_numpy(float)
    effect = overview["effect_forget"] if "effect_forget" in overview else np.zeros(len(overview))
    order = np.lexsort((-density, -np.asarray(effect, float)))
    return list(dict.fromkeys([*map(int, first), *order.tolist()]))


def _require(dashboards: Dashboards, out: Path, first: Sequence[int]) -> None:
    if Path(out).suffix != ".html":
        raise DataError(f"{out}: wanted a path that ends in .html")
    for index in first:
        if not 0 <= index < len(dashboards):
            raise DataError(f"first: feature {index}: this SAE has 0 to {len(dashboards) - 1}")


def _chunks(dashboards: Dashboards, order: Sequence[int], room: float) -> Iterator[tuple[int, str]]:
    """Features in full, packed together, as long as there is room: how many, and their script."""
    bar = tqdm(total=len(order), desc="export", unit="feature", leave=False)
    with bar:
        for start in range(0, len(order), CHUNK):
            some = order[start : start + CHUNK]
            told = [_told(dashboards, index) for index in some]
            size, text = len(some), _chunk(some, told)
            while len(text) > room and size:
                size //= 2
                text = _chunk(some[:size], told[:size])
            if size:
                yield size, text
            bar.update(size)
            room -= len(text)
            if size < len(some):
                return


def _told(dashboards: Dashboards, index: int) -> dict[str, Any]:
    """All that the file holds of one feature: its parts as HTML, its figures as JSON."""
    one = dashboards.feature(index)
    figures = feature_figures(one, dashboards.card["asked"])
    return {
        "summary": to_html(parts.summary(one)),
        "passages": to_html(parts.passages(one)),
        "neighbours": to_html(parts.neighbours(one)),
        "figures": {name: _drawn(figure) for name, figure in figures.items()},
    }


def _chunk(indices: Sequence[int], told: Sequence[dict[str, Any]]) -> str:
    """A script element with a list for each part: gzip finds what is alike within 32 kB alone."""
    if not indices:
        return ""
    lists = {part: [one[part] for one in told] for part in told[0]}
    packed = _packed(json.dumps(lists, separators=(",", ":")).encode())
    listed = ",".join(map(str, indices))
    return f'<script type="application/json" data-features="{listed}">"{packed}"</script>\n'


def _tables(dashboards: Dashboards, marks: Sequence[int]) -> dict[str, str]:
    """What the table, the search and the map read, as the texts of script elements."""
    overview = dashboards.overview
    names = column_names(overview)
    columns = [*(c for c in LEADING if c in names), *(c for c in names if c not in LEADING)]
    tokens, owners = dashboards.heads
    pairs = np.unique(np.stack([owners, tokens]).astype(np.int64), axis=1)
    used, ids = np.unique(pairs[1], return_inverse=True)
    counts = np.bincount(pairs[0], minlength=len(overview))
    words = [str(dashboards.vocabulary[i]).lower() for i in used]
    held = {
        "key": hashlib.sha256(_json(dashboards.card).encode()).hexdigest()[:16],
        "features": len(overview),
        "rows": ROWS,
        "marks": list(marks),
        "sort": first_column(overview),
        "columns": [
            {"id": c, "name": names[c], "axis": NAMES.get(c, c), "log": c in LOGARITHMIC}
            for c in columns
        ],
        "config": PLOT_CONFIG,
        "map": _drawn(map_figure(overview.iloc[:0])),
    }
    values = overview[columns].to_numpy("<f4").T
    return {
        "held": _json(held),
        "values": _json(_packed(values.tobytes())),
        "counts": _json(_packed(counts.astype("<u4").tobytes())),
        "head-words": _json(_packed(ids.astype("<u4").tobytes())),
        "words": _json(_packed(json.dumps(words).encode())),
    }


def _page(
    dashboards: Dashboards, tables: dict[str, str], chunks: Sequence[str], included: int
) -> str:
    data = [
        f'<script type="application/json" id="{name}">{text}</script>\n'
        for name, text in tables.items()
    ]
    return Template(PAGE.read_text(encoding="utf-8")).substitute(
        about=_about(dashboards, included),
        css=CSS.read_text(encoding="utf-8"),
        plotly=get_plotlyjs(),
        data="".join([*data, *chunks]),
        script=SCRIPT.read_text(encoding="utf-8"),
    )


def _about(dashboards: Dashboards, included: int) -> str:
    """What was gathered, how much of it is in the file, and what a file cannot do."""
    total, gathered = len(dashboards), f"{parts.about(dashboards.card)}."
    full = f"{included} of {total} features are here in full; the table and the map hold all."
    if included < total:
        effect = EFFECT if "effect_forget" in dashboards.overview else ""
        full += f" Included first were {RULE.format(effect=effect)}."
    live = "Edits cannot be tried in a file: workbench browse RUN opens the run with its model."
    said = [node("p", gathered), node("p", full, class_="included"), node("p", live)]
    return "\n".join(to_html(line) for line in said)


def _drawn(figure: go.Figure) -> dict[str, Any]:
    return json.loads(str(figure.to_json()))


def _packed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()


def _json(value: Any) -> str:
    """JSON that ends no script element, whatever text is in it."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
