"""The parts of the notebook's browser that show features: a table, a map, and one of them."""

from dataclasses import replace
from typing import Any

import ipywidgets as widgets

from workbench.report.browser import parts
from workbench.report.browser.figures import column_names, feature_figures, map_figure
from workbench.report.browser.nodes import Node, node
from workbench.report.browser.sheet import Plot, Sheet
from workbench.report.browser.state import State
from workbench.report.browser.view import COLUMNS, ROWS, found, pages, rows

ROOMY = {"description_width": "initial"}


def pane(name: str, *children: widgets.Widget) -> widgets.VBox:
    """Widgets under a heading, in a frame."""
    heading = Sheet()
    heading.show(node("h3", name))
    framed = widgets.VBox([heading, *children])
    framed.add_class("pane")
    return framed


def bar(*children: widgets.Widget) -> widgets.Box:
    """Widgets beside each other, on as many lines as it takes."""
    row = widgets.Box(list(children))
    row.add_class("bar")
    return row


def button(text: str, title: str, **data: int) -> Node:
    """A button of a sheet."""
    named = {f"data_{name}": value for name, value in data.items()}
    return node("button", text, type="button", title=title, aria_label=title, **named)


class Table:
    """A list of features that can be searched, ordered and turned page by page."""

    def __init__(self, state: State) -> None:
        self.state = state
        names = column_names(state.dashboards.overview)
        self.names = names
        self.text = widgets.Text(
            description="Search", placeholder="token text or number", continuous_update=False
        )
        self.column = widgets.Dropdown(
            options=[(name, column) for column, name in names.items()],
            value=state.view.column,
            description="Order by",
        )
        self.minimum = widgets.Text(
            description="At least", placeholder="any", continuous_update=False
        )
        self.descending = widgets.Checkbox(value=True, description="largest first", indent=False)
        self.bookmarked = widgets.Checkbox(description="bookmarks only", indent=False)
        self.minimum.add_class("short")
        self.sheet = Sheet(open=state.open, pick=state.pick, mark=state.mark, page=self._turn)
        self.controls = (
            *(self.text, self.column, self.minimum, self.descending, self.bookmarked),
        )  # fmt: skip
        for control in self.controls:
            control.observe(self._ask, "value")
        state.observe(self._show, ["view", "feature", "picked", "bookmarks"])
        self.widget = pane("Features", bar(*self.controls), self.sheet)
        self._show()

    def _ask(self, _: Any = None) -> None:
        try:
            given = self.minimum.value.strip()
            minimum = float(given) if given else None
        except ValueError:
            wanted = f"at least {self.minimum.value!r}: wanted a number, or nothing"
            self.sheet.show(node("p", wanted, class_="error", role="alert"))
            return
        self.state.view = replace(
            self.state.view,
            text=self.text.value,
            column=self.column.value,
            descending=self.descending.value,
            minimum=minimum,
            bookmarked=self.bookmarked.value,
            page=0,
        )

    def _turn(self, page: int) -> None:
        self.state.view = replace(self.state.view, page=page)

    def _show(self, _: Any = None) -> None:
        some, total = rows(self.state.dashboards, self.state.view, self.state.bookmarks)
        self.sheet.show(self._table(some), self._pages(len(some), total))

    def _table(self, some: list[int]) -> Node:
        overview, column = self.state.dashboards.overview, self.state.view.column
        columns = [c for c in COLUMNS if c in overview and c != column]
        heads = ["feature", self.names[column], *(self.names[c] for c in columns)]
        values = overview.loc[some, [column, *columns]].to_numpy(float)
        lines = [self._line(i, row) for i, row in zip(some, values.tolist(), strict=True)]
        return parts.table("Open a feature by its number.", heads, lines)

    def _line(self, i: int, values: list[float]) -> Node:
        marked, picked = i in self.state.bookmarks, i in self.state.picked
        star = f"{'forget the bookmark of' if marked else 'bookmark'} feature {i}"
        put = f"{'take' if picked else 'put'} feature {i} {'out of' if picked else 'into'} the edit"
        go = node("button", str(i), type="button", class_="go", data_open=i)
        first = node(
            "td",
            go,
            button("★" if marked else "☆", star, mark=i),
            button("✕" if picked else "+", put, pick=i),
            class_="acts",
        )
        shown = "shown" if i == self.state.feature else ""
        return node("tr", first, *(node("td", f"{v:.4g}") for v in values), class_=shown)

    def _pages(self, here: int, total: int) -> Node:
        page, last = self.state.view.page, pages(total) - 1
        told = f"{page * ROWS + 1} to {page * ROWS + here} of {total}" if total else "none found"
        back = [button("← previous", "previous page", page=page - 1)] if page else []
        on = [button("next →", "next page", page=page + 1)] if page < last else []
        return node("div", *back, node("span", told), *on, class_="bar")


