"""Random features that fire as often and push as hard as given ones: the control of every claim."""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from workbench.errors import SAEError
from workbench.sae.load import max_activation


def matched_features(sae: Any, features: Int[Tensor, " k"], seed: int) -> Int[Tensor, " k"]:
    """One random unchosen feature for each chosen one, near it in how often and how hard it fires.

    Nearness is in log density and in the log of the largest push, max_activation × decoder norm,
    each in units of its standard deviation over the features that ever fire. None is taken twice.

    Raises:
        SAEError: the SAE carries no densities or largest activations, or too few others ever fire.
    """
    if not isinstance(getattr(sae, "density", None), Tensor):
        raise SAEError(
            "this SAE carries no firing densities, by which controls are matched: train it here"
        )
    push = max_activation(sae) * sae.W_dec.norm(dim=-1)
    traits = torch.stack([sae.density, push], dim=-1).clamp_min(1e-6).log()
    traits = traits / traits[sae.density > 0].std(0, correction=0).clamp_min(1e-6)
    free = (sae.density > 0).cpu()
    free[features.cpu()] = False
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for feature in features:
        distance = (traits - traits[feature]).square().sum(-1).cpu().masked_fill(~free, torch.inf)
        near = distance.topk(min(10, int(free.sum())), largest=False).indices
        if not len(near):
            raise SAEError(
                f"{len(features)} features leave too few others that ever fire to match them"
            )
        chosen.append(near[torch.randint(len(near), (1,), generator=generator)].item())
        free[chosen[-1]] = False
    return torch.tensor(chosen)
