"""Setting features to what they are on average elsewhere."""

from dataclasses import dataclass
from typing import Any

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
from workbench.sae.read import Reading


@dataclass(frozen=True)
class MeanAblate(FeatureEdit):
    """Sets the chosen features to their mean on other text.

    A feature that is silent on average there is ablated; one that always fires a little keeps what
    the rest of the model counts on.

    Attributes:
        means: activation of each chosen feature; `fit` takes them from rows of the residual stream.
        where: `everywhere` replaces activations on every token; `active` where the feature fires.
    """

    sae: Any
    features: Int[Tensor, " k"]
    means: Float[Tensor, " k"]
    where: Where = "everywhere"

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", checked_features(self.sae, self.features))
        require_where(self.where)
        if self.means.shape != self.features.shape or not self.means.isfinite().all():
            raise EditError(
                f"{self.means.numel()} means for {len(self.features)} features: wanted one finite "
                "mean each"
            )
        object.__setattr__(self, "means", self.means.to(self.sae.W_dec.device))

    @classmethod
    @torch.no_grad()
    def fit(
        cls,
        sae: Any,
        features: Int[Tensor, " k"],
        rows: Float[Tensor, "token d_model"],
        where: Where = "everywhere",
    ) -> "MeanAblate":
        """Takes the means over rows of the residual stream at the SAE's site.

        Raises:
            EditError: no rows.
        """
        features = checked_features(sae, features)
        if not len(rows):
            raise EditError("no rows to take the features' means over")
        sums = [Reading(sae, batch).of(features).sum(0) for batch in rows.split(8192)]
        return cls(sae, features, torch.stack(sums).sum(0) / len(rows), where)

    def change(self, acts: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
        change = self.means.to(acts) - acts
        return change * (acts > 0) if self.where == "active" else change
