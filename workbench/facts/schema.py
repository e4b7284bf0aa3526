"""What a model may know: entities, relations, facts, their sentences and their closure."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from workbench.errors import DataError

if TYPE_CHECKING:
    from workbench.facts.target import Target

FactKey = tuple[str, str]
"""(subject, relation): what identifies a fact, since a subject has one object per relation."""


@dataclass(frozen=True)
class Entity:
    """Something that facts are about, by name, with its kind (`person`, `toxin`)."""

    name: str
    kind: str


@dataclass(frozen=True)
class Relation:
    """A relation, the objects it can take, and the templates that all of its facts share.

    In a template `{}` is the subject and `{kind}` the subject's kind.
    """

    name: str
    candidates: tuple[str, ...]
    templates: tuple[str, ...] = ()
    audit_templates: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fact:
    """One subject, one relation, one object.

    A prompt is a template with the subject in place of `{}`; the object is what comes next. A fact
    with `premises` is derived from them; a fact that is not `stated` stands in no training text.
    """

    subject: str
    relation: str
    object: str
    templates: tuple[str, ...]
    audit_templates: tuple[str, ...] = ()
    premises: tuple[FactKey, ...] = ()
    stated: bool = True

    @property
    def key(self) -> FactKey:
        return self.subject, self.relation

    @property
    def derived(self) -> bool:
        return bool(self.premises)


@dataclass(frozen=True)
class Document:
    """One training text, the entities it mentions and the facts a reader could learn from it."""

    text: str
    form: str
    mentions: tuple[str, ...] = ()
    states: tuple[FactKey, ...] = ()


@dataclass(frozen=True)
class Group:
    """A named set of entities.

    The relation that defines membership (if any) is not itself to be forgotten.
    """

    name: str
    members: tuple[str, ...]
    defined_by: str | None = None


@dataclass(frozen=True)
class FactSet:
    """Everything that one world knows, and the texts that say so.

    `notes` lists what was found while reading (duplicates, contradictions); nothing is dropped
    without a note.
    """

    name: str
    entities: tuple[Entity, ...]
    relations: tuple[Relation, ...]
    facts: tuple[Fact, ...]
    texts: tuple[Document, ...] = ()
    neutral: tuple[str, ...] = ()
    groups: tuple[Group, ...] = ()
    notes: tuple[str, ...] = ()

    @cached_property
    def entity(self) -> dict[str, Entity]:
        return {e.name: e for e in self.entities}

    @cached_property
    def relation(self) -> dict[str, Relation]:
        return {r.name: r for r in self.relations}

    @cached_property
    def fact(self) -> dict[FactKey, Fact]:
        return {f.key: f for f in self.facts}

    @cached_property
    def by_subject(self) -> dict[str, tuple[Fact, ...]]:
        grouped: dict[str, list[Fact]] = {}
        for fact in self.facts:
            grouped.setdefault(fact.subject, []).append(fact)
        return {subject: tuple(facts) for subject, facts in grouped.items()}

    @cached_property
    def corpus(self) -> tuple[Document, ...]:
        """Every training text: each stated fact in each training template, then the others."""
        statements = (
            Document(statement(f, t), "statement", (f.subject,), (f.key,))
            for f in self.facts
            if f.stated
            for t in f.templates
        )
        return (*statements, *self.texts)

    @cached_property
    def sha256(self) -> str:
        """Hash of everything that a model or an audit could depend on."""
        content = asdict(self)
        del content["notes"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def target(self, name: str | Callable[[Fact], bool], seed: int = 0) -> "Target":
        """What is to be forgotten, with its folds, neighbours and controls.

        See `workbench.facts.target.make_target`.
        """
        from workbench.facts.target import make_target

        return make_target(self, name, seed)


def prompt(fact: Fact, template: str) -> str:
    """The text that the fact's object completes."""
    return template.replace("{}", fact.subject)


def statement(fact: Fact, template: str) -> str:
    """The prompt with its object, as training text."""
    return f"{prompt(fact, template)} {fact.object} ."


Rule = tuple[str, str, str]
"""(first, second, derived): first(a, b) and second(b, c) give derived(a, c)."""


def closure(
    known: dict[FactKey, str], rules: tuple[Rule, ...]
) -> dict[FactKey, tuple[str, tuple[FactKey, ...]]]:
    """Everything that follows from `known` by the `rules`, forward-chained to the fixed point.

    Args:
        known: object of each known (subject, relation).
        rules: each (first, second, derived) chains two relations into a third.

    Returns:
        For each derived key, its object and the known or derived keys it rests on.

    Raises:
        DataError: two derivations, or a derivation and a known fact, disagree.
    """
    derived: dict[FactKey, tuple[str, tuple[FactKey, ...]]] = {}
    objects = dict(known)
    grew = True
    while grew:
        grew = False
        for first, second, conclusion in rules:
            for (subject, relation), middle in list(objects.items()):
                if relation != first or (middle, second) not in objects:
                    continue
                key, found = (subject, conclusion), objects[middle, second]
                if objects.get(key, found) != found:
                    raise DataError(
                        f"{key} is {objects[key]!r} and follows as {found!r}: "
                        "mend one of the premises"
                    )
                if key not in objects:
                    objects[key], derived[key] = (
                        found,
                        (found, ((subject, first), (middle, second))),
                    )
                    grew = True
    return derived
