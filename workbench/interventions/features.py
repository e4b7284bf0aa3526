"""What edits of single SAE features have in common: a delta on the residual stream.

What the SAE does not explain stays as it is.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.errors import EditError
from workbench.hooks import Site
from workbench.sae.read import Reading, require_plain_decoder

Where = Literal["active", "everywhere"]
"""On tokens where a feature fires, or on every token the edit sees."""


class FeatureEdit(ABC):
    """An edit that changes the activations of some features and nothing else."""

    sae: Any
    features: Int[Tensor, " k"]

    @property
    def site(self) -> Site:
        return sae_site(self.sae)

    @property
    def touched(self) -> Int[Tensor, " k"]:
        """The features whose activations are changed."""
        return self.features

    @abstractmethod
    def change(self, acts: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
        """How much is added to the activation of each touched feature."""

    def on(self, reading: Reading) -> Reading:
        """The edited stream, from what has been read of it already."""
        return reading.plus(self.touched, self.change(reading.of(self.touched)))

    def __call__(self, resid: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        return self.on(Reading(self.sae, resid)).resid


def require_where(where: str) -> None:
    """Raises EditError unless `where` is one of the two places."""
    if where not in ("active", "everywhere"):
        raise EditError(f"where={where!r}: wanted 'active' or 'everywhere'")


def checked_features(sae: Any, features: Int[Tensor, "..."] | Sequence[int]) -> Int[Tensor, " k"]:
    """The features as a tensor of valid, distinct indices on the SAE's device.

    Raises:
        EditError: none, repeated ones, or one that the SAE does not have; or an SAE in which a
            feature's activation is not how much of its decoder row it adds.
    """
    require_plain_decoder(sae)
    chosen = torch.as_tensor(features, dtype=torch.long, device=sae.W_dec.device)
    if chosen.ndim != 1 or not len(chosen) or len(chosen.unique()) != len(chosen):
        raise EditError(
            f"features {chosen.tolist()}: wanted a list of one or more distinct indices"
        )
    if chosen.min() < 0 or chosen.max() >= sae.cfg.d_sae:
        raise EditError(
            f"features up to {int(chosen.max())}: this SAE has 0 to {sae.cfg.d_sae - 1}"
        )
    return chosen


def sae_site(sae: Any) -> Site:
    """The site that the SAE reads."""
    return Site.parse(sae.cfg.metadata.hook_name)


def require_direction(direction: Float[Tensor, "*any"]) -> None:
    """Raises EditError unless given one vector, finite and not zero."""
    if direction.ndim != 1:
        raise EditError(
            f"a direction of shape {list(direction.shape)}: wanted one vector of d_model numbers"
        )
    if not direction.isfinite().all() or not direction.any():
        what = "zero" if direction.isfinite().all() else "not finite"
        raise EditError(f"a direction that is {what}: wanted finite numbers, not all zero")
