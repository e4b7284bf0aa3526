"""What the browser shows now: which features a table lists, what is bookmarked, where edits go."""

import json
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from workbench.artifacts import write_json
from workbench.dashboards import Dashboards
from workbench.errors import DataError, EditError

ROWS = 20
"""Features of a page."""
COLUMNS = ("density", "rate_forget", "rate_retain", "effect_forget", "effect_retain")
"""Shown of each feature, as far as they were gathered."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,59}")


@dataclass(frozen=True)
class View:
    """What a table of features is asked for.

    Attributes:
        text: text of a token, or the number of a feature; empty finds every feature.
        column: a column of the overview, by which features are ordered.
        minimum: least value of that column; None asks for none.
        page: counted from 0.
        bookmarked: list bookmarked features alone.
    """

    text: str = ""
    column: str = "density"
    descending: bool = True
    minimum: float | None = None
    page: int = 0
    bookmarked: bool = False


def first_column(overview: pd.DataFrame) -> str:
    """The column to order by to begin with: what ablating a feature does, where that is known."""
    return "effect_forget" if "effect_forget" in overview else "density"


def found(dashboards: Dashboards, view: View, bookmarks: Collection[int] = ()) -> np.ndarray:
    """All features that a view lists, in its order; equal ones by number, unknown values last.

    Raises:
        DataError: no such column.
    """
    if view.column not in dashboards.overview:
        names = ", ".join(dashboards.overview.columns)
        raise DataError(f"column {view.column!r}: wanted one of {names}")
    features = dashboards.search(view.text)
    if view.bookmarked:
        features = features[np.isin(features, list(bookmarks))]
    values = dashboards.overview[view.column].to_numpy(float)[features]
    if view.minimum is not None:
        kept = values >= view.minimum
        features, values = features[kept], values[kept]
    return features[np.argsort(-values if view.descending else values, kind="stable")]


def rows(
    dashboards: Dashboards, view: View, bookmarks: Collection[int] = ()
) -> tuple[list[int], int]:
    """The features of a view's page, and how many there are on all pages.

    Raises:
        DataError: no such column.
    """
    every = found(dashboards, view, bookmarks)
    start = ROWS * max(0, view.page)
    return every[start : start + ROWS].tolist(), len(every)


def pages(total: int) -> int:
    """How many pages so many features fill; one where there are none."""
    return max(1, -(-total // ROWS))


def read_bookmarks(folder: Path | str) -> tuple[int, ...]:
    """The bookmarked features of a run, in order; none where nothing was written.

    Raises:
        DataError: the file holds something else.
    """
    path = Path(folder) / "bookmarks.json"
    if not path.exists():
        return ()
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}): mend or remove it") from error
    if not isinstance(given, list) or any(type(i) is not int for i in given):
        raise DataError(f"{path}: wanted a list of feature numbers: mend or remove it")
    return tuple(sorted(set(given)))


def write_bookmarks(folder: Path | str, indices: Iterable[int]) -> None:
    """Keeps which features of a run are bookmarked."""
    write_json(Path(folder) / "bookmarks.json", sorted({int(i) for i in indices}))


def edit_folder(run: Path | str, name: str) -> Path:
    """Where a run keeps an edit of this name.

    Raises:
        EditError: no name of a folder, or one that is taken: what is saved is never replaced.
    """
    if not NAME.fullmatch(name):
        raise EditError(
            f"name {name!r}: wanted 1 to 60 letters, digits, _ and -, a letter or digit first"
        )
    folder = Path(run) / "edits" / name
    if folder.exists():
        raise EditError(f"an edit {name!r} is saved already, in {folder}: wanted another name")
    return folder
