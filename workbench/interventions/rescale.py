"""Making features weaker, stronger or absent."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from workbench.interventions.features import FeatureEdit, checked_features


@dataclass(frozen=True)
class Rescale(FeatureEdit):
    """Multiplies the chosen features' activations: 1 leaves, 0 ablates, negative reverses."""

    sae: Any
    features: Int[Tensor, " k"]
    scale: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", checked_features(self.sae, self.features))

    def change(self, acts: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
        return (self.scale - 1) * acts
