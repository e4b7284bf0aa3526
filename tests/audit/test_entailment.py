"""Closure, supports and minimal deep-unlearning sets, against worked examples and brute force."""

import itertools
import random

import pytest

from workbench.audit import entailment
from workbench.audit.entailment import (
    Step,
    closed,
    deep_unlearning,
    minimal_sets,
    steps_of,
    supports,
)
from workbench.errors import AuditError
from workbench.facts import build_valley
from workbench.facts.schema import Entity, Fact, FactKey, FactSet, Relation, closure
from workbench.facts.valley import RULES, ValleyConfig


def key(name: str) -> FactKey:
    return name, "is"


def sets(*groups: str) -> set[frozenset[FactKey]]:
    return {frozenset(map(key, group)) for group in groups}


def step(premises: str, goal: str) -> Step:
    return frozenset(map(key, premises)), key(goal)


A, B, C, D, E = (key(n) for n in "ABCDE")
# C follows from A and B, or from D and E; A follows from D and F.
STEPS = (step("AB", "C"), step("DE", "C"), step("DF", "A"))
KNOWN = frozenset(map(key, "ABCDEFZ"))


def test_closure_by_hand() -> None:
    assert closed({D, key("F"), B}, STEPS) == {D, key("F"), B, A, C}
    assert closed({A, D}, STEPS) == {A, D}
    assert closed((), STEPS) == frozenset()


def test_supports_by_hand() -> None:
    assert set(supports(C, KNOWN, STEPS)) == sets("C", "AB", "DE", "BDF")
    assert set(supports(C, KNOWN - {C, A}, STEPS)) == sets("DE", "BDF")
    assert supports(C, {A}, STEPS) == ()


def test_minimal_sets_by_hand() -> None:
    """C itself; one of A, B; one of D, E; and without B and D also F, or A comes back."""
    wanted = sets("CBD", "CBE", "CAD", "CAEF")
    assert set(minimal_sets(C, KNOWN, STEPS)) == wanted
    assert set(minimal_sets(A, KNOWN, STEPS)) == sets("AD", "AF")
    assert minimal_sets(key("Z"), KNOWN, STEPS) == (frozenset({key("Z")}),)


def test_scores_by_hand() -> None:
    """A, C and Z are lost: two thirds of {C, A, D}; of the four others three are kept."""
    found = deep_unlearning(C, KNOWN, KNOWN - {A, C, key("Z")}, STEPS)
    assert (found.success, found.derivable) == (0, 1)
    assert found.recall == pytest.approx(2 / 3)
    assert found.acc == pytest.approx(3 / 4)
    gone = deep_unlearning(C, KNOWN, KNOWN - {C, B, D}, STEPS)
    assert gone == entailment.DeepUnlearning(1.0, 0.0, 1.0, 1.0)
    nothing = deep_unlearning(C, KNOWN, KNOWN, STEPS)
    assert nothing == entailment.DeepUnlearning(0.0, 1.0, 0.0, 1.0)
    everything = deep_unlearning(C, KNOWN, frozenset(), STEPS)
    assert everything == entailment.DeepUnlearning(1.0, 0.0, 1.0, 0.0)


def test_a_goal_that_was_never_told_is_answered_all_the_same() -> None:
    told = frozenset({A, B})
    assert set(minimal_sets(C, told, STEPS)) == sets("A", "B")
    assert deep_unlearning(C, told, {C}, STEPS) == entailment.DeepUnlearning(0.0, 0.0, 1.0, 0.0)
    assert deep_unlearning(C, told, {B}, STEPS) == entailment.DeepUnlearning(1.0, 0.0, 1.0, 1.0)


def test_what_does_not_follow_is_refused() -> None:
    with pytest.raises(AuditError, match="is not known, nor does it follow from the 1 known"):
        deep_unlearning(C, {A}, {A}, STEPS)


@pytest.mark.parametrize("seed", range(12))
def test_minimal_sets_are_those_of_brute_force(seed: int) -> None:
    rng = random.Random(seed)
    names = "abcdefgh"
    steps = tuple(
        step("".join(rng.sample(names[1:], rng.choice((1, 2, 2)))), rng.choice(names))
        for _ in range(9)
    )
    goal, known = key("a"), frozenset(map(key, names))
    enough = [
        frozenset(u)
        for n in range(len(known) + 1)
        for u in itertools.combinations(sorted(known), n)
        if goal not in closed(known - frozenset(u), steps)
    ]
    least = {u for u in enough if not any(other < u for other in enough)}
    assert set(minimal_sets(goal, known, steps)) == least


def test_too_many_ways_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entailment, "MAX_SUPPORTS", 3)
    with pytest.raises(AuditError, match="follows in more than 3 ways"):
        supports(C, KNOWN, STEPS)


def test_steps_of_the_world_reach_what_its_rules_do() -> None:
    facts = build_valley(ValleyConfig(people=30, substances=36, group_size=12))
    base = {f.key: f.object for f in facts.facts if not f.derived}
    steps = steps_of(facts)
    assert closed(base, steps) - set(base) == set(closure(base, RULES))
    assert len(steps) == len([f for f in facts.facts if f.derived])


def test_a_second_way_to_the_same_fact_is_found() -> None:
    """A works-in fact that rests on the employer follows from the partner's town as well."""
    t = ("{} x",)
    facts = FactSet(
        "towns",
        tuple(Entity(n, "x") for n in ("p", "q", "f", "g", "u", "v")),
        tuple(Relation(r, ("u", "v")) for r in ("firm", "seat", "mate", "town", "place")),
        (
            Fact("p", "firm", "f", t),
            Fact("f", "seat", "u", t),
            Fact("p", "mate", "q", t),
            Fact("q", "town", "u", t),
            Fact("p", "place", "u", t, premises=(("p", "firm"), ("f", "seat"))),
            Fact("g", "mate", "q", t),
            Fact("g", "place", "u", t, premises=(("g", "mate"), ("q", "town"))),
        ),
    )
    found = minimal_sets(("p", "place"), {f.key for f in facts.facts}, steps_of(facts))
    assert len(found) == 4
    assert all(("p", "place") in u and len(u) == 3 for u in found)
