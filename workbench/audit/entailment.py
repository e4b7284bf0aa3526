"""What follows from what: steps of reasoning, and the least that must go for a fact to be gone."""

import itertools
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from math import prod

from workbench.errors import AuditError
from workbench.facts.schema import FactKey, FactSet

MAX_SUPPORTS = 1000
"""Ways to derive one fact that are enumerated."""

Step = tuple[frozenset[FactKey], FactKey]
"""Premises, and what follows from them."""


def steps_of(facts: FactSet) -> tuple[Step, ...]:
    """Every step of reasoning that the world's rules allow among its facts.

    A rule is read off each derived fact that rests on one fact about its own subject and one about
    that one's object: what holds for one subject holds for all. Other derived facts have the one
    step that they name.
    """
    rules = set()
    steps = {(frozenset(f.premises), f.key) for f in facts.facts if f.derived}
    for fact in facts.facts:
        own = [relation for subject, relation in fact.premises if subject == fact.subject]
        other = [relation for subject, relation in fact.premises if subject != fact.subject]
        if len(own) == len(other) == 1:
            rules.add((own[0], other[0], fact.relation))
    for first, second, relation in rules:
        for fact in (f for f in facts.facts if f.relation == first):
            then, goal = (facts.fact.get((fact.object, second)), (fact.subject, relation))
            known = facts.fact.get(goal)
            if then is not None and known is not None and known.object == then.object:
                steps.add((frozenset((fact.key, then.key)), goal))
    return tuple(sorted(steps, key=lambda s: (s[1], sorted(s[0]))))


def closed(known: Iterable[FactKey], steps: Sequence[Step]) -> frozenset[FactKey]:
    """Ω: what is known and all that follows from it."""
    found, before = set(known), -1
    while len(found) > before:
        before = len(found)
        found |= {goal for premises, goal in steps if premises <= found}
    return frozenset(found)


def supports(
    goal: FactKey, known: Set[FactKey], steps: Sequence[Step]
) -> tuple[frozenset[FactKey], ...]:
    """All least sets of known facts from which the goal follows; the goal itself if it is known.

    Raises:
        AuditError: more than `MAX_SUPPORTS` for one fact.
    """
    steps = _towards(goal, steps)
    wanted = {goal, *(key for premises, _ in steps for key in premises)}
    ways = {key: {frozenset((key,))} for key in wanted & known}
    grew = True
    while grew:
        grew = False
        for premises, conclusion in steps:
            if not all(p in ways for p in premises):
                continue
            if prod(len(ways[p]) for p in premises) > MAX_SUPPORTS**2:
                raise _too_many(conclusion)
            new = {frozenset().union(*w) for w in itertools.product(*(ways[p] for p in premises))}
            least = _least(ways.get(conclusion, set()) | new)
            if least != ways.get(conclusion):
                ways[conclusion], grew = least, True
            if len(least) > MAX_SUPPORTS:
                raise _too_many(conclusion)
    return _in_order(ways.get(goal, set()))


def _too_many(conclusion: FactKey) -> AuditError:
    return AuditError(
        f"{conclusion} follows in more than {MAX_SUPPORTS} ways: too many to enumerate; examine "
        "facts with shorter derivations"
    )


def minimal_sets(
    goal: FactKey, known: Set[FactKey], steps: Sequence[Step]
) -> tuple[frozenset[FactKey], ...]:
    """All minimal deep-unlearning sets: least sets of facts without which the goal is gone.

    Enumerated in full, as the least sets that meet every support of the goal.

    Source: definition of 2410.15153. Differs: the released code draws some of them at random.
    """
    found: set[frozenset[FactKey]] = {frozenset()}
    for support in supports(goal, known, steps):
        met = {u for u in found if u & support}
        found = _least(met | {u | {key} for u in found - met for key in support})
    return _in_order(found)


@dataclass(frozen=True)
class DeepUnlearning:
    """How a model that lost some facts stands to one goal.

    Attributes:
        success: 1 if the goal is neither answered nor follows from what is; Success-DU.
        derivable: 1 if it follows from other facts that are answered.
        recall: the largest share of a minimal deep-unlearning set that is lost.
        acc: of the known facts outside that set, the share that is kept; 1 if there are none.
    """

    success: float
    derivable: float
    recall: float
    acc: float


def deep_unlearning(
    goal: FactKey, known: Set[FactKey], answered: Set[FactKey], steps: Sequence[Step]
) -> DeepUnlearning:
    """Success-DU, Recall and Accuracy of one goal.

    Args:
        goal: known, or entailed by what is known.
        known: the knowledge base: what was once told.
        answered: what the model answers now; the goal may be among it though it was never told.

    Source: 2410.15153; the formulas are those of its released code. Differs: of several sets of
    which the same share is lost, the one with the highest accuracy counts, not the first drawn.

    Raises:
        AuditError: the goal is neither known nor does it follow.
    """
    ways = minimal_sets(goal, known, steps)
    if ways == (frozenset(),):
        raise AuditError(
            f"{goal} is not known, nor does it follow from the {len(known)} known facts"
        )
    kept = known & answered
    rated = [
        (len(u - answered) / len(u), len(kept - u) / len(known - u) if known - u else 1.0)
        for u in ways
    ]
    recall, acc = max(rated)
    return DeepUnlearning(
        float(goal not in closed(answered, steps)),
        float(goal in closed(answered - {goal}, steps)),
        recall,
        acc,
    )


def _least(sets: set[frozenset[FactKey]]) -> set[frozenset[FactKey]]:
    """Those that hold no other."""
    found: list[frozenset[FactKey]] = []
    for some in sorted(sets, key=len):
        if not any(other <= some for other in found):
            found.append(some)
    return set(found)


def _in_order(sets: Iterable[frozenset[FactKey]]) -> tuple[frozenset[FactKey], ...]:
    return tuple(sorted(sets, key=lambda s: (len(s), sorted(s))))


def _towards(goal: FactKey, steps: Sequence[Step]) -> tuple[Step, ...]:
    """The steps that can have a part in deriving the goal."""
    wanted, before = {goal}, 0
    while len(wanted) > before:
        before = len(wanted)
        wanted |= {key for premises, found in steps if found in wanted for key in premises}
    return tuple(step for step in steps if step[1] in wanted)
