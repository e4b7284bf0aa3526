"""Edits of single SAE features: deltas on the residual stream.

What the SAE does not explain stays as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.errors import EditError
from workbench.hooks import Site
from workbench.sae.load import max_activation


@dataclass(frozen=True)
class Rescale:
    """Multiplies the chosen features' activations: 1 leaves, 0 ablates, negative reverses."""

    sae: Any
    features: Int[Tensor, " k"]
    scale: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", checked_features(self.sae, self.features))

    @property
    def site(self) -> Site:
        return sae_site(self.sae)

    def __call__(self, resid: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        acts = self.sae.encode(resid.to(self.sae.W_dec.dtype))[..., self.features]
        return resid + ((self.scale - 1) * acts @ self.sae.W_dec[self.features]).to(resid.dtype)


@dataclass(frozen=True)
class Clamp:
    """Sets the chosen features to `dose` times their own largest activation.

    Attributes:
        dose: -1 is as strong as the feature ever was, in the opposite direction; 0 ablates.
        where: `active` acts on tokens where the feature fires; `everywhere` on every token the edit
            sees.

    Source: Farrell et al. 2024, arXiv 2410.19278. Differs: the dose is in units of each feature's
    maximum, since an absolute value is another dose at every site.
    """

    sae: Any
    features: Int[Tensor, " k"]
    dose: float = -1.0
    where: Literal["active", "everywhere"] = "active"

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", checked_features(self.sae, self.features))
        if self.where not in ("active", "everywhere"):
            raise EditError(f"where={self.where!r}: wanted 'active' or 'everywhere'")
        max_activation(self.sae)

    @property
    def site(self) -> Site:
        return sae_site(self.sae)

    def __call__(self, resid: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        acts = self.sae.encode(resid.to(self.sae.W_dec.dtype))[..., self.features]
        change = self.dose * max_activation(self.sae)[self.features] - acts
        if self.where == "active":
            change = change * (acts > 0)
        return resid + (change @ self.sae.W_dec[self.features]).to(resid.dtype)


def checked_features(sae: Any, features: Int[Tensor, "..."] | Sequence[int]) -> Int[Tensor, " k"]:
    """The features as a tensor of valid, distinct indices on the SAE's device.

    Raises:
        EditError: none, repeated ones, or one that the SAE does not have; or an SAE in which a
            feature's activation is not how much of its decoder row it adds.
    """
    _require_plain_decoder(sae)
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


def _require_plain_decoder(sae: Any) -> None:
    """Raises EditError if decoding is more than activations times `W_dec`.

    Edits of such an SAE would be of another size than asked.
    """
    if sae.cfg.normalize_activations != "none":
        raise EditError(
            f"this SAE normalizes its input ({sae.cfg.normalize_activations}): edits want one that "
            "reads the residual stream as it is"
        )
    norms = sae.W_dec.detach().float().norm(dim=-1)
    rescaled = getattr(sae.cfg, "rescale_acts_by_decoder_norm", False)
    if rescaled and not torch.allclose(norms, torch.ones_like(norms), atol=1e-3):
        raise EditError(
            "this SAE divides activations by the decoder's norms: call sae.fold_W_dec_norm() first"
        )


def sae_site(sae: Any) -> Site:
    """The site that the SAE reads."""
    return Site.parse(sae.cfg.metadata.hook_name)
