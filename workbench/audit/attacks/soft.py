"""W9: do a few vectors, the same for every text, bring the target back?"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.audit.attacks.altered import under
from workbench.audit.attacks.config import AttackConfig
from workbench.audit.attacks.direction import rms, spread
from workbench.audit.attacks.fitting import (
    EMBEDDINGS,
    Added,
    Fit,
    Inserted,
    fitted,
    relabelled,
    score_prefixed,
    start_of,
)
from workbench.audit.attacks.relearn import turns
from workbench.audit.rotation import Folds, facts_of
from workbench.audit.statistics import Key
from workbench.audit.views import Found, Measure, View
from workbench.facts.target import Target
from workbench.hooks import Intervention, Site, captured
from workbench.models.score import Question, ask, device_of

STEPS, LR = 100, 0.01
POSITIONS, BOUND = 16, 0.3
CONTROL = "W9c"
"""The id of the same attacks fitted on shuffled answers: they show what capacity alone does."""


@dataclass(frozen=True)
class Pushed:
    """A fitted attack: tokens to stand before each text, and all edits in their order."""

    edits: tuple[Intervention, ...]
    ids: tuple[int, ...] = ()


def soft_jobs(target: Target, config: AttackConfig, seed: int = 0) -> dict[str, Measure]:
    """W9, one job per fold: soft prompts and a latent perturbation, fitted on T's answers.

    `soft n`: n embeddings that belong to no token stand before every text; tokens hold their places
    and an edit puts the embeddings there, so that positions and attention are those of a longer
    text. `latent`: a vector per position, the same for all texts and of bounded length, is added in
    the first quarter of the model. V and S are scored, about which no
    vector was told anything. In the first fold the longest prompt is also fitted on T's answers
    shuffled within their relations, as `W9c`: what that lifts owes nothing to T's answers. Fitting
    a vector per fact is inadmissible, since that elicits anything from any model (2502.15836);
    `teaching_attack` has one as a trap.

    Source: Schwinn et al. 2024, 2402.09063; Casper et al. 2024, 2403.05030. Differs: Adam on all
    entries in place of signed steps; universal alone; the bound is 0.3 of the stream's mean length.
    """
    return {
        f"W9 fold {fold}": partial(
            soften,
            target=target,
            turn=turn,
            n_soft=config.perturbing.n_soft,
            order=f"{seed}, fold {fold}",
            fold=fold,
        )
        for fold, turn in turns(target, config)
    }


def soften(
    view: View, target: Target, turn: Folds, n_soft: Sequence[int], order: str, fold: int
) -> Found:
    """Centred hits on V, S and R_te before and after each attack and its control."""
    asked = {name: facts_of(target, turn[name]) for name in ("V", "S")}
    asked["R_te"] = target.retain["R_te"]
    stated = ask(facts_of(target, turn["T"]), "train")
    shuffled = relabelled(stated, f"{order}, shuffled")
    label = Key("W9", "", "centred", "", fold)
    before = score_prefixed(view, view.edits, target.facts, asked, (), label)
    found = Found()

    def add(pushed: Pushed, setting: str, endpoint: str = "W9") -> None:
        at = label._replace(endpoint=endpoint, setting=setting, x=float(STEPS))
        after = score_prefixed(view, pushed.edits, target.facts, asked, pushed.ids, at)
        found.update(under(before, at) | after)

    for n in n_soft:
        control = fold == 0 and n == max(n_soft)
        lessons = [stated, shuffled] if control else [stated]
        prompts = soft_prompts(view, lessons, order, n)
        for pushed, endpoint in zip(prompts, ("W9", CONTROL), strict=False):
            add(pushed, f"soft {n}", endpoint)
    add(latent(view, stated, order), "latent")
    return found


def soft_prompts(
    view: View, lessons: Sequence[Sequence[Question]], order: str, n: int
) -> list[Pushed]:
    """For each list of lessons, n embeddings before every text at which its answers are likeliest.

    They start as the embeddings of tokens drawn at random.
    """
    ids = drawn_tokens(view.model.tokenizer, n, f"{order}, soft {n}")
    start = embedded(view.model, ids).repeat(len(lessons), 1, 1)
    place = start_of(view.model.tokenizer)

    def attach(vectors: Tensor) -> list[Intervention]:
        return [Inserted(vectors, place), *view.edits]

    vectors = fitted(view, lessons, start, attach, Fit(STEPS, LR, order, ids))
    return [Pushed(tuple(attach(v[None])), ids) for v in vectors]


def latent(view: View, questions: Sequence[Question], order: str) -> Pushed:
    """A bounded vector per position, at one layer, at which the answers are likeliest."""
    site = Site(spread(view.model, 1)[0])
    prompts = random.Random(order).sample([q.prompt for q in questions], min(128, len(questions)))
    scale, width = rms(view, prompts, site), view.model.cfg.d_model

    def attach(vectors: Tensor) -> list[Intervention]:
        return [*view.edits, Added(vectors, site, scale)]

    start, bounds = torch.zeros(1, POSITIONS, width), (BOUND * width**0.5,)
    vectors = fitted(view, [questions], start, attach, Fit(STEPS, LR, order, bounds=bounds))
    return Pushed(tuple(attach(vectors)))


def drawn_tokens(tokenizer: Any, n: int, order: str) -> tuple[int, ...]:
    """Tokens drawn from the vocabulary, none of them special."""
    special = set(tokenizer.all_special_ids)
    usual = [i for i in range(len(tokenizer)) if i not in special]
    return tuple(random.Random(order).choices(usual, k=n))


@torch.no_grad()
def embedded(model: Any, ids: Sequence[int]) -> Float[Tensor, "n d_model"]:
    """What tokens are embedded as at the beginning of a text."""
    place = start_of(model.tokenizer)
    row = [*([model.tokenizer.bos_token_id] * place), *ids]
    with captured(model, [EMBEDDINGS]) as found:
        model(torch.tensor([row], device=device_of(model)))
    return found[EMBEDDINGS][0, place:].float()
