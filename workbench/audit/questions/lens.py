"""The logit lens: what the unembedding reads in the residual stream after each block."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.audit.questions.formats import paraphrased
from workbench.audit.questions.scorer import centred, hits, scored
from workbench.audit.statistics import Key
from workbench.audit.views import Found, Measure, View
from workbench.errors import ModelError
from workbench.facts.target import Target
from workbench.hooks import Site, edited
from workbench.hooks.attach import residuals
from workbench.models.score import (
    Answers,
    batches_by_length,
    device_of,
    object_tokens,
    true_candidates,
)


def lens(target: Target) -> Measure:
    """Hits of unembedding and final norm applied after each block, at the prompt's last token.

    An object of several tokens is scored by its first.

    Source: the logit lens, used on edited models in 2309.17410.
    """

    def measure(view: View) -> Found:
        questions = paraphrased(target, 0)
        right = true_candidates(target.facts, questions)
        found: Found = {}
        for layer, logprobs in enumerate(_read(view, target)):
            answers = Answers(questions, logprobs, right)
            values = {"raw": hits(answers), "centred": hits(centred(answers))}
            for metric, value in values.items():
                key = Key("B15", "F", metric, f"layer {layer}")
                found[key] = scored(answers, value)
        return found

    return measure


def unembedded(model: Any, resid: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch vocab"]:
    """Logits that the model would give if its last block had returned `resid`.

    Raises:
        ModelError: the model has no final norm and unembedding under TransformerLens' names.
    """
    if not (hasattr(model, "ln_final") and hasattr(model, "unembed")):
        raise ModelError(
            f"{type(model).__name__} has no ln_final and unembed: load it with load_model"
        )
    logits = model.unembed(model.ln_final(resid[:, None]))[:, 0]
    cap = getattr(model.cfg, "output_logits_soft_cap", None)
    return cap * (logits / cap).tanh() if cap and cap > 0 else logits


@torch.no_grad()
def _read(view: View, target: Target) -> Float[Tensor, "layer question k"]:
    """Log p of each candidate's first token, -inf beyond the relation's candidates."""
    model, questions = view.model, paraphrased(target, 0)
    sites = [Site(layer, "resid_post") for layer in range(model.cfg.n_layers)]
    rows = model.tokenizer([q.prompt for q in questions])["input_ids"] if questions else []
    heads = {
        r.name: torch.tensor([ids[0] for ids in object_tokens(model.tokenizer, r.candidates)])
        for r in target.facts.relations
        if r.candidates
    }
    width = max((len(heads[q.fact.relation]) for q in questions), default=0)
    found = torch.full((len(sites), len(rows), width), -torch.inf)
    with edited(model, view.edits, must_fire=bool(rows)):
        for batch in batches_by_length(rows):
            tokens = torch.tensor([rows[i] for i in batch], device=device_of(model))
            read = residuals(model, tokens, sites)
            for layer, site in enumerate(sites):
                logp = unembedded(model, read[site][:, -1]).float().log_softmax(-1).cpu()
                for row, i in enumerate(batch):
                    ids = heads[questions[i].fact.relation]
                    found[layer, i, : len(ids)] = logp[row, ids]
    return found
