"""What every feature of an SAE does: gathered in one pass, stored in parquet, read in a moment."""

from workbench.dashboards.gather import DashboardConfig, make_dashboards
from workbench.dashboards.live import EDITS, Bench, Preview
from workbench.dashboards.store import Dashboards, Feature, Passage

__all__ = [
    "EDITS",
    "Bench",
    "DashboardConfig",
    "Dashboards",
    "Feature",
    "Passage",
    "Preview",
    "make_dashboards",
]
