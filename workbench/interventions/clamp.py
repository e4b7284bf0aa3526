"""Setting features to a value, whatever they were."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.errors import EditError
from workbench.interventions.features import (
    FeatureEdit,
    Where,
    checked_features,
    require_where,
)
from workbench.sae.load import max_activation


@dataclass(frozen=True)
class Clamp(FeatureEdit):
    """Sets the chosen features to `dose`, by default in multiples of their own largest activation.

    Attributes:
        dose: -1 is as strong as the feature ever was, in the opposite direction; 0 ablates.
        where: `active` acts on tokens where the feature fires; `everywhere` on every token the edit
            sees.
        unit: `max`: the dose is a multiple of each feature's largest activation; `absolute`: an
            activation, as in SAEBench.

    Source: Farrell et al. 2024, arXiv 2410.19278. Differs: the dose is in units of each feature's
    maximum unless told, since an absolute value is another dose at every site.
    """

    sae: Any
    features: Int[Tensor, " k"]
    dose: float = -1.0
    where: Where = "active"
    unit: Literal["max", "absolute"] = "max"

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", checked_features(self.sae, self.features))
        require_where(self.where)
        if self.unit not in ("max", "absolute"):
            raise EditError(f"unit={self.unit!r}: wanted 'max' or 'absolute'")
        if self.unit == "max":
            max_activation(self.sae)

    def change(self, acts: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
        change = dosed(self.sae, self.features, self.dose, self.unit).to(acts) - acts
        return change * (acts > 0) if self.where == "active" else change


def dosed(
    sae: Any, features: Int[Tensor, " k"], dose: float, unit: str = "max"
) -> Float[Tensor, " k"]:
    """The activation that a dose stands for, for each feature."""
    if unit == "absolute":
        return torch.full((len(features),), dose, dtype=sae.W_dec.dtype, device=sae.W_dec.device)
    return dose * max_activation(sae)[features]
