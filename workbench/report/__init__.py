"""Reports: the figures of an audit, and one page that holds all of it and needs no network."""

from workbench.report.figures import (
    probe_figure,
    recall_figure,
    relearning_figure,
    residual_figure,
    retained_figure,
    tradeoff_figure,
)
from workbench.report.html import write_html

__all__ = [
    "probe_figure",
    "recall_figure",
    "relearning_figure",
    "residual_figure",
    "retained_figure",
    "tradeoff_figure",
    "write_html",
]
