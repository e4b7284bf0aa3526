"""Reading and changing the residual stream.

The only room that registers hooks; none outlives its `with` block.
"""

from workbench.hooks.attach import captured, edited, residuals
from workbench.hooks.count import Tokens, counted
from workbench.hooks.firelog import FireLog
from workbench.hooks.places import hook_point
from workbench.hooks.sites import Intervention, Point, Remembering, Site

__all__ = [
    "FireLog",
    "Intervention",
    "Point",
    "Remembering",
    "Site",
    "Tokens",
    "captured",
    "counted",
    "edited",
    "hook_point",
    "residuals",
]
