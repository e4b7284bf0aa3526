"""Speaking of something else: one concept's features give way to another's."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.errors import EditError
from workbench.interventions.clamp import dosed
from workbench.interventions.features import FeatureEdit, checked_features
from workbench.sae.load import max_activation


@dataclass(frozen=True)
class Replace(FeatureEdit):
    """Where any chosen feature fires, ablates them all and sets those of another concept instead.

    Attributes:
        others: features of the other concept, none of them chosen ones.
        dose: what these are set to, in multiples of each one's largest activation.

    Source: the refusal clamp of Khoriaty et al. 2025, arXiv 2503.11127. Differs: any concept's
    features can stand in the place of refusal.
    """

    sae: Any
    features: Int[Tensor, " k"]
    others: Int[Tensor, " other"]
    dose: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", checked_features(self.sae, self.features))
        object.__setattr__(self, "others", checked_features(self.sae, self.others))
        both = torch.isin(self.others, self.features)
        if both.any():
            raise EditError(
                f"features {self.others[both].tolist()} are to go and to stay: wanted two lists "
                "without a common feature"
            )
        max_activation(self.sae)

    @property
    def touched(self) -> Int[Tensor, " k"]:
        return torch.cat([self.features, self.others])

    def change(self, acts: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
        gone, others = acts.split([len(self.features), len(self.others)], dim=-1)
        fires = (gone > 0).any(-1, keepdim=True)
        wanted = dosed(self.sae, self.others, self.dose).to(acts)
        return torch.cat([-gone, (wanted - others) * fires], dim=-1)