class Map:
    """Every feature as a point; one that is clicked is opened."""

    def __init__(self, state: State) -> None:
        self.state = state
        overview = state.dashboards.overview
        options = [(name, column) for column, name in column_names(overview).items()]
        self.x = widgets.Dropdown(options=options, value="map_x", description="Across")
        self.y = widgets.Dropdown(options=options, value="map_y", description="Up")
        self.plot = Plot(self._figure(), library=True)
        for trace in self.plot.traces:
            trace.on_click(self._click)
        for axis in (self.x, self.y):
            axis.observe(self._show, "value")
        state.observe(self._show, ["view", "feature", "picked", "bookmarks"])
        self.widget = pane("Map", bar(self.x, self.y), self.plot)

    def _figure(self) -> Any:
        state, view = self.state, self.state.view
        asked = view.text or view.bookmarked or view.minimum is not None
        some = found(state.dashboards, view, state.bookmarks) if asked else None
        across, up = str(self.x.value), str(self.y.value)
        overview = state.dashboards.overview
        return map_figure(overview, across, up, some, state.feature, state.picked)

    def _show(self, _: Any = None) -> None:
        self.plot.draw(self._figure())

    def _click(self, trace: Any, points: Any, _: Any) -> None:
        if points.point_inds:
            self.state.feature = int(trace.customdata[points.point_inds[0]])


class Panel:
    """All that is known of the feature that is open."""

    def __init__(self, state: State) -> None:
        self.state = state
        acts = {"feature": state.open, "pick": state.pick, "mark": state.mark}
        self.head, self.passages, self.neighbours = (Sheet(**acts) for _ in range(3))
        self.number = widgets.BoundedIntText(
            value=state.feature, max=len(state.dashboards) - 1, description="Feature"
        )
        self.number.add_class("short")
        self.number.observe(lambda change: state.open(change["new"]), "value")
        self.plots: dict[str, Plot] = {}
        self.titled: dict[str, widgets.VBox] = {}
        self.figures = widgets.Box()
        self.figures.add_class("figures")
        state.observe(self._show, "feature")
        state.observe(self._show_head, ["feature", "picked", "bookmarks"])
        texts = widgets.VBox([self.passages, self.neighbours])
        self.widget = pane("One feature", self.number, self.head, texts, self.figures)
        self._show()
        self._show_head()

    def _show(self, _: Any = None) -> None:
        one = self.state.dashboards.feature(self.state.feature)
        self.number.value = one.index
        self.passages.show(parts.passages(one))
        self.neighbours.show(parts.neighbours(one))
        drawn = feature_figures(one, self.state.dashboards.card["asked"])
        for name, figure in drawn.items():
            if name in self.plots:
                self.plots[name].draw(figure)
            else:
                self.plots[name] = Plot(figure)
                self.titled[name] = titled(name, self.plots[name])
        self.figures.children = [self.titled[name] for name in drawn]

    def _show_head(self, _: Any = None) -> None:
        i, state = self.state.feature, self.state
        star = "★ bookmarked" if i in state.bookmarks else "☆ bookmark"
        put = "take out of the edit" if i in state.picked else "add to the edit"
        acts = node("div", button(star, star, mark=i), button(put, put, pick=i), class_="bar")
        one = self.state.dashboards.feature(i)
        self.head.show(acts, parts.summary(one))


def titled(name: str, plot: Plot) -> widgets.VBox:
    """A figure under its name."""
    heading = Sheet()
    heading.show(node("h4", name))
    return widgets.VBox([heading, plot])
