"""Questions with candidate answers, put to a model again and again."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from workbench.errors import DataError
from workbench.facts.schema import Fact, FactSet
from workbench.models.score import MAX_TOKENS, ask, batches_by_length, device_of, next_logits

GEMMA = ("<start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\nAnswer: (")
"""What stands before and after a question for an instruction-tuned Gemma, as in SAEBench."""
MAX_LOGITS = 2**27
"""Logits that one forward pass may give, so that a large vocabulary fits into memory."""


@dataclass(frozen=True)
class ChoiceQuestion:
    """A prompt and the candidates of which one continues it rightly.

    Attributes:
        prompts: one for every order in which options stand in the prompt; the first is scored, and
            all must be answered right by the unmodified model.
        right: index of the right candidate after each prompt.
        candidates: each with its spellings, of which the likeliest counts.
        group: what the question is about; halves and resampling keep groups whole.
    """

    prompts: tuple[str, ...]
    right: tuple[int, ...]
    candidates: tuple[tuple[str, ...], ...]
    group: str

    def __post_init__(self) -> None:
        if not self.prompts or len(self.prompts) != len(self.right):
            raise DataError(
                f"{len(self.prompts)} prompts with {len(self.right)} right answers: wanted one or "
                "more prompts with one each"
            )
        if len(self.candidates) < 2 or not all(s and all(s) for s in self.candidates):
            raise DataError(
                f"candidates {self.candidates}: wanted two or more, each with a spelling"
            )
        if not all(0 <= right < len(self.candidates) for right in self.right):
            raise DataError(
                f"right answers {self.right}: wanted indices of {len(self.candidates)} candidates"
            )


def letter_questions(
    records: Sequence[Mapping[str, Any]],
    subject: str,
    *,
    before: str = "",
    after: str = "\nAnswer:",
    reserved: Sequence[str] = (),
) -> tuple[ChoiceQuestion, ...]:
    """Multiple-choice questions that are answered by a letter, in every order of their options.

    Args:
        records: each with `question`, `choices` and `answer`, the index of the right choice, as
            WMDP and MMLU give them; with `group`, records of one group are kept together.
        subject: what the introduction says the questions are about, such as `biology`.
        before: what stands in front of the introduction, and `after` behind the options; a chat
            model wants its template's parts here (`GEMMA`), less the BOS, which the tokenizer adds.
        reserved: texts that no record may hold: give `tokenizer.all_special_tokens` for records of
            unknown origin, or one of them could close the user's turn.

    Raises:
        DataError: a record of another form, or one that holds a reserved text.
    """
    questions = []
    for i, record in enumerate(records):
        question, choices, answer = _checked_record(record, f"record {i}", reserved)
        letters = "ABCDE"[: len(choices)]
        prompts, right = [], []
        for order in itertools.permutations(range(len(choices))):
            options = "".join(f"\n{x}. {choices[c]}" for x, c in zip(letters, order, strict=True))
            intro = f"The following are multiple choice questions (with answers) about {subject}.\n"
            prompts.append(before + intro + question + options + after)
            right.append(order.index(answer))
        spellings = tuple((x, f" {x}") for x in letters)
        group = str(record.get("group", f"{subject} {i}"))
        questions.append(ChoiceQuestion(tuple(prompts), tuple(right), spellings, group))
    return tuple(questions)


def _checked_record(
    record: Mapping[str, Any], name: str, reserved: Sequence[str]
) -> tuple[str, list[str], int]:
    question, choices = record.get("question"), record.get("choices")
    if not isinstance(question, str) or not isinstance(choices, Sequence | np.ndarray):
        raise DataError(f"{name} has {sorted(record)}: wanted question, choices and answer")
    choices, answer = list(choices), record.get("answer")
    texts = [question, *choices]
    if not 2 <= len(choices) <= 5 or not all(isinstance(t, str) for t in texts):
        raise DataError(f"{name} has {len(choices)} choices: wanted 2 to 5 texts")
    if not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise DataError(f"{name}: answer {answer!r}, wanted the index of one of its choices")
    if held := [word for word in reserved if any(word in text for text in texts)]:
        raise DataError(f"{name} holds {held}: left in, the tokenizer would take it for a mark")
    return question, choices, answer


def fact_questions(facts: FactSet, asked: Sequence[Fact]) -> tuple[ChoiceQuestion, ...]:
    """One question per fact and audit-only template; the candidates are the relation's objects."""
    spellings = {r.name: tuple((f" {c}",) for c in r.candidates) for r in facts.relations}
    places = {r.name: {c: i for i, c in enumerate(r.candidates)} for r in facts.relations}
    return tuple(
        ChoiceQuestion((q.prompt,), (places[name][q.fact.object],), spellings[name], q.fact.subject)
        for q in ask(asked, "audit")
        for name in [q.fact.relation]
    )


