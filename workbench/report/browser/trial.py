"""The part of the notebook's browser where an edit is tried, audited and saved."""

import shlex
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import plotly.graph_objects as go

from workbench.dashboards import EDITS, Bench, Preview
from workbench.errors import EditError, WorkbenchError
from workbench.hooks import Intervention
from workbench.interventions import save_edit
from workbench.models.load import model_name
from workbench.report.browser import parts
from workbench.report.browser.figures import next_token_figure, recall_figure
from workbench.report.browser.nodes import Node, node
from workbench.report.browser.panes import bar, button, pane, titled
from workbench.report.browser.sheet import Plot, Sheet
from workbench.report.browser.state import State
from workbench.report.browser.view import edit_folder


class Trial:
    """An edit of the picked features, and at once what the model says under it.

    Attributes:
        preview: the latest; None before the first.
    """

    def __init__(self, state: State, bench: Bench) -> None:
        self.state, self.bench = state, bench
        self.preview: Preview | None = None
        self.picked = Sheet(open=state.open, pick=state.pick)
        options = [(f"{name}: {told}", name) for name, told in EDITS.items()]
        self.kind = widgets.Dropdown(options=options, description="Edit")
        self.dose = widgets.FloatSlider(
            -1.0, min=-3, max=3, step=0.1, description="Dose", continuous_update=False
        )
        self.prompt = widgets.Text(
            bench.prompt or _prompt(state, bench), description="Prompt", continuous_update=False
        )
        self.said, self.answers, self.verdict, self.saved = (Sheet() for _ in range(4))
        self.next_token, self.recall = Plot(go.Figure()), Plot(go.Figure())
        self.name = widgets.Text("edit-1", description="Name")
        self.audit_button = widgets.Button(description="Audit this edit")
        self.save_button = widgets.Button(description="Save edit")
        for control in (self.kind, self.dose, self.prompt):
            control.observe(self._try, "value")
        state.observe(self._try, "picked")
        self.audit_button.on_click(self._audit)
        self.save_button.on_click(self._save)
        self.widget = pane("Try an edit", *self._children())
        self._try()

    def _children(self) -> list[widgets.Widget]:
        drawn = [titled("What comes next", self.next_token)]
        acts = [self.name, self.save_button]
        if self.bench.target is not None:
            drawn.append(titled("Recall of the target, and of what is to stay", self.recall))
            acts.append(self.audit_button)
        figures = widgets.Box(drawn)
        figures.add_class("figures")
        for wide in (self.kind, self.prompt, self.dose):
            wide.add_class("long")
        controls = (self.kind, self.dose, self.prompt)
        shown = (self.answers, bar(*acts), self.saved, self.verdict)
        return [self.picked, *controls, self.said, figures, *shown]

    @property
    def edits(self) -> list[Intervention]:
        """The edit that is tried, as `workbench.edited` takes it; none where none is picked."""
        picked, kind, dose = self.state.picked, str(self.kind.value), float(self.dose.value)
        return [self.bench.edit(picked, kind, dose)] if picked else []

    def _try(self, _: Any = None) -> None:
        self._show_picked()
        self.verdict.show()
        self.said.show(node("p", "Measuring …", role="status"))
        try:
            self.preview = seen = self.bench.preview(self.edits, self.prompt.value)
        except WorkbenchError as error:
            self.said.show(wrong(error))
            return
        self.next_token.draw(next_token_figure(seen))
        if self.bench.target is None:
            self.said.show()
            return
        self.recall.draw(recall_figure(seen))
        self.said.show(parts.costs(seen))
        self.answers.show(parts.answers(seen))

    def _show_picked(self) -> None:
        found = []
        for i in self.state.picked:
            go_to = node("button", str(i), type="button", class_="go", data_open=i)
            drop = button("✕", f"take feature {i} out of the edit", pick=i)
            found.append(node("li", go_to, drop))
        none = "No feature is picked: press + beside one. Shown is the original model."
        self.picked.show(node("ul", *found, class_="row") if found else node("p", none))

    def _audit(self, _: Any) -> None:
        if not self._is_ready(self.verdict, "audited"):
            return
        self.audit_button.disabled = True
        told = "The quick audit runs; until it has ended, the notebook's kernel is busy."
        self.verdict.show(node("p", told, role="status"))
        try:
            verdict = self.bench.audit(self.edits).verdict
            word = node("strong", f"Verdict: {verdict.primary.replace('_', ' ')}. ")
            self.verdict.show(node("div", word, verdict.sentence, class_="verdict", role="status"))
        except WorkbenchError as error:
            self.verdict.show(wrong(error))
        finally:
            self.audit_button.disabled = False

    def _save(self, _: Any) -> None:
        try:
            folder = edit_folder(self.state.dashboards.folder, self.name.value.strip())
            if not self.edits:
                raise EditError("no feature is picked: there is no edit to save")
            save_edit(self.edits, folder)
        except (WorkbenchError, OSError) as error:
            self.saved.show(wrong(error))
            return
        line = node("p", "On the command line: ", node("span", self.line(folder), class_="line"))
        self.saved.show(node("p", f"Saved: {folder}", role="status"), line)

    def _is_ready(self, place: Sheet, what: str) -> bool:
        if not self.edits:
            place.show(wrong(EditError(f"no feature is picked: there is no edit to be {what}")))
        return bool(self.edits)

    def line(self, folder: Path) -> str:
        """The command that audits a saved edit."""
        names = [model_name(self.bench.model)]
        if self.bench.target is not None:
            names += [self.bench.target.facts.name, self.bench.target.name]
        golds = [model_name(gold) for gold in self.bench.golds]
        words = ["workbench", "audit", *names, *(["--golds", *golds] if golds else [])]
        return shlex.join([*words, "--edit", str(folder.resolve())])


def wrong(error: Exception) -> Node:
    """What went wrong, in its own words."""
    return node("p", str(error), class_="error", role="alert")


def _prompt(state: State, bench: Bench) -> str:
    """The text up to where the shown feature fires most."""
    special = set(bench.model.tokenizer.all_special_tokens)
    for passage in state.dashboards.feature(state.feature).top[:1]:
        return "".join(t for t in passage.tokens[: passage.at + 1] if t.strip() not in special)
    return ""
