"""Representation misdirection: streams of forget prompts drawn to one random vector."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from workbench.facts.target import Target
from workbench.hooks import Site, residuals
from workbench.models.score import device_of
from workbench.unlearn.arm import FORGET, RETAINED, TEXTS, Arm, made, metered, require_arm
from workbench.unlearn.descent import forget_batches
from workbench.unlearn.streams import (
    from_subject,
    layer_at,
    mlp_outputs,
    require_outputs,
    retained,
    stream_norm,
)
from workbench.unlearn.training import Steps, changed, prompts

DEPTH = 1 / 3
"""Of the layers, where the stream is misdirected by default."""


@dataclass(frozen=True)
class Config:
    """How far and how hard streams are misdirected.

    Attributes:
        steps: `keep` is the published alpha, the weight of what keeps retained streams.
        coefficient: length of the control vector, in median norms of the stream at its layer.
        layer: block after which streams are misdirected; None for the one at a third of the depth.
        trained: MLP output matrices that change, that of `layer` and those before it.
        isotropic: False draws the control vector as the published code does, from [0, 1), so that
            it leans towards the all-ones direction whatever the seed.
    """

    steps: Steps = field(default_factory=lambda: Steps(150, 2e-3, keep=30.0, near=4))
    coefficient: float = 0.5
    layer: int | None = None
    trained: int = 3
    isotropic: bool = True


DEFAULT = Config()
STRENGTHS = tuple(
    replace(DEFAULT, steps=replace(DEFAULT.steps, keep=alpha)) for alpha in (30.0, 20.0, 10.0)
)
"""The less is kept, the more is forgotten."""


def unlearn(model: Any, target: Target, config: Config = DEFAULT, seed: int = 0) -> Arm:
    """Gives forget prompts one meaningless stream from the subject on, and keeps other streams.

    What was known is not erased: the way to it is bent, in one direction.

    Source: Li et al. 2024, arXiv 2403.03218, eq. 1 to 3. Differs: the control vector is isotropic,
    its length and both errors are in units of the stream's norm, tokens before the subject are left
    alone, no padding takes part, and streams of retained questions are kept beside those of texts.

    Raises:
        ModelError: no such layer, or MLPs without an output matrix.
    """
    require_arm("rmu", model, target, ("R_tr",))
    require_outputs("rmu", model)
    layer, device = layer_at("rmu", model, config.layer, DEPTH), device_of(model)
    site, steps = Site(layer), config.steps
    with metered(model) as meter:
        norm = stream_norm(model, target, site)
        wanted = control(model.cfg.d_model, seed, isotropic=config.isotropic).to(device)
        wanted = config.coefficient * norm * wanted
        batches = forget_batches(model, target, steps.batch_size, seed)
        stay = retained(model, target, steps, seed)

        def loss(now: Any) -> Float[Tensor, ""]:
            batch = next(batches)
            stream = residuals(now, prompts(batch, device), [site])[site]
            bent = apart(stream[from_subject(batch, device)], wanted, norm)
            kept = [_strayed(now, model, tokens, site, norm) for tokens in next(stay)]
            return bent + steps.keep * sum(kept) / len(kept)

        trained = slice(max(0, layer + 1 - config.trained), layer + 1)
        bent = changed(model, loss, steps, mlp_outputs(trained))
    told = {"site": site.name, "stream_norm": round(norm.item(), 4)}
    arm = Arm("rmu", bent, saw=(FORGET, RETAINED, TEXTS), told=told)
    return made(arm, meter, config, seed)


def control(d_model: int, seed: int, *, isotropic: bool = True) -> Float[Tensor, " d_model"]:
    """A random direction of unit norm."""
    draw = torch.randn if isotropic else torch.rand
    return functional.normalize(draw(d_model, generator=torch.Generator().manual_seed(seed)), dim=0)


def apart(
    stream: Float[Tensor, "*batch d_model"],
    wanted: Float[Tensor, "*batch d_model"] | Float[Tensor, " d_model"],
    norm: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Mean squared distance, in squares of `norm`."""
    return (stream.float() - wanted).square().sum(-1).mean() / norm.square()


def _strayed(
    now: Any, before: Any, tokens: Tensor, site: Site, norm: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    with torch.no_grad():
        wanted = residuals(before, tokens, [site])[site].float()
    return apart(residuals(now, tokens, [site])[site], wanted, norm)
