"""What was to stay: facts by neighbourhood and kind, and the likelihood of held-out sentences."""

import random
from collections.abc import Sequence, Set
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.audit.questions.formats import one_each
from workbench.audit.questions.scorer import Replies, hits, put, scored, shown
from workbench.audit.statistics import Key, Scores
from workbench.audit.views import Found, Measure, View
from workbench.facts.schema import Fact, FactKey, prompt, statement
from workbench.facts.target import Target
from workbench.hooks import edited
from workbench.models.score import (
    Answers,
    Question,
    ask,
    batches_by_length,
    device_of,
    next_logits,
    object_tokens,
)

MAX_FACTS = 400
"""Facts asked of each set, and sentences read."""


def retained_sets(target: Target) -> dict[str, tuple[Fact, ...]]:
    """What was to stay: the neighbour sets, the held-out retained fold, and facts by kind.

    The sets by kind of entity hold all retained facts but those about the forget entities (they
    are N1) and derived ones (they rest on others). Facts without audit-only templates cannot be
    asked and are left out.
    """
    forgotten = set(target.entities)
    kinds: dict[str, list[Fact]] = {}
    for fact in target.facts.facts:
        if fact.stated and not fact.derived and fact.subject not in forgotten:
            kinds.setdefault(f"kind:{target.facts.entity[fact.subject].kind}", []).append(fact)
    sets = {
        **target.neighbours,
        "R_te": target.retain["R_te"],
        **{k: tuple(v) for k, v in kinds.items()},
    }
    asked = {name: tuple(f for f in facts if f.audit_templates) for name, facts in sets.items()}
    return {name: facts for name, facts in asked.items() if facts}


def kept_facts(target: Target, seed: int) -> Measure:
    """Hits on each retained set, and whether free answers are answers.

    R_te is asked in every template, trained and audit-only alike, as forget facts are when they are
    asked openly; the other sets in one of each for each fact, by turns. Sets that overlap share
    their questions. Models that differ in nothing but their seed differ by some hundredths in how
    they take templates they never saw, and not in the others.
    """

    def measure(view: View) -> Found:
        sets = kept_questions(target, seed)
        union = tuple(dict.fromkeys(q for questions in sets.values() for q in questions))
        if not union:
            return {}
        replies = put(view.model, view.edits, target.facts, union)
        place = {q: i for i, q in enumerate(union)}
        text = shown(replies, target.facts, view.filter)
        values = {"raw": hits(replies.answers), "text": text}
        found: Found = {}
        for name, questions in sets.items():
            rows = torch.tensor([place[q] for q in questions])
            some = _rows(replies.answers, rows)
            for metric, value in values.items():
                found[Key("kept", name, metric)] = scored(some, value[rows])
            if name == "R_te":
                valid = _valid(view.model.tokenizer, target, replies)[rows]
                found[Key("text", "R_te", "valid")] = scored(some, valid)
        return found

    return measure


def kept_questions(target: Target, seed: int) -> dict[str, tuple[Question, ...]]:
    """The questions of each retained set, at most `MAX_FACTS` facts in each.

    All sets are drawn by one order of all facts, so that those which overlap share most.
    """
    sets = retained_sets(target)
    every = _union(sets.values(), seed)
    turns = {f.key: [prompt(f, t)] for f, t in one_each(every)}
    for fact, template in _one_each_trained(every):
        turns[fact.key].append(prompt(fact, template))
    found = {}
    for name, facts in sets.items():
        chosen = _sample(facts, seed)
        once = tuple(Question(f, asked) for f in chosen for asked in turns[f.key])
        whole = (*ask(chosen, "audit"), *ask(chosen, "train"))
        found[name] = whole if name == "R_te" else once
    return found


