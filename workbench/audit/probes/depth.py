"""P10 and P12: how deep into a model the change goes, by patching and by distance."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.audit.probes.rows import (
    BATCH_TOKENS,
    PromptRows,
    depths,
    mean_rows,
    places,
    site_below,
)
from workbench.audit.statistics import Key, Scores
from workbench.audit.views import Found, Measure, View, own_copy
from workbench.facts.schema import Fact
from workbench.facts.target import Target
from workbench.hooks import Site, edited, residuals
from workbench.models.score import batches_by_length, device_of, next_logits, object_tokens

KNOWS, GATE = 0.05, 0.1
"""Nats that a layer of a gold must take away to count, and may take from retained facts."""


@dataclass(frozen=True)
class Patch:
    """Puts given rows in the place of the stream from a position of each text to its end."""

    site: Site
    rows: Float[Tensor, "batch pos d_model"]
    start: Int[Tensor, " batch"]

    def __call__(
        self, resid: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        position = torch.arange(resid.shape[1], device=resid.device)
        patched = position >= self.start.to(resid.device)[:, None]
        return torch.where(patched[..., None], self.rows.to(resid), resid)


def depth_job(target: Target, original: View) -> dict[str, Measure]:
    """P10, one job: what is lost when a model's stream is patched into the original's.

    Per layer, log p(object) of the original less the same with the stream of the measured model put
    in from the name's last token on, in nats, per fact; of forget facts and of retained ones, on
    audit-only templates. The first token of the object counts. Zero throughout where the stream is
    the original's. A model with another basis ruins all answers, retained ones as well, and is
    refused by that (`removal_depth`).

    Source: unlearning depth by patching, 2605.24614. Differs: retained facts as a gate.
    """
    return {"P10 depth": lambda view: _measure(view, target, own_copy(original))}


@dataclass(frozen=True)
class Removal:
    """How deep a change goes.

    Attributes:
        value: 0 intact, 1 as in a gold; None where it cannot be told, and `why` says so.
        coverage: share of the facts that it rests on.
    """

    value: float | None
    coverage: float
    why: str = ""


def removal_depth(
    edited: Float[np.ndarray, "layer fact"],
    gold: Float[np.ndarray, "layer fact"],
    gate: Float[np.ndarray, " layer"],
) -> Removal:
    """Share of what a gold's layers take away that the edited model's take, mean over facts.

    Of each fact, weighted by what each layer of the gold takes from it, over the layers at which
    that is more than 0.05 nats, of the fact and on average. Facts of which no layer of the gold
    takes as much are not covered.

    Args:
        edited, gold: nats lost of each forget fact.
        gate: nats that the gold's stream costs retained facts. More than 0.1 at a layer that
            counts: the gold's basis is not the original's.

    Source: UDS, 2605.24614. Differs: the gate, and layers must count on average too.
    """
    layers = gold.mean(1) > KNOWS
    if not layers.any():
        return Removal(None, 0.0, f"no layer of the golds takes {KNOWS} nats of the target away")
    if (np.abs(gate[layers]) > GATE).any():
        return Removal(
            None,
            0.0,
            "the golds' streams cost retained facts as well, so that their basis is another one: "
            "wanted golds that were forked from the original's own training",
        )
    weight = np.where(layers[:, None] & (gold > KNOWS), gold, 0.0)
    taken = np.clip(edited / np.where(weight > 0, gold, 1.0), 0.0, 1.0)
    covered = weight.sum(0) > 0
    each = (weight * taken).sum(0)[covered] / weight.sum(0)[covered]
    return Removal(float(each.mean()), float(covered.mean()))


def drift_job(target: Target, original: View) -> dict[str, Measure]:
    """P12, one job: how far the stream has moved from the original's, per fact and place.

    `cosine` between the two rows, and `moved`, the length of the difference over the length of the
    original's row; on audit-only templates of forget (`F`) and retained facts (`R_te`). `cka`, one
    number per place, is the same under any turn of the basis.

    Source: linear CKA, Kornblith et al. 2019, arXiv 1905.00414; drift in unlearning, 2505.16831.
    """
    return {"P12 drift": lambda view: _drift(view, target, own_copy(original))}


def cka(a: Float[Tensor, "fact d_a"], b: Float[Tensor, "fact d_b"]) -> float:
    """Linear centred kernel alignment: 1 for a turn, a shift or a scale of the same rows."""
    a, b = (x.double() - x.double().mean(0) for x in (a, b))
    own = (a.T @ a).norm() * (b.T @ b).norm()
    return float((a.T @ b).square().sum() / own) if own > 0 else 0.0


@torch.no_grad()
def _measure(view: View, target: Target, original: View) -> Found:
    found: Found = {}
    for subset, facts in (("F", target.forget), ("R_te", target.retain["R_te"])):
        if not facts:
            continue
        lost = _lost(view, original, facts)
        subjects, relations = tuple(f.subject for f in facts), tuple(f.relation for f in facts)
        for layer, row in zip(depths(original.model), lost.double().numpy(), strict=True):
            key = Key("P10", subset, "lost_nats", f"layer {layer}")
            found[key] = Scores(row, subjects, relations)
    return found


def _lost(view: View, original: View, facts: Sequence[Fact]) -> Float[Tensor, "depth fact"]:
    model, layers = original.model, depths(original.model)
    prompts = PromptRows.of(model, facts, "audit")
    heads = object_tokens(model.tokenizer, [f.object for f in facts])
    wanted = torch.tensor([head[0] for head in heads])[prompts.owner]
    sites = [site_below(layer) for layer in layers]
    total = torch.zeros(len(layers), len(facts))
    for batch in batches_by_length(prompts.tokens, BATCH_TOKENS):
        tokens = prompts.batch(batch, device_of(model))
        with edited(view.model, view.edits):
            streams = residuals(view.model, tokens, sites)
        at = wanted[batch].to(tokens.device)
        whole = _logprob(original, (), tokens, at)
        for i, site in enumerate(sites):
            patch = Patch(site, streams[site], prompts.subject[batch])
            lost = whole - _logprob(original, (patch,), tokens, at)
            total[i].index_add_(0, prompts.owner[batch], lost.cpu())
    return total / prompts.counts


def _logprob(
    original: View, edits: Sequence[Patch], tokens: Tensor, wanted: Tensor
) -> Float[Tensor, " batch"]:
    with edited(original.model, [*original.edits, *edits]):
        said = next_logits(original.model, tokens)[:, -1].float().log_softmax(-1)
    return said[torch.arange(len(wanted), device=said.device), wanted]


def _drift(view: View, target: Target, original: View) -> Found:
    found: Found = {}
    for subset, facts in (("F", target.forget), ("R_te", target.retain["R_te"])):
        if not facts:
            continue
        now, then = (mean_rows(v, facts, "audit") for v in (view, original))
        subjects, relations = tuple(f.subject for f in facts), tuple(f.relation for f in facts)
        cosine = torch.nn.functional.cosine_similarity(now, then, dim=-1)
        moved = (now - then).norm(dim=-1) / then.norm(dim=-1).clamp_min(1e-9)
        for i, place in enumerate(places(original.model)):
            for metric, values in (("cosine", cosine[i]), ("moved", moved[i])):
                key = Key("P12", subset, metric, place.name)
                found[key] = Scores(values.double().numpy(), subjects, relations)
            alike = np.array([cka(now[i], then[i])])
            found[Key("P12", subset, "cka", place.name)] = Scores(alike, ("all",))
    return found
