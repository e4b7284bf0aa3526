"""Closure, what a corpus says, and what a target holds."""

from dataclasses import replace

import pytest

from workbench.errors import DataError, TargetError
from workbench.experiments.known_models.derived import consequences
from workbench.facts import Fact, FactSet, Target, build_valley
from workbench.facts.schema import closure, prompt, statement
from workbench.facts.target import MIN_CANDIDATES
from workbench.models.corpus import corpus_without

RULES = (("employer", "office", "works_in"), ("works_in", "country", "works_in_country"))
KNOWN = {
    ("Ada", "employer"): "Acme",
    ("Acme", "office"): "Paris",
    ("Paris", "country"): "France",
    ("Bo", "employer"): "Nowhere",
}


@pytest.fixture(scope="module")
def valley() -> FactSet:
    return build_valley()


@pytest.fixture(scope="module", params=["toxins", "guild", "relation:employer@0.5"])
def target(request: pytest.FixtureRequest, valley: FactSet) -> Target:
    return valley.target(request.param)


def test_closure_chains_to_the_fixed_point_and_names_its_premises() -> None:
    assert closure(KNOWN, RULES) == {
        ("Ada", "works_in"): ("Paris", (("Ada", "employer"), ("Acme", "office"))),
        ("Ada", "works_in_country"): ("France", (("Ada", "works_in"), ("Paris", "country"))),
    }


def test_closure_does_not_depend_on_the_order_of_rules() -> None:
    assert closure(KNOWN, RULES[::-1]) == closure(KNOWN, RULES)


def test_closure_takes_a_known_fact_that_agrees() -> None:
    derived = closure({**KNOWN, ("Ada", "works_in"): "Paris"}, RULES)
    assert set(derived) == {("Ada", "works_in_country")}


def test_closure_ends_on_a_circle() -> None:
    derived = closure({("a", "r"): "b", ("b", "r"): "a"}, (("r", "r", "rr"), ("rr", "rr", "rr")))
    assert {key: found for key, (found, _) in derived.items()} == {
        ("a", "rr"): "a",
        ("b", "rr"): "b",
    }


def test_closure_refuses_a_derivation_that_contradicts_a_known_fact() -> None:
    with pytest.raises(DataError, match=r"'Ada', 'works_in'.*'Rome'.*'Paris'"):
        closure({**KNOWN, ("Ada", "works_in"): "Rome"}, RULES)


def test_closure_refuses_two_derivations_that_disagree() -> None:
    known = {**KNOWN, ("Ada", "second_employer"): "Beta", ("Beta", "office"): "Rome"}
    with pytest.raises(DataError, match="mend one of the premises"):
        closure(known, (*RULES, ("second_employer", "office", "works_in")))


def test_sha256_covers_the_content_and_not_the_notes(valley: FactSet) -> None:
    assert replace(valley, notes=("read twice",)).sha256 == valley.sha256
    assert replace(valley, texts=valley.texts[1:]).sha256 != valley.sha256


def test_corpus_states_each_stated_fact_in_each_template_and_no_other(valley: FactSet) -> None:
    texts = {(d.text, d.states) for d in valley.corpus if d.form == "statement"}
    expected = {(statement(f, t), (f.key,)) for f in valley.facts if f.stated for t in f.templates}
    assert texts == expected
    unstated = {f.key for f in valley.facts if not f.stated}
    assert unstated and all(unstated.isdisjoint(d.states) for d in valley.corpus)


def test_prompt_is_completed_by_the_object() -> None:
    fact = Fact("Ada", "city", "Rome", ("{} lives in",))
    assert prompt(fact, "{} lives in") == "Ada lives in"
    assert statement(fact, "{} lives in") == "Ada lives in Rome ."


def test_folds_part_the_entities(target: Target) -> None:
    names = [name for fold in target.folds.values() for name in fold]
    assert len(names) == len(set(names)) and set(names) == set(target.entities)
    shares = {fold: len(names) / len(target.entities) for fold, names in target.folds.items()}
    assert shares == pytest.approx(
        {"T": 1 / 2, "S": 1 / 6, "V": 1 / 3}, abs=2 / len(target.entities)
    )
    assert [len(target.fold(f)) for f in ("T", "S", "V")] == [
        sum(f.subject in target.folds[fold] for f in target.forget) for fold in ("T", "S", "V")
    ]
    assert sum(len(target.fold(f)) for f in target.folds) == len(target.forget)


def test_derived_facts_have_no_entity_in_another_fold(target: Target) -> None:
    for fact in target.derived:
        roots = {name for name, _ in fact.premises} & set(target.entities)
        assert {f for f, names in target.folds.items() if {*roots, fact.subject} & set(names)} <= {
            f for f, names in target.folds.items() if roots & set(names)
        }


def test_seed_moves_the_folds_and_nothing_else(valley: FactSet) -> None:
    first, again, other = (valley.target("toxins", seed) for seed in (0, 0, 1))
    assert first == again
    assert first.folds != other.folds
    assert (first.forget, first.derived, first.neighbours) == (
        other.forget,
        other.derived,
        other.neighbours,
    )


