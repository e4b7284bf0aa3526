"""Fact sets in files: the bundled world, our JSON Lines (read and written), and CounterFact."""

import json
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from workbench.artifacts import write_text
from workbench.errors import DataError
from workbench.facts.assemble import DEFAULT_FORM, DEFAULT_KIND, assemble, make_row
from workbench.facts.counterfact import read_counterfact
from workbench.facts.records import parse_json, read_text
from workbench.facts.schema import Document, Entity, Fact, FactSet, Group, Relation

BUNDLED = {"valley": Path(__file__).parent / "bundled" / "valley.jsonl"}
"""Fact sets that come with the package, by name."""


def load_facts(source: str | Path) -> FactSet:
    """Reads a fact set; what is merged or left out on the way stands in its `notes`.

    A `.jsonl` file has one JSON object per line. A line without a field `record` is a fact:
    `subject`, `relation`, `object`, `prompts` (with `{}` for the subject, or the subject itself),
    and if wanted `audit_prompts` and `kind`. The other types of record and their fields are in
    `workbench.facts.assemble.FIELDS`.

    Args:
        source: the name of a bundled fact set (`valley`), or a path to a `.jsonl` file or to a
            `.json` file in the format of CounterFact.

    Raises:
        DataError: nothing of that name, or the first thing in the file that is broken.
    """
    path = _locate(source)
    try:
        return READERS[path.suffix](path.stem, read_text(path))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def save_facts(facts: FactSet, path: str | Path) -> Path:
    """Writes a fact set as JSON Lines, so that `load_facts` gives back an equal one.

    It is read back before it is written; the same set gives the same bytes.

    Raises:
        DataError: the path does not end in `.jsonl`, or the fact set would not come back equal
            because it is not consistent in itself.
    """
    path = Path(path)
    if path.suffix != ".jsonl":
        raise DataError(
            f"facts are saved as JSON Lines, not as {str(path)!r}: give a path that ends in .jsonl"
        )
    content = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in _records(facts))
    refused = f"the fact set {facts.name!r} is not consistent and was not saved"
    try:
        back = _read_lines(facts.name, content)
    except DataError as error:
        raise DataError(f"{refused}: {error}") from error
    if back != facts:
        raise DataError(f"{refused}: {_differing(facts, back)}")
    write_text(path, content)
    return path


def _locate(source: str | Path) -> Path:
    path = BUNDLED.get(str(source), Path(source))
    wanted = (
        f"wanted one of {list(BUNDLED)} or the path of a file that ends in {' or '.join(READERS)}"
    )
    if str(source) in BUNDLED and not path.is_file():
        raise DataError(
            f"{source!r} is not in this installation ({path} is missing): install the package again"
        )
    if path.is_dir():
        raise DataError(f"{str(path)!r} is a folder; {wanted}: name the file in it")
    if not path.is_file():
        raise DataError(f"no fact set and no file {str(source)!r}; {wanted}")
    if path.suffix not in READERS:
        raise DataError(f"{str(path)!r} ends in {path.suffix!r}; {wanted}")
    return path


def _read_lines(name: str, content: str) -> FactSet:
    lines = enumerate(content.split("\n"), start=1)
    rows = [
        make_row(f"line {n}", parse_json(line, f"line {n}")) for n, line in lines if line.strip()
    ]
    if not rows:
        raise DataError("the file is empty; wanted one JSON object per line")
    return assemble(name, rows)


READERS: dict[str, Callable[[str, str], FactSet]] = {
    ".jsonl": _read_lines,
    ".json": read_counterfact,
}
"""The reader of each kind of file: it takes the name and the text."""


def _records(facts: FactSet) -> Iterator[dict[str, Any]]:
    """One record per line; what a reader would assume anyway is left out."""
    yield {"record": "world", "name": facts.name} | _given(neutral=facts.neutral, notes=facts.notes)
    yield from (_relation(r) for r in facts.relations)
    yield from (_entity(e) for e in facts.entities)
    yield from (_group(g) for g in facts.groups)
    kinds = {e.name: e.kind for e in facts.entities}
    yield from (
        _fact(f, facts.relation.get(f.relation), kinds.get(f.subject, DEFAULT_KIND))
        for f in facts.facts
    )
    yield from (_text(d) for d in facts.texts)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value}


def _relation(relation: Relation) -> dict[str, Any]:
    prompts = _given(prompts=relation.templates, audit_prompts=relation.audit_templates)
    return {
        "record": "relation",
        "name": relation.name,
        "candidates": relation.candidates,
    } | prompts


def _entity(entity: Entity) -> dict[str, Any]:
    kind = {} if entity.kind == DEFAULT_KIND else {"kind": entity.kind}
    return {"record": "entity", "name": entity.name} | kind


def _group(group: Group) -> dict[str, Any]:
    return {"record": "group", "name": group.name, "members": group.members} | _given(
        defined_by=group.defined_by
    )


def _fact(fact: Fact, relation: Relation | None, kind: str) -> dict[str, Any]:
    record: dict[str, Any] = {
        "subject": fact.subject,
        "relation": fact.relation,
        "object": fact.object,
    }
    if not (
        relation and relation.templates and _shared(relation.templates, kind) == fact.templates
    ):
        record["prompts"] = fact.templates
    if _shared(relation.audit_templates if relation else (), kind) != fact.audit_templates:
        record["audit_prompts"] = fact.audit_templates
    return record | _given(premises=fact.premises) | ({} if fact.stated else {"stated": False})


def _shared(templates: tuple[str, ...], kind: str) -> tuple[str, ...]:
    return tuple(t.replace("{kind}", kind) for t in templates)


def _text(document: Document) -> dict[str, Any]:
    record = {"record": "text", "text": document.text} | _given(states=document.states)
    if document.form != DEFAULT_FORM:
        record["form"] = document.form
    if document.mentions != tuple(dict.fromkeys(subject for subject, _ in document.states)):
        record["mentions"] = document.mentions
    return record


def _differing(facts: FactSet, back: FactSet) -> str:
    names = [
        field.name
        for field in fields(facts)
        if getattr(facts, field.name) != getattr(back, field.name)
    ]
    return f"its {names} would be read back otherwise"
