"""Clamping of SAE features on those tokens alone that are found to be about the target."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.facts.target import Target
from workbench.interventions import Clamp, Gate, Weighted, fit_gate_weights
from workbench.interventions.features import sae_site
from workbench.models.score import Question, last_subject_token
from workbench.unlearn.arm import FORGET, RETAINED, TEXTS, Arm, made, metered, require_arm
from workbench.unlearn.gates import Shown, shown, spared_from, streams_of
from workbench.unlearn.sae_edits import counted_on, marked, saes_for


@dataclass(frozen=True)
class Config:
    """Which features, what they are set to, and how readily.

    Attributes:
        saes: folders or names of SAEs; none: the bundled ones that were trained on this model.
        features: clamped by each SAE, at most.
        dose: in multiples of each feature's largest activation.
        false_alarms: share of retained prompts with a token on which the condition may hold.
    """

    saes: tuple[str, ...] = ()
    features: int = 100
    dose: float = -4.0
    false_alarms: float = 0.15


DEFAULT = Config()
STRENGTHS = tuple(replace(DEFAULT, false_alarms=share) for share in (0.05, 0.15, 0.3))


EVERY = 3
"""One in so many unrelated prompts and texts is read token by token."""


def unlearn(model: Any, target: Target, config: Config = DEFAULT, seed: int = 0) -> Arm:
    """Clamps features that fire, on tokens that by themselves are found to be about the target.

    The condition holds at a name of the target and closes again when the prompt goes on. No weight
    changes: who takes the hook off has the original.

    Raises:
        SAEError: no SAE fits the model.
        EditError: no feature of an SAE fires often enough on the target.

    Source: conditional clamping, Khoriaty et al. 2025, arXiv 2503.11127. Differs: the condition is
    a weighted sum of all features instead of a single one, and its threshold is of retained prompts
    that the weights were not fitted on.
    """
    require_arm("sae_conditional", model, target, ("R_tr",))
    with metered(model) as meter:
        given, counted = shown(target, seed), counted_on(target, seed)
        saes, edits = saes_for(model, config.saes), []
        for sae in saes:
            dtype = sae.W_dec.dtype
            clamp = Clamp(sae, marked(model, sae, counted, config.features), config.dose)
            gate = Gate(clamp, token_evidence(model, given, sae), 0.0, "token")
            edits.append(spared_from(gate, model, given, config.false_alarms / len(saes), dtype))
    told = {"features": [e.edit.features.tolist() for e in edits]}
    arm = Arm("sae_conditional", model, tuple(edits), saw=(FORGET, RETAINED, TEXTS), told=told)
    return made(arm, meter, config, seed)


def token_evidence(model: Any, given: Shown, sae: Any) -> Weighted:
    """A logistic regression, without intercept, on the SAE's features of single tokens.

    It tells the last token of forget subjects from that of retained ones, and from all tokens of
    unrelated prompts.
    """
    site, dtype = sae_site(sae), sae.W_dec.dtype
    about, retained = (
        _named(model, asked, streams_of(model, asked, site, dtype))
        for asked in (given.forget, given.retained)
    )
    rest = [t for s in streams_of(model, given.unrelated[::EVERY], site, dtype) for t in _each(s)]
    with torch.no_grad():
        weights = fit_gate_weights(sae, about, retained, rest, concept_weight=1.0)
    return Weighted(sae, weights)


def _named(
    model: Any, asked: Sequence[Question], streams: Sequence[Float[Tensor, "_pos d_model"]]
) -> list[Float[Tensor, "2 d_model"]]:
    """Of each prompt, BOS and the last token of its subject."""
    ends = (last_subject_token(model.tokenizer, q) for q in asked)
    return [stream[[0, end]] for stream, end in zip(streams, ends, strict=True)]


def _each(stream: Float[Tensor, "pos d_model"]) -> Iterator[Float[Tensor, "2 d_model"]]:
    """BOS with each of the other tokens."""
    return (stream[[0, i]] for i in range(1, len(stream)))
