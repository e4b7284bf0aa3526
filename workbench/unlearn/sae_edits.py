"""The SAEs that a method edits by, and what it finds in them."""

import random
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.errors import EditError, SAEError
from workbench.facts.target import Target
from workbench.interventions import Clamp, Gate, Weighted, fit_gate_weights
from workbench.interventions.features import sae_site
from workbench.locate import Contrast, Prompt
from workbench.locate.rows import What, read_rows
from workbench.models import weights_sha256
from workbench.models.score import device_of
from workbench.sae import load_sae
from workbench.sae.load import bundled_saes, max_activation, require_fit
from workbench.unlearn.gates import Shown, shown, spared_from, streams_of
from workbench.unlearn.training import HELD_OUT, kept_texts

RATIO = 2.0
"""How much more often on the target than elsewhere a feature fires that marks it."""
COUNTED = 1000
"""Passages of each kind on which features are counted, at most."""


def saes_for(model: Any, named: Sequence[str]) -> tuple[Any, ...]:
    """The SAEs of those names or folders; without any, the bundled ones trained on this model.

    Raises:
        SAEError: none was trained on these weights, one was trained on others, or one carries no
            largest activations.
    """
    device, given = str(device_of(model)), weights_sha256(model)
    if named:
        found = tuple(load_sae(name, device) for name in named)
    else:
        every = (load_sae(name, device) for name in bundled_saes())
        found = tuple(s for s in every if s.cfg.metadata.model_sha256 == given)
    if not found:
        raise SAEError(
            f"no bundled SAE was trained on weights {given[:12]}: train one on this model "
            "(workbench.train_sae) and name its folder as saes="
        )
    for sae in found:
        require_fit(sae, model)
        max_activation(sae)
    return found


def counted_on(target: Target, seed: int) -> Contrast:
    """Forget prompts, and retained prompts and texts without R_va and R_te."""
    given, rng = shown(target, seed), random.Random(f"{seed}, counted")
    texts = kept_texts(target, HELD_OUT)
    forget, retained = (
        tuple(Prompt(text, text) for text in _some([q.prompt for q in asked], rng))
        for asked in (given.forget, (*given.others, *given.spared, *given.spared_unrelated))
    )
    return Contrast(forget, (*retained, *(Prompt(t, t) for t in _some(texts, rng))))


def _some(texts: Sequence[str], rng: random.Random) -> list[str]:
    return rng.sample(texts, min(COUNTED, len(texts)))


def most(scores: Tensor, k: int, sae: Any, wanted: str) -> Int[Tensor, " k"]:
    """The features that score highest, of those above zero; fewer where there are no more.

    Raises:
        EditError: no feature scores above zero.
    """
    best = scores.argsort(descending=True, stable=True)[:k]
    best = best[scores[best] > 0]
    if not len(best):
        raise EditError(
            f"the SAE at {sae_site(sae).name} has no feature that {wanted}: wanted another SAE or "
            "a looser setting"
        )
    return best


def marked(model: Any, sae: Any, counted: Contrast, k: int) -> Int[Tensor, " k"]:
    """The features that fire most on the target, of those that fire there `RATIO` times as often.

    Raises:
        EditError: none does.
    """
    forget, retained = (
        per_token(model, sae, side, "rate") for side in (counted.forget, counted.retain)
    )
    wanted = f"fires on the target {RATIO:g} times as often as elsewhere"
    return most(forget * (forget > RATIO * retained), k, sae, wanted)


def per_token(
    model: Any, sae: Any, prompts: Sequence[Prompt], what: What
) -> Float[Tensor, " d_sae"]:
    """Share of tokens, but for BOS, on which each feature fires (`rate`), or its mean there."""
    found = read_rows(model, sae, prompts, what)
    return found.weight @ found.values / found.weight.sum()


def behind_weights(
    model: Any, target: Target, clamp: Clamp, false_alarms: float, seed: int
) -> tuple[Gate, Shown]:
    """The clamp behind a gate that opens on the target's prompts and stays open.

    The gate weighs all features of the clamp's SAE. What it is fitted on is returned with it.
    """
    given, sae = shown(target, seed), clamp.sae
    dtype = sae.W_dec.dtype
    sides = (given.forget, given.retained, given.unrelated)
    read = [streams_of(model, asked, clamp.site, dtype) for asked in sides]
    with torch.no_grad():
        weights = fit_gate_weights(sae, read[0], read[1], read[2])
    gate = Gate(clamp, Weighted(sae, weights), 0.0, "latched")
    return spared_from(gate, model, given, false_alarms, dtype), given
