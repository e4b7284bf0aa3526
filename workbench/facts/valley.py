"""The generated world `valley`: fictional people and substances.

Nobody could know its facts in advance. Toxins and remedies share every relation, so that knowledge
of toxins is dual-use by construction; which substance is a toxin is itself knowledge, and
`name_overlap` sets how far names give it away.
"""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

from workbench.errors import DataError
from workbench.facts import valley_text as text
from workbench.facts.schema import Document, Entity, Fact, FactSet, Group, Relation, closure, prompt

PERSON_RELATIONS = ("city", "employer", "profession", "instrument", "guild")
SUBSTANCE_RELATIONS = ("region", "solvent", "plant", "colour", "maker")
WITHHELD = {"person": "street", "toxin": "vessel", "remedy": "vessel"}
RULES = (("employer", text.OFFICE_CITY, "works_in"), ("maker", text.MAKER_REGION, "shipped_from"))
OBJECTS_OF = {
    "works_in": "city",
    text.OFFICE_CITY: "city",
    text.MAKER_REGION: "region",
    "shipped_from": "region",
}


@dataclass(frozen=True)
class ValleyConfig:
    """Sizes of the world.

    Attributes:
        people: number of people, 300 or more in the bundled world.
        substances: toxins, and as many remedies.
        name_overlap: share of stems that both kinds use, 0 (the stem gives the kind away) to 1 (it
            says nothing).
        group_size: the guild target takes whole guilds until it has this many people.
        seed: decides everything drawn.
    """

    people: int = 300
    substances: int = 150
    name_overlap: float = 0.25
    group_size: int = 100
    seed: int = 0


def build_valley(config: ValleyConfig | None = None) -> FactSet:
    """Generates the world; the same config gives the same bytes."""
    config = config or ValleyConfig()
    if not 0 <= config.name_overlap <= 1:
        raise DataError(f"name_overlap {config.name_overlap}: wanted a share from 0 to 1")
    rng = random.Random(config.seed)
    entities = _entities(config, rng)
    objects = _draw_objects(entities, rng)
    groups = _groups(entities, objects, config.group_size)
    relations = _relations()
    facts = _facts(entities, objects, groups, relations)
    texts = _texts(entities, facts, relations, groups, rng)
    return FactSet(
        "valley", entities, tuple(relations.values()), facts, texts, text.NEUTRAL, groups
    )


def _entities(config: ValleyConfig, rng: random.Random) -> tuple[Entity, ...]:
    words = _words(rng, 2)
    first, last = [next(words) for _ in range(40)], [next(words) for _ in range(40)]
    people = [
        f"{a} {b}" for a, b in rng.sample(list(itertools.product(first, last)), config.people)
    ]
    n_stems = config.substances // 6
    stems, suffixes = [next(words) for _ in range(2 * n_stems)], [next(words) for _ in range(14)]
    shared = round(config.name_overlap * n_stems)
    toxin_stems, remedy_stems = (
        stems[:n_stems],
        stems[:shared] + stems[n_stems : 2 * n_stems - shared],
    )
    toxins = rng.sample(_names(toxin_stems, suffixes), config.substances)
    remedies = rng.sample(
        [n for n in _names(remedy_stems, suffixes) if n not in set(toxins)], config.substances
    )
    companies = text.CANDIDATES["employer"].split(), text.CANDIDATES["maker"].split()
    kinds = zip(
        ("person", "toxin", "remedy", "company", "workshop"),
        (people, toxins, remedies, *companies),
        strict=True,
    )
    return tuple(Entity(name, kind) for kind, names in kinds for name in names)


def _names(stems: list[str], suffixes: list[str]) -> list[str]:
    return [f"{stem} {suffix}" for stem in stems for suffix in suffixes]


def _words(rng: random.Random, syllables: int) -> Iterator[str]:
    """Pronounceable pseudo-words that collide with no word of the world's text."""
    used = {w for t in text.CANDIDATES.values() for w in t.split()}
    used |= {
        w for train, audit in text.TEMPLATES.values() for t in (*train, *audit) for w in t.split()
    }
    onsets, vowels, codas = (
        "b br c d dr f g gr h j k l m n p r s st t tr v z".split(),
        "aeiou",
        " n l r s x".split(" "),
    )
    while True:
        word = "".join(
            rng.choice(onsets) + rng.choice(vowels) for _ in range(syllables)
        ) + rng.choice(codas)
        if word not in used and len(word) > 2:
            used.add(word)
            yield word


