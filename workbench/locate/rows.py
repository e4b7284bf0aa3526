"""What every feature does on every passage: the numbers that all scores are made of."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.errors import EditError
from workbench.hooks import Site, residuals
from workbench.hooks.rerun import Rerun
from workbench.locate.concept import Prompt, Tokens, tokenized
from workbench.locate.effect import answer_logprobs, batches, exact_effects, require_alike
from workbench.models.score import Question, batches_by_length, device_of
from workbench.sae.read import Reading, require_plain_decoder

What = Literal["rate", "mean", "peak", "attribution", "integrated", "effect"]
"""Share of tokens on which a feature fires, its mean and its highest activation, how far it pushes
the answer to first order and along the path from zero, and what ablating it does."""

VALUES = 2**25
"""Activations held at a time."""
STEPS = 8
"""Points on the path of integrated gradients."""


@dataclass(frozen=True)
class Rows:
    """All features on the passages of one kind, one row per group and wording.

    Attributes:
        weight: tokens behind a rate or mean, prompts behind the others.
    """

    values: Float[Tensor, "row d_sae"]
    weight: Float[Tensor, " row"]
    group: Int[Tensor, " row"]
    wording: Int[Tensor, " row"]

    def of_wording(self, wording: int) -> "Rows":
        kept = self.wording == wording
        return Rows(self.values[kept], self.weight[kept], self.group[kept], self.wording[kept])

    def only(self, features: Int[Tensor, " k"]) -> "Rows":
        return replace(self, values=self.values[:, features])

    def by_group(self) -> tuple[Float[Tensor, "group d_sae"], Float[Tensor, " group"]]:
        """Weighted means over the wordings of each group, and the groups' weights."""
        _, group = self.group.unique(return_inverse=True)
        return _pooled(self.values, self.weight, group)


