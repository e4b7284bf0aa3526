"""Edits beside the weights: an ablation that works, one that does not, and a filter on text."""

import copy
import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from workbench.activations import harvest
from workbench.audit.views import Filter
from workbench.errors import SAEError
from workbench.facts.mentions import name_finder
from workbench.facts.target import Target
from workbench.hooks import Site
from workbench.interventions import (
    Clamp,
    Gate,
    Weighted,
    calibrated,
    fit_gate_weights,
    gate_peaks,
    random_control,
)
from workbench.locate import rank
from workbench.locate.joint import Goal, choose_jointly
from workbench.locate.rows import prompt_streams
from workbench.models.load import weights_sha256
from workbench.models.score import ask
from workbench.sae import TrainConfig, load_sae, train_sae
from workbench.sae.load import bundled_saes

GOAL = Goal(12.0, 12.0)
DOSE = -8.0
FALSE_ALARMS = 0.08
RANDOM_FEATURES = 64
FIRING = 200
NEVER = -1e6
"""A bias below all that a feature reads."""
SAMPLES = 600_000
UNRELATED = 150


def saes_of(model: Any) -> tuple[Any, ...]:
    """The bundled SAEs that were trained on this model.

    Raises:
        SAEError: there is none.
    """
    given = weights_sha256(model)
    fitting = [s for s in map(load_sae, bundled_saes()) if s.cfg.metadata.model_sha256 == given]
    if not fitting:
        raise SAEError(
            f"no bundled SAE was trained on weights {given[:12]}: wanted a bundled original, or "
            "its SAEs as saes="
        )
    return tuple(fitting)


def ablation(model: Any, target: Target, sae: Any, seed: int) -> Gate:
    """A gated clamp of jointly chosen features, after which forget facts are asked in vain.

    The seed decides the prompts on which features are chosen and the unrelated ones that the gate
    is fitted on. The gate is fitted on all forget facts, in training templates.
    """
    chosen = choose_jointly(model, sae, target, GOAL, curve=False, seed=seed).features
    return _gated(model, target, Clamp(sae, chosen, DOSE), seed)


def random_ablation(model: Any, target: Target, sae: Any, seed: int) -> Gate:
    """A gate that opens on the target and then ablates features that have nothing to do with it.

    They are matched to those that fire on the target in how often and how hard they fire. They are
    set to zero: random features driven far from where they ever are break any answer.
    """
    firing: Int[Tensor, " k"] = rank(model, sae, target, RANDOM_FEATURES, "frequency")[0]
    return random_control(_gated(model, target, Clamp(sae, firing, 0.0), seed), seed)


def error_kept(model: Any, target: Target, folder: Path) -> Clamp:
    """Sets the features that fire most on the target to zero, everywhere; the error stays.

    They are those of an SAE that has lost the ones which told the target: what these said is now in
    its error. It reads a late block, where linear probes read the answer.

    Args:
        folder: where the SAE is trained and kept.
    """
    sae = late_sae(model, target, folder)
    poor = without(sae, rank(model, sae, target, FIRING, "frequency")[0])
    return Clamp(poor, rank(model, poor, target, RANDOM_FEATURES, "frequency")[0], 0.0)


def late_sae(model: Any, target: Target, folder: Path) -> Any:
    """An SAE of the last block but one, trained on the facts' texts unless it was before."""
    site = Site(max(0, len(model.blocks) - 2))
    place = folder / f"sae-{weights_sha256(model)[:16]}-{site.name}"
    if not (place / "cfg.json").is_file():
        with TemporaryDirectory() as work:
            acts = harvest(model, target.facts, site, Path(work) / "acts")
            train_sae(acts, TrainConfig(samples=SAMPLES), place)
    return load_sae(place)


@torch.no_grad()
def without(sae: Any, features: Int[Tensor, " k"]) -> Any:
    """A copy of an SAE in which these features never fire."""
    poor = copy.deepcopy(sae)
    poor.W_enc[:, features] = 0.0
    poor.b_enc[features] = NEVER
    return poor


def keyword_filter(target: Target) -> Filter:
    """Refuses every text in which the name of a forget entity stands, spelled as it is."""
    find = name_finder(target.entities)

    def refuses(text: str) -> bool:
        return bool(find(text))

    return refuses


def _gated(model: Any, target: Target, clamp: Clamp, seed: int) -> Gate:
    """The clamp, acting from the token on at which the prompt is known to be about the target."""
    site, sae = Site.parse(clamp.sae.cfg.metadata.hook_name), clamp.sae
    others = [f for f in target.neighbours["U"] if f.stated and f.templates]
    unrelated = random.Random(f"{seed}, unrelated").sample(others, min(UNRELATED, len(others)))
    concept, retained, rest = (
        prompt_streams(model, ask(facts, "train"), site)
        for facts in (target.forget, target.retain["R_tr"], unrelated)
    )
    weights = fit_gate_weights(sae, concept, retained, rest)
    gate = Gate(clamp, Weighted(sae, weights), 0.0)
    held_out = prompt_streams(model, ask(target.retain["R_va"], "train"), site)
    with torch.no_grad():
        return calibrated(gate, gate_peaks(gate, held_out), FALSE_ALARMS)
