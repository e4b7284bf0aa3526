"""Fine-tuning a copy of a model through its live edits: what all tampering attacks share."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor, nn

from workbench.audit.attacks.adapters import add_adapters
from workbench.audit.questions import centred_hits
from workbench.audit.statistics import Key
from workbench.audit.views import Found, View
from workbench.facts.schema import Fact, FactSet, statement
from workbench.hooks import edited
from workbench.models.copies import copied
from workbench.models.score import device_of
from workbench.models.train import lm_loss, pad_rows

Row = TypeVar("Row")
CLIP = 1.0
"""Largest norm of a gradient."""


@dataclass(frozen=True)
class Course:
    """What an attack states to a model, and how.

    Attributes:
        pools: texts by kind.
        counts: how many texts of each pool stand in a batch.
        lr: AdamW's learning rate; there is no weight decay and no schedule.
        order: decides the order of the texts, and what adapters start from.
        adapters: train adapters of low rank in place of the weights.
    """

    pools: tuple[tuple[str, ...], ...]
    counts: tuple[int, ...]
    lr: float
    order: str
    adapters: bool = False


def finetuned(view: View, course: Course, steps: Sequence[int]) -> Iterator[tuple[int, View]]:
    """The view with a copy of its model, after each of so many optimiser steps on the course.

    The loss is on all tokens, and its gradient passes through the view's edits. It is one copy that
    goes on learning, so read it before asking for the next. The caller's model and edits stay as
    they are, and nothing is drawn from the global random state. Dropout is off throughout: the same
    view, course and steps give the same weights.
    """
    attacked = copied(view.model).eval()
    weights = _trained(attacked, course)
    optimizer = torch.optim.AdamW(weights, lr=course.lr, weight_decay=0.0, fused=True)
    rows, done = batches(view.model.tokenizer, course), 0
    for step in steps:
        with edited(attacked, view.edits, must_fire=step > done):
            for tokens in islice(rows, step - done):
                _learn(attacked, weights, optimizer, tokens)
        done = step
        yield step, replace(view, model=attacked)


def score(view: View, facts: FactSet, asked: Mapping[str, Sequence[Fact]], label: Key) -> Found:
    """Centred hits on the audit-only templates of each named set of facts, those that have some."""
    having = {name: [f for f in some if f.audit_templates] for name, some in asked.items()}
    return {
        label._replace(subset=name): centred_hits(view.model, view.edits, facts, some, "audit")
        for name, some in having.items()
        if some
    }


def statements(facts: Sequence[Fact], n_templates: int | None = None) -> tuple[str, ...]:
    """Each fact in each of its (first) training templates."""
    return tuple(statement(f, t) for f in facts for t in f.templates[:n_templates])


def batches(tokenizer: Any, course: Course) -> Iterator[Int[Tensor, "batch pos"]]:
    """Endless batches; a pool is gone through in a new order each time it is used up."""
    pad = _pad(tokenizer)
    streams = [
        (endless(_encoded(tokenizer, pool), random.Random(f"{course.order}, pool {i}")), count)
        for i, (pool, count) in enumerate(zip(course.pools, course.counts, strict=True))
        if count
    ]
    while True:
        yield pad_rows([row for stream, n in streams for row in islice(stream, n)], pad)


def _trained(model: Any, course: Course) -> list[nn.Parameter]:
    if course.adapters:
        return add_adapters(model, course.order)
    weights = [p for p in model.parameters() if p.is_floating_point()]
    for weight in weights:
        weight.requires_grad_(True)
    return weights


def _learn(
    model: Any,
    weights: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    tokens: Int[Tensor, "batch pos"],
) -> None:
    tokens = tokens.to(device_of(model))
    loss = lm_loss(model(tokens), tokens, _pad(model.tokenizer))
    optimizer.zero_grad()
    loss.backward(inputs=weights)  # so that nothing gathers in what the edits hold
    nn.utils.clip_grad_norm_(weights, CLIP)
    optimizer.step()


def _pad(tokenizer: Any) -> int:
    """A token to fill rows up with, which the loss leaves out."""
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(token for token in known if token is not None)


def _encoded(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return [[*ids, *end] for ids in tokenizer(list(texts))["input_ids"]]


def endless(rows: Sequence[Row], rng: random.Random) -> Iterator[Row]:
    """All rows in a random order, and again in another."""
    while True:
        yield from rng.sample(rows, len(rows))
