"""Reports: the figures of an audit, and one page that holds all of it and needs no network."""

from workbench.report.browser.widget import browse
from workbench.report.curves import (
    probe_figure,
    relearning_figure,
    savings_figure,
    tradeoff_figure,
)
from workbench.report.dots import recall_figure, retained_figure
from workbench.report.figures import access_figure, endpoint_figure
from workbench.report.html import write_html, write_pareto
from workbench.report.pareto import pareto_figure

__all__ = [
    "access_figure",
    "browse",
    "endpoint_figure",
    "pareto_figure",
    "probe_figure",
    "recall_figure",
    "relearning_figure",
    "retained_figure",
    "savings_figure",
    "tradeoff_figure",
    "write_html",
    "write_pareto",
]
