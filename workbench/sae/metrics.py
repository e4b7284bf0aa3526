"""How faithful an SAE is: reconstruction, and what the model loses when it is spliced in."""

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from workbench.errors import SAEError
from workbench.hooks import Site, edited
from workbench.models.score import MAX_TOKENS, batches_by_length, device_of, next_logits

ENTRIES = 2**24
"""Entries of the largest table of feature activations."""
LOGITS = 2**26
"""Entries of the largest table of logits; a few of them stand in memory at once."""

Texts = list[str] | Int[Tensor, "batch pos"]
"""Texts, or tokens as the model reads them, without padding."""


@torch.no_grad()
def reconstruction(sae: Any, rows: Float[Tensor, "token d_model"]) -> dict[str, float]:
    """Fraction of variance unexplained, mean L0 and dead share on these activations.

    The fraction is 0 where perfect, 1 where as bad as the mean.
    """
    residual, total, l0 = 0.0, (rows - rows.mean(0)).square().sum().item(), 0
    fired = torch.zeros(sae.cfg.d_sae, dtype=torch.bool, device=rows.device)
    for batch in rows.split(max(1, ENTRIES // sae.cfg.d_sae)):
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
    highest, count = (torch.zeros(sae.cfg.d_sae, device=rows.device) for _ in range(2))
    for batch in rows.split(max(1, ENTRIES // sae.cfg.d_sae)):
        acts = sae.encode(batch)
        highest = torch.maximum(highest, acts.amax(0))
        count += (acts > 0).sum(0)
    return {"max_activation": highest, "density": count / len(rows)}


@dataclass(frozen=True)
class DensityHistogram:
    """How many features fire how often.

    Attributes:
        edges: log10 of the firing frequency, in steps of a half, up to 0 (on every token); a bin
            holds its lower edge, and the last one both.
        never: features that fired on no token, which have no logarithm.
    """

    edges: Float[Tensor, " edge"]
    counts: Int[Tensor, " bin"]
    never: int


def density_histogram(density: Float[Tensor, " d_sae"], tokens: int) -> DensityHistogram:
    """Counts features per half-decade of firing frequency.

    Args:
        density: share of the tokens on which each feature fired, as `feature_stats` gives it.
        tokens: number of tokens it was taken over; the lowest bin holds 1 / tokens.

    Raises:
        SAEError: frequencies that no number of firings in so many tokens can give.
    """
    # Float32 holds 0.01 as a little less, which is the next bin; the number of firings is exact.
    fired = (density.double() * tokens).round() if tokens > 0 else density.double()
    low, high = density.min().item(), density.max().item()
    if tokens < 1 or low < 0 or high > 1 or bool(((density > 0) & (fired == 0)).any()):
        raise SAEError(
            f"densities from {low:.3g} to {high:.3g} over {tokens} tokens: wanted shares of them, "
            "0 to 1; give the number of tokens the densities were taken over"
        )
    halves = math.ceil(2 * math.log10(tokens)) or 1
    exponent = fired[fired > 0].log10() - math.log10(tokens)
    bins = (2 * exponent).floor().long().clamp(-halves, -1) + halves
    edges = torch.arange(-halves, 1) / 2
    return DensityHistogram(edges, bins.bincount(minlength=halves).cpu(), int((fired == 0).sum()))


@torch.no_grad()
def spliced(model: Any, sae: Any, texts: Texts, *, keep_first: bool = False) -> dict[str, float]:
    """What the model's next-token predictions lose when the SAE stands in for its residual stream.

    In nats per token: `ce_` is the cross-entropy as the model is (`original`), with the SAE spliced
    in, and with the site zeroed; `kl_` is the divergence from the predictions of the model as it is
    to those of the other two. `ce_recovered` is (zeroed - spliced) / (zeroed - original), and
    `kl_recovered` is 1 - spliced / zeroed: 1 is lossless, 0 as bad as no information at the site.

    Args:
        texts: an end of text is added to strings and predicted; tokens are taken as they are.
        keep_first: leave the first position of every text as it is when splicing; zeroing takes it.
    """
    site = Site.parse(sae.cfg.metadata.hook_name)
    edits = {
        "spliced": _At(site, _reconstructed(sae, keep_first)),
        "zeroed": _At(site, torch.zeros_like),
    }
    rows, count = token_rows(model, texts, eos=True), 0
    sums: dict[str, float] = defaultdict(float)
    for batch in batches_by_length(rows, min(MAX_TOKENS, LOGITS // model.cfg.d_vocab)):
        tokens = torch.tensor([rows[i] for i in batch], device=device_of(model))
        original = _logprobs(model, tokens, [])
        sums["ce_original"] += _cross_entropy(original, tokens)
        for name, edit in edits.items():
            changed = _logprobs(model, tokens, [edit])
            sums[f"ce_{name}"] += _cross_entropy(changed, tokens)
            sums[f"kl_{name}"] += nn.functional.kl_div(
                changed, original, log_target=True, reduction="sum"
            ).item()
        count += tokens[:, 1:].numel()
    found = {name: total / count for name, total in sums.items()}
    lost, span = (found["ce_zeroed"] - found[f"ce_{name}"] for name in ("spliced", "original"))
    kl_recovered = 1 - found["kl_spliced"] / found["kl_zeroed"]
    return {**found, "ce_recovered": lost / span, "kl_recovered": kl_recovered}


def token_rows(model: Any, texts: Texts, *, eos: bool = False) -> list[list[int]]:
    """Token ids of each text; `eos` adds an end of text to strings."""
    if isinstance(texts, Tensor):
        return texts.tolist()
    end = [model.tokenizer.eos_token_id] if eos else []
    tokenized = model.tokenizer(texts)["input_ids"] if texts else []
    return [[*ids, *end] for ids in tokenized]


class _At:
    """A function of the residual stream, at a site."""

    def __init__(self, site: Site, function: Any) -> None:
        self.site, self.function = site, function

    def __call__(self, resid: Tensor) -> Tensor:
        return self.function(resid)


def _reconstructed(sae: Any, keep_first: bool) -> Callable[[Tensor], Tensor]:
    def reconstruct(resid: Tensor) -> Tensor:
        out = sae.decode(sae.encode(resid)).to(resid)
        return torch.cat([resid[:, :1], out[:, 1:]], dim=1) if keep_first else out

    return reconstruct


def _logprobs(
    model: Any, tokens: Int[Tensor, "batch pos"], edits: list[Any]
) -> Float[Tensor, "batch next vocab"]:
    """Log-probabilities at every position that has a next token."""
    with edited(model, edits):
        return next_logits(model, tokens)[:, :-1].float().log_softmax(-1)


def _cross_entropy(
    logprobs: Float[Tensor, "batch next vocab"], tokens: Int[Tensor, "batch pos"]
) -> float:
    """Sum over all tokens that have one before them."""
    return -logprobs.gather(-1, tokens[:, 1:, None]).sum().item()
