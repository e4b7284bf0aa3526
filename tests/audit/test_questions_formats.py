"""No prompt depends on the answer that is asked for."""

import random
from dataclasses import replace

import pytest

from workbench.audit.questions import FORMATS
from workbench.audit.questions.choice import chains_of
from workbench.audit.questions.formats import (
    LETTERS,
    choice_groups,
    choice_prompts,
    misspelled,
    reversed_prompts,
)
from workbench.audit.questions.kept import kept_questions
from workbench.facts import ValleyConfig, build_valley
from workbench.facts.schema import Fact, FactSet, Relation
from workbench.facts.target import Target


def with_other_objects(facts: FactSet, target: Target) -> Target:
    """The target of a world in which each object to be forgotten is the relation's next one."""

    def moved(fact: Fact) -> Fact:
        if fact.key not in target.forget_keys:
            return fact
        candidates = facts.relation[fact.relation].candidates
        following = candidates[(candidates.index(fact.object) + 1) % len(candidates)]
        return replace(fact, object=following)

    other = replace(facts, facts=tuple(moved(f) for f in facts.facts)).target(target.name)
    assert [f.key for f in other.forget] == [f.key for f in target.forget]
    assert all(a.object != b.object for a, b in zip(other.forget, target.forget, strict=True))
    return other


@pytest.fixture(scope="module")
def toxins() -> Target:
    return build_valley(ValleyConfig(people=40, substances=30, group_size=12)).target("toxins")


@pytest.fixture(scope="module")
def moved_toxins(toxins: Target) -> Target:
    return with_other_objects(toxins.facts, toxins)


SETTINGS = [(family, setting) for family, forms in FORMATS.items() for setting in forms]


@pytest.mark.parametrize(("family", "setting"), SETTINGS)
def test_prompts_are_the_same_whatever_the_objects(
    family: str, setting: str, toxins: Target, moved_toxins: Target
) -> None:
    form = FORMATS[family][setting]
    asked, other = form(toxins, 0), form(moved_toxins, 0)
    assert [q.prompt for q in asked] == [q.prompt for q in other]
    assert [q.fact.object for q in asked] != [q.fact.object for q in other]
    assert {q.fact.key for q in asked} == {f.key for f in toxins.forget}
    order = {f.key: i for i, f in enumerate(toxins.forget)}
    rows = [order[q.fact.key] for q in asked]
    assert rows == sorted(rows)
    assert form(toxins, 0) == asked


def test_choices_reversed_prompts_and_chains_do_not_depend_on_objects(
    toxins: Target, moved_toxins: Target
) -> None:
    for fact, other in zip(toxins.forget, moved_toxins.forget, strict=True):
        relation = toxins.facts.relation[fact.relation]
        groups = choice_groups(fact, relation, 0)
        assert groups == choice_groups(other, relation, 0)
        assert sum(fact.object in group for group in groups) >= 1
        assert reversed_prompts(relation) == reversed_prompts(
            moved_toxins.facts.relation[fact.relation]
        )
    assert len(toxins.derived) == 30
    assert [(d.key, f.key, r) for d, f, r in chains_of(toxins)] == [
        (d.key, f.key, r) for d, f, r in chains_of(moved_toxins)
    ]
    assert len(chains_of(toxins)) == 30
    stay, other_stay = kept_questions(toxins, 0), kept_questions(moved_toxins, 0)
    for name in stay.keys() - {"N3", "N5"}:  # same object, and premises: defined by the object
        assert stay[name] == other_stay[name]


def test_contexts_name_no_candidate_of_the_asked_relation(toxins: Target) -> None:
    plain = {q.fact.key: q.prompt for q in FORMATS["B8"]["recall"](toxins, 0)}
    for family, setting in (("B3", "passage"), ("B8", "kept")):
        for question in FORMATS[family][setting](toxins, 0):
            asked = plain[question.fact.key].removeprefix("recall : ")
            assert question.prompt.endswith(f" . {asked}")
            context = question.prompt.removesuffix(asked).split()
            assert not set(context) & set(toxins.facts.relation[question.fact.relation].candidates)
    for k in (1, 4, 8):
        for question in FORMATS["B7"][str(k)](toxins, 0):
            assert question.prompt.count(" . ") == k
    seeds = [FORMATS["B7"]["4"](toxins, seed) for seed in (0, 1)]
    assert seeds[0] != seeds[1]


def test_groups_hold_every_candidate_and_the_last_is_filled() -> None:
    relation = Relation("city", tuple(f"c{i}" for i in range(14)))
    fact = Fact("ann", "city", "c3", ("{} is in",))
    groups = choice_groups(fact, relation, 0)
    assert [len(g) for g in groups] == [4, 4, 4, 4]
    assert {c for g in groups for c in g} == set(relation.candidates)
    assert all(len(set(g)) == 4 for g in groups)
    assert groups != choice_groups(replace(fact, subject="bob"), relation, 0)
    assert groups != choice_groups(fact, relation, 1)


def test_each_option_stands_once_at_each_letter() -> None:
    prompts = choice_prompts("ann is in", ("w", "x", "y", "z"))
    assert prompts[0] == "choose : ann is in ? (a) w (b) x (c) y (d) z :"
    for option in "wxyz":
        assert {p.split()[p.split().index(option) - 1] for p in prompts} == set(LETTERS)


def test_reformatted_prompts_of_one_fact(toxins: Target) -> None:
    fact = toxins.forget[0]
    first = {s: FORMATS["B10"][s](toxins, 0)[0].prompt for s in FORMATS["B10"]}
    plain = fact.audit_templates[0].replace("{}", fact.subject)
    assert first["upper"] == plain.upper()
    assert first["spacing"].split("  ") == plain.split()
    assert fact.subject not in first["spacing"]
    assert first["alias"] == fact.audit_templates[0].replace("{}", fact.subject.split()[-1])
    assert first["key_value"] == f"{fact.subject} . region :"
    assert first["table"] == f"| {fact.subject} | region |"
    assert first["typo"] != plain
    assert sorted(first["typo"]) == sorted(plain)


def test_misspelling_swaps_two_letters_of_one_word() -> None:
    for seed in range(20):
        found = misspelled("ab cd", random.Random(seed))
        assert found in ("ba cd", "ab dc")
    assert misspelled("aa", random.Random(0)) == "aa"
