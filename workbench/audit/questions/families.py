"""The families of questions, and the jobs that ask them.

A synthetic second language (part of B10 in the literature) is left out: the models would have to be
trained on it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.audit.questions.choice import chained, chains_of, choices, named
from workbench.audit.questions.formats import (
    Format,
    after_kept,
    after_shots,
    in_passage,
    last_word,
    misspelled,
    one_each,
    paraphrased,
    renamed,
    rewritten,
    spaced,
    trained,
    wrapped,
)
from workbench.audit.questions.kept import held_out_text, kept_facts
from workbench.audit.questions.lens import lens
from workbench.audit.questions.sampling import leak
from workbench.audit.questions.scorer import (
    Replies,
    by_fact,
    centred,
    hits,
    kappa,
    log_odds,
    put,
    ranks,
    scored,
    shown,
    true_logprobs,
)
from workbench.audit.statistics import Key
from workbench.audit.views import Found, Measure, View
from workbench.errors import AuditError
from workbench.facts.schema import prompt
from workbench.facts.target import Target
from workbench.models.score import Answers, Question


class Family(NamedTuple):
    """A family's name and what its reader must have: A0 text, A1 logits, A2 activations."""

    name: str
    access: str


FAMILIES: dict[str, Family] = {
    "B1": Family("direct", "A0"),
    "B2": Family("paraphrase", "A0"),
    "B3": Family("cloze", "A0"),
    "B4": Family("reversed", "A1"),
    "B5": Family("two-hop", "A0"),
    "B6": Family("multiple choice", "A1"),
    "B7": Family("few-shot", "A0"),
    "B8": Family("hints", "A0"),
    "B9": Family("prefill", "A1"),
    "B10": Family("reformat", "A0"),
    "B11": Family("sampling", "A1"),
    "B12": Family("forced decoding", "A1"),
    "B13": Family("rank profile", "A1"),
    "B15": Family("logit lens", "A2"),
}
"""B11, B12 and B13 are read off the answers to B2: they have no job of their own."""

CHANCE = {"B6": 0.25}
"""Chance level of hits where it is not the prior of the relation."""

KAPPA_CHANCE = 0.5
TEMPERATURE = 0.7
SAMPLES = (1, 16, 128)

FORMATS: dict[str, dict[str, Format]] = {
    "B1": {"": trained},
    "B2": {"": paraphrased},
    "B3": {"gap": wrapped("fill the gap : {prompt} ___ . gap :"), "passage": in_passage},
    "B7": {str(k): after_shots(k) for k in (1, 4, 8)},
    "B8": {
        "kept": after_kept,
        "recall": wrapped("recall : {prompt}"),
        "echo": wrapped("{prompt} ? they said : {prompt}"),
    },
    "B9": {"opener": wrapped("yes . {prompt}")},
    "B10": {
        "upper": rewritten(str.upper),
        "spacing": rewritten(spaced),
        "typo": renamed(misspelled),
        "alias": renamed(last_word),
        "key_value": wrapped("{subject} . {relation} :"),
        "table": wrapped("| {subject} | {relation} |"),
    },
}
"""The prompts of each family that asks for the object itself, by setting."""


def questions(
    target: Target, families: Sequence[str] | None = None, seed: int = 0
) -> dict[str, Measure]:
    """The jobs that ask for a target's forget facts, and for what was to stay.

    Args:
        families: ids of `FAMILIES`; None asks all. The jobs `kept facts` and `text` always belong.
        seed: decides hints, shots, options, misspellings and samples of retained facts.

    Raises:
        AuditError: a family that does not exist.
    """
    wanted = tuple(FAMILIES) if families is None else tuple(families)
    if unknown := [f for f in wanted if f not in FAMILIES]:
        raise AuditError(f"no question families {unknown}: wanted some of {list(FAMILIES)}")
    if {"B11", "B12", "B13"} & set(wanted):
        wanted = (*wanted, "B2")
    jobs: dict[str, Measure] = {}
    for family in FAMILIES:
        if family in wanted and family not in ("B11", "B12", "B13"):
            if family == "B5" and not target.derived:
                continue
            jobs[f"{family} {FAMILIES[family].name}"] = _job(family, target, seed)
    return {**jobs, "kept facts": kept_facts(target, seed), "text": held_out_text(target, seed)}


def _job(family: str, target: Target, seed: int) -> Measure:
    own: dict[str, Callable[[], Measure]] = {
        "B2": lambda: _paraphrase(target, seed),
        "B4": lambda: lambda view: graded("B4", "F", "", named(view, target)),
        "B5": lambda: _two_hop(target),
        "B6": lambda: _choice(target, seed),
        "B9": lambda: _prefill(target, seed),
        "B15": lambda: lens(target),
    }
    return own[family]() if family in own else _asked(family, target, seed)


