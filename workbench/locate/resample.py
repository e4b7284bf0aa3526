"""Intervals over groups: entities or documents are drawn anew, with all their prompts."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.locate.concept import Prompt

DRAWS = 1000
"""Bootstrap draws behind each interval."""
FEWEST_GROUPS = 2
"""Groups below which nothing varies between draws, and no interval is given."""


def group_interval(
    values: Float[Tensor, "prompt k"],
    prompts: Sequence[Prompt],
    generator: torch.Generator,
    draws: int = DRAWS,
) -> Float[Tensor, "2 k"]:
    """95 % percentile intervals of means over prompts; nan with fewer than two groups."""
    names = {name: i for i, name in enumerate(dict.fromkeys(p.group for p in prompts))}
    group = torch.tensor([names[p.group] for p in prompts])
    total = torch.zeros(len(names), values.shape[1]).index_add_(0, group, values)
    size = torch.bincount(group).float()
    drawn = torch.randint(len(names), (draws, len(names)), generator=generator)
    times = torch.zeros(draws, len(names)).scatter_add_(1, drawn, torch.ones(drawn.shape))
    found = ends(times @ total / (times @ size)[:, None])
    return found if len(names) >= FEWEST_GROUPS else torch.full_like(found, torch.nan)


def ends(draws: Float[Tensor, "n k"]) -> Float[Tensor, "2 k"]:
    """Ends of the 95 % percentile interval of each column."""
    return draws.quantile(torch.tensor([0.025, 0.975]), dim=0)
