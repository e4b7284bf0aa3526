"""What a notebook's browser shows now; its parts read it, change it and follow it."""

from typing import Any

import traitlets

from workbench.dashboards import Dashboards
from workbench.errors import DataError
from workbench.report.browser.view import (
    View,
    first_column,
    read_bookmarks,
    rows,
    write_bookmarks,
)


class State(traitlets.HasTraits):
    """What is shown of a run.

    Attributes:
        feature: the one that is open.
        picked: features of the edit, in order.
        bookmarks: kept in the run's folder.
        view: what the table lists.
    """

    feature = traitlets.Int()
    picked = traitlets.Tuple()
    bookmarks = traitlets.Tuple()
    view = traitlets.Instance(View)

    def __init__(self, dashboards: Dashboards) -> None:
        self.dashboards = dashboards
        view = View(column=first_column(dashboards.overview))
        first = rows(dashboards, view)[0][0]
        super().__init__(feature=first, view=view, bookmarks=read_bookmarks(dashboards.folder))
        self.observe(lambda _: write_bookmarks(dashboards.folder, self.bookmarks), "bookmarks")

    @traitlets.validate("feature", "picked", "bookmarks")
    def _checked(self, proposal: Any) -> Any:
        given, one = proposal["value"], proposal["trait"].name == "feature"
        for index in [given] if one else given:
            if not 0 <= index < len(self.dashboards):
                raise DataError(f"feature {index}: this SAE has 0 to {len(self.dashboards) - 1}")
        return given if one else tuple(sorted({int(i) for i in given}))

    def open(self, index: int) -> None:
        """Shows a feature."""
        self.feature = index

    def pick(self, index: int) -> None:
        """Takes a feature into the edit, or out of it."""
        self.picked = tuple({*self.picked} ^ {index})

    def mark(self, index: int) -> None:
        """Bookmarks a feature, or does so no longer."""
        self.bookmarks = tuple({*self.bookmarks} ^ {index})
