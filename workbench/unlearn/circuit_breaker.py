"""Circuit breaking: streams of forget prompts turned away from what they were."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from workbench.errors import ModelError
from workbench.facts.target import Target
from workbench.hooks import Site, residuals
from workbench.models.score import device_of
from workbench.unlearn.arm import FORGET, RETAINED, TEXTS, Arm, made, metered, require_arm
from workbench.unlearn.descent import forget_batches
from workbench.unlearn.streams import from_subject, layer_at, retained, stream_norm
from workbench.unlearn.training import Steps, changed, mlps, prompts

DEPTHS = (1 / 4, 1 / 2)
"""Of the layers, where streams are turned by default."""


@dataclass(frozen=True)
class Config:
    """How hard streams are turned.

    Attributes:
        steps: half of `keep` is the last weight of what keeps retained streams, 0 the first.
        weight: of turning forget streams, at first; half of it at last.
        layers: blocks after which streams are turned; None for those at a quarter and half of the
            depth. MLPs up to the last of them change.
    """

    steps: Steps = field(default_factory=lambda: Steps(180, 2e-3, keep=10.0, near=1))
    weight: float = 0.5
    layers: tuple[int, ...] | None = None


DEFAULT = Config()
STRENGTHS = tuple(replace(DEFAULT, weight=w) for w in (0.25, 0.5, 1.0))


def unlearn(model: Any, target: Target, config: Config = DEFAULT, seed: int = 0) -> Arm:
    """Makes streams of forget prompts orthogonal to the original's, and keeps other streams.

    Source: Zou et al. 2024, arXiv 2406.04313, algorithm 1. Differs: MLPs change in place of
    low-rank adapters, tokens before the subject are left alone, and distances are in units of
    the stream's norm.

    Raises:
        ModelError: no such layer, or none named.
    """
    require_arm("circuit_breaker", model, target, ("R_tr",))
    sites, device, steps = sites_of(model, config.layers), device_of(model), config.steps
    with metered(model) as meter:
        norms = {site: stream_norm(model, target, site) for site in sites}
        batches = forget_batches(model, target, steps.batch_size, seed)
        stay = retained(model, target, steps, seed)
        passed = iter(range(steps.steps))

        def loss(now: Any) -> Float[Tensor, ""]:
            batch, late = next(batches), next(passed) / (2 * steps.steps)
            here = from_subject(batch, device)
            then, found = _both(model, now, prompts(batch, device), sites)
            turned = [alike(found[s][here], then[s][here]) for s in sites]
            strayed = []
            for tokens in next(stay):
                then, found = _both(model, now, tokens, sites)
                strayed += [(found[s] - then[s]).norm(dim=-1).mean() / norms[s] for s in sites]
            away, near = config.weight * _mean(turned), steps.keep * _mean(strayed)
            return (1 - late) * away + late * near

        broken = changed(model, loss, steps, mlps(slice(0, sites[-1].layer + 1)))
    told = {"sites": [site.name for site in sites]}
    arm = Arm("circuit_breaker", broken, saw=(FORGET, RETAINED, TEXTS), told=told)
    return made(arm, meter, config, seed)


def sites_of(model: Any, layers: Sequence[int] | None) -> list[Site]:
    """After the blocks that are named, or after those at the default depths."""
    name = "circuit_breaker"
    if layers is None:
        found = {layer_at(name, model, None, depth) for depth in DEPTHS}
    else:
        found = {layer_at(name, model, layer, 0.0) for layer in layers}
    if not found:
        raise ModelError(f"{name}: no layer was named: wanted one at least, or None")
    return [Site(layer) for layer in sorted(found)]


def alike(
    found: Float[Tensor, "*batch d_model"], then: Float[Tensor, "*batch d_model"]
) -> Float[Tensor, ""]:
    """Mean cosine, where it is above 0: orthogonal is far enough."""
    return functional.cosine_similarity(found, then, dim=-1).relu().mean()


def _both(
    before: Any, now: Any, tokens: Tensor, sites: list[Site]
) -> tuple[dict[Site, Tensor], dict[Site, Tensor]]:
    with torch.no_grad():
        then = residuals(before, tokens, sites)
    found = residuals(now, tokens, sites)
    return {s: then[s].float() for s in sites}, {s: found[s].float() for s in sites}


def _mean(values: list[Tensor]) -> Float[Tensor, ""]:
    return torch.stack(values).mean()
