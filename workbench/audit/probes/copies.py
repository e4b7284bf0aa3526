"""Models that know nothing: what an audit must find nothing in."""

from typing import Any

import torch

from workbench.models.copies import copied


def permuted(model: Any, seed: int = 0) -> Any:
    """A copy of the model, shuffled within each parameter: the same numbers, no knowledge."""
    shuffled, generator = copied(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in shuffled.parameters():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return shuffled


def random_init(model: Any, seed: int = 0) -> Any:
    """A copy of the model with normal draws of each parameter's own mean and spread."""
    drawn, generator = copied(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in drawn.parameters():
            values = parameter.float()
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
            spread = values.std(correction=0)
            parameter.copy_(values.mean() + spread * noise)
    return drawn
