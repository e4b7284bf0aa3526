"""What is to be located: passages that hold a concept, and passages that do not, in two folds."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from workbench.errors import TargetError
from workbench.facts.schema import Fact
from workbench.facts.target import Target
from workbench.models.score import Question, Templates, ask, last_subject_token, object_tokens


@dataclass(frozen=True)
class Prompt:
    """One passage.

    Attributes:
        group: the entity or document it belongs to, by which figures are resampled.
        wording: which paraphrase of the group's prompts it is.
        subject: if given, tokens count from the end of its last mention on; else all but BOS.
        labels: if given, the tokens that count, BOS among them as the tokenizer gives it.
        answer: what follows, whose log-probability an edit is to change; None where nothing is
            asked.
    """

    text: str
    group: str
    wording: int = 0
    subject: str | None = None
    labels: tuple[bool, ...] | None = None
    answer: str | None = None


@dataclass(frozen=True)
class Contrast:
    """Passages with the concept, and the same kind of passages without it."""

    forget: tuple[Prompt, ...]
    retain: tuple[Prompt, ...]


@dataclass(frozen=True)
class Concept:
    """A concept as two contrasts: features are chosen on one, evidence is reported on the other.

    Attributes:
        selected_on: in words, what `select` holds; `reported_on`: what `report` holds.
    """

    name: str
    select: Contrast
    report: Contrast
    selected_on: str
    reported_on: str

    @classmethod
    def from_target(cls, target: Target) -> "Concept":
        """Chosen on training templates of T and R_tr, reported on audit-only ones of S and R_va.

        Neither the entities nor the templates of the choice are in the evidence. V, on which audits
        are scored, has no part in either, unless the target has too few entities for three folds:
        in the place of an empty fold stand all forget facts, and the concept says so.

        Raises:
            TargetError: no questions on a forget or retain fold.
        """
        names = {fold: fold if target.folds[fold] else "all forget facts" for fold in ("T", "S")}
        return cls(
            target.name,
            _contrast(target, "T", "R_tr", "train"),
            _contrast(target, "S", "R_va", "audit"),
            f"{names['T']} and R_tr, training templates of {target.name}",
            f"{names['S']} and R_va, audit-only templates of {target.name}",
        )

    @classmethod
    def from_prompts(
        cls,
        forget: Sequence[str | tuple[str, str]],
        retain: Sequence[str | tuple[str, str]],
        name: str = "concept",
        seed: int = 0,
    ) -> "Concept":
        """Two lists of prompts, each halved at random into a part to choose on and one to report.

        Args:
            forget: prompts about the concept, or pairs of a prompt and its answer. One that is
                repeated stays in one half.
            retain: prompts alike that are not about it.

        Raises:
            TargetError: fewer than two prompts in a list, or a prompt that stands in both.
        """
        sides = [_listed(forget), _listed(retain)]
        texts = [list(dict.fromkeys(p.text for p in side)) for side in sides]
        if both := sorted(set(texts[0]) & set(texts[1])):
            raise TargetError(f"{name!r}: {both[0]!r} stands among both kinds of prompts")
        chosen = {text for side in texts for text in _half(side, name, seed)}
        return cls._halved(name, sides[0], sides[1], chosen)

    @classmethod
    def from_labels(
        cls,
        texts: Sequence[str],
        labels: Sequence[Sequence[bool]],
        name: str = "concept",
        seed: int = 0,
    ) -> "Concept":
        """Texts whose tokens are labelled one by one, halved at random.

        Labelled tokens stand against all others, of the same texts and of texts without any.

        Args:
            labels: for each text, whether each of its tokens belongs to the concept, as the model's
                tokenizer splits it with BOS. BOS itself never counts.

        Raises:
            TargetError: fewer than two texts with a labelled token, or with another; other numbers
                of texts and of lists of labels; a text given twice with other labels.
        """
        if len(texts) != len(labels):
            raise TargetError(f"{len(texts)} texts with {len(labels)} lists of labels")
        given = dict(zip(texts, labels, strict=True))
        for text, marks in zip(texts, labels, strict=True):
            if list(marks) != list(given[text]):
                raise TargetError(f"{text!r} is given twice, with other labels")
        forget, retain = (
            [
                Prompt(text, text, labels=tuple(bool(x) is wanted for x in marks))
                for text, marks in given.items()
                if any(bool(x) is wanted for x in marks[1:])
            ]
            for wanted in (True, False)
        )
        marked = [p.text for p in forget]
        bare = [p.text for p in retain if p.text not in set(marked)]
        chosen = {*_half(marked, name, seed), *(_half(bare, name, seed) if bare else [])}
        return cls._halved(name, forget, retain, chosen)

    @classmethod
    def _halved(
        cls, name: str, forget: Sequence[Prompt], retain: Sequence[Prompt], chosen: set[str]
    ) -> "Concept":
        """A concept chosen on the prompts with the chosen texts, and reported on the others."""

        def part(mine: bool) -> tuple[Contrast, str]:
            sides = [tuple(p for p in s if (p.text in chosen) is mine) for s in (forget, retain)]
            if not all(sides):
                raise TargetError(
                    f"{name!r}: one half has no passage with the concept, or none without it"
                )
            said = f"{len(sides[0])} prompts with {name} and {len(sides[1])} without"
            return Contrast(sides[0], sides[1]), said

        (select, on), (report, other) = part(True), part(False)
        return cls(name, select, report, f"{on}, one half", f"{other}, the other half")


@dataclass(frozen=True)
class Tokens:
    """A prompt as the model reads it.

    Attributes:
        ids: of the prompt and of its answer but for the last token.
        counted: tokens of the prompt that count for correlational scores.
        asked: tokens after which the model is asked: before each token of the answer; without one
            the labelled tokens, or else the last.
        answer: ids of the answer; empty where there is none.
    """

    ids: tuple[int, ...]
    counted: Bool[Tensor, " prompt_pos"]
    asked: Bool[Tensor, " pos"]
    answer: tuple[int, ...]

    @property
    def keep(self) -> int:
        """Last tokens of which logits are needed."""
        return len(self.ids) - int(self.asked.byte().argmax())


def tokenized(tokenizer: Any, prompts: Sequence[Prompt]) -> list[Tokens]:
    """The tokens of each prompt, which of them count, and those of its answer.

    Raises:
        TargetError: labels that do not fit a prompt's tokens, a subject that it does not hold, or a
            prompt of which no token counts.
    """
    rows = tokenizer([p.text for p in prompts])["input_ids"] if prompts else []
    return [_tokens(tokenizer, p, row) for p, row in zip(prompts, rows, strict=True)]


def _tokens(tokenizer: Any, prompt: Prompt, row: list[int]) -> Tokens:
    counted = _counted(tokenizer, prompt, len(row))
    answer: list[int] = []
    if prompt.answer is not None:
        answer = object_tokens(tokenizer, [prompt.answer])[0]
    ids = (*row, *answer[:-1])
    if prompt.labels is not None and not answer:
        return Tokens(ids, counted, counted, ())
    asked = torch.arange(len(ids)) >= len(ids) - max(1, len(answer))
    return Tokens(ids, counted, asked, tuple(answer))


def _counted(tokenizer: Any, prompt: Prompt, pos: int) -> Bool[Tensor, " pos"]:
    counted = torch.arange(pos) > 0
    if prompt.labels is not None:
        if len(prompt.labels) != pos:
            raise TargetError(
                f"{prompt.text!r} has {pos} tokens with BOS, but {len(prompt.labels)} labels"
            )
        counted &= torch.tensor(prompt.labels)
    elif prompt.subject is not None:
        if prompt.subject not in prompt.text:
            raise TargetError(f"{prompt.text!r} does not hold its subject {prompt.subject!r}")
        fact = Fact(prompt.subject, "", "", (), ())
        counted[: last_subject_token(tokenizer, Question(fact, prompt.text))] = False
    if not counted.any():
        raise TargetError(f"{prompt.text!r}: no token after BOS that counts")
    return counted


def _contrast(target: Target, fold: str, retain_fold: str, templates: Templates) -> Contrast:
    forget = _questions(target.fold(fold) or target.forget, templates)
    retain = _questions(target.retain[retain_fold], templates)
    if not forget or not retain:
        missing = f"retained facts in fold {retain_fold}" if forget else "forget facts"
        raise TargetError(
            f"{target.name!r} has no {missing} with {templates} templates to compare features on"
        )
    return Contrast(forget, retain)


def _questions(facts: Sequence[Fact], templates: Templates) -> tuple[Prompt, ...]:
    """One prompt per fact and template; the subject is the group, the template the wording."""
    prompts, wordings = [], {}
    for q in ask(facts, templates):
        n = wordings[q.fact.key] = wordings.get(q.fact.key, -1) + 1
        prompts.append(Prompt(q.prompt, q.fact.subject, n, q.fact.subject, None, q.fact.object))
    return tuple(prompts)


def _listed(prompts: Sequence[str | tuple[str, str]]) -> list[Prompt]:
    pairs = [(given, None) if isinstance(given, str) else given for given in prompts]
    return [Prompt(text, text, answer=answer) for text, answer in dict.fromkeys(pairs)]


def _half(texts: list[str], name: str, seed: int) -> list[str]:
    """Every second text of a random order, the larger half of an odd number."""
    if len(texts) < 2:
        raise TargetError(
            f"{name!r}: {len(texts)} prompts of one kind; wanted two or more, since one half is "
            "chosen on and the other reported"
        )
    return random.Random(seed).sample(texts, len(texts))[::2]
