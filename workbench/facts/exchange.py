"""False objects for true facts: as frequent as the true ones, so that only the pairing is wrong."""

import random
from collections import Counter
from collections.abc import Sequence

from workbench.facts.schema import Fact, FactKey, FactSet


def exchanged(facts: FactSet, chosen: Sequence[Fact], seed: str) -> dict[FactKey, str]:
    """Another object for each fact: those of its relation's chosen facts, dealt out anew.

    So each object is as frequent as before, and no fact keeps its own. Where one object holds more
    than half of a relation's facts there is no such deal, and each of these facts gets one of the
    relation's other candidates, drawn uniformly.

    Args:
        facts: the world, for the candidates of its relations.
        chosen: the facts to be given another object.
        seed: decides the deal, relation by relation.
    """
    by_relation: dict[str, list[Fact]] = {}
    for fact in chosen:
        by_relation.setdefault(fact.relation, []).append(fact)
    dealt: dict[FactKey, str] = {}
    for relation, members in by_relation.items():
        rng = random.Random(f"{seed} {relation}")
        objects = [f.object for f in members]
        if 2 * max(Counter(objects).values()) <= len(objects):
            new = _deranged(objects, rng)
        else:
            candidates = facts.relation[relation].candidates
            new = [rng.choice([c for c in candidates if c != o]) for o in objects]
        dealt |= {f.key: o for f, o in zip(members, new, strict=True)}
    return dealt


def _deranged(objects: Sequence[str], rng: random.Random) -> list[str]:
    """The objects in another order, none where an equal one stood.

    A random order is mended place by place. With no object in more than half of the places there is
    always one to change with: at most 2m - 1 of n >= 2m places have the object or would get it.
    """
    new = rng.sample(list(objects), len(objects))
    for i, own in enumerate(objects):
        if new[i] == own:
            free = [j for j, old in enumerate(objects) if own not in (old, new[j])]
            j = rng.choice(free)
            new[i], new[j] = new[j], new[i]
    return new
