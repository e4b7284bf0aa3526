"""Controls: random features that fire as often and push as hard as the chosen ones."""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from workbench.errors import EditError
from workbench.interventions.features import Clamp, Rescale, checked_features
from workbench.interventions.gate import Gate
from workbench.sae.load import max_activation


def random_control(edit: Any, seed: int = 0) -> Any:
    """The same edit on random features, matched one to one in firing rate and largest push.

    For every chosen feature, one of the ten nearest unchosen ones is drawn, as `matched_features`
    says. If the edit is gated, the gate stays: the control differs in which features are changed
    and in nothing else.

    Raises:
        EditError: the edit changes no SAE features, too few others ever fire, or the SAE carries no
            densities.
        SAEError: the SAE carries no largest activations.
    """
    if isinstance(edit, Gate):
        return replace(edit, edit=random_control(edit.edit, seed))
    if not isinstance(edit, Clamp | Rescale):
        raise EditError(
            f"a {type(edit).__name__} changes no SAE features: no matched control exists"
        )
    return replace(edit, features=matched_features(edit.sae, edit.features, seed))


def matched_features(sae: Any, features: Int[Tensor, " k"], seed: int) -> Int[Tensor, " k"]:
    """One random unchosen feature for each chosen one, near it in how often and how hard it fires.

    Nearness is in log density and in the log of the largest push, max_activation × decoder norm,
    each in units of its standard deviation over the features that ever fire. None is taken twice.
    """
    features = checked_features(sae, features)
    if not isinstance(getattr(sae, "density", None), Tensor):
        raise EditError(
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
            raise EditError(
                f"{len(features)} features leave too few others that ever fire to match them"
            )
        chosen.append(near[torch.randint(len(near), (1,), generator=generator)].item())
        free[chosen[-1]] = False
    return torch.tensor(chosen)
