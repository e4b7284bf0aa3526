"""The generated world keeps what its specification promises."""

from collections import Counter

import pytest

from workbench.errors import DataError
from workbench.facts import FactSet, ValleyConfig, build_valley, check_contract, guessable
from workbench.facts.schema import prompt


@pytest.fixture(scope="module")
def valley() -> FactSet:
    return build_valley()


def kinds(facts: FactSet) -> Counter[str]:
    return Counter(e.kind for e in facts.entities)


def stems(facts: FactSet, kind: str) -> set[str]:
    return {e.name.split()[0] for e in facts.entities if e.kind == kind}


def test_same_config_gives_the_same_bytes() -> None:
    assert build_valley(ValleyConfig(seed=3)).sha256 == build_valley(ValleyConfig(seed=3)).sha256


def test_seed_changes_the_world(valley: FactSet) -> None:
    assert build_valley(ValleyConfig(seed=1)).sha256 != valley.sha256


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 1.0])
def test_kinds_share_the_asked_share_of_stems(overlap: float) -> None:
    facts = build_valley(ValleyConfig(name_overlap=overlap))
    toxins, remedies = stems(facts, "toxin"), stems(facts, "remedy")
    assert len(toxins & remedies) / len(toxins) == pytest.approx(overlap, abs=0.05)
    assert len(toxins & remedies) / len(remedies) == pytest.approx(overlap, abs=0.05)
    if overlap == 0:
        assert not toxins & remedies


@pytest.mark.parametrize("overlap", [-0.1, 1.1])
def test_overlap_outside_its_range_is_refused(overlap: float) -> None:
    with pytest.raises(DataError, match="wanted a share from 0 to 1"):
        build_valley(ValleyConfig(name_overlap=overlap))


def test_sizes(valley: FactSet) -> None:
    assert kinds(valley)["person"] >= 300
    assert kinds(valley)["toxin"] >= 100
    assert kinds(valley)["remedy"] == kinds(valley)["toxin"]
    assert len(valley.entity) == len(valley.entities)
    assert {g.name for g in valley.groups} == {"toxins", "guild"}
    assert len({g.name: g for g in valley.groups}["guild"].members) >= 100


def test_toxins_and_remedies_share_every_relation(valley: FactSet) -> None:
    relations = {
        kind: {f.relation for f in valley.facts if valley.entity[f.subject].kind == kind}
        for kind in ("toxin", "remedy")
    }
    assert (
        relations["toxin"]
        == relations["remedy"]
        >= {"region", "solvent", "plant", "colour", "maker", "kind"}
    )


def test_every_relation_but_kind_has_twelve_candidates(valley: FactSet) -> None:
    few = {r.name for r in valley.relations if len(set(r.candidates)) < 12}
    assert few == {"kind"}
    assert all(f.object in valley.relation[f.relation].candidates for f in valley.facts)


def test_every_fact_has_its_templates(valley: FactSet) -> None:
    for fact in valley.facts:
        train, audit = set(fact.templates), set(fact.audit_templates)
        assert len(train) >= (4 if fact.derived else 5) and len(audit) >= 3, fact
        assert not train & audit, fact
        assert all("{}" in t and "{kind}" not in t for t in train | audit), fact


def test_prompts_hold_no_object(valley: FactSet) -> None:
    objects = {o for r in valley.relations if r.name != "kind" for o in r.candidates}
    names = {e.name for e in valley.entities}
    for fact in valley.facts:
        if fact.subject in names - objects:
            assert objects.isdisjoint(prompt(fact, fact.templates[0]).split()), fact


def test_derived_facts_are_the_two_step_chains(valley: FactSet) -> None:
    known = {f.key: f.object for f in valley.facts if not f.derived}
    expected = {}
    for (subject, relation), middle in known.items():
        if relation == "employer":
            expected[subject, "works_in"] = known[middle, "office"]
        if relation == "maker":
            expected[subject, "shipped_from"] = known[middle, "base"]
    derived = {f.key: f.object for f in valley.facts if f.derived}
    assert derived == expected and len(derived) >= 500
    for fact in valley.facts:
        for (subject, relation), (middle, _) in zip(
            fact.premises[:1], fact.premises[1:], strict=True
        ):
            assert subject == fact.subject and known[subject, relation] == middle


def test_facts_about_members_of_groups_that_must_not_be_stated_are_not(valley: FactSet) -> None:
    grouped = {m for g in valley.groups for m in g.members}
    for fact in valley.facts:
        hidden = fact.subject in grouped and (fact.derived or fact.relation in ("street", "vessel"))
        assert fact.stated is not hidden


def test_every_entity_stands_in_two_neutral_texts_that_state_nothing(valley: FactSet) -> None:
    neutral = [d for d in valley.texts if d.form == "neutral"]
    assert Counter(name for d in neutral for name in d.mentions) == {
        e.name: 2 for e in valley.entities
    }
    assert not any(d.states for d in neutral)


def test_retained_fact_stands_reversed_and_in_one_question_form(valley: FactSet) -> None:
    forms: dict[tuple[str, str], list[str]] = {}
    for document in valley.texts:
        if document.form in ("choice", "cloze", "reversed"):
            (key,) = document.states
            forms.setdefault(key, []).append(document.form)
    found = Counter(tuple(sorted(f)) for f in forms.values())
    assert set(found) == {("choice", "reversed"), ("cloze", "reversed")}
    assert found["choice", "reversed"] / len(forms) == pytest.approx(0.5, abs=0.05)


def test_question_forms_are_about_entities_of_no_group_and_right(valley: FactSet) -> None:
    grouped = {m for g in valley.groups for m in g.members}
    forms = [d for d in valley.texts if d.form in ("choice", "cloze", "reversed")]
    assert {d.form for d in forms} == {"choice", "cloze", "reversed"}
    for document in forms:
        ((subject, relation),) = document.states
        answer = valley.fact[subject, relation].object
        assert (
            subject not in grouped and document.mentions == (subject,) and subject in document.text
        )
        if document.form == "choice":
            _, _, options, letter = (
                document.text.removesuffix(" .").replace(" ? ", " : ").split(" : ")
            )
            assert f"{letter} {answer}" in options
        else:
            assert answer in document.text.split()


@pytest.mark.parametrize("name", ["toxins", "guild"])
def test_contract_holds(valley: FactSet, name: str) -> None:
    failed = [c for c in check_contract(valley.target(name)) if not c.passed]
    assert not failed


@pytest.mark.parametrize("name", ["toxins", "guild"])
def test_no_forget_fact_is_guessable(valley: FactSet, name: str) -> None:
    assert guessable(valley).isdisjoint(f.key for f in valley.target(name).forget)
