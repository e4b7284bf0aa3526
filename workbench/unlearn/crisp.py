"""Features suppressed for good: adapters trained until an SAE's features no longer fire."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from workbench.facts.target import Target
from workbench.hooks import Site, residuals
from workbench.interventions.features import sae_site
from workbench.locate import Contrast
from workbench.models.score import device_of
from workbench.sae.read import Reading
from workbench.unlearn.adapters import adapted, adapter_weights, merged, reference, taken
from workbench.unlearn.arm import FORGET, RETAINED, TEXTS, Arm, made, metered, require_arm
from workbench.unlearn.descent import forget_batches
from workbench.unlearn.plain import plain_module
from workbench.unlearn.sae_edits import counted_on, most, per_token, saes_for
from workbench.unlearn.training import (
    HELD_OUT,
    Loss,
    Steps,
    changed,
    drawn,
    prompts,
    stays,
    texts,
    told,
)


@dataclass(frozen=True)
class Config:
    """Which features are suppressed, and how hard.

    Attributes:
        steps: `keep` weighs how far the streams of what is to stay move, in units of their mean
            square.
        saes: folders or names of SAEs; none: the bundled ones that were trained on this model.
        features: suppressed at each SAE, at most.
        ratio: how much more a feature is active on the target, summed over tokens, than elsewhere.
        rank: of the adapters.
        coherence: weight of the last stream beside those at the SAEs' sites.
    """

    steps: Steps = field(default_factory=lambda: Steps(120, 3e-3, keep=20.0, near=1))
    saes: tuple[str, ...] = ()
    features: int = 50
    ratio: float = 1.2
    rank: int = 8
    coherence: float = 1.0


DEFAULT = Config()
STRENGTHS = (
    DEFAULT,
    replace(DEFAULT, steps=replace(DEFAULT.steps, keep=10.0)),
    replace(DEFAULT, steps=replace(DEFAULT.steps, keep=3.0), features=100),
)


def unlearn(model: Any, target: Target, config: Config = DEFAULT, seed: int = 0) -> Arm:
    """Trains adapters until features that mark the target are silent there, and merges them.

    The adapters are part of the weights in the end, so nothing can be taken off. What is trained
    for is that features are silent: the knowledge may go another way.

    Raises:
        SAEError: no SAE fits the model.
        EditError: no feature of an SAE is active often enough on the target.

    Source: CRISP, Ashuach et al. 2025, arXiv 2508.13650. Differs: adapters stand in all blocks; the
    features' activations are divided by their largest, so that all count alike, and the streams'
    error by their mean square; what is retained includes questions; coherence is measured on
    retained texts instead of prompts of its own.
    """
    require_arm("crisp", model, target, ("R_tr",))
    with metered(model) as meter:
        counted, saes = counted_on(target, seed), saes_for(model, config.saes)
        chosen = [salient(model, s, counted, config.features, config.ratio) for s in saes]
        before = reference(model)
        loss = _loss(before, target, list(zip(saes, chosen, strict=True)), config, seed)
        start = adapted(plain_module(model), config.rank, f"{seed}, crisp")
        trained = changed(start, loss, config.steps, adapter_weights)
        result = merged(model, config.rank, [taken(trained)])
    found = {"features": [f.tolist() for f in chosen]}
    arm = Arm("crisp", result, saw=(FORGET, RETAINED, TEXTS), told=found)
    return made(arm, meter, config, seed)


def salient(model: Any, sae: Any, counted: Contrast, k: int, ratio: float) -> Int[Tensor, " k"]:
    """The features that fire on most more tokens of the target than of what stays.

    Of those that are at least `ratio` times as active there, both per token.
    """
    fires, fires_else, active, active_else = (
        per_token(model, sae, side, what)
        for what in ("rate", "mean")
        for side in (counted.forget, counted.retain)
    )
    more = (fires - fires_else) * (active >= ratio * active_else)
    return most(more, k, sae, f"is {ratio:g} times as active on the target as elsewhere")


def _loss(
    before: Any,
    target: Target,
    suppressed: Sequence[tuple[Any, Int[Tensor, " k"]]],
    config: Config,
    seed: int,
) -> Loss:
    """Activations of the features on forget prompts, and how far other streams move."""
    given, device, tokenizer = config.steps, device_of(before), before.tokenizer
    sites = [sae_site(sae) for sae, _ in suppressed]
    last = Site(before.config.num_hidden_layers - 1)
    forget = forget_batches(before, target, given.batch_size, seed)
    stay = told(tokenizer, target, stays(target, HELD_OUT, given.near))
    asked = drawn(stay, given.asked, f"{seed}, asked")
    read = texts(before, target, given.texts, seed, HELD_OUT)

    def loss(now: Any) -> Float[Tensor, ""]:
        plain = now.get_base_model()
        streams = residuals(plain, prompts(next(forget), device), sites)
        active = sum(_activity(sae, f, streams[sae_site(sae)]) for sae, f in suppressed)
        moved = [
            _moved(plain, before, tokens, sites, last, config.coherence)
            for tokens in (prompts(next(asked), device), next(read))
        ]
        return active + given.keep * torch.stack(moved).mean()

    return loss


def _activity(
    sae: Any, features: Int[Tensor, " k"], stream: Float[Tensor, "n pos d_model"]
) -> Float[Tensor, ""]:
    """Mean over tokens of the features' activations there, each in units of its largest."""
    acts = Reading(sae, stream[:, 1:]).of(features) / sae.max_activation[features].clamp_min(1e-6)
    return acts.sum(-1).mean()


def _moved(
    now: Any,
    before: Any,
    tokens: Int[Tensor, "n pos"],
    sites: Sequence[Site],
    last: Site,
    coherence: float,
) -> Float[Tensor, ""]:
    """Squared error of streams in units of their mean square, at the SAEs' sites and at the end."""
    every = [*dict.fromkeys((*sites, last))]
    with torch.no_grad():
        wanted = residuals(before, tokens, every)
    found = residuals(now, tokens, every)
    # BOS has by far the largest stream of all tokens, and never changes.
    error = {
        site: functional.mse_loss(found[site][:, 1:].float(), wanted[site][:, 1:].float())
        / wanted[site][:, 1:].float().square().mean()
        for site in every
    }
    return torch.stack([error[s] for s in sites]).mean() + coherence * error[last]