class Quiz:
    """Prompts that are put to a model again and again, tokenized once.

    A candidate is scored by the sum of its tokens' log-probabilities after the prompt.
    """

    def __init__(self, model: Any, asked: Sequence[tuple[ChoiceQuestion, int]]) -> None:
        self.model = model
        width = max(len(q.candidates) for q, _ in asked)
        prompts = model.tokenizer([q.prompts[order] for q, order in asked])["input_ids"]
        spelled = _spelled(model.tokenizer, {s for q, _ in asked for c in q.candidates for s in c})
        rows: dict[tuple[int, ...], list[tuple[int, int, int]]] = {}
        cells: list[int] = []
        for i, ((question, _), prompt) in enumerate(zip(asked, prompts, strict=True)):
            for j, spellings in enumerate(question.candidates):
                for tokens in (spelled[s] for s in spellings):
                    row = rows.setdefault((*prompt, *tokens[:-1]), [])
                    row += [(k - len(tokens), t, len(cells)) for k, t in enumerate(tokens)]
                    cells.append(i * width + j)
        self.cells, self.shape = torch.tensor(cells), (len(asked), width)
        self.right = torch.tensor([q.right[order] for q, order in asked])
        self.last = max(len(tokens) for tokens in spelled.values())
        self.batches = list(self._batched(rows))

    def _batched(
        self, rows: Mapping[tuple[int, ...], list[tuple[int, int, int]]]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Tokens of each batch; and row, position from the end, token and spelling of each read."""
        tokens, reads = list(rows), list(rows.values())
        for batch in batches_by_length(tokens, min(MAX_TOKENS, MAX_LOGITS // _vocab(self.model))):
            where = [(n, *read) for n, i in enumerate(batch) for read in reads[i]]
            yield torch.tensor([tokens[i] for i in batch]), torch.tensor(where)

    @torch.no_grad()
    def hits(self) -> Bool[Tensor, " question"]:
        """Whether the right candidate has the highest log-probability, of each question."""
        scores, device = torch.zeros(len(self.cells)), device_of(self.model)
        for tokens, where in self.batches:
            logits = next_logits(self.model, tokens.to(device))[:, -self.last :]
            logprobs = logits.float().log_softmax(-1).cpu()
            row, position, token, spelling = where.T
            scores.index_add_(0, spelling, logprobs[row, position, token])
        best = torch.full((self.shape[0] * self.shape[1],), -torch.inf)
        best.scatter_reduce_(0, self.cells, scores, "amax")
        return best.reshape(self.shape).argmax(-1) == self.right


def _spelled(tokenizer: Any, spellings: set[str]) -> dict[str, list[int]]:
    found = {s: tokenizer(s, add_special_tokens=False)["input_ids"] for s in sorted(spellings)}
    if empty := [s for s, tokens in found.items() if not tokens]:
        raise DataError(f"candidates {empty}: the tokenizer gives no token for them")
    return found


def _vocab(model: Any) -> int:
    config = getattr(model, "cfg", None) or model.config
    return getattr(config, "d_vocab", None) or config.vocab_size


def known(model: Any, questions: Sequence[ChoiceQuestion]) -> tuple[ChoiceQuestion, ...]:
    """The questions that the model answers right in every order of their options.

    Raises:
        DataError: there is none, or no question at all.
    """
    if not questions:
        raise DataError("no questions: wanted some to be forgotten and some to be kept")
    asked = [(q, order) for q in questions for order in range(len(q.prompts))]
    missed = {
        id(q) for (q, _), hit in zip(asked, Quiz(model, asked).hits(), strict=True) if not hit
    }
    kept = tuple(q for q in questions if id(q) not in missed)
    if not kept:
        raise DataError(
            f"the unmodified model answers none of {len(questions)} questions right in every "
            "order: there is nothing to unlearn or to keep"
        )
    return kept
