"""Asking a model for facts: log-probabilities of all candidate objects after a prompt."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.facts.schema import Fact, FactSet, prompt

Templates = Literal["train", "audit"]
MAX_TOKENS = 16_384
"""Tokens in one forward pass of the scorer."""
MAX_LOGITS = 2**28
"""Logits in one forward pass of the scorer: with a large vocabulary it takes fewer tokens."""


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


@dataclass(frozen=True)
class Continued:
    """What a model says to prompts that are continued in given ways, token by token.

    Attributes:
        logprobs: log p(token | prompt, tokens before it); 0 beyond a continuation's end.
        cooled: the same with the logits divided by a temperature.
        greedy: whether the token has the highest logit of the vocabulary; True beyond the end.
        lengths: tokens of each continuation; 0 where a prompt has fewer continuations than others.
        best: the token with the highest logit after each prompt.
    """

    logprobs: Float[Tensor, "prompt k tokens"]
    cooled: Float[Tensor, "prompt k tokens"]
    greedy: Bool[Tensor, "prompt k tokens"]
    lengths: Int[Tensor, "prompt k"]
    best: Int[Tensor, " prompt"]

    @property
    def totals(self) -> Float[Tensor, "prompt k"]:
        """Log-probability of each whole continuation, -inf where there is none."""
        return self.logprobs.sum(-1).masked_fill(self.lengths == 0, -torch.inf)


@torch.no_grad()
def continued(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    continuations: Sequence[Sequence[str]],
    temperature: float = 1.0,
) -> Continued:
    """Scores the continuations of each prompt; equal rows of tokens are run once.

    Continuations of several tokens that share all but the last share a pass.

    Args:
        continuations: per prompt, texts as `object_tokens` takes them.
        temperature: that of `cooled`, above 0.
    """
    lists = {tuple(c) for c in continuations}
    objects = {texts: object_tokens(tokenizer, texts) for texts in lists}
    options = [objects[tuple(c)] for c in continuations]
    ids = tokenizer(list(prompts))["input_ids"] if prompts else []
    rows, places = _places(ids, options)
    lengths = _lengths(options)
    shape = (*lengths.shape, int(lengths.max()) if lengths.numel() else 1)
    logprobs, cooled = torch.zeros(shape), torch.zeros(shape)
    greedy = torch.ones(shape, dtype=torch.bool)
    best = torch.zeros(len(rows), dtype=torch.long)
    starts = np.searchsorted(places[:, 0], np.arange(len(rows) + 1))
    device = device_of(model)
    for batch in batches_by_length(rows, min(MAX_TOKENS, MAX_LOGITS // len(tokenizer))):
        picked = [places[starts[i] : starts[i + 1]] for i in batch]
        row = torch.from_numpy(np.repeat(np.arange(len(batch)), [len(p) for p in picked]))
        _, back, token, *cell = torch.from_numpy(np.concatenate(picked)).T
        logits = next_logits(model, torch.tensor([rows[i] for i in batch], device=device))
        logp = logits[:, -int(back.max()) :].float().log_softmax(-1)
        at, token = (row.to(device), -back.to(device)), token.to(device)
        told, divided = logp[(*at, token)], logp / temperature
        logprobs[tuple(cell)] = told.cpu()
        cooled[tuple(cell)] = (told / temperature - divided.logsumexp(-1)[at]).cpu()
        top = logp.argmax(-1)
        greedy[tuple(cell)] = (top[at] == token).cpu()
        best[batch] = top[:, -1].cpu()
    row_of = {row: i for i, row in enumerate(rows)}
    return Continued(logprobs, cooled, greedy, lengths, best[[row_of[tuple(i)] for i in ids]])


def _lengths(options: list[list[list[int]]]) -> Int[Tensor, "prompt k"]:
    lengths = torch.zeros(len(options), max(map(len, options), default=0), dtype=torch.long)
    for q, found in enumerate(options):
        lengths[q, : len(found)] = torch.tensor([len(c) for c in found])
    return lengths


def _places(
    ids: list[list[int]], options: list[list[list[int]]]
) -> tuple[list[tuple[int, ...]], np.ndarray]:
    """The rows of tokens to run, and what is read in them, sorted by row.

    Returns:
        Rows, each once; and per token to be scored: its row, the distance of the position that
        predicts it from the row's end, the token, its prompt, its continuation, its place in that.
    """
    rows: dict[tuple[int, ...], int] = {}
    first, later = [np.zeros((0, 6), dtype=int)], []
    for q, (asked, found) in enumerate(zip(ids, options, strict=True)):
        row = rows.setdefault(tuple(asked), len(rows))
        heads = np.array([c[0] for c in found], dtype=int)
        n, zeros = np.arange(len(found)), np.zeros(len(found), dtype=int)
        first.append(np.stack([zeros + row, zeros + 1, heads, zeros + q, n, zeros], axis=1))
        for k, c in enumerate(found):
            if len(c) > 1:
                row = rows.setdefault((*asked, *c[:-1]), len(rows))
                later += [(row, len(c) - t, c[t], q, k, t) for t in range(1, len(c))]
    places = np.concatenate([*first, np.array(later, dtype=int).reshape(-1, 6)])
    return list(rows), places[np.argsort(places[:, 0], kind="stable")]


def answer(model: Any, tokenizer: Any, facts: FactSet, questions: Sequence[Question]) -> Answers:
    """Scores every candidate object of each question's relation as a continuation of its prompt.

    A candidate of several tokens is scored by the sum over its tokens.
    """
    candidates = [facts.relation[q.fact.relation].candidates for q in questions]
    said = continued(model, tokenizer, [q.prompt for q in questions], candidates)
    return Answers(tuple(questions), said.totals, true_candidates(facts, questions))


def true_candidates(facts: FactSet, questions: Sequence[Question]) -> Int[Tensor, " question"]:
    """Index of each question's object among the candidates of its relation."""
    index = {r.name: {c: i for i, c in enumerate(r.candidates)} for r in facts.relations}
    right = [index[q.fact.relation][q.fact.object] for q in questions]
    return torch.tensor(right, dtype=torch.long)


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
