"""From the records of a file to a fact set: references checked, contradictions noted."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from workbench.errors import DataError
from workbench.facts.records import Fields, check_fields, summary
from workbench.facts.schema import Document, Entity, Fact, FactKey, FactSet, Group, Relation

FIELDS: dict[str, Fields] = {
    "world": {"name": ("text", True), "neutral": ("texts", False), "notes": ("texts", False)},
    "relation": {
        "name": ("text", True),
        "candidates": ("texts", False),
        "prompts": ("texts", False),
        "audit_prompts": ("texts", False),
    },
    "entity": {"name": ("text", True), "kind": ("text", False)},
    "group": {"name": ("text", True), "members": ("texts", True), "defined_by": ("text", False)},
    "fact": {
        "subject": ("text", True),
        "relation": ("text", True),
        "object": ("text", True),
        "prompts": ("texts", False),
        "audit_prompts": ("texts", False),
        "kind": ("text", False),
        "premises": ("keys", False),
        "stated": ("flag", False),
    },
    "text": {
        "text": ("text", True),
        "form": ("text", False),
        "mentions": ("texts", False),
        "states": ("keys", False),
    },
}
"""What each type of record holds. The prompts of a relation serve its facts that have none."""

DEFAULT_KIND, DEFAULT_FORM = "entity", "text"


@dataclass(frozen=True)
class Row:
    """One record of a file and its place there, such as `line 3`."""

    where: str
    type: str
    values: dict[str, Any]


def make_row(where: str, record: Any) -> Row:
    """Checks one record against the table of its type; a record that names no type is a fact.

    Raises:
        DataError: the type or a field is unknown, or a field is missing or of the wrong type.
    """
    if not isinstance(record, dict):
        check_fields(record, {}, where)
    kind = record.get("record", "fact")
    if kind not in list(FIELDS):  # a list, since what is given need not be hashable
        raise DataError(f"{where}: field 'record' is {kind!r}, wanted one of {list(FIELDS)}")
    values = {name: value for name, value in record.items() if name != "record"}
    check_fields(values, FIELDS[kind], where)
    return Row(where, kind, values)


def assemble(name: str, rows: Sequence[Row], notes: Iterable[str] = ()) -> FactSet:
    """Builds the fact set that the records describe.

    Of facts with the same subject and relation the first is kept: if the object is the same, the
    prompts are merged, if not, the later fact is left out. Both are noted with their places.

    Args:
        name: name of the fact set if no `world` record gives one.
        rows: all records, in the order of the file.
        notes: what was found before.

    Raises:
        DataError: a record that is given twice, refers to something that is nowhere, or
            contradicts another one.
    """
    worlds, relations, entities, groups, stated, texts = (
        [r for r in rows if r.type == kind] for kind in FIELDS
    )
    _once(worlds)
    for named in (relations, entities, groups):
        _once(named, "name")
    world = worlds[0].values if worlds else {}
    kinds = _kinds(entities, stated)
    objects = _objects(stated)
    shared = {r.values["name"]: _relation(r, objects) for r in relations}
    shared |= {name: Relation(name, seen) for name, seen in objects.items() if name not in shared}
    facts, found = _merge(
        [(r.where, _fact(r, shared[r.values["relation"]], kinds)) for r in stated]
    )
    result = FactSet(
        name=world.get("name", name),
        entities=tuple(Entity(*item) for item in kinds.items()),
        relations=tuple(shared.values()),
        facts=facts,
        texts=tuple(_document(r) for r in texts),
        neutral=tuple(world.get("neutral", ())),
        groups=tuple(_group(r) for r in groups),
        notes=(*world.get("notes", ()), *notes, *found),
    )
    for row in rows:
        _check_references(row, result)
    return result


def template(text: str, subject: str) -> str:
    """The prompt with `{}` for its subject; a prompt that has `{}` already stays as it is."""
    return text if "{}" in text else text.replace(subject, "{}")


def _once(rows: list[Row], field: str = "") -> None:
    """No two records have the same value in the field; without a field there is one record."""
    first: dict[str, str] = {}
    for row in rows:
        key = row.values[field] if field else "record"
        if key in first:
            raise DataError(
                f"{row.where}: {row.type} {key!r} stands in {first[key]} already; keep one of them"
            )
        first[key] = row.where


def _distinct(rows: list[Row], field: str) -> list[str]:
    return list(dict.fromkeys(r.values[field] for r in rows))


def _objects(stated: list[Row]) -> dict[str, tuple[str, ...]]:
    """The objects seen in each relation, in the order of the alphabet."""
    seen: dict[str, set[str]] = {}
    for row in stated:
        seen.setdefault(row.values["relation"], set()).add(row.values["object"])
    return {relation: tuple(sorted(objects)) for relation, objects in seen.items()}


def _kinds(entities: list[Row], stated: list[Row]) -> dict[str, str]:
    """Kind of every entity: those with a record of their own first, then the subjects of facts."""
    given: dict[str, tuple[str, str]] = {}
    rows = [(r.values["name"], r.values.get("kind", DEFAULT_KIND), r) for r in entities]
    rows += [(r.values["subject"], r.values["kind"], r) for r in stated if "kind" in r.values]
    for name, kind, row in rows:
        first, where = given.setdefault(name, (kind, row.where))
        if first != kind:
            raise DataError(
                f"{row.where}: {name!r} is of kind {kind!r} here and {first!r} in {where}; "
                "wanted one kind"
            )
    names = (*(r.values["name"] for r in entities), *_distinct(stated, "subject"))
    return {name: given.get(name, (DEFAULT_KIND, ""))[0] for name in dict.fromkeys(names)}


def _relation(row: Row, objects: dict[str, tuple[str, ...]]) -> Relation:
    name = row.values["name"]
    candidates = tuple(row.values.get("candidates", objects.get(name, ())))
    if len(set(candidates)) < len(candidates):
        raise DataError(f"{row.where}: field 'candidates' lists an object twice; wanted each once")
    train, audit = (tuple(row.values.get(field, ())) for field in ("prompts", "audit_prompts"))
    for prompt in (*train, *audit):
        if "{}" not in prompt:
            raise DataError(
                f"{row.where}: prompt {prompt!r} of relation {name!r} has no '{{}}' for the subject"
            )
    return Relation(name, candidates, train, audit)


def _fact(row: Row, relation: Relation, kinds: dict[str, str]) -> Fact:
    values = row.values
    subject, answer = values["subject"], values["object"]
    if answer not in relation.candidates:
        raise DataError(
            f"{row.where}: object {answer!r} is not among the {len(relation.candidates)} "
            f"candidates of relation {relation.name!r}; wanted one of them, or add it to them"
        )
    if "prompts" not in values and not relation.templates:
        raise DataError(
            f"{row.where}: field 'prompts' is missing, wanted a list of strings with '{{}}' or the "
            f"subject, here or for relation {relation.name!r}"
        )
    train = _templates(row, "prompts", relation.templates, kinds[subject])
    audit = _templates(row, "audit_prompts", relation.audit_templates, kinds[subject])
    return Fact(
        subject,
        relation.name,
        answer,
        train,
        audit,
        _keys(values, "premises"),
        values.get("stated", True),
    )


def _templates(row: Row, field: str, shared: tuple[str, ...], kind: str) -> tuple[str, ...]:
    """Those of the row, or those that its relation shares."""
    subject, given = row.values["subject"], row.values.get(field, shared)
    found = tuple(template(t, subject).replace("{kind}", kind) for t in given)
    for text, made in zip(given, found, strict=True):
        if "{}" not in made:
            raise DataError(
                f"{row.where}: {text!r} in field {field!r} has neither '{{}}' nor the subject "
                f"{subject!r}; wanted one of them"
            )
    return found


def _keys(values: dict[str, Any], field: str) -> tuple[FactKey, ...]:
    return tuple((subject, relation) for subject, relation in values.get(field, ()))


def _document(row: Row) -> Document:
    """A text that does not say whom it mentions mentions the subjects of the facts it states."""
    states = _keys(row.values, "states")
    mentions = row.values.get("mentions", dict.fromkeys(subject for subject, _ in states))
    return Document(
        row.values["text"], row.values.get("form", DEFAULT_FORM), tuple(mentions), states
    )


def _group(row: Row) -> Group:
    return Group(row.values["name"], tuple(row.values["members"]), row.values.get("defined_by"))


def _merge(found: list[tuple[str, Fact]]) -> tuple[tuple[Fact, ...], tuple[str, ...]]:
    kept: dict[FactKey, tuple[str, Fact]] = {}
    repeated, contradicted = [], []
    for where, fact in found:
        if fact.key not in kept:
            kept[fact.key] = where, fact
            continue
        place, first = kept[fact.key]
        if first.object == fact.object:
            kept[fact.key] = place, _with_prompts(first, fact)
            repeated.append(f"{fact.key} in {place} and {where}")
        else:
            contradicted.append(
                f"{fact.key} is {first.object!r} in {place}, not {fact.object!r} as in {where}"
            )
    notes = (
        *summary("facts stand there again; the prompts were merged", repeated),
        *summary("facts contradict an earlier one and were left out", contradicted),
    )
    return tuple(fact for _, fact in kept.values()), notes


def _with_prompts(fact: Fact, other: Fact) -> Fact:
    return replace(
        fact,
        templates=tuple(dict.fromkeys((*fact.templates, *other.templates))),
        audit_templates=tuple(dict.fromkeys((*fact.audit_templates, *other.audit_templates))),
    )


def _check_references(row: Row, facts: FactSet) -> None:
    """Everything that a record points at is there."""
    known = {
        "members": (facts.entity, "entity"),
        "mentions": (facts.entity, "entity"),
        "defined_by": (facts.relation, "relation"),
        "premises": (facts.fact, "fact"),
        "states": (facts.fact, "fact"),
    }
    for field, (there, what) in known.items():
        given = row.values.get(field, ())
        for name in (given,) if isinstance(given, str) else given:
            if (tuple(name) if isinstance(name, list) else name) not in there:
                raise DataError(
                    f"{row.where}: field {field!r} names {name!r}, which is no {what} of this file"
                )
