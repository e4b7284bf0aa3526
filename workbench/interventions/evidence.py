"""What one token says about a concept's presence: what a gate goes by."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.errors import EditError
from workbench.hooks import Site
from workbench.interventions.features import checked_features, require_direction, sae_site
from workbench.sae.read import Reading, require_plain_decoder


@runtime_checkable
class Evidence(Protocol):
    """One number per token, from the residual stream."""

    @property
    def site(self) -> Site | None:
        """Where it reads; None where any stream will do."""
        ...

    def __call__(self, reading: Reading) -> Float[Tensor, "*batch pos"]: ...


@dataclass(frozen=True)
class Weighted:
    """Weights · activations of an SAE's features."""

    sae: Any
    weights: Float[Tensor, " d_sae"]

    def __post_init__(self) -> None:
        require_plain_decoder(self.sae)
        if self.weights.shape != (self.sae.cfg.d_sae,):
            raise EditError(
                f"{self.weights.numel()} weights: wanted one for each of the SAE's "
                f"{self.sae.cfg.d_sae} features"
            )
        object.__setattr__(self, "weights", self.weights.to(self.sae.W_dec.device))

    @property
    def site(self) -> Site:
        return sae_site(self.sae)

    def __call__(self, reading: Reading) -> Float[Tensor, "*batch pos"]:
        return reading.dot(self.weights)


@dataclass(frozen=True)
class Firing:
    """1 where any of some features fires, else 0."""

    sae: Any
    features: Int[Tensor, " k"]

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", checked_features(self.sae, self.features))

    @property
    def site(self) -> Site:
        return sae_site(self.sae)

    def __call__(self, reading: Reading) -> Float[Tensor, "*batch pos"]:
        acts = reading.of(self.features)
        return (acts > 0).any(-1).to(acts.dtype)


@dataclass(frozen=True)
class Probe:
    """What a linear probe on the residual stream says: direction · stream + bias.

    Attributes:
        direction: on the model's device.
    """

    direction: Float[Tensor, " d_model"]
    bias: float = 0.0
    site: Site | None = None

    def __post_init__(self) -> None:
        require_direction(self.direction)

    def __call__(self, reading: Reading) -> Float[Tensor, "*batch pos"]:
        wide = torch.promote_types(reading.resid.dtype, torch.float32)
        direction = self.direction.to(reading.resid.device, wide)
        return reading.resid.to(wide) @ direction + self.bias


@dataclass(frozen=True)
class Always:
    """1 on every token: a gate with it holds back from BOS alone."""

    site: Site | None = None

    def __call__(self, reading: Reading) -> Float[Tensor, "*batch pos"]:
        return torch.ones_like(reading.resid[..., 0], dtype=torch.float32)
