"""How faithful an SAE is: reconstruction, and what the model loses when it is spliced in."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.hooks import Site, edited
from workbench.models.score import batches_by_length, device_of, next_logits

BATCH = 8192


@torch.no_grad()
def reconstruction(sae: Any, rows: Float[Tensor, "token d_model"]) -> dict[str, float]:
    """Fraction of variance unexplained, mean L0 and dead share on these activations.

    The fraction is 0 where perfect, 1 where as bad as the mean.
    """
    residual, total, l0 = 0.0, (rows - rows.mean(0)).square().sum().item(), 0
    fired = torch.zeros(sae.cfg.d_sae, dtype=torch.bool)
    for batch in rows.split(BATCH):
        acts = sae.encode(batch)
        residual += (batch - sae.decode(acts)).square().sum().item()
        l0 += int((acts > 0).sum())
        fired |= (acts > 0).any(0)
    return {
        "fvu": residual / total,
        "l0": l0 / len(rows),
        "dead": 1 - fired.float().mean().item(),
        "tokens": len(rows),
    }


@torch.no_grad()
def feature_stats(sae: Any, rows: Float[Tensor, "token d_model"]) -> dict[str, Tensor]:
    """Maximum activation and firing frequency of every feature over these activations."""
    highest, count = torch.zeros(sae.cfg.d_sae), torch.zeros(sae.cfg.d_sae)
    for batch in rows.split(BATCH):
        acts = sae.encode(batch)
        highest = torch.maximum(highest, acts.amax(0))
        count += (acts > 0).sum(0)
    return {"max_activation": highest, "density": count / len(rows)}


@torch.no_grad()
def spliced(model: Any, sae: Any, texts: list[str]) -> dict[str, float]:
    """Next-token cross-entropy in nats as the model is, with the SAE spliced in, and site zeroed.

    `ce_recovered` is (zeroed - spliced) / (zeroed - original): 1 is lossless, 0 as bad as no
    information at the site.
    """
    site = Site.parse(sae.cfg.metadata.hook_name)
    losses = {
        "ce_original": _cross_entropy(model, texts, []),
        "ce_spliced": _cross_entropy(
            model, texts, [_At(site, lambda resid: sae.decode(sae.encode(resid)))]
        ),
        "ce_zeroed": _cross_entropy(model, texts, [_At(site, torch.zeros_like)]),
    }
    span = losses["ce_zeroed"] - losses["ce_original"]
    return {**losses, "ce_recovered": (losses["ce_zeroed"] - losses["ce_spliced"]) / span}


class _At:
    """A function of the residual stream, at a site."""

    def __init__(self, site: Site, function: Any) -> None:
        self.site, self.function = site, function

    def __call__(self, resid: Tensor) -> Tensor:
        return self.function(resid)


def _cross_entropy(model: Any, texts: list[str], edits: list[Any]) -> float:
    rows = [[*ids, model.tokenizer.eos_token_id] for ids in model.tokenizer(texts)["input_ids"]]
    total, count = 0.0, 0
    with edited(model, edits):
        for batch in batches_by_length(rows):
            tokens = torch.tensor([rows[i] for i in batch], device=device_of(model))
            logprobs = next_logits(model, tokens)[:, :-1].float().log_softmax(-1)
            total -= logprobs.gather(-1, tokens[:, 1:, None]).sum().item()
            count += tokens[:, 1:].numel()
    return total / count
