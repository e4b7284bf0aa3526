"""The notebook's feature browser as one widget."""

from pathlib import Path
from typing import Any

import ipywidgets as widgets

from workbench.dashboards import Bench, Dashboards, Preview
from workbench.hooks import Intervention
from workbench.report.browser import parts
from workbench.report.browser.nodes import node
from workbench.report.browser.panes import Map, Panel, Table, pane
from workbench.report.browser.sheet import Sheet
from workbench.report.browser.state import State
from workbench.report.browser.trial import Trial, wrong

CSS = Path(__file__).with_name("browser.css")


class Browser(widgets.VBox):
    """Features to look at, and an edit of some of them to try.

    Args:
        bench: where edits are tried, or the error that tells why none can be.

    Attributes:
        state: what is shown; its `feature`, `picked` and `view` may be set from a script.
        trial: the edit that is tried; None where none can be.
    """

    def __init__(self, dashboards: Dashboards, bench: Bench | Exception) -> None:
        self.dashboards = dashboards
        self.state = state = State(dashboards)
        self.table, self.map, self.panel = Table(state), Map(state), Panel(state)
        self.trial = None if isinstance(bench, Exception) else Trial(state, bench)
        styles = [CSS, CSS.with_name("notebook.css")]
        text = "".join(path.read_text(encoding="utf-8") for path in styles)
        style = widgets.HTML(f"<style>{text}</style>", layout={"display": "none"})
        live = self.trial.widget if self.trial else _no_trial(bench)
        left = widgets.VBox([self.table.widget, self.map.widget, live])
        panes = widgets.Box([left, self.panel.widget])
        panes.add_class("wbb-panes")
        super().__init__([style, _heading(dashboards), panes])
        self.add_class("wbb")

    @property
    def edits(self) -> list[Intervention]:
        """The edit that is tried, as `workbench.edited` and `workbench.audit` take it."""
        return self.trial.edits if self.trial else []

    @property
    def preview(self) -> Preview | None:
        """What the edit was last seen to do."""
        return self.trial.preview if self.trial else None


def _heading(dashboards: Dashboards) -> Sheet:
    sheet = Sheet()
    sheet.show(node("p", parts.about(dashboards.card)))
    return sheet


def _no_trial(why: Any) -> widgets.VBox:
    sheet = Sheet()
    sheet.show(node("p", "Edits cannot be tried here."), wrong(why))
    return pane("Try an edit", sheet)
