"""P13: whether setting an SAE's features to what they were brings the answers back."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.audit.probes.rows import BATCH_TOKENS, PromptRows
from workbench.audit.questions.scorer import centred_hits
from workbench.audit.rotation import facts_of, rotations
from workbench.audit.statistics import Key
from workbench.audit.views import Found, Measure, View, own_copy
from workbench.facts.schema import Fact
from workbench.facts.target import Target
from workbench.hooks import Site, edited, residuals
from workbench.models.score import batches_by_length, device_of


@dataclass(frozen=True)
class Add:
    """Adds one vector to every token."""

    site: Site
    vector: Float[Tensor, " d_model"]

    def __call__(self, resid: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        return resid + self.vector.to(resid)


def restore_jobs(
    target: Target, original: View, saes: Sequence[tuple[Site, Any]]
) -> dict[str, Measure]:
    """P13, one job per SAE: centred hits with the concept's features steered back.

    The mean activations of the SAE's features over the prompts of T, from the name's last token on,
    are taken in the original and in the measured model; their difference, decoded, is added to
    every token, behind the edits. Scored are S and V of each rotation, of which nothing was
    used. Golds are steered alike, since this may teach: only what goes beyond them counts.

    Args:
        saes: each with its site, trained on the original.

    Source: restoration by feature steering, 2602.18505. Differs: one vector for all prompts.
    """
    sites = [site.name for site, _ in saes]
    names = [s if sites.count(s) == 1 else f"{s}, edit {i + 1}" for i, s in enumerate(sites)]
    return {
        f"P13 restore {name}": partial(
            _measure, target=target, original=original, name=name, site=site, sae=sae
        )
        for name, (site, sae) in zip(names, saes, strict=True)
    }


def _measure(view: View, target: Target, original: View, name: str, site: Site, sae: Any) -> Found:
    found: Found = {}
    before = own_copy(original)
    for fold, names in enumerate(rotations(target)):
        told = facts_of(target, names["T"])
        if not told:
            continue
        wanted, has = (_mean_features(v, told, site, sae) for v in (before, view))
        vector = (wanted - has) @ sae.W_dec.detach().float().cpu()
        for subset in "SV":
            asked = [f for f in facts_of(target, names[subset]) if f.audit_templates]
            if asked:
                edits = [*view.edits, Add(site, vector)]
                hits = centred_hits(view.model, edits, target.facts, asked)
                found[Key("P13", subset, "centred", name, fold)] = hits
    return found


@torch.no_grad()
def _mean_features(
    view: View, facts: Sequence[Fact], site: Site, sae: Any
) -> Float[Tensor, " d_sae"]:
    """Mean activation of each feature behind the edits, from the last token of the name on."""
    prompts = PromptRows.of(view.model, facts, "train")
    total, count = torch.zeros(sae.W_dec.shape[0]), 0
    with edited(view.model, view.edits):
        for batch in batches_by_length(prompts.tokens, BATCH_TOKENS):
            x = residuals(view.model, prompts.batch(batch, device_of(view.model)), [site])[site]
            real = torch.arange(x.shape[1]) >= prompts.subject[batch][:, None]
            codes = sae.encode(x[real.to(x.device)].to(sae.W_dec)).float()
            total, count = total + codes.sum(0).cpu(), count + len(codes)
    return total / max(count, 1)
