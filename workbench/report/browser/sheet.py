"""What the notebook's feature browser is made of: sheets of text and buttons, and figures."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import anywidget
import plotly
import plotly.graph_objects as go
import traitlets

from workbench.report.browser.nodes import Node, to_html
from workbench.report.html import PLOT_CONFIG

SHEET = """
const key = (at) => JSON.stringify(at.dataset);
function render({ model, el }) {
  el.dataset.lmSuppressShortcuts = "true";
  const draw = () => {
    const active = el.contains(document.activeElement) ? document.activeElement : null;
    const held = active && key(active);
    el.innerHTML = model.get("html");
    const same = held && [...el.querySelectorAll("button")].find((at) => key(at) === held);
    if (same) same.focus({ preventScroll: true });
  };
  el.addEventListener("click", (event) => {
    const at = event.target.closest("button");
    if (at && el.contains(at)) model.send({ ...at.dataset });
  });
  model.on("change:html", draw);
  draw();
}
export default { render };
"""
PLOT = """
const name = "workbench-plotly-VERSION";
function library(model) {
  if (!globalThis[name]) {
    const kept = {};
    kept.source = new Promise((resolve) => { kept.give = resolve; });
    kept.module = kept.source.then((source) => {
      const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
      return import(url).finally(() => URL.revokeObjectURL(url));
    });
    globalThis[name] = kept;
  }
  if (model.get("library")) globalThis[name].give(model.get("library"));
  return globalThis[name].module;
}
export default () => {
  let inner;
  return {
    async initialize(props) {
      inner = (await library(props.model)).default();
      await inner.initialize(props);
    },
    render: (props) => inner.render(props),
  };
};
""".replace("VERSION", plotly.__version__)
BUNDLE = Path(plotly.__file__).parent / "package_data" / "widgetbundle.js"


class Sheet(anywidget.AnyWidget):
    """Parts of a page whose buttons do something.

    Args:
        acts: for each kind of button what happens; a button's `data-` attribute of that name is the
            number it is called with.
    """

    _esm = SHEET
    html = traitlets.Unicode().tag(sync=True)

    def __init__(self, **acts: Callable[[int], None]) -> None:
        super().__init__()
        self.acts = acts
        self.on_msg(self._clicked)

    def show(self, *parts: Node) -> None:
        """Puts parts in the place of those before."""
        self.html = "".join(to_html(part) for part in parts)

    def _clicked(self, _: Any, content: Any, __: Any) -> None:
        for name, value in dict(content).items():
            if name in self.acts:
                self.acts[name](int(value))


class Plot(go.FigureWidget):
    """A FigureWidget that shares one copy of plotly.js, of 5 MB, with the others of a page.

    Args:
        library: plotly.js is sent with this one.
    """

    _esm = PLOT
    library = traitlets.Unicode().tag(sync=True)

    def __init__(self, figure: go.Figure, library: bool = False) -> None:
        self._brings_library = library
        super().__init__(figure)
        self._config = dict(PLOT_CONFIG)  # no button that sends a figure anywhere
        self._drawn = figure.layout

    @traitlets.default("library")
    def _library(self) -> str:
        return BUNDLE.read_text(encoding="utf-8") if self._brings_library else ""

    @property
    def traces(self) -> Any:
        """Its traces, as they are now."""
        return self.data

    def draw(self, figure: go.Figure) -> None:
        """Shows another figure in its place; zooming lasts while the axes stay the same."""
        traces: Any = figure.data
        if len(self.traces) != len(traces):
            self.data = ()
            self.add_traces(traces)
        with self.batch_update():
            for old, new in zip(self.traces, traces, strict=True):
                given = new.to_plotly_json()
                given.pop("uid", None)
                old.update(given, overwrite=True)
            if figure.layout != self._drawn:
                self.update_layout(figure.layout.to_plotly_json(), overwrite=True)
        self._drawn = figure.layout
        # A page that draws it only later, or again, begins from these.
        self._widget_data = deepcopy(self._data)
        self._widget_layout = deepcopy(self._layout_obj._props)
