"""W10: does a prefix of a few tokens, the same for every text, bring the target back?"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.audit.attacks.altered import under
from workbench.audit.attacks.config import AttackConfig
from workbench.audit.attacks.fitting import (
    EMBEDDINGS,
    ROWS,
    Prefixed,
    answer_loss,
    answered,
    padded,
    score_prefixed,
    start_of,
)
from workbench.audit.attacks.relearn import turns
from workbench.audit.attacks.soft import drawn_tokens
from workbench.audit.attacks.training import endless
from workbench.audit.rotation import Folds, facts_of
from workbench.audit.statistics import Key
from workbench.audit.views import Found, Measure, View
from workbench.facts.target import Target
from workbench.hooks import Site, edited
from workbench.models.score import MAX_TOKENS, Question, ask, device_of, next_logits

LENGTH, STEPS, SWAPS, BEST = 6, 100, 64, 64


def prefix_jobs(target: Target, config: AttackConfig, seed: int = 0) -> dict[str, Measure]:
    """W10, one job per fold: six tokens before every text, swapped until T's answers are likely.

    It runs only where it is named. It needs no more than text in and logits out to be used, though
    gradients to be found, and says nothing of what other prefixes would do.

    Source: Zou et al. 2023, 2307.15043. Differs: 6 tokens before the text, one prefix for all of T,
    100 rounds of 64 swaps, 8 texts a round; a swap is kept only if it helps on these.
    """
    return {
        f"W10 fold {fold}": partial(
            prefix, target=target, turn=turn, order=f"{seed}, fold {fold}", fold=fold
        )
        for fold, turn in turns(target, config)
    }


def prefix(
    view: View, target: Target, turn: Folds, order: str, fold: int, steps: int = STEPS
) -> Found:
    """Centred hits on V, S and R_te before and after the prefix that was found on T."""
    asked = {name: facts_of(target, turn[name]) for name in ("V", "S")}
    asked["R_te"] = target.retain["R_te"]
    label = Key("W10", "", "centred", "prefix", fold)
    ids = found_prefix(view, ask(facts_of(target, turn["T"]), "train"), order, steps)
    before = score_prefixed(view, view.edits, target.facts, asked, (), label)
    at = label._replace(x=float(steps))
    return under(before, at) | score_prefixed(view, view.edits, target.facts, asked, ids, at)


def found_prefix(
    view: View, questions: Sequence[Question], order: str, steps: int = STEPS
) -> tuple[int, ...]:
    """Tokens before each text that make the objects of the questions likelier, round by round."""
    model, rng = view.model, random.Random(order)
    ids = drawn_tokens(model.tokenizer, LENGTH, order)
    lessons = answered(Prefixed(model.tokenizer, ids), questions)
    table = embeddings(model)
    banned = torch.tensor(sorted(set(model.tokenizer.all_special_ids)), device=table.device)
    stream, place = endless(lessons, rng), start_of(model.tokenizer)
    for _ in range(steps):
        tokens, labels = (t.to(device_of(model)) for t in padded(list(islice(stream, ROWS))))
        gain = -_gradient(view, _with(tokens, ids, place), labels, place) @ table.float().T
        gain = gain.index_fill(1, banned, -torch.inf)
        gain[:, len(model.tokenizer) :] = -torch.inf  # rows of the table that are no token's
        best = gain.topk(min(BEST, len(model.tokenizer) - len(banned))).indices.tolist()
        tried = [ids]
        for _ in range(SWAPS):
            at = rng.randrange(LENGTH)
            tried.append((*ids[:at], rng.choice(best[at]), *ids[at + 1 :]))
        losses = _losses(view, tokens, labels, tried, place)
        ids = tried[int(losses.argmin())]
    return ids


def embeddings(model: Any) -> Float[Tensor, "vocab d_model"]:
    """The table that tokens are embedded by."""
    embed = getattr(model, "embed", None)
    for name in ("weight", "W_E"):
        if isinstance(getattr(embed, name, None), Tensor):
            return getattr(embed, name).detach()
    return model.get_input_embeddings().weight.detach()


def _with(tokens: Int[Tensor, "row pos"], ids: Sequence[int], place: int) -> Int[Tensor, "row pos"]:
    """The texts with this prefix in the place of theirs."""
    other = tokens.clone()
    other[:, place : place + len(ids)] = torch.tensor(ids, device=tokens.device)
    return other


@dataclass(frozen=True)
class _Probe:
    """Adds to the embeddings of the prefix what is zero, to read its gradient."""

    offset: Float[Tensor, "n d_model"]
    place: int
    site: Site = EMBEDDINGS

    def __call__(
        self, resid: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        end = self.place + len(self.offset)
        moved = resid[:, self.place : end] + self.offset.to(resid.dtype)
        return torch.cat([resid[:, : self.place], moved, resid[:, end:]], 1)


def _gradient(
    view: View, tokens: Int[Tensor, "row pos"], labels: Int[Tensor, "row pos"], place: int
) -> Float[Tensor, "n d_model"]:
    """How the loss grows with the embedding of each token of the prefix."""
    offset = torch.zeros(LENGTH, view.model.cfg.d_model, device=tokens.device, requires_grad=True)
    with edited(view.model, [_Probe(offset, place), *view.edits]):
        loss = answer_loss(next_logits(view.model, tokens), labels).mean()
    return torch.autograd.grad(loss, offset)[0]


@torch.no_grad()
def _losses(
    view: View,
    tokens: Int[Tensor, "row pos"],
    labels: Int[Tensor, "row pos"],
    tried: Sequence[tuple[int, ...]],
    place: int,
) -> Float[Tensor, " tried"]:
    """Mean loss over the texts under each prefix."""
    size, losses = max(1, MAX_TOKENS // tokens.numel()), []
    with edited(view.model, view.edits):
        for first in range(0, len(tried), size):
            some = tried[first : first + size]
            stacked = torch.cat([_with(tokens, ids, place) for ids in some])
            found = answer_loss(next_logits(view.model, stacked), labels.repeat(len(some), 1))
            losses.append(found.view(len(some), -1).mean(1))
    return torch.cat(losses)