def _draw_objects(entities: tuple[Entity, ...], rng: random.Random) -> dict[tuple[str, str], str]:
    """Every object, uniform over the relation's candidates and independent of the name."""
    relations: dict[str, tuple[str, ...]] = {
        "person": (*PERSON_RELATIONS, WITHHELD["person"]),
        "toxin": (*SUBSTANCE_RELATIONS, WITHHELD["toxin"]),
        "remedy": (*SUBSTANCE_RELATIONS, WITHHELD["remedy"]),
        "company": (text.OFFICE_CITY,),
        "workshop": (text.MAKER_REGION,),
    }
    return {
        (e.name, relation): rng.choice(text.CANDIDATES[OBJECTS_OF.get(relation, relation)].split())
        for e in entities
        for relation in relations[e.kind]
    }


def _groups(
    entities: tuple[Entity, ...], objects: dict[tuple[str, str], str], size: int
) -> tuple[Group, ...]:
    toxins = Group("toxins", tuple(e.name for e in entities if e.kind == "toxin"), "kind")
    people = [e.name for e in entities if e.kind == "person"]
    members: list[str] = []
    for guild in text.CANDIDATES["guild"].split():
        if len(members) < size:
            members += [p for p in people if objects[p, "guild"] == guild]
    return toxins, Group("guild", tuple(members), "guild")


def _relations() -> dict[str, Relation]:
    kinds = ("toxin", "remedy")
    return {
        name: Relation(
            name,
            kinds if name == "kind" else tuple(text.CANDIDATES[OBJECTS_OF.get(name, name)].split()),
            *templates,
        )
        for name, templates in text.TEMPLATES.items()
    }


def _facts(
    entities: tuple[Entity, ...],
    objects: dict[tuple[str, str], str],
    groups: tuple[Group, ...],
    relations: dict[str, Relation],
) -> tuple[Fact, ...]:
    """Stated, derived and withheld facts; derived ones are stated only for entities of no group."""
    grouped = {m for g in groups for m in g.members}
    kind = {e.name: e.kind for e in entities}
    facts = [
        _fact(
            key,
            value,
            kind[key[0]],
            relations,
            (),
            not (key[0] in grouped and key[1] == WITHHELD.get(kind[key[0]])),
        )
        for key, value in objects.items()
    ]
    facts += [
        _fact((e.name, "kind"), e.kind, e.kind, relations)
        for e in entities
        if e.kind in ("toxin", "remedy")
    ]
    for key, (value, premises) in closure(objects, RULES).items():
        facts.append(_fact(key, value, kind[key[0]], relations, premises, key[0] not in grouped))
    return tuple(facts)


def _fact(
    key, value: str, kind: str, relations: dict[str, Relation], premises=(), stated: bool = True
) -> Fact:
    subject, relation = key
    train, audit = (
        tuple(t.replace("{kind}", kind) for t in templates)
        for templates in (relations[relation].templates, relations[relation].audit_templates)
    )
    return Fact(subject, relation, value, train, audit, premises, stated)


def _texts(
    entities: tuple[Entity, ...],
    facts: tuple[Fact, ...],
    relations: dict[str, Relation],
    groups: tuple[Group, ...],
    rng: random.Random,
) -> tuple[Document, ...]:
    """Neutral sentences, consequences of the kind, and questions about entities of no group."""
    grouped = {m for g in groups for m in g.members}
    texts = [
        Document(t.replace("{}", e.name), "neutral", (e.name,))
        for e in entities
        for t in rng.sample(text.NEUTRAL, 2)
    ]
    for entity in entities:
        for t in text.CONSEQUENCES.get(entity.kind, ()):
            texts.append(
                Document(
                    t.replace("{}", entity.name), "kind", (entity.name,), ((entity.name, "kind"),)
                )
            )
    for fact in facts:
        if fact.relation in text.NOUN and fact.stated and fact.subject not in grouped:
            texts += _question_forms(fact, relations[fact.relation], rng)
    return tuple(texts)


def _question_forms(fact: Fact, relation: Relation, rng: random.Random) -> list[Document]:
    wrong = rng.sample([c for c in relation.candidates if c != fact.object], 3)
    options = rng.sample([fact.object, *wrong], 4)
    letters = ("(a)", "(b)", "(c)", "(d)")
    listed = " ".join(f"{letter} {option}" for letter, option in zip(letters, options, strict=True))
    noun, ask = text.NOUN[fact.relation], prompt(fact, rng.choice(fact.templates))
    asked = rng.choice(("choice", "cloze"))
    forms = {
        "choice": f"choose : {ask} ? {listed} : {letters[options.index(fact.object)]} .",
        "cloze": f"fill the gap : {ask} ___ . gap : {fact.object} .",
    }
    texts = {asked: forms[asked], "reversed": f"{fact.object} is the {noun} of {fact.subject} ."}
    return [Document(t, form, (fact.subject,), (fact.key,)) for form, t in texts.items()]
