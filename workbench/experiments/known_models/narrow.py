"""Targets on which no audit can show absence, whoever is audited: too few facts, too easy ones."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from workbench.facts.schema import Fact
from workbench.facts.target import Target
from workbench.models.copies import copied

FEW, TWO = 20, 2


def few_facts(target: Target, count: int = FEW) -> Target:
    """The target with this many of its facts alone, drawn from all of them."""
    chosen = {f.key for f in random.Random(target.seed).sample(target.forget, count)}
    return only(target, lambda f: f.key in chosen)


def two_candidates(target: Target) -> Target:
    """The target with the facts alone that have one of their relation's two most common objects.

    No other object is a candidate, so that chance is one half.
    """
    counts = {
        r: Counter(f.object for f in target.forget if f.relation == r)
        for r in {f.relation for f in target.forget}
    }
    common = {r: tuple(o for o, _ in c.most_common(TWO)) for r, c in counts.items()}

    def has(fact: Fact) -> bool:
        return fact.relation not in common or fact.object in common[fact.relation]

    narrowed = only(target, has)
    relations = tuple(
        replace(r, candidates=tuple(c for c in r.candidates if c in common.get(r.name, (c,))))
        for r in target.facts.relations
    )
    known = tuple(f for f in target.facts.facts if has(f))
    kept = {
        name: {key: tuple(f for f in facts if has(f)) for key, facts in sets.items()}
        for name, sets in (("retain", narrowed.retain), ("neighbours", target.neighbours))
    }
    return replace(
        narrowed,
        facts=replace(target.facts, relations=relations, facts=known),
        fresh=tuple(f for f in target.fresh if has(f)),
        holdout=tuple(f for f in target.holdout if has(f)),
        **kept,
    )


def told_by_name(target: Target) -> Target:
    """The target with the facts alone whose object is the commonest for a word of the name.

    Whoever knows some of them guesses the others by their names.
    """
    counts: dict[tuple[str, int, str], Counter[str]] = {}
    for fact in target.forget:
        for word in _words(fact):
            counts.setdefault(word, Counter())[fact.object] += 1
    told = {word: count.most_common(1)[0][0] for word, count in counts.items()}
    return only(target, lambda f: any(told[word] == f.object for word in _words(f)))


def only(target: Target, wanted: Callable[[Fact], bool]) -> Target:
    """The target without the other forget facts, and without entities and relations left bare."""
    forget = tuple(f for f in target.forget if wanted(f))
    left, relations = {f.subject for f in forget}, {f.relation for f in forget}
    folds = {n: tuple(e for e in names if e in left) for n, names in target.folds.items()}
    keys = {f.key for f in forget}
    derived = tuple(f for f in target.derived if not keys.isdisjoint(f.premises))
    retain = {
        n: tuple(f for f in facts if f.relation in relations) for n, facts in target.retain.items()
    }
    return replace(target, forget=forget, folds=folds, derived=derived, retain=retain)


def unnamed(gold: Any) -> Any:
    """A copy of a gold of a wider target, as a model whose origin nothing says."""
    twin = copied(gold)
    twin.tokenizer.name_or_path = ""
    return twin


def _words(fact: Fact) -> list[tuple[str, int, str]]:
    """Each word of the name with its place, within the relation."""
    return [(fact.relation, i, word) for i, word in enumerate(fact.subject.split())]
