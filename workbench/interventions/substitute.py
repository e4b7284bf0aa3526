"""The SAE's reconstruction in the place of the stream: what the SAE does not explain is lost."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from workbench.hooks import Site
from workbench.interventions.features import sae_site


@dataclass(frozen=True)
class Substitute:
    """Replaces the residual stream by its reconstruction.

    The error term, in which knowledge can stay that no feature edit reaches, is dropped; what this
    costs by itself is to be known before an edit's effect is put down to the features.
    """

    sae: Any

    @property
    def site(self) -> Site:
        return sae_site(self.sae)

    def __call__(self, resid: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        return self.sae.decode(self.sae.encode(resid.to(self.sae.W_dec.dtype))).to(resid.dtype)
