"""What probes read: the residual stream at two positions and every depth, one row per fact."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.audit.views import View
from workbench.facts.schema import Fact, prompt
from workbench.hooks import Site, edited, residuals
from workbench.models.score import (
    Question,
    Templates,
    batches_by_length,
    device_of,
    last_subject_token,
)

POSITIONS = ("subject", "last")
"""The last token of the subject, and the last token of the prompt."""

MAX_DEPTHS = 13
"""Deeper models are read at this many depths, evenly spaced from the embeddings to the end."""

TEMPLATES_READ = 3
"""Templates of a fact that are averaged, evenly spaced among those it has."""

BATCH_TOKENS = 2048


@dataclass(frozen=True)
class Place:
    """Where the stream is read: how many blocks lie below (0 reads the embeddings), which token."""

    layer: int
    position: str

    @property
    def name(self) -> str:
        return f"layer {self.layer}, {self.position}"


def depths(model: Any) -> tuple[int, ...]:
    """Numbers of blocks below which the stream is read."""
    total = model.cfg.n_layers
    if total < MAX_DEPTHS:
        return tuple(range(total + 1))
    return tuple(round(i * total / (MAX_DEPTHS - 1)) for i in range(MAX_DEPTHS))


def places(model: Any) -> tuple[Place, ...]:
    """All places, in the order of the rows."""
    return tuple(Place(layer, position) for layer in depths(model) for position in POSITIONS)


def site_below(layer: int) -> Site:
    """The site with so many blocks below it."""
    return Site(layer - 1) if layer else Site(0, "resid_pre")


def chosen_templates(fact: Fact, templates: Templates, count: int) -> tuple[str, ...]:
    """At most `count` templates of a set, evenly spaced."""
    given = fact.templates if templates == "train" else fact.audit_templates
    if len(given) <= count:
        return given
    return tuple(given[i * len(given) // count] for i in range(count))


@torch.no_grad()
def mean_rows(
    view: View, facts: Sequence[Fact], templates: Templates
) -> Float[Tensor, "place fact d_model"]:
    """The stream at every place, averaged over a fact's templates, on the CPU in float32."""
    model = view.model
    prompts = PromptRows.of(model, facts, templates)
    sites = [site_below(layer) for layer in depths(model)]
    total = torch.zeros(len(sites) * len(POSITIONS), len(facts), model.cfg.d_model)
    with edited(model, view.edits, must_fire=bool(facts)):
        for batch in batches_by_length(prompts.tokens, BATCH_TOKENS):
            found = residuals(model, prompts.batch(batch, device_of(model)), sites)
            rows, subject = torch.arange(len(batch)), prompts.subject[batch]
            for i, site in enumerate(sites):
                resid = found[site].float().cpu()
                total[2 * i].index_add_(0, prompts.owner[batch], resid[rows, subject])
                total[2 * i + 1].index_add_(0, prompts.owner[batch], resid[:, -1])
    return total / prompts.counts[:, None]


@torch.no_grad()
def sequence_rows(
    view: View, facts: Sequence[Fact], templates: Templates
) -> tuple[Float[Tensor, "depth fact pos d_model"], Bool[Tensor, "fact pos"]]:
    """The stream at all tokens of each fact's first template, and which positions are tokens."""
    model = view.model
    prompts = PromptRows.of(model, facts, templates, 1)
    sites = [site_below(layer) for layer in depths(model)]
    width = max((len(row) for row in prompts.tokens), default=1)
    rows = torch.zeros(len(sites), len(facts), width, model.cfg.d_model)
    real = torch.zeros(len(facts), width, dtype=torch.bool)
    with edited(model, view.edits, must_fire=bool(facts)):
        for batch in batches_by_length(prompts.tokens, BATCH_TOKENS):
            found = residuals(model, prompts.batch(batch, device_of(model)), sites)
            owner, length = prompts.owner[batch], len(prompts.tokens[batch[0]])
            real[owner, :length] = True
            for i, site in enumerate(sites):
                rows[i, owner, :length] = found[site].float().cpu()
    return rows, real


@dataclass(frozen=True)
class PromptRows:
    """The prompts of facts as tokens.

    Attributes:
        owner: which fact each prompt is of; `counts` how many each fact has, at least 1.
        subject: where the last token of the subject is.
    """

    tokens: list[list[int]]
    owner: Int[Tensor, " prompt"]
    subject: Int[Tensor, " prompt"]
    counts: Int[Tensor, " fact"]

    @classmethod
    def of(
        cls, model: Any, facts: Sequence[Fact], templates: Templates, count: int = TEMPLATES_READ
    ) -> "PromptRows":
        """At most `count` templates of each fact."""
        asked = [
            (i, Question(fact, prompt(fact, template)))
            for i, fact in enumerate(facts)
            for template in chosen_templates(fact, templates, count)
        ]
        texts = [question.prompt for _, question in asked]
        tokens = model.tokenizer(texts)["input_ids"] if texts else []
        subject = [last_subject_token(model.tokenizer, question) for _, question in asked]
        owner = torch.tensor([i for i, _ in asked], dtype=torch.long)
        counts = torch.bincount(owner, minlength=len(facts)).clamp_min(1)
        return cls(tokens, owner, torch.tensor(subject, dtype=torch.long), counts)

    def batch(self, rows: list[int], device: torch.device) -> Int[Tensor, "batch pos"]:
        return torch.tensor([self.tokens[i] for i in rows], device=device)
