"""Pushing the stream along a direction, or keeping it from going further along it."""

from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.errors import EditError
from workbench.hooks import Site
from workbench.interventions.features import checked_features, require_direction, sae_site
from workbench.sae.load import max_activation

Mode = Literal["simple", "orthogonal", "capped"]


@dataclass(frozen=True)
class Steer:
    """Adds a direction to every token, sets the component along it, or caps that component.

    Attributes:
        direction: its length counts; on the model's device.
        strength: in multiples of the direction.
        mode: `simple`: strength × direction is added. `orthogonal`: the stream's component along
            the direction gives way to strength × direction. `capped`: a component above strength ×
            the direction's length is brought down to it; lower ones stay. A floor is a cap along
            the opposite direction.

    Source: `simple`: Turner et al. 2023, arXiv 2308.10248; `orthogonal`: subspace steering of
    AxBench, Wu et al. 2025, arXiv 2501.17148; `capped`: activation capping, Lu et al. 2026, arXiv
    2601.10387. Differs: one site; there, several layers are capped together.
    """

    site: Site
    direction: Float[Tensor, " d_model"]
    strength: float = 1.0
    mode: Mode = "simple"

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise EditError(f"mode={self.mode!r}: wanted 'simple', 'orthogonal' or 'capped'")
        if not isfinite(self.strength):
            raise EditError(f"strength={self.strength}: wanted a finite number")
        require_direction(self.direction)

    @classmethod
    def decoder(cls, sae: Any, feature: int, dose: float = 1.0, mode: Mode = "simple") -> "Steer":
        """Along a feature's decoder row, in multiples of what the feature writes at its largest.

        Raises:
            EditError: no such feature, or one that never fires.
            SAEError: the SAE carries no largest activations.
        """
        (feature,) = checked_features(sae, [feature]).tolist()
        push = max_activation(sae)[feature] * sae.W_dec[feature].detach()
        return cls(sae_site(sae), push, dose, mode)

    def __call__(self, resid: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        wide = torch.promote_types(resid.dtype, torch.float32)
        x, direction = resid.to(wide), self.direction.to(resid.device, wide)
        if self.mode == "simple":
            return (x + self.strength * direction).to(resid.dtype)
        length = torch.linalg.vector_norm(direction)
        along = (x @ (direction / length))[..., None]
        if self.mode == "orthogonal":
            change = self.strength * length - along
        else:
            change = -(along - self.strength * length).relu()
        return (x + change * (direction / length)).to(resid.dtype)
