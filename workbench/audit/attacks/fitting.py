"""Fitting vectors to T's answers, the same for every text, while the model stays as it is.

What W8 and W9 share. Vectors of several settings are fitted in one pass, each on rows of its own.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from workbench.audit.attacks.training import endless
from workbench.audit.questions.scorer import centred, hits, scored
from workbench.audit.statistics import Key
from workbench.audit.views import Found, View
from workbench.facts.schema import Fact, FactSet
from workbench.hooks import Intervention, Site, edited
from workbench.models.score import (
    Answers,
    Question,
    ask,
    continued,
    device_of,
    next_logits,
    object_tokens,
    true_candidates,
)
from workbench.models.train import pad_rows

ROWS = 8
"""Texts per step and setting."""
UNASKED = -100
"""Label of a token that no loss is on."""
EMBEDDINGS = Site(0, "resid_pre")


@dataclass(frozen=True)
class Added:
    """Adds a vector to the stream at each position: the n-th at the n-th, the last from there on.

    Attributes:
        vectors: of one setting for all rows, or of several, for equal parts of the rows in turn.
        scale: length of a vector of ones times the root of d_model.
    """

    vectors: Float[Tensor, "setting n d_model"]
    site: Site
    scale: float = 1.0

    def __call__(
        self, resid: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        place = torch.arange(resid.shape[1], device=resid.device)
        pushed = self.vectors[:, place.clamp(max=self.vectors.shape[1] - 1)] * self.scale
        rows = resid.shape[0] // len(self.vectors)
        return resid + pushed.to(resid.dtype).repeat_interleave(rows, 0)


@dataclass(frozen=True)
class Inserted:
    """Puts vectors in the place of the embeddings of the n tokens from `start` on.

    Attributes:
        vectors: as of `Added`.
        start: 1 where texts begin with a token of their own, else 0.
    """

    vectors: Float[Tensor, "setting n d_model"]
    start: int
    site: Site = EMBEDDINGS

    def __call__(
        self, resid: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        rows, end = resid.shape[0] // len(self.vectors), self.start + self.vectors.shape[1]
        soft = self.vectors.to(resid.dtype).repeat_interleave(rows, 0)
        return torch.cat([resid[:, : self.start], soft, resid[:, end:]], 1)


class Prefixed:
    """A tokenizer that puts given tokens before each text, after the token that texts begin with.

    What is asked for without special tokens is a continuation, and gets none.
    """

    def __init__(self, tokenizer: Any, ids: Sequence[int]) -> None:
        self._tokenizer, self._ids = tokenizer, list(ids)
        self.start = start_of(tokenizer)

    def __len__(self) -> int:
        return len(self._tokenizer)

    def __call__(
        self, texts: Sequence[str], *, add_special_tokens: bool = True
    ) -> dict[str, list[list[int]]]:
        rows = self._tokenizer(list(texts), add_special_tokens=add_special_tokens)["input_ids"]
        if add_special_tokens:
            rows = [[*row[: self.start], *self._ids, *row[self.start :]] for row in rows]
        return {"input_ids": rows}


def start_of(tokenizer: Any) -> int:
    """1 where texts begin with a token of their own, else 0."""
    first = tokenizer(["a"])["input_ids"][0][:1]
    return int(bool(first) and first[0] == tokenizer.bos_token_id)


@dataclass(frozen=True)
class Fit:
    """How vectors are fitted.

    Attributes:
        steps: of Adam.
        lr: its learning rate, in the unit of the vectors.
        order: decides the order of the texts.
        ids: tokens that stand before each text.
        bounds: largest length of a vector, by setting; none where empty.
    """

    steps: int
    lr: float
    order: str
    ids: tuple[int, ...] = ()
    bounds: tuple[float, ...] = ()


def fitted(
    view: View,
    asked: Sequence[Sequence[Question]],
    start: Float[Tensor, "setting n d_model"],
    attach: Callable[[Tensor], Sequence[Intervention]],
    fit: Fit,
) -> Float[Tensor, "setting n d_model"]:
    """The vectors at which the objects of the questions are likeliest, from `start` on.

    The loss is on the object's tokens, and its gradient passes through all edits. The caller's
    model and edits stay as they are, and nothing is drawn from the global random state.

    Args:
        asked: by setting, its questions; all as many.
        attach: from the vectors to all edits in their order, the view's own among them.
    """
    model, device = view.model, device_of(view.model)
    tokenizer = Prefixed(model.tokenizer, fit.ids)
    lessons = [answered(tokenizer, questions) for questions in asked]
    rng = random.Random(fit.order)
    order = endless(alike(lessons[0], rng), rng)
    vectors = start.detach().to(device).float().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([vectors], lr=fit.lr)
    with edited(model, attach(vectors), must_fire=bool(fit.steps)):
        for _ in range(fit.steps):
            rows = next(order)
            chosen = [lesson[row] for lesson in lessons for row in rows]
            tokens, labels = (t.to(device) for t in padded(chosen))
            loss = answer_loss(next_logits(model, tokens), labels).mean()
            optimizer.zero_grad()
            loss.backward(inputs=[vectors])  # so that nothing gathers in the model or the edits
            optimizer.step()
            _bound(vectors, fit.bounds)
    return vectors.detach()


@torch.no_grad()
def _bound(vectors: Tensor, bounds: Sequence[float]) -> None:
    if bounds:
        most = torch.tensor(bounds, device=vectors.device)[:, None, None]
        length = vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        vectors.mul_((most / length).clamp(max=1.0))


Lesson = tuple[list[int], int]
"""The tokens of a text, and how many of them, at its end, are the object's."""


