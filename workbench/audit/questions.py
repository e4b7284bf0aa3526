"""Behavioural questions: recall of forget facts and of everything that was to stay."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from workbench.audit.statistics import Key, Scores, joined
from workbench.facts.schema import Fact, FactSet
from workbench.facts.target import Target
from workbench.hooks import Intervention, edited
from workbench.models.score import Answers, Templates, answer, ask


def put(
    model: Any,
    edits: Sequence[Intervention],
    facts: FactSet,
    asked: Sequence[Fact],
    templates: Templates,
) -> Answers:
    """Answers of the model with the edits attached."""
    questions = ask(asked, templates)
    with edited(model, edits, must_fire=bool(questions)):
        return answer(model, model.tokenizer, facts, questions)


def hit_scores(answers: Answers) -> Scores:
    """1 where the true object ranks first among the relation's candidates."""
    return Scores(
        answers.hits.numpy().astype(float), tuple(q.fact.subject for q in answers.questions)
    )


def centred_scores(answers: Answers) -> Scores:
    """Hits after subtracting each candidate's mean log-probability over its relation's questions.

    A shift that moves a candidate on every prompt alike, such as a bias on the unembedding, does
    not change this score.
    """
    logprobs = answers.logprobs.log_softmax(-1)
    relation = np.array([q.fact.relation for q in answers.questions])
    for name in np.unique(relation):
        rows = np.flatnonzero(relation == name)
        logprobs[rows] = logprobs[rows] - logprobs[rows].mean(0).nan_to_num(neginf=0.0)
    hits = logprobs.argmax(-1) == answers.right
    return Scores(hits.numpy().astype(float), tuple(q.fact.subject for q in answers.questions))


def recall_scores(model: Any, edits: Sequence[Intervention], target: Target) -> dict[Key, Scores]:
    """Hits on the V fold by template family, raw and centred, and on all that was to stay, raw."""
    forget, stayed = target.fold("V"), retained_sets(target)
    rest = tuple({f.key: f for facts in stayed.values() for f in facts}.values())
    taught, audited = (
        put(model, edits, target.facts, forget, templates) for templates in ("train", "audit")
    )
    found = {
        Key("recall", "V", "train"): hit_scores(taught),
        Key("recall", "V", "audit"): hit_scores(audited),
        Key("recall", "V", "centred"): centred_scores(audited),
        Key("recall", "V", "open"): joined(hit_scores(taught), hit_scores(audited)),
    }
    if not rest:
        return found
    answers = put(model, edits, target.facts, rest, "audit")
    hits, keys = hit_scores(answers), [q.fact.key for q in answers.questions]
    for name, facts in stayed.items():
        wanted = {f.key for f in facts}
        chosen = [i for i, key in enumerate(keys) if key in wanted]
        scores = Scores(hits.values[chosen], tuple(hits.entities[i] for i in chosen))
        found[Key("recall", name, "audit")] = scores
    return found


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
