"""How much a feature belongs to a concept: how often it fires, how far it pushes the answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.facts.schema import Fact, FactSet
from workbench.hooks import Site, captured, edited, residuals
from workbench.models.score import (
    Question,
    batches_by_length,
    device_of,
    last_subject_token,
    next_logits,
    object_tokens,
)


def firing_frequency(sae: Any, rows: Float[Tensor, "token d_model"]) -> Float[Tensor, " d_sae"]:
    """Share of tokens on which each feature is active."""
    count = torch.zeros(sae.cfg.d_sae, device=rows.device)
    for batch in rows.split(8192):
        count += (sae.encode(batch) > 0).sum(0)
    return (count / len(rows)).cpu()


def attribution(
    model: Any, sae: Any, facts: FactSet, questions: Sequence[Question]
) -> Float[Tensor, " d_sae"]:
    """Mean over questions of activation × gradient of the logit margin, summed over positions.

    The margin is the true object's logit minus the mean over the relation's candidates, at the last
    prompt token, by the first token of each. To first order, the score is how much the margin falls
    when the feature is ablated.

    Source: attribution patching, Nanda 2023; Marks et al. 2024, arXiv 2403.19647.
    """
    site, device = Site.parse(sae.cfg.metadata.hook_name), device_of(model)
    total = torch.zeros(sae.cfg.d_sae, device=device)
    rows = model.tokenizer([q.prompt for q in questions])["input_ids"]
    heads = {
        r.name: torch.tensor([t[0] for t in object_tokens(model.tokenizer, r.candidates)])
        for r in facts.relations
    }
    for batch in batches_by_length(rows, max_tokens=4096):
        tokens = torch.tensor([rows[i] for i in batch], device=device)
        with torch.enable_grad(), edited(model, [_Leaf(site)]), captured(model, [site]) as found:
            last = next_logits(model, tokens)[:, -1]
            margins = [
                _margin(last[row], questions[i].fact, facts, heads) for row, i in enumerate(batch)
            ]
            (gradient,) = torch.autograd.grad(torch.stack(margins).sum(), found[site])
        acts = sae.encode(found[site].detach())
        total += (acts * (gradient @ sae.W_dec.T)).sum((0, 1))
    return (total / len(questions)).cpu()


@dataclass(frozen=True)
class _Leaf:
    """Changes nothing but starts the graph at its site, so that frozen models have one too."""

    site: Site

    def __call__(self, resid: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        return resid.detach().requires_grad_()


def _margin(
    logits: Float[Tensor, " vocab"], fact: Fact, facts: FactSet, heads: dict[str, Tensor]
) -> Float[Tensor, ""]:
    relation = facts.relation[fact.relation]
    candidates = logits[heads[fact.relation]]
    return candidates[relation.candidates.index(fact.object)] - candidates.mean()


@torch.no_grad()
def prompt_streams(
    model: Any, questions: Sequence[Question], site: Site
) -> list[Float[Tensor, "_pos d_model"]]:
    """The residual stream of each prompt at a site, BOS first, in the order of the questions."""
    if not questions:
        return []
    rows = model.tokenizer([q.prompt for q in questions])["input_ids"]
    streams: dict[int, Tensor] = {}
    for batch in batches_by_length(rows):
        tokens = torch.tensor([rows[i] for i in batch], device=device_of(model))
        streams |= zip(batch, residuals(model, tokens, [site])[site], strict=True)
    return [streams[i] for i in range(len(questions))]


@torch.no_grad()
def prompt_rows(
    model: Any,
    questions: Sequence[Question],
    sites: Sequence[Site],
    *,
    from_subject: bool = False,
) -> dict[Site, tuple[Float[Tensor, "token d_model"], Int[Tensor, " token"]]]:
    """The residual stream of every prompt token but BOS, with the question each row belongs to.

    Args:
        from_subject: leave out what stands before the subject's last token.
    """
    rows = model.tokenizer([q.prompt for q in questions])["input_ids"]
    starts = [last_subject_token(model.tokenizer, q) if from_subject else 1 for q in questions]
    device = device_of(model)
    parts: dict[Site, list[Tensor]] = {site: [] for site in sites}
    owners: list[Tensor] = []
    for batch in batches_by_length(rows):
        found = residuals(model, torch.tensor([rows[i] for i in batch], device=device), sites)
        position = torch.arange(len(rows[batch[0]]))[None]
        keep = position >= torch.tensor([starts[i] for i in batch])[:, None]
        owners.append(torch.tensor(batch)[:, None].expand_as(keep)[keep])
        for site in sites:
            parts[site].append(found[site][keep.to(device)])
    return {site: (torch.cat(parts[site]), torch.cat(owners)) for site in sites}
