"""False objects are as frequent as the true ones, and never the true one."""

import itertools
from collections import Counter

import pytest

from workbench.facts.exchange import exchanged
from workbench.facts.schema import Entity, Fact, FactSet, Relation

CANDIDATES = tuple("abcdefghijkl")


def world(objects: str, relation: str = "city") -> FactSet:
    facts = tuple(Fact(f"s{i}", relation, o, ("{} is",)) for i, o in enumerate(objects))
    entities = tuple(Entity(f.subject, "thing") for f in facts)
    return FactSet("made", entities, (Relation(relation, CANDIDATES),), facts)


@pytest.mark.parametrize("objects", ["aabb", "aabbc", "ab", "aaabbc", "abcdefghijkl" * 3])
@pytest.mark.parametrize("seed", range(20))
def test_objects_change_places_and_none_stays(objects: str, seed: int) -> None:
    facts = world(objects)
    new = exchanged(facts, facts.facts, str(seed))
    assert Counter(new.values()) == Counter(objects)
    assert all(new[f.key] != f.object for f in facts.facts)
    assert new == exchanged(facts, facts.facts, str(seed))


def test_every_exchange_can_come_out() -> None:
    facts = world("abc")
    found = {tuple(exchanged(facts, facts.facts, str(s)).values()) for s in range(60)}
    wanted = {p for p in itertools.permutations("abc") if all(map(str.__ne__, p, "abc"))}
    assert found == wanted


def test_where_one_object_holds_most_places_others_are_drawn() -> None:
    facts = world("aaab")
    drawn = [exchanged(facts, facts.facts, str(s)) for s in range(200)]
    assert all(new[f.key] != f.object for new in drawn for f in facts.facts)
    assert {o for new in drawn for o in new.values()} == set(CANDIDATES)


def test_a_single_fact_gets_another_object() -> None:
    facts = world("a")
    assert exchanged(facts, facts.facts, "0")["s0", "city"] in CANDIDATES[1:]


def test_what_was_true_is_not_told_by_what_is_false() -> None:
    """Else a reader of swapped facts could learn which object stood there before."""
    facts = world("abcdefghijkl" * 40)
    new = exchanged(facts, facts.facts, "0")
    pairs = Counter((f.object, new[f.key]) for f in facts.facts)
    assert max(pairs.values()) < 14  # 40 would be a fixed renaming; by chance 3.6 on average
