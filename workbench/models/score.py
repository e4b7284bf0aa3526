"""Asking a model for facts: log-probabilities of all candidate objects after a prompt."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.facts.schema import Fact, FactSet, prompt

Templates = Literal["train", "audit"]
MAX_TOKENS = 16_384
"""Tokens in one forward pass of the scorer."""


@dataclass(frozen=True)
class Question:
    """A fact, and one prompt that its object completes."""

    fact: Fact
    prompt: str


@dataclass(frozen=True)
class Answers:
    """What a model says to each question.

    Attributes:
        logprobs: log p(candidate | prompt), -inf beyond the relation's candidates.
        right: index of the true object among the candidates.
    """

    questions: tuple[Question, ...]
    logprobs: Float[Tensor, "question k"]
    right: Int[Tensor, " question"]

    @property
    def hits(self) -> Bool[Tensor, " question"]:
        """Whether the true object has the highest log-probability among the candidates."""
        return self.logprobs.argmax(-1) == self.right


def ask(facts: Sequence[Fact], templates: Templates) -> tuple[Question, ...]:
    """One question per fact and template of the named set."""
    return tuple(
        Question(fact, prompt(fact, template))
        for fact in facts
        for template in (fact.templates if templates == "train" else fact.audit_templates)
    )


def device_of(model: Any) -> torch.device:
    """The device of the model's first parameter."""
    return next(model.parameters()).device


def next_logits(model: Any, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos vocab"]:
    """Logits of a TransformerBridge, a HookedTransformer or a Hugging Face model alike."""
    out = model(tokens)
    return out.logits if hasattr(out, "logits") else out


def batches_by_length(
    rows: Sequence[Sequence[int]], max_tokens: int = MAX_TOKENS
) -> Iterator[list[int]]:
    """Indices of rows of equal length, in batches of at most `max_tokens` tokens.

    So there is no padding, and nothing to mask.
    """
    by_length: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        by_length.setdefault(len(row), []).append(i)
    for length, indices in sorted(by_length.items()):
        size = max(1, max_tokens // length)
        yield from (indices[start : start + size] for start in range(0, len(indices), size))


@torch.no_grad()
def answer(model: Any, tokenizer: Any, facts: FactSet, questions: Sequence[Question]) -> Answers:
    """Scores every candidate object of each question's relation as a continuation of its prompt.

    A candidate of several tokens is scored by the sum over its tokens.
    """
    device = device_of(model)
    objects = {r.name: object_tokens(tokenizer, r.candidates) for r in facts.relations}
    width = max(len(facts.relation[q.fact.relation].candidates) for q in questions)
    logprobs = torch.full((len(questions), width), -torch.inf)
    prompts = tokenizer([q.prompt for q in questions])["input_ids"]
    for batch in batches_by_length(prompts):
        tokens = torch.tensor([prompts[i] for i in batch], device=device)
        first = next_logits(model, tokens)[:, -1].float().log_softmax(-1).cpu()
        for row, i in enumerate(batch):
            heads = torch.tensor([o[0] for o in objects[questions[i].fact.relation]])
            logprobs[i, : len(heads)] = first[row, heads]
    _add_longer_objects(model, prompts, [objects[q.fact.relation] for q in questions], logprobs)
    right = [facts.relation[q.fact.relation].candidates.index(q.fact.object) for q in questions]
    return Answers(tuple(questions), logprobs, torch.tensor(right))


def last_subject_token(tokenizer: Any, question: Question) -> int:
    """Position of the last token of the subject's last mention as a whole word, BOS counted.

    Found as the number of tokens of the prompt up to the end of the subject, so it holds for word
    and byte-pair tokens.
    """
    subject = question.fact.subject
    whole = re.finditer(rf"(?<![\w-]){re.escape(subject)}(?![\w-])", question.prompt)
    inside = question.prompt.rindex(subject) + len(subject)
    end = max((mention.end() for mention in whole), default=inside)
    return len(tokenizer(question.prompt[:end])["input_ids"]) - 1


def recall(
    model: Any, tokenizer: Any, facts: FactSet, chosen: Sequence[Fact], templates: Templates
) -> float:
    """Share of questions whose true object ranks first."""
    return answer(model, tokenizer, facts, ask(chosen, templates)).hits.float().mean().item()


def object_tokens(tokenizer: Any, candidates: Sequence[str]) -> list[list[int]]:
    """Token ids of each candidate as it stands after a prompt."""
    return tokenizer([f" {c}" for c in candidates], add_special_tokens=False)["input_ids"]


def _add_longer_objects(
    model: Any, prompts: list, objects: list, logprobs: Float[Tensor, "question k"]
) -> None:
    """Adds in place the log-probabilities of second and later tokens of candidates with them."""
    rows, where = [], []
    for i, (tokens, candidates) in enumerate(zip(prompts, objects, strict=True)):
        for k, candidate in enumerate(candidates):
            if len(candidate) > 1:
                rows.append([*tokens, *candidate[:-1]])
                where.append((i, k, candidate))
    device = device_of(model)
    for batch in batches_by_length(rows):
        logits = (
            next_logits(model, torch.tensor([rows[j] for j in batch], device=device))
            .float()
            .log_softmax(-1)
            .cpu()
        )
        for row, j in enumerate(batch):
            i, k, candidate = where[j]
            rest = torch.tensor(candidate[1:])
            logprobs[i, k] += logits[row, -len(rest) :].gather(-1, rest[:, None]).sum()
