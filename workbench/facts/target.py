"""What is to be forgotten, and every set of facts that an honest audit compares it with."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from workbench.errors import TargetError
from workbench.facts.schema import Document, Fact, FactKey, FactSet

MIN_CANDIDATES = 10
"""Relations with fewer objects are never scored as forgotten: chance is too near knowledge."""

FORGET_FOLDS = (("T", 1 / 2), ("S", 1 / 6), ("V", 1 / 3))
RETAIN_FOLDS = (("R_tr", 0.6), ("R_va", 0.2), ("R_te", 0.2))


@dataclass(frozen=True)
class Target:
    """What is to be forgotten and what it is measured against; all folds are by entity.

    Attributes:
        forget: the facts to be forgotten, all stated.
        folds: entity names of T (attacks may train on them), S (selection) and V (scored).
        retain: facts of the same relations about other entities, in folds R_tr, R_va, R_te.
        neighbours: N1 same entity, other relation; N2 same relation, other entity; N3 same object,
            other relation; N4 other facts of the same type of entity; N5 chain neighbours
            (premises); U unrelated. The sets may overlap; none holds a forget fact.
        fresh: Z, facts about forget entities that no training text states; `holdout`: H, further
            ones.
        derived: D, facts that follow from forget facts.
    """

    name: str
    type: str
    facts: FactSet
    forget: tuple[Fact, ...]
    folds: dict[str, tuple[str, ...]]
    retain: dict[str, tuple[Fact, ...]]
    neighbours: dict[str, tuple[Fact, ...]]
    fresh: tuple[Fact, ...]
    holdout: tuple[Fact, ...]
    derived: tuple[Fact, ...]
    seed: int

    @cached_property
    def forget_keys(self) -> frozenset[FactKey]:
        """Forget facts and all that follows from them: what no text of a gold model may state."""
        return frozenset(f.key for f in (*self.forget, *self.derived))

    @cached_property
    def entities(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(f.subject for f in self.forget))

    @cached_property
    def retained(self) -> tuple[Fact, ...]:
        """All three retained folds."""
        return tuple(f for fold in self.retain.values() for f in fold)

    def fold(self, name: str) -> tuple[Fact, ...]:
        """The forget facts of fold T, S or V."""
        members = frozenset(self.folds[name])
        return tuple(f for f in self.forget if f.subject in members)

    def states_target(self, document: Document) -> bool:
        """Whether a text gives away a forget fact or one derived from it."""
        return not self.forget_keys.isdisjoint(document.states)


def make_target(facts: FactSet, name: str | Callable[[Fact], bool], seed: int = 0) -> Target:
    """Builds the target that a name or a predicate selects.

    Where only facts that follow from others are selected, these are the target as far as texts
    state them, and what they follow from stays.

    Args:
        name: a group of the fact set (`toxins`, `guild`), one entity as `kind:name` (`person:Ada
            Voss`), a relation as `relation:P103` or a seeded share of its subjects as
            `relation:P103@0.6`, or a predicate over facts.
        seed: decides the folds and nothing else but a relation's share.

    Raises:
        TargetError: nothing of that name, or no stated fact with enough candidates is selected.
    """
    label, chosen = _select(facts, name, seed)
    told = [
        f
        for f in facts.facts
        if f.key in chosen
        and f.stated
        and len(facts.relation[f.relation].candidates) >= MIN_CANDIDATES
    ]
    # What follows from what is forgotten goes with it; alone, its sentences can be a target too.
    forget = tuple([f for f in told if not f.derived] or told)
    if not forget:
        raise TargetError(
            f"{label!r} selects no stated fact with {MIN_CANDIDATES} or more candidates"
        )
    entities = tuple(dict.fromkeys(f.subject for f in forget))
    forget_keys = {f.key for f in forget}
    derived = _descendants(facts, forget_keys)
    excluded = forget_keys | {f.key for f in derived}
    rest = tuple(f for f in facts.facts if f.stated and f.key not in excluded)
    never = [
        f for f in facts.facts if not f.stated and not f.derived and f.subject in set(entities)
    ]
    random.Random(seed).shuffle(never)
    return Target(
        name=label,
        type="observed",
        facts=facts,
        forget=forget,
        folds=_split(entities, FORGET_FOLDS, seed),
        retain=_retain_folds(facts, forget, entities, rest, seed),
        neighbours=_neighbours(forget, derived, rest),
        fresh=tuple(never[: len(never) // 2]),
        holdout=tuple(never[len(never) // 2 :]),
        derived=derived,
        seed=seed,
    )


def _select(
    facts: FactSet, name: str | Callable[[Fact], bool], seed: int
) -> tuple[str, set[FactKey]]:
    if callable(name):
        return getattr(name, "__name__", "predicate"), {f.key for f in facts.facts if name(f)}
    groups = {g.name: g for g in facts.groups}
    if name in groups:
        members, defining = set(groups[name].members), groups[name].defined_by
        return name, {f.key for f in facts.facts if f.subject in members and f.relation != defining}
    kind, _, rest = name.partition(":")
    if kind == "relation" and rest:
        return name, _select_relation(facts, rest, seed)
    if rest in facts.entity and facts.entity[rest].kind == kind:
        return name, {f.key for f in facts.by_subject.get(rest, ())}
    kinds = sorted({e.kind for e in facts.entities})
    raise TargetError(
        f"no target {name!r} in {facts.name!r}; wanted one of the groups {sorted(groups)}, "
        f"'<kind>:<name>' with a kind of {kinds}, 'relation:<name>', or a predicate over facts"
    )


def _select_relation(facts: FactSet, spec: str, seed: int) -> set[FactKey]:
    relation, _, share = spec.partition("@")
    if relation not in facts.relation:
        raise TargetError(
            f"no relation {relation!r} in {facts.name!r}; it has {sorted(facts.relation)}"
        )
    try:
        fraction = float(share) if share else 1.0
    except ValueError:
        fraction = -1.0
    if not 0 < fraction <= 1:
        raise TargetError(
            f"share {share!r} of relation {relation!r}: wanted a number above 0 and at most 1"
        )
    keys = [f.key for f in facts.facts if f.relation == relation]
    random.Random(seed).shuffle(keys)
    return set(keys[: round(fraction * len(keys))])


def _split(
    entities: tuple[str, ...], shares: tuple[tuple[str, float], ...], seed: int
) -> dict[str, tuple[str, ...]]:
    """Seeded split by entity; the last fold takes the remainder.

    So a single entity is scored and never trained on.
    """
    order = sorted(entities)
    random.Random(seed).shuffle(order)
    folds, start = {}, 0
    for name, share in shares[:-1]:
        stop = start + int(share * len(order))
        folds[name], start = tuple(order[start:stop]), stop
    return {**folds, shares[-1][0]: tuple(order[start:])}


def _descendants(facts: FactSet, keys: set[FactKey]) -> tuple[Fact, ...]:
    found = set(keys)
    while True:
        new = {
            f.key for f in facts.facts if f.key not in found and not found.isdisjoint(f.premises)
        }
        if not new:
            return tuple(f for f in facts.facts if f.key in found - keys)
        found |= new


def _retain_folds(
    facts: FactSet,
    forget: tuple[Fact, ...],
    entities: tuple[str, ...],
    rest: tuple[Fact, ...],
    seed: int,
) -> dict[str, tuple[Fact, ...]]:
    relations, forgotten = {f.relation for f in forget}, set(entities)
    kinds = {f.derived for f in forget}
    same = [
        f
        for f in rest
        if f.relation in relations and f.subject not in forgotten and f.derived in kinds
    ]
    subjects = tuple(dict.fromkeys(f.subject for f in same))
    folds = _split(subjects, RETAIN_FOLDS, seed)
    return {
        name: tuple(f for f in same if f.subject in set(members)) for name, members in folds.items()
    }


def _neighbours(
    forget: tuple[Fact, ...], derived: tuple[Fact, ...], rest: tuple[Fact, ...]
) -> dict[str, tuple[Fact, ...]]:
    subjects, relations = {f.subject for f in forget}, {f.relation for f in forget}
    objects = {f.object for f in forget}
    premises = {key for f in (*forget, *derived) for key in f.premises}
    others = [f for f in rest if f.subject not in subjects]
    alike = {f.subject for f in others if f.relation in relations}
    sets = {
        "N1": [f for f in rest if f.subject in subjects],
        "N2": [f for f in others if f.relation in relations],
        "N3": [f for f in others if f.object in objects and f.relation not in relations],
        "N4": [f for f in others if f.subject in alike and f.relation not in relations],
        "N5": [f for f in others if f.key in premises],
    }
    near = {f.key for members in sets.values() for f in members}
    sets["U"] = [f for f in others if f.key not in near]
    return {name: tuple(members) for name, members in sets.items()}
