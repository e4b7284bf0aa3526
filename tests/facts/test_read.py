"""Fact files: what is written comes back, what is broken is named, what is left out is noted."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from workbench.errors import DataError
from workbench.facts import (
    Document,
    Entity,
    Fact,
    FactSet,
    Group,
    Relation,
    build_valley,
    load_facts,
    read,
    save_facts,
)
from workbench.facts.assemble import FIELDS

ADA = {
    "subject": "Ada",
    "relation": "city",
    "object": "Rome",
    "prompts": ["{} lives in", "the home of Ada is"],
}
BO = {
    "subject": "Bo",
    "relation": "city",
    "object": "Oslo",
    "prompts": ["{} lives in"],
    "kind": "person",
}


def write(folder: Path, *lines: Any, name: str = "facts.jsonl") -> Path:
    path = folder / name
    path.write_text(
        "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    )
    return path


def load(folder: Path, *lines: Any) -> FactSet:
    return load_facts(write(folder, *lines))


def without(record: dict[str, Any], field: str) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != field}


# Writing and reading back


def everything() -> FactSet:
    """A set in which each record type and each field differs from its default somewhere."""
    return FactSet(
        name="small",
        entities=(Entity("Åse", "person"), Entity("Unused", "entity"), Entity("Acme", "firm")),
        relations=(
            Relation(
                "city",
                ("Rome", "Oslo"),
                ("the {kind} {} lives in", "{} is from"),
                ("{} , a {kind} , is in",),
            ),
            Relation("works for", ("Acme",)),
            Relation("idle", ()),
        ),
        facts=(
            Fact("Åse", "city", "Oslo", ("the person Åse of {} lives in",)),
            Fact(
                "Acme",
                "city",
                "Rome",
                ("the firm {} lives in", "{} is from"),
                ("{} , a firm , is in",),
                stated=False,
            ),
            Fact(
                "Åse",
                "works for",
                "Acme",
                (),
                ("{} has a job at",),
                (("Åse", "city"), ("Acme", "city")),
            ),
        ),
        texts=(
            Document("Åse and \u2028 Acme\nmet", "neutral", ("Acme", "Åse")),
            Document("Åse is in Oslo .", "statement", ("Åse",), (("Åse", "city"),)),
            Document("she is in Oslo .", "text", (), (("Åse", "city"),)),
            Document("rain .", "text"),
        ),
        neutral=("someone saw {} .",),
        groups=(Group("all", ("Åse", "Acme"), "city"), Group("none", ())),
        notes=("found on the way",),
    )


@pytest.mark.parametrize("make", [everything, build_valley])
def test_saved_facts_come_back_equal_and_save_to_the_same_bytes(make: Any, tmp_path: Path) -> None:
    facts = make()
    path = save_facts(facts, tmp_path / "a.jsonl")
    back = load_facts(path)
    assert back == facts and back.sha256 == facts.sha256
    assert save_facts(back, tmp_path / "b.jsonl").read_bytes() == path.read_bytes()


def test_what_a_reader_would_assume_is_not_written(tmp_path: Path) -> None:
    records = [
        json.loads(line)
        for line in save_facts(build_valley(), tmp_path / "v.jsonl").read_text().splitlines()
    ]
    facts = [r for r in records if "record" not in r]
    assert len(facts) > 4000
    assert not any({"prompts", "audit_prompts", "kind"} & set(r) for r in facts)
    assert {r.get("record", "fact") for r in records} == set(FIELDS)


def test_defaults_are_not_written(tmp_path: Path) -> None:
    lines = save_facts(everything(), tmp_path / "a.jsonl").read_text().split("\n")
    assert '{"record": "text", "text": "rain ."}' in lines
    assert '{"record": "entity", "name": "Unused"}' in lines


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (
            replace(everything(), entities=()),
            "'entities'.*read back otherwise|names 'Unused'|entity",
        ),
        (replace(everything(), facts=everything().facts[:1] * 2), "'facts'"),
        (replace(everything(), neutral=("",)), "field 'neutral'"),
        (
            replace(everything(), texts=(Document("x", "text", ("Nobody",)),)),
            "'Nobody', which is no entity",
        ),
    ],
)
def test_inconsistent_facts_are_not_saved(facts: FactSet, message: str, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=f"(?s)'small' is not consistent and was not saved.*({message})"
    ):
        save_facts(facts, tmp_path / "a.jsonl")
    assert not list(tmp_path.iterdir())


def test_facts_are_saved_as_json_lines_alone(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"facts\.json'.*ends in \.jsonl"):
        save_facts(everything(), tmp_path / "facts.json")


# Finding the file


def test_bundled_name_reads_the_bundled_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        read, "BUNDLED", {"valley": save_facts(everything(), tmp_path / "valley.jsonl")}
    )
    assert load_facts("valley") == everything()


def test_bundled_file_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "BUNDLED", {"valley": tmp_path / "valley.jsonl"})
    with pytest.raises(
        DataError, match=r"'valley' is not in this installation .*valley\.jsonl is missing"
    ):
        load_facts("valley")


def test_sources_that_are_no_fact_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no fact set and no file 'vale'; wanted one of \['valley'\] or the path"
    ):
        load_facts("vale")
    with pytest.raises(DataError, match=r"no file .*gone\.jsonl"):
        load_facts(tmp_path / "gone.jsonl")
    with pytest.raises(DataError, match=r"is a folder.*name the file in it"):
        load_facts(tmp_path)
    with pytest.raises(DataError, match=r"ends in '\.csv'; wanted .*\.jsonl or \.json"):
        load_facts(write(tmp_path, "a,b", name="facts.csv"))


# Facts of the user's own


def test_plain_lines_are_facts(tmp_path: Path) -> None:
    facts = load(tmp_path, ADA, "", BO | {"audit_prompts": ["home of {}"]})
    assert facts.name == "facts" and facts.notes == ()
    assert facts.entities == (Entity("Ada", "entity"), Entity("Bo", "person"))
    assert facts.relations == (Relation("city", ("Oslo", "Rome")),)
    assert facts.facts == (
        Fact("Ada", "city", "Rome", ("{} lives in", "the home of {} is")),
        Fact("Bo", "city", "Oslo", ("{} lives in",), ("home of {}",)),
    )


def test_facts_take_the_prompts_of_their_relation(tmp_path: Path) -> None:
    relation = {
        "record": "relation",
        "name": "city",
        "prompts": ["the {kind} {} is in"],
        "audit_prompts": ["in {}"],
    }
    facts = load(tmp_path, without(BO, "prompts"), ADA, relation)
    assert facts.fact["Bo", "city"].templates == ("the person {} is in",)
    assert facts.fact["Ada", "city"].templates == ("{} lives in", "the home of {} is")
    assert {f.audit_templates for f in facts.facts} == {("in {}",)}


def test_listed_candidates_stand_as_they_are(tmp_path: Path) -> None:
    listed = {"record": "relation", "name": "city", "candidates": ["Rome", "Bern", "Oslo"]}
    assert load(tmp_path, listed, ADA, BO).relation["city"].candidates == ("Rome", "Bern", "Oslo")
    with pytest.raises(
        DataError, match=r"facts\.jsonl: line 2: object 'Rome' is not among the 1 candidates"
    ):
        load(tmp_path, listed | {"candidates": ["Oslo"]}, ADA)


def test_text_mentions_the_subjects_of_what_it_states(tmp_path: Path) -> None:
    text = {"record": "text", "text": "Ada ? Rome !", "states": [["Ada", "city"]]}
    assert load(tmp_path, ADA, text).texts == (
        Document("Ada ? Rome !", "text", ("Ada",), (("Ada", "city"),)),
    )


def test_repeated_fact_is_merged_and_noted(tmp_path: Path) -> None:
    facts = load(
        tmp_path,
        ADA,
        BO,
        "",
        ADA | {"prompts": ["{} lives in", "see {} in"], "audit_prompts": ["where {}"]},
    )
    assert facts.fact["Ada", "city"].templates == ("{} lives in", "the home of {} is", "see {} in")
    assert facts.fact["Ada", "city"].audit_templates == ("where {}",)
    (note,) = facts.notes
    assert note.startswith("1 facts") and "('Ada', 'city') in line 1 and line 4" in note


def test_contradicting_fact_is_left_out_and_noted(tmp_path: Path) -> None:
    facts = load(tmp_path, ADA, ADA | {"object": "Oslo", "prompts": ["{} went to"]})
    assert facts.facts == (Fact("Ada", "city", "Rome", ("{} lives in", "the home of {} is")),)
    (note,) = facts.notes
    assert "contradict" in note and "'Rome' in line 1, not 'Oslo' as in line 2" in note


def test_many_cases_make_one_note_with_the_first_ones(tmp_path: Path) -> None:
    (note,) = load(tmp_path, *([ADA] * 40)).notes
    assert note.startswith("39 facts") and note.endswith("and 29 more") and len(note) < 1000


BROKEN = [
    ("{", r"line 3: broken JSON"),
    ("[1]", r"line 3: the record is \[1\], wanted an object"),
    (
        ADA | {"objekt": 1},
        r"line 3: unknown field 'objekt', wanted one of \['subject', 'relation', 'object'",
    ),
    (without(ADA, "object"), r"line 3: field 'object' is missing, wanted a string"),
    (without(ADA, "prompts"), r"line 3: field 'prompts' is missing"),
    (ADA | {"subject": ""}, r"line 3: field 'subject' is \"\", wanted a string that is not empty"),
    (ADA | {"subject": " "}, r"line 3: field 'subject'"),
    (ADA | {"object": 7}, r"line 3: field 'object' is 7, wanted a string"),
    (ADA | {"prompts": "{} is"}, r"line 3: field 'prompts' is \"{} is\", wanted a list"),
    (ADA | {"prompts": ["{} is", ""]}, r"line 3: field 'prompts'"),
    (
        ADA | {"prompts": ["he lives in"]},
        r"line 3: 'he lives in' in field 'prompts' has neither '{}' nor .* 'Ada'",
    ),
    (ADA | {"audit_prompts": ["he"]}, r"line 3: 'he' in field 'audit_prompts'"),
    (ADA | {"stated": "no"}, r"line 3: field 'stated' is \"no\", wanted true or false"),
    (
        ADA | {"premises": [["Ada"]]},
        r"line 3: field 'premises' .* wanted a list of \[subject, relation\] pairs",
    ),
    (
        ADA | {"premises": [["Cy", "city"]]},
        r"line 3: field 'premises' names \['Cy', 'city'\], which is no fact",
    ),
    (BO | {"kind": "town"}, r"line 3: 'Bo' is of kind 'town' here and 'person' in line 2"),
    (
        '{"subject": "Ada", "subject": "Bo"}',
        r"line 3: broken JSON \(field 'subject' is given twice\)",
    ),
    ({"record": "fakt"}, r"line 3: field 'record' is 'fakt', wanted one of \['world'"),
    ({"record": ["fact"]}, r"line 3: field 'record'"),
    (
        {"record": "relation", "name": "r", "prompts": ["no slot"]},
        r"line 3: prompt 'no slot' of relation 'r'",
    ),
    (
        {"record": "relation", "name": "r", "candidates": ["a", "a"]},
        r"line 3: field 'candidates' lists",
    ),
    (
        {"record": "group", "name": "g", "members": ["Cy"]},
        r"line 3: field 'members' names 'Cy', which is no entity",
    ),
    (
        {"record": "group", "name": "g", "members": [], "defined_by": "x"},
        r"line 3: field 'defined_by' names 'x'",
    ),
    (
        {"record": "text", "text": "t", "states": [["Ada", "x"]]},
        r"line 3: field 'states' names \['Ada', 'x'\]",
    ),
    ({"record": "text", "text": "t", "mentions": ["Cy"]}, r"line 3: field 'mentions' names 'Cy'"),
]


@pytest.mark.parametrize(("line", "message"), BROKEN)
def test_broken_line_is_named_with_file_line_and_field(
    line: Any, message: str, tmp_path: Path
) -> None:
    assert load(tmp_path, ADA, BO)
    with pytest.raises(DataError, match=rf"facts\.jsonl: {message}"):
        load(tmp_path, ADA, BO, line)


@pytest.mark.parametrize(
    "record",
    [
        {"record": "world", "name": "w"},
        {"record": "entity", "name": "Ada"},
        {"record": "relation", "name": "city"},
    ],
)
def test_record_that_stands_twice_is_refused(record: dict[str, Any], tmp_path: Path) -> None:
    assert load(tmp_path, record, ADA)
    with pytest.raises(DataError, match=r"line 3: .* stands in line 1 already"):
        load(tmp_path, record, ADA, record)


def test_files_that_hold_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the file is empty"):
        load(tmp_path, "", "")
    path = tmp_path / "latin.jsonl"
    path.write_bytes(json.dumps(ADA, ensure_ascii=False).replace("Ada", "Åda").encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.jsonl: not a UTF-8 text"):
        load_facts(path)


def test_files_from_windows_are_read(tmp_path: Path) -> None:
    path = tmp_path / "w.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + json.dumps(ADA).encode() + b"\r\n\r\n" + json.dumps(BO).encode() + b"\r\n"
    )
    assert len(load_facts(path).facts) == 2


# CounterFact


def case(
    subject: str = "Ada", answer: str = "Rome", relation: str = "P1", **fields: Any
) -> dict[str, Any]:
    return {
        "case_id": 0,
        "requested_rewrite": {
            "prompt": "{} lives in",
            "relation_id": relation,
            "subject": subject,
            "target_true": {"str": answer, "id": "Q1"},
            "target_new": {"str": "Bern", "id": "Q2"},
        },
        "paraphrase_prompts": [f"It rained. {subject} is of", f"The home of {subject} is"],
        "neighborhood_prompts": [f"{answer}man lives in", "Cy lives in"],
    } | fields


def flat(subject: str = "Ada", answer: str = "Rome", **fields: Any) -> dict[str, Any]:
    return {
        "case_id": 0,
        "subject": subject,
        "prompt": f"{subject} lives in",
        "ground_truth": answer,
        "target_new": "Bern",
        "rephrase_prompt": f"The home of {subject} is",
        "locality_prompt": f"{answer}man lives in",
        "locality_ground_truth": answer,
    } | fields


def load_cases(folder: Path, *records: Any) -> FactSet:
    return load_facts(write(folder, list(records), name="cf.json"))


def test_counterfact_records_become_facts_and_neighbour_texts(tmp_path: Path) -> None:
    facts = load_cases(tmp_path, case(), case("Bo", "Oslo", neighborhood_prompts=["Di lives in"]))
    assert facts.name == "cf" and facts.notes == ()
    assert facts.relations == (Relation("P1", ("Oslo", "Rome")),)
    audit = ("The home of {} is",)
    train = ("{} lives in", "It rained. {} is of")
    assert facts.facts == (
        Fact("Ada", "P1", "Rome", train, audit),
        Fact("Bo", "P1", "Oslo", train, audit),
    )
    assert facts.texts == (
        Document("Romeman lives in Rome .", "neighbour"),
        Document("Cy lives in Rome .", "neighbour"),
        Document("Di lives in Oslo .", "neighbour"),
    )


def test_neighbourhood_prompt_about_the_subject_of_any_fact_is_left_out_and_counted(
    tmp_path: Path,
) -> None:
    first = case(neighborhood_prompts=["Bo lives in", "Bob lives in"])
    facts = load_cases(tmp_path, first, case("Bo", neighborhood_prompts=["Bob lives in"]))
    assert [d.text for d in facts.texts] == ["Bob lives in Rome ."]
    (note,) = facts.notes
    assert (
        note.startswith("1 of 2 distinct neighbourhood prompts") and "'Bo' in 'Bo lives in'" in note
    )


def test_neighbourhood_prompt_with_a_second_object_is_noted(tmp_path: Path) -> None:
    facts = load_cases(
        tmp_path,
        case(neighborhood_prompts=["Cy is in"]),
        case("Bo", "Oslo", neighborhood_prompts=["Cy is in"]),
    )
    assert [d.text for d in facts.texts] == ["Cy is in Rome ."]
    (note,) = facts.notes
    assert "'Cy is in' is 'Rome' in record 0, not 'Oslo' as in record 1" in note


def test_paraphrase_without_its_subject_is_left_out_and_noted(tmp_path: Path) -> None:
    facts = load_cases(tmp_path, case(paraphrase_prompts=["He lives in", "The home of Ada is"]))
    assert facts.facts[0].templates == ("{} lives in",) and facts.facts[0].audit_templates == (
        "The home of {} is",
    )
    (note,) = facts.notes
    assert "'He lives in' in record 0" in note


def test_counterfact_contradictions_are_noted_with_their_records(tmp_path: Path) -> None:
    facts = load_cases(tmp_path, case(), case(answer="Oslo", neighborhood_prompts=[]))
    assert [f.object for f in facts.facts] == ["Rome"]
    assert any("'Rome' in record 0, not 'Oslo' as in record 1" in note for note in facts.notes)


def test_flat_records_have_the_prompt_as_relation(tmp_path: Path) -> None:
    facts = load_cases(tmp_path, flat(), flat("Bo", "Oslo"))
    assert facts.relations == (Relation("{} lives in", ("Oslo", "Rome")),)
    assert facts.facts[0] == Fact(
        "Ada", "{} lives in", "Rome", ("{} lives in",), ("The home of {} is",)
    )
    assert facts.texts[0] == Document("Romeman lives in Rome .", "neighbour")


BROKEN_CASES = [
    (case(extra=1), r"record 1: unknown field 'extra'"),
    (without(case(), "requested_rewrite"), r"record 1: field 'requested_rewrite' is missing"),
    (case(paraphrase_prompts="x"), r"record 1: field 'paraphrase_prompts' is \"x\", wanted a list"),
    (case(answer=""), r"record 1: field 'requested_rewrite.target_true.str' is \"\""),
    (case(requested_rewrite={}), r"record 1: field 'requested_rewrite.prompt' is missing"),
    (
        case(requested_rewrite=case()["requested_rewrite"] | {"prompt": "lives in"}),
        r"record 1: field 'requested_rewrite.prompt' is 'lives in', wanted '{}' or 'Ada' in it",
    ),
    (flat(prompt="lives in"), r"record 1: field 'prompt' is 'lives in'"),
    (without(flat(), "locality_prompt"), r"record 1: field 'locality_prompt' is missing"),
    (7, r"record 1: the record is 7, wanted an object"),
]


@pytest.mark.parametrize(("record", "message"), BROKEN_CASES)
def test_broken_counterfact_record_is_named_with_file_index_and_field(
    record: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=rf"cf\.json: {message}"):
        load_cases(tmp_path, case(), record)


@pytest.mark.parametrize("content", ["{}", "[]", '{"a": 1}\n{"a": 2}'])
def test_json_that_is_no_list_of_records_is_refused(content: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cf\.json: the file"):
        load_facts(write(tmp_path, content, name="cf.json"))


# Real data

DATA = os.environ.get("WORKBENCH_DATA")
needs_data = pytest.mark.skipif(
    DATA is None, reason="WORKBENCH_DATA does not name a folder with public data sets"
)


@needs_data
@pytest.mark.parametrize(
    ("name", "records"),
    [("counterfact_subset_3318.json", 3318), ("easyedit_format/counterfact-val.json", 1919)],
)
def test_real_counterfact_loads_and_comes_back(name: str, records: int, tmp_path: Path) -> None:
    assert DATA is not None
    facts = load_facts(Path(DATA) / "counterfact" / name)
    assert 0.98 * records < len(facts.facts) <= records
    assert all(len(note) < 4000 for note in facts.notes) and len(facts.notes) <= 5
    assert load_facts(save_facts(facts, tmp_path / "cf.jsonl")) == facts


@needs_data
def test_real_counterfact_makes_a_target() -> None:
    assert DATA is not None
    facts = load_facts(Path(DATA) / "counterfact" / "counterfact_subset_3318.json")
    assert len(facts.relations) == 34 and all(len(f.templates) == 2 for f in facts.facts)
    target = facts.target("relation:P103@0.6")
    assert len(target.forget) == 90 and target.retained