@torch.no_grad()
def read_rows(model: Any, sae: Any, prompts: Sequence[Prompt], what: What) -> Rows:
    """One number for every feature and passage, gathered over groups and wordings.

    Raises:
        EditError: `effect` of prompts of which some have answers and some do not; `attribution` or
            `integrated` where any has none.
    """
    require_plain_decoder(sae)
    groups = {name: i for i, name in enumerate(dict.fromkeys(p.group for p in prompts))}
    wordings = 1 + max((p.wording for p in prompts), default=0)
    keys = torch.tensor([groups[p.group] * wordings + p.wording for p in prompts])
    kept, row = keys.unique(return_inverse=True)
    values, weight = torch.zeros(len(kept), sae.cfg.d_sae), torch.zeros(len(kept))
    for indices, given, counted in _read(model, sae, prompts, what):
        size = counted.float().cpu()
        values.index_add_(0, row[indices], given.float().cpu() * size[:, None])
        weight.index_add_(0, row[indices], size)
    return Rows(values / weight[:, None], weight, kept // wordings, kept % wordings)


def _read(model: Any, sae: Any, prompts: Sequence[Prompt], what: What) -> Iterator["Found"]:
    given = tokenized(model.tokenizer, prompts)
    if what == "effect":
        require_alike(given)
        every = torch.arange(sae.cfg.d_sae)
        size = max(1, VALUES // sae.cfg.d_sae)
        for start in range(0, len(prompts), size):
            each = exact_effects(model, sae, prompts[start : start + size], every).each
            yield list(range(start, start + len(each))), each, torch.ones(len(each))
    elif what in ("attribution", "integrated"):
        if not all(t.answer for t in given):
            raise EditError(f"{what} follows the answer, and some prompts have none")
        yield from _pushed(model, sae, given, what)
    else:
        yield from _fired(model, sae, given, what)


def _pooled(
    values: Float[Tensor, "n d_sae"], weight: Float[Tensor, " n"], row: Int[Tensor, " n"]
) -> tuple[Float[Tensor, "row d_sae"], Float[Tensor, " row"]]:
    rows = int(row.max()) + 1
    total = torch.zeros(rows, values.shape[1]).index_add_(0, row, values * weight[:, None])
    weights = torch.zeros(rows).index_add_(0, row, weight)
    return total / weights.clamp_min(1e-12)[:, None], weights


Found = tuple[list[int], Float[Tensor, "batch d_sae"], Float[Tensor, " batch"]]
"""Indices of prompts, their values, and their weights."""


def streams(
    model: Any, site: Site, given: Sequence[Tokens], max_tokens: int
) -> Iterator[tuple[list[int], Float[Tensor, "batch pos d_model"], Bool[Tensor, "batch pos"]]]:
    """Indices of prompts, their residual streams without the answers, and the tokens that count."""
    prompts = [t.ids[: len(t.counted)] for t in given]
    for batch in batches_by_length(prompts, max(1, max_tokens)):
        ids = torch.tensor([prompts[i] for i in batch], device=device_of(model))
        stream = residuals(model, ids, [site])[site]
        counted = torch.stack([given[i].counted for i in batch])
        yield batch, stream, counted.to(stream.device)


def _fired(model: Any, sae: Any, given: Sequence[Tokens], what: What) -> Iterator[Found]:
    site = Site.parse(sae.cfg.metadata.hook_name)
    for batch, stream, counted in streams(model, site, given, VALUES // sae.cfg.d_sae):
        acts = Reading(sae, stream).full * counted[..., None]
        tokens = counted.sum(-1).float()
        if what == "peak":
            yield batch, acts.amax(1), torch.ones_like(tokens)
        else:
            total = ((acts > 0).float() if what == "rate" else acts).sum(1)
            yield batch, total / tokens[:, None], tokens


def _pushed(model: Any, sae: Any, given: Sequence[Tokens], what: What) -> Iterator[Found]:
    """Activation × gradient of the answer's log-probability, summed over all tokens but BOS.

    Integrated: the gradient is the mean over points on the way from a stream without any feature's
    part, but for BOS, to the stream as it is.
    """
    site = Site.parse(sae.cfg.metadata.hook_name)
    points = [1.0] if what == "attribution" else [(i + 0.5) / STEPS for i in range(STEPS)]
    for batch in batches(model, sae, given):
        ids = torch.tensor([given[i].ids for i in batch], device=device_of(model))
        answers = torch.tensor([given[i].answer for i in batch], device=ids.device)
        run = Rerun(model, site, ids, answers.shape[1])
        acts = Reading(sae, run.stream).full.clone()
        acts[:, 0] = 0
        part = acts @ sae.W_dec.to(acts.dtype)
        slope = torch.zeros_like(part)
        for point in points:
            slope += _slope(run, answers, (point - 1) * part) / len(points)
        pushed = (acts * (slope @ sae.W_dec.to(acts.dtype).T)).sum(1)
        yield batch, pushed, torch.ones(len(batch))


def _slope(
    run: Rerun, answers: Int[Tensor, "batch answer"], delta: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch pos d_model"]:
    """Gradient of the answers' log-probability by the stream, `delta` away from where it is."""
    with torch.enable_grad():
        delta = delta.detach().requires_grad_()
        logits = run.changed(torch.arange(len(delta), device=delta.device), 0, delta)
        (gradient,) = torch.autograd.grad(answer_logprobs(logits, answers).sum(), delta)
    return gradient


@torch.no_grad()
def prompt_streams(
    model: Any, questions: Sequence[Question], site: Site
) -> list[Float[Tensor, "_pos d_model"]]:
    """The residual stream of each prompt at a site, BOS first, in the order of the questions."""
    if not questions:
        return []
    rows = model.tokenizer([q.prompt for q in questions])["input_ids"]
    found: dict[int, Tensor] = {}
    for batch in batches_by_length(rows):
        tokens = torch.tensor([rows[i] for i in batch], device=device_of(model))
        found |= zip(batch, residuals(model, tokens, [site])[site], strict=True)
    return [found[i] for i in range(len(questions))]