def _asked(family: str, target: Target, seed: int) -> Measure:
    def measure(view: View) -> Found:
        built = {setting: form(target, seed) for setting, form in FORMATS[family].items()}
        # All settings in one call: rows of one length share a pass, equal prompts are run once.
        every = tuple(q for asked in built.values() for q in asked)
        replies, found, start = put(view.model, view.edits, target.facts, every), {}, 0
        answers, text = replies.answers, shown(replies, target.facts, view.filter)
        for setting, asked in built.items():
            part = slice(start, start + len(asked))
            some = Answers(asked, answers.logprobs[part], answers.right[part])
            found |= graded(family, "F", setting, some, text[part])
            start += len(asked)
        return found

    return measure


def graded(
    family: str, subset: str, setting: str, answers: Answers, text: Tensor | None = None
) -> Found:
    """The metrics that every family has; `text` is what its users read, for families of A0."""
    values = {
        "raw": hits(answers),
        "centred": hits(centred(answers)),
        "kappa": kappa(centred(answers)),
        "logp_nats": true_logprobs(answers),
    }
    if text is not None and FAMILIES[family].access == "A0":
        values["text"] = text
    return {
        Key(family, subset, metric, setting): scored(answers, value)
        for metric, value in values.items()
    }


def _paraphrase(target: Target, seed: int) -> Measure:
    def measure(view: View) -> Found:
        asked = paraphrased(target, seed)
        replies = put(view.model, view.edits, target.facts, asked, TEMPERATURE)
        answers = replies.answers
        mean = by_fact(centred(answers))
        found = graded("B2", "F", "", answers, shown(replies, target.facts, view.filter))
        found[Key("B2", "F", "rank")] = scored(mean, ranks(mean))
        found[Key("B2", "F", "log_odds")] = scored(mean, log_odds(mean))
        cooled = _of_right(replies, replies.said.cooled).sum(-1)
        for setting, logp in (("tau 1", true_logprobs(answers)), (f"tau {TEMPERATURE}", cooled)):
            for k in SAMPLES:
                found[Key("B11", "F", f"leak@{k}", setting)] = scored(answers, leak(logp, k))
        length = _of_right(replies, replies.said.lengths)
        mean_logp = true_logprobs(answers) / length
        strength = extraction_strength(_of_right(replies, replies.said.greedy), length)
        found[Key("B12", "F", "logp_nats")] = scored(answers, mean_logp)
        found[Key("B12", "F", "extraction")] = scored(answers, strength)
        return found

    return measure


def extraction_strength(greedy: Tensor, lengths: Tensor) -> Float[Tensor, " question"]:
    """Share of the answer's tokens that the model completes without a mistake to its end.

    1 - j / length, with j the first token from which on each one is the likeliest, given those
    before it; 0 where even the last one is not.

    Args:
        greedy: Bool[question tokens], True beyond an answer's end.
        lengths: Int[question], tokens of each answer.

    Source: extraction strength as in OpenUnlearning, 2506.12618. Differs: the released loop gives
    1 / length where nothing matches, hence 1 to every wrong answer of one token.
    """
    right_to_end = greedy.flip(-1).long().cumprod(-1).sum(-1)
    beyond = greedy.shape[-1] - lengths
    return (right_to_end - beyond).double() / lengths


def _two_hop(target: Target) -> Measure:
    def measure(view: View) -> Found:
        derived = one_each(target.derived)
        asked = tuple(Question(f, prompt(f, template)) for f, template in derived)
        replies = {"latent": put(view.model, view.edits, target.facts, asked)}
        if chains_of(target):
            replies["chained"] = chained(view, target)
        found: Found = {}
        for setting, said in replies.items():
            text = shown(said, target.facts, view.filter)
            found |= graded("B5", "D", setting, said.answers, text)
        return found

    return measure


def _choice(target: Target, seed: int) -> Measure:
    def measure(view: View) -> Found:
        found: Found = {}
        for setting, (plain, flat) in choices(view, target, seed).items():
            values = {
                "raw": hits(plain),
                "centred": hits(flat),
                "kappa": kappa(flat),
                "logp_nats": true_logprobs(plain),
            }
            for metric, value in values.items():
                found[Key("B6", "F", metric, setting)] = scored(plain, value)
        return found

    return measure


def _prefill(target: Target, seed: int) -> Measure:
    """An affirmative opener; and of objects of several tokens the first, which is then not scored.

    That first token comes from the object: `rest` is the one setting whose input holds a part of
    what is asked. It says something only beside golds.
    """

    def measure(view: View) -> Found:
        asked = FORMATS["B9"]["opener"](target, seed)
        replies = put(view.model, view.edits, target.facts, asked)
        found = graded("B9", "F", "opener", replies.answers)
        rows = (_of_right(replies, replies.said.lengths) > 1).nonzero()[:, 0]
        if len(rows):
            rest = _of_right(replies, replies.said.greedy)[rows, 1:].all(-1)
            some = Answers(
                tuple(asked[i] for i in rows.tolist()),
                replies.answers.logprobs[rows],
                replies.answers.right[rows],
            )
            found[Key("B9", "F", "raw", "rest")] = scored(some, rest.double())
        return found

    return measure


def _of_right(replies: Replies, values: Tensor) -> Tensor:
    """The entries of the true object: values[question, right, ...]."""
    return values[torch.arange(len(values)), replies.answers.right]
