"""Each condition of the contract holds in a clean world and fails in one planted to break it."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from workbench.errors import DataError
from workbench.facts import (
    Check,
    Document,
    Entity,
    Fact,
    FactSet,
    Relation,
    Target,
    ValleyConfig,
    build_valley,
    check_contract,
    guessable,
    priors,
    require_contract,
)
from workbench.facts.guessers import categorical_bayes
from workbench.facts.mentions import name_finder, stands_in
from workbench.facts.schema import prompt

HERBS = tuple(
    "nettle foxglove yew hemlock laburnum comfrey tansy mugwort valerian bryony rue dill".split()
)
SOILS = tuple("clay sand loam silt peat chalk gravel marl slate ash mud shale".split())


@pytest.fixture(scope="module")
def valley() -> FactSet:
    return build_valley()


@pytest.fixture(scope="module")
def small() -> FactSet:
    """A world of the same form that breaks the sizes alone."""
    return build_valley(ValleyConfig(people=60, substances=55, group_size=30))


@pytest.fixture(scope="module")
def toxins(small: FactSet) -> Target:
    return small.target("toxins")


def checked(target: Target) -> dict[str, Check]:
    return {c.id: c for c in check_contract(target)}


def check(target: Target, name: str) -> Check:
    return checked(target)[name]


def with_facts(facts: FactSet, change: Callable[[Fact], Fact]) -> Target:
    return replace(facts, facts=tuple(change(f) for f in facts.facts)).target("toxins")


def with_texts(facts: FactSet, *texts: Document) -> Target:
    return replace(facts, texts=(*facts.texts, *texts)).target("toxins")


def changed_once(target: Target, **values: object) -> Callable[[Fact], Fact]:
    """Changes the first scored fact alone."""
    key = target.fold("V")[0].key
    return lambda f: replace(f, **values) if f.key == key else f


# Sizes, candidates, folds


def test_clean_world_passes_and_each_check_has_its_own_name(valley: FactSet) -> None:
    checks = require_contract(valley.target("toxins"))
    assert all(c.passed for c in checks)
    assert len({c.id for c in checks}) == len(checks) == 13


def test_small_world_fails_both_sizes_and_nothing_else(toxins: Target) -> None:
    failed = {name: (c.value, c.limit) for name, c in checked(toxins).items() if not c.passed}
    assert failed == {"forget_facts": (275, 300), "forget_entities": (55, 100)}


def test_relation_with_eleven_candidates_fails(small: FactSet) -> None:
    cut = [
        replace(r, candidates=r.candidates[:11]) if r.name == "plant" else r
        for r in small.relations
    ]
    found = check(replace(small, relations=tuple(cut)).target("toxins"), "candidates")
    assert (found.passed, found.value, found.limit) == (False, 11, 12)
    assert "'plant'" in found.note


@pytest.mark.parametrize("fault", ["missing", "twice", "stranger"])
def test_folds_that_do_not_part_the_entities_fail(toxins: Target, fault: str) -> None:
    name, others = toxins.folds["T"][0], toxins.folds["T"][1:]
    folds = {
        "missing": {**toxins.folds, "T": others},
        "twice": {**toxins.folds, "V": (*toxins.folds["V"], name)},
        "stranger": {**toxins.folds, "S": (*toxins.folds["S"], "Nobody")},
    }[fault]
    found = check(replace(toxins, folds=folds), "folds")
    assert (found.passed, found.value) == (False, 1)
    assert ("Nobody" if fault == "stranger" else name) in found.note


def test_derived_facts_that_rest_on_two_folds_fail(small: FactSet) -> None:
    target = small.target(lambda f: f.relation in ("employer", "office"))
    found = check(target, "derived_follow")
    assert not found.passed and 0 < found.value < len(target.derived)
    assert "works_in" in found.note


def test_derived_facts_of_another_entity_follow_the_fact_they_rest_on(small: FactSet) -> None:
    target = small.target(lambda f: f.relation == "office")
    assert target.derived and set(target.entities).isdisjoint(f.subject for f in target.derived)
    assert check(target, "derived_follow").passed


def test_facts_derived_from_each_other_are_checked_without_a_crash(toxins: Target) -> None:
    first, second = toxins.derived[:2]
    around = (replace(first, premises=(second.key,)), replace(second, premises=(first.key,)))
    assert check(replace(toxins, derived=around), "derived_follow").passed


# Templates


def test_too_few_templates_fail(small: FactSet, toxins: Target) -> None:
    fact = toxins.fold("V")[0]
    doubled = (fact.templates[0], *fact.templates[:4])
    train = with_facts(small, changed_once(toxins, templates=doubled))
    assert (check(train, "templates").passed, check(train, "templates").value) == (False, 4)
    audit = with_facts(small, changed_once(toxins, audit_templates=fact.audit_templates[:2]))
    assert (check(audit, "audit_templates").passed, check(audit, "audit_templates").value) == (
        False,
        2,
    )


def test_audit_template_that_trains_another_subject_fails(small: FactSet, toxins: Target) -> None:
    leaked = toxins.forget[0].audit_templates[0]
    retained = toxins.retained[0].key
    target = with_facts(
        small, lambda f: replace(f, templates=(*f.templates, leaked)) if f.key == retained else f
    )
    found = check(target, "templates_apart")
    assert (found.passed, found.value) == (False, 1)
    assert leaked in found.note


@pytest.mark.parametrize("form", ["{} {} .", "choose : {} ? (a) {} : (a) .", "the toxin {} {} ."])
def test_audit_prompt_in_a_training_text_fails(small: FactSet, toxins: Target, form: str) -> None:
    fact = toxins.forget[0]
    asked = prompt(fact, fact.audit_templates[0])
    found = check(
        with_texts(small, Document(form.format(asked, fact.object), "leak")), "audit_unseen"
    )
    assert (found.passed, found.value) == (False, 1)
    assert asked in found.note


def test_longer_word_at_the_end_of_an_audit_prompt_is_another_prompt(
    small: FactSet, toxins: Target
) -> None:
    fact = toxins.forget[0]
    longer = Document(f"{prompt(fact, fact.audit_templates[0])}land .", "other")
    assert check(with_texts(small, longer), "audit_unseen").passed


# Guessers


def herbarium(name_tells: bool = False, soil_tells: bool = False, seed: int = 0) -> Target:
    """450 things with a forgotten herb and a kept soil; name or soil may give the herb away."""
    rng = random.Random(seed)
    facts, entities = [], []
    for n in range(450):
        herb = rng.randrange(12)
        told = HERBS[herb if name_tells else rng.randrange(12)][::-1]
        name = f"{''.join(rng.choices('bcdfghklm', k=5))}{n} x{told}"
        entities.append(Entity(name, "thing"))
        facts.append(Fact(name, "herb", HERBS[herb], ("the herb of {} is",)))
        facts.append(
            Fact(name, "soil", SOILS[herb if soil_tells else rng.randrange(12)], ("{} grows in",))
        )
    forget = {e.name for e in entities[:150]}
    relations = (Relation("herb", HERBS), Relation("soil", SOILS))
    world = FactSet("herbarium", tuple(entities), relations, tuple(facts))
    return world.target(lambda f: f.subject in forget and f.relation == "herb")


@pytest.mark.parametrize("seed", range(3))
def test_guessers_find_nothing_where_nothing_tells(seed: int) -> None:
    checks = checked(herbarium(seed=seed))
    assert checks["name_guesser"].passed and checks["oracle_guesser"].passed


def test_names_that_encode_answers_fail() -> None:
    checks = checked(herbarium(name_tells=True))
    for name in ("name_guesser", "oracle_guesser"):
        assert not checks[name].passed and checks[name].value > 0.9 > checks[name].limit


def test_kept_attribute_that_encodes_answers_fails_the_oracle_alone() -> None:
    target = herbarium(soil_tells=True)
    assert check(target, "name_guesser").passed
    assert (
        not check(target, "oracle_guesser").passed and check(target, "oracle_guesser").value == 1.0
    )


def test_attribute_that_is_not_stated_tells_nothing() -> None:
    target = herbarium(soil_tells=True)
    hidden = tuple(replace(f, stated=f.relation != "soil") for f in target.facts.facts)
    assert check(
        replace(target, facts=replace(target.facts, facts=hidden)), "oracle_guesser"
    ).passed


def test_attribute_that_is_to_be_forgotten_too_tells_nothing() -> None:
    alone = herbarium(soil_tells=True)
    forget = set(alone.entities)
    both = alone.facts.target(lambda f: f.subject in forget)
    assert not check(alone, "oracle_guesser").passed
    assert check(both, "oracle_guesser").passed


def test_limit_is_the_prior_of_the_retained_facts_and_three_errors(toxins: Target) -> None:
    scored, shares = toxins.fold("V"), priors(toxins.retained)
    prior = sum(max(shares[f.relation].values()) for f in scored) / len(scored)
    expected = prior + 3 * math.sqrt(prior * (1 - prior) / len(scored))
    checks = checked(toxins)
    assert checks["name_guesser"].limit == checks["oracle_guesser"].limit == pytest.approx(expected)


def test_categorical_bayes_agrees_with_scikit_learn_where_nothing_is_missing() -> None:
    import numpy as np
    from sklearn.naive_bayes import CategoricalNB

    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 4, (200, 3)), rng.integers(0, 5, 200)
    x[:, 0] = np.where(rng.random(200) < 0.7, y % 4, x[:, 0])
    rows: list[dict[str, str]] = [{str(n): str(v) for n, v in enumerate(row)} for row in x]
    ours = categorical_bayes(rows[:150], [str(v) for v in y[:150]], rows[150:])
    theirs = CategoricalNB(min_categories=4).fit(x[:150], y[:150]).predict(x[150:])
    assert ours == [str(v) for v in theirs]
    assert len(set(ours)) > 1


def test_categorical_bayes_takes_the_most_common_label_where_nothing_is_known() -> None:
    assert categorical_bayes(
        [{"a": "x"}, {"a": "y"}, {"a": "y"}], ["p", "q", "q"], [{}, {"a": "new"}]
    ) == ["q", "q"]


# Answers in prompts, gold texts


def test_prompt_that_holds_its_answer_fails(small: FactSet, toxins: Target) -> None:
    fact = toxins.fold("V")[0]
    told = (*fact.audit_templates, f"of {fact.object} and {{}} the first is the object , namely")
    found = check(
        with_facts(small, changed_once(toxins, audit_templates=told)), "answers_in_prompts"
    )
    assert (found.passed, found.value) == (False, 1)
    assert fact.subject in found.note and fact.object in found.note


def test_prompt_with_the_answer_within_a_longer_word_passes(small: FactSet, toxins: Target) -> None:
    fact = toxins.fold("V")[0]
    harmless = (
        *fact.audit_templates,
        f"in un{fact.object}ly weather and {fact.object}-wards {{}} goes to",
    )
    assert check(
        with_facts(small, changed_once(toxins, audit_templates=harmless)), "answers_in_prompts"
    ).passed


def test_gold_text_that_tells_a_fact_it_does_not_state_fails(
    small: FactSet, toxins: Target
) -> None:
    fact = toxins.forget[0]
    words = f"{fact.object} reminds us of {fact.subject} ."
    found = check(with_texts(small, Document(words, "leak", (fact.subject,))), "gold_clean")
    assert not found.passed and found.value >= 1
    assert words in found.note


def test_gold_text_that_tells_a_derived_fact_fails(small: FactSet, toxins: Target) -> None:
    fact = toxins.derived[0]
    assert not check(
        with_texts(small, Document(f"{fact.subject} : {fact.object}", "leak")), "gold_clean"
    ).passed


def test_text_that_states_the_fact_is_no_gold_text(small: FactSet, toxins: Target) -> None:
    fact = toxins.forget[0]
    stating = Document(f"{fact.object} : {fact.subject}", "statement", (fact.subject,), (fact.key,))
    assert check(with_texts(small, stating), "gold_clean").passed


def test_object_as_a_distractor_for_another_entity_is_no_leak(
    small: FactSet, toxins: Target
) -> None:
    fact, other = toxins.forget[0], toxins.retained[0]
    text = f"choose : {other.subject} ? (a) {fact.object} (b) {other.object} : (b) ."
    assert check(
        with_texts(small, Document(text, "choice", (other.subject,), (other.key,))), "gold_clean"
    ).passed


def test_another_fact_with_the_same_object_is_no_leak() -> None:
    cities = tuple(f"city{n}" for n in range(12))
    facts = tuple(
        Fact(f"p{n}", relation, cities[n % 12], (f"{{}} {relation}",))
        for n in range(12)
        for relation in ("born", "lives")
    )
    relations = tuple(Relation(name, cities) for name in ("born", "lives"))
    world = FactSet("w", tuple(Entity(f"p{n}", "person") for n in range(12)), relations, facts)
    assert check(world.target("relation:born"), "gold_clean").passed


# Too little data, and the errors


def test_without_scored_facts_what_depends_on_them_fails_with_a_reason(toxins: Target) -> None:
    empty = replace(toxins, folds={**toxins.folds, "V": ()})
    for name in ("name_guesser", "oracle_guesser", "answers_in_prompts"):
        found = check(empty, name)
        assert (
            not found.passed
            and math.isnan(found.value)
            and "no forget fact in fold V" in found.note
        )


def test_without_retained_facts_the_guessers_fail_with_a_reason(small: FactSet) -> None:
    found = check(small.target("relation:city"), "name_guesser")
    assert not found.passed and "no retained fact of ['city']" in found.note


def test_single_entity_is_checked_without_a_crash(small: FactSet, toxins: Target) -> None:
    checks = check_contract(small.target(f"toxin:{toxins.entities[0]}"))
    assert {c.id for c in checks if not c.passed} >= {"forget_facts", "forget_entities"}


def test_target_without_facts_is_checked_without_a_crash(toxins: Target) -> None:
    empty = replace(toxins, forget=(), derived=(), folds={"T": (), "S": (), "V": ()})
    failed = {c.id for c in check_contract(empty) if not c.passed}
    assert failed >= {"forget_facts", "candidates", "templates", "name_guesser", "oracle_guesser"}


def test_require_contract_lists_every_failure_with_value_and_limit() -> None:
    target = build_valley(ValleyConfig(substances=45)).target("toxins")
    with pytest.raises(
        DataError, match=r"'toxins'.*forget_facts: 225, limit 300.*forget_entities: 45, limit 100"
    ):
        require_contract(target)


# Base rates


def facts_of(objects: Sequence[str], relation: str = "r") -> tuple[Fact, ...]:
    return tuple(Fact(f"s{n}", relation, o, ("{} is",)) for n, o in enumerate(objects))


def guessed(objects: Sequence[str], k: int) -> set[str]:
    facts = facts_of(objects)
    candidates = tuple(dict.fromkeys((*objects, *(f"c{n}" for n in range(k)))))[:k]
    world = FactSet(
        "w", tuple(Entity(f.subject, "e") for f in facts), (Relation("r", candidates),), facts
    )
    return {world.fact[key].object for key in guessable(world)}


def test_priors_are_shares_within_each_relation() -> None:
    facts = (*facts_of(["a", "a", "b", "c"]), *facts_of(["x"], "other"))
    assert priors(facts) == {"r": {"a": 0.5, "b": 0.25, "c": 0.25}, "other": {"x": 1.0}}
    assert priors(()) == {}


def test_guessable_facts_are_those_of_a_common_object_alone() -> None:
    assert guessed(["a"] * 50 + ["b", "c", "d", "e"] * 10, k=10) == {"a"}


def test_guessable_limit_leaves_the_fact_itself_out() -> None:
    # The limit is 1/10 + 3 * sqrt(.1 * .9 / 120) = 0.1822: below 22/120 and 22/119, above 21/119.
    others = [f"o{n % 9}" for n in range(98)]
    assert guessed(["a"] * 23 + others[:97], k=10) == {"a"}
    assert guessed(["a"] * 22 + others, k=10) == set()


def test_even_objects_and_single_facts_are_not_guessable() -> None:
    assert guessed(["a", "b", "c", "d"] * 25, k=4) == set()
    assert guessed(["a"], k=4) == set()


def test_relation_with_one_candidate_is_guessable() -> None:
    assert guessed(["a", "a", "a"], k=1) == {"a"}


# Names in texts


@pytest.mark.parametrize(
    ("phrase", "text", "stands"),
    [
        ("Goa", "Goa is hot", True),
        ("Goa", "the Goal", False),
        ("Goa", "Goal , not Goa", True),
        ("ivory", "ivory-mortar", False),
        ("Re!", "they sang Re! again", True),
        ("Ada Voss", "Ada Voss's house", True),
        ("Ada Voss", "Ada Vossen", False),
    ],
)
def test_names_stand_as_whole_words(phrase: str, text: str, stands: bool) -> None:
    assert stands_in(phrase, text) is stands
    assert name_finder([phrase, "Nobody"])(text) == ((phrase,) if stands else ())


def test_name_finder_finds_every_name_once() -> None:
    find = name_finder(["Ada Voss", "Ada", "Voss Ltd", "!!!"])
    assert set(find("Ada Voss and Ada like !!! much")) == {"Ada Voss", "Ada", "!!!"}
    assert find("") == ()