def held_out_text(target: Target, seed: int) -> Measure:
    """Nats per token of texts of the kind that the models were trained on.

    Neutral sentences about retained entities, in templates that no training text has for them, and
    statements of retained facts. Audit-only templates are no text of that kind: models that differ
    in nothing but their seed differ by a third in perplexity there.
    """

    def measure(view: View) -> Found:
        texts = kept_texts(target, seed)
        if not texts:
            return {}
        with edited(view.model, view.edits):
            nll = nll_nats(view.model, view.model.tokenizer, [text for _, text in texts])
        keys = [key for key, _ in texts]
        scores = Scores(nll.double().numpy(), tuple(s for s, _ in keys), tuple(r for _, r in keys))
        return {Key("text", "kept", "nll_nats"): scores}

    return measure


def kept_texts(target: Target, seed: int) -> list[tuple[FactKey, str]]:
    """At most `MAX_FACTS` unseen neutral sentences, and as many statements, each with its fact."""
    sets = retained_sets(target)
    facts = _union([sets.get("R_te", ()), sets.get("U", ())], seed)[:MAX_FACTS]
    seen = {d.text for d in target.facts.corpus}
    stated = [(f.key, statement(f, t)) for f, t in _one_each_trained(facts)]
    neutral = [
        (f.key, text)
        for i, f in enumerate(facts)
        for text in _unseen(target.facts.neutral, f.subject, seen, i)
    ]
    return [*neutral, *stated]


def _one_each_trained(facts: Sequence[Fact]) -> list[tuple[Fact, str]]:
    return [(f, f.templates[i % len(f.templates)]) for i, f in enumerate(facts) if f.templates]


def _unseen(templates: Sequence[str], subject: str, seen: Set[str], turn: int) -> list[str]:
    """One neutral sentence about the subject that stands in no training text, if there is one."""
    texts = [t.replace("{}", subject) for t in templates]
    unseen = [text for text in texts if text not in seen]
    return [unseen[turn % len(unseen)]] if unseen else []


@torch.no_grad()
def nll_nats(model: Any, tokenizer: Any, texts: Sequence[str]) -> Float[Tensor, " text"]:
    """Mean negative log-likelihood per token of each text, its first token given."""
    rows = tokenizer(list(texts))["input_ids"]
    found = torch.zeros(len(rows))
    for batch in batches_by_length(rows):
        tokens = torch.tensor([rows[i] for i in batch], device=device_of(model))
        logp = next_logits(model, tokens)[:, :-1].float().log_softmax(-1)
        told = logp.gather(-1, tokens[:, 1:, None])[..., 0]
        found[batch] = -told.mean(-1).cpu()
    return found


def _valid(tokenizer: Any, target: Target, replies: Replies) -> Float[Tensor, " question"]:
    """1 where the likeliest token of the vocabulary begins some candidate of the relation."""
    heads = {
        r.name: {ids[0] for ids in object_tokens(tokenizer, r.candidates)}
        for r in target.facts.relations
        if r.candidates
    }
    asked = zip(replies.answers.questions, replies.said.best.tolist(), strict=True)
    return torch.tensor([float(best in heads[q.fact.relation]) for q, best in asked])


def _order(fact: Fact, seed: int) -> float:
    return random.Random(f"{seed} kept {fact.subject} {fact.relation}").random()


def _sample(facts: Sequence[Fact], seed: int) -> tuple[Fact, ...]:
    """At most `MAX_FACTS` of the facts, in their own order."""
    chosen = sorted(range(len(facts)), key=lambda i: _order(facts[i], seed))[:MAX_FACTS]
    return tuple(facts[i] for i in sorted(chosen))


def _union(sets: Any, seed: int) -> tuple[Fact, ...]:
    """The facts of all sets once, in the seeded order."""
    facts = {f.key: f for some in sets for f in some}
    return tuple(sorted(facts.values(), key=lambda f: _order(f, seed)))


def _rows(answers: Answers, rows: Tensor) -> Answers:
    questions = tuple(answers.questions[i] for i in rows.tolist())
    return replace(
        answers, questions=questions, logprobs=answers.logprobs[rows], right=answers.right[rows]
    )