def answered(tokenizer: Any, questions: Sequence[Question]) -> list[Lesson]:
    """Each question with its object."""
    objects = object_tokens(tokenizer, [q.fact.object for q in questions])
    prompts = tokenizer([q.prompt for q in questions])["input_ids"]
    return [([*p, *o], len(o)) for p, o in zip(prompts, objects, strict=True)]


def alike(lessons: Sequence[Lesson], rng: random.Random) -> list[list[int]]:
    """Which texts share a step: some of about the same length, so that little is padded."""
    order = sorted(rng.sample(range(len(lessons)), len(lessons)), key=lambda i: len(lessons[i][0]))
    return [order[i : i + ROWS] for i in range(0, len(order), ROWS)]


def padded(
    lessons: Sequence[Lesson],
) -> tuple[Int[Tensor, "row pos"], Int[Tensor, "row pos"]]:
    """The texts, and their objects' tokens alone as labels."""
    labels = [[*([UNASKED] * (len(row) - n)), *row[len(row) - n :]] for row, n in lessons]
    return pad_rows([row for row, _ in lessons], 0), pad_rows(labels, UNASKED)


def answer_loss(
    logits: Float[Tensor, "row pos vocab"], labels: Int[Tensor, "row pos"]
) -> Float[Tensor, " row"]:
    """Mean cross-entropy in nats over the labelled tokens of each row."""
    wanted = labels[:, 1:]
    flat = cross_entropy(
        logits[:, :-1].flatten(0, 1).float(),
        wanted.flatten(),
        ignore_index=UNASKED,
        reduction="none",
    )
    return flat.view_as(wanted).sum(1) / (wanted != UNASKED).sum(1)


def score_prefixed(
    view: View,
    edits: Sequence[Intervention],
    facts: FactSet,
    asked: dict[str, tuple[Fact, ...]],
    ids: Sequence[int],
    label: Key,
) -> Found:
    """As `training.score`, with these tokens before each prompt and these edits attached."""
    tokenizer, found = Prefixed(view.model.tokenizer, ids), Found()
    for name, some in asked.items():
        questions = ask(some, "audit")
        if questions:
            candidates = [facts.relation[q.fact.relation].candidates for q in questions]
            prompts = [q.prompt for q in questions]
            with edited(view.model, edits):
                said = continued(view.model, tokenizer, prompts, candidates)
            answers = Answers(questions, said.totals, true_candidates(facts, questions))
            found[label._replace(subset=name)] = scored(answers, hits(centred(answers)))
    return found


def relabelled(questions: Sequence[Question], order: str) -> tuple[Question, ...]:
    """The questions with their facts' objects shuffled within each relation."""
    rng, objects = random.Random(order), dict[tuple[str, str], str]()
    facts = {q.fact.key: q.fact for q in questions}
    for relation in dict.fromkeys(f.relation for f in facts.values()):
        keys = [key for key, fact in facts.items() if fact.relation == relation]
        drawn = rng.sample([facts[key].object for key in keys], len(keys))
        objects |= dict(zip(keys, drawn, strict=True))
    return tuple(replace(q, fact=replace(q.fact, object=objects[q.fact.key])) for q in questions)