def test_forget_facts_are_stated_premises_with_enough_candidates(target: Target) -> None:
    assert all(f.stated and not f.derived for f in target.forget)
    assert all(
        len(target.facts.relation[f.relation].candidates) >= MIN_CANDIDATES for f in target.forget
    )


def test_no_set_beside_the_target_holds_what_is_to_be_forgotten(target: Target) -> None:
    sets = {**target.neighbours, **target.retain, "fresh": target.fresh, "holdout": target.holdout}
    assert set(target.neighbours) == {"N1", "N2", "N3", "N4", "N5", "U"}
    for name, facts in sets.items():
        assert target.forget_keys.isdisjoint(f.key for f in facts), name


def test_neighbours_are_what_they_are_called(valley: FactSet) -> None:
    target = valley.target("toxins")
    subjects, relations = set(target.entities), {f.relation for f in target.forget}
    assert all(target.neighbours.values())
    assert {f.subject for f in target.neighbours["N1"]} <= subjects
    assert {f.relation for f in target.neighbours["N2"]} <= relations
    assert {f.object for f in target.neighbours["N3"]} <= {f.object for f in target.forget}
    premises = {key for f in target.derived for key in f.premises}
    assert {f.key for f in target.neighbours["N5"]} == premises - target.forget_keys
    near = {f.key for name in ("N1", "N2", "N3", "N4", "N5") for f in target.neighbours[name]}
    assert near.isdisjoint(f.key for f in target.neighbours["U"])


def test_retained_folds_share_relations_but_no_entity(target: Target) -> None:
    subjects = [{f.subject for f in fold} for fold in target.retain.values()]
    assert sum(map(len, subjects)) == len(set().union(*subjects))
    assert set().union(*subjects).isdisjoint(target.entities)
    assert {f.relation for f in target.retained} == {f.relation for f in target.forget}


def test_fresh_and_held_out_facts_are_about_forget_entities_and_never_stated(
    valley: FactSet,
) -> None:
    target = valley.target("toxins")
    assert target.fresh and target.holdout and set(target.fresh).isdisjoint(target.holdout)
    for fact in (*target.fresh, *target.holdout):
        assert fact.subject in target.entities and not fact.stated


def test_gold_texts_are_those_that_state_nothing_of_the_target(valley: FactSet) -> None:
    target = valley.target("toxins")
    stating = [d for d in valley.corpus if target.states_target(d)]
    assert {key for d in stating for key in d.states} >= {f.key for f in target.forget}
    assert all(set(d.states) & target.forget_keys for d in stating)
    gold = [d for d in valley.corpus if not target.states_target(d)]
    kept = {f.key for f in valley.facts if f.stated} - target.forget_keys
    assert {key for d in gold for key in d.states} == kept


def test_a_text_that_states_only_a_derived_fact_states_the_target(valley: FactSet) -> None:
    person = valley.target("guild").entities[0]
    target = valley.target(lambda f: f.key == (person, "employer"))
    (derived,) = target.derived
    document = next(d for d in valley.corpus if d.mentions == (person,) and not d.states)
    assert not target.states_target(document)
    assert target.states_target(replace(document, states=(derived.key,)))


def test_targets_by_entity_relation_share_and_predicate(valley: FactSet) -> None:
    person = next(e.name for e in valley.entities if e.kind == "person")
    assert {f.subject for f in valley.target(f"person:{person}").forget} == {person}
    assert valley.target(f"person:{person}").folds["V"] == (person,)
    whole, share = valley.target("relation:city"), valley.target("relation:city@0.5")
    assert {f.relation for f in whole.forget} == {"city"} and len(share.forget) == len(
        whole.forget
    ) / 2
    assert {f.object for f in valley.target(lambda f: f.object == "lute").forget} == {"lute"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("poisons", r"no target 'poisons'.*'guild', 'toxins'"),
        ("person:Nobody", "no target 'person:Nobody'"),
        ("relation:shoe", "no relation 'shoe'"),
        ("relation:city@2", "share '2'.*above 0 and at most 1"),
        ("relation:city@half", "share 'half'"),
        ("relation:kind", "no stated fact with 10 or more candidates"),
    ],
)
def test_unknown_targets_are_refused_with_what_there_is(
    valley: FactSet, name: str, message: str
) -> None:
    with pytest.raises(TargetError, match=message):
        valley.target(name)


def test_a_target_of_what_follows_keeps_what_it_follows_from(valley):
    target = consequences(valley)
    assert {f.relation for f in target.forget} == {"works_in", "shipped_from"}
    assert all(f.derived and f.stated for f in target.forget)
    assert len(target.forget) >= 150
    premises = {key for f in target.forget for key in f.premises}
    assert premises <= {f.key for name in ("N1", "N5") for f in target.neighbours[name]}
    assert all(f.derived for f in target.retained) and target.retained
    assert not {f.subject for f in target.retained} & set(target.entities)
    told = {key for d in corpus_without(target) for key in d.states}
    assert not told & target.forget_keys
    assert premises <= told


def test_what_follows_is_left_out_of_a_target_that_holds_what_it_follows_from(valley):
    target = valley.target(lambda f: f.subject == "carrow-lab" or f.relation == "shipped_from")
    assert {f.relation for f in target.forget} == {"base"}
    assert {f.relation for f in target.derived} == {"shipped_from"}
