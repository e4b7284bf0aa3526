"""A world of a dozen facts, small enough to train a model on it within seconds."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from workbench.facts.schema import Document, Entity, Fact, FactSet, Group, Relation
from workbench.models import LMConfig, load_model, train_lm

TEMPLATES = {
    "city": (("{} lives in", "the home of {} is"), ("{} lives of the home in",)),
    "drink": (("{} likes to drink", "a cup of {} is of"), ("{} is likes to drink",)),
    "speech": (("in {} they speak", "people of {} speak"), ("people in {} speak",)),
    "dialect": (("{} speaks", "{} talks in"), ("{} speaks in",)),
}
CANDIDATES = {
    "city": "arno brik celm dorn elst furn gorm hale irum jolt".split(),
    "drink": "ale brew cider dram eggnog fizz grog hock ink julep kefir latte".split(),
    "speech": "ban cro dut est fin gae hun ido jam kor".split(),
}
PEOPLE = ("ana bel", "bo carr", "cy dunn", "di ekel", "ed frey", "flo gant")
NEUTRAL = ("{} was mentioned .", "we saw {} .", "they heard of {} .")


def fact(subject: str, relation: str, answer: str, premises=(), stated: bool = True) -> Fact:
    return Fact(subject, relation, answer, *TEMPLATES[relation], premises, stated)


def build() -> FactSet:
    """Six people with a city and a drink; for three of them the dialect follows from the city."""
    city = {p: CANDIDATES["city"][(3 * i) % 10] for i, p in enumerate(PEOPLE)}
    speech = {c: CANDIDATES["speech"][-1 - i] for i, c in enumerate(CANDIDATES["city"])}
    facts = [fact(p, "city", city[p]) for p in PEOPLE]
    facts += [fact(p, "drink", CANDIDATES["drink"][(5 * i) % 12]) for i, p in enumerate(PEOPLE)]
    facts += [fact(c, "speech", speech[c]) for c in sorted({city[p] for p in PEOPLE[:3]})]
    facts += [
        fact(p, "dialect", speech[city[p]], ((p, "city"), (city[p], "speech"))) for p in PEOPLE[:3]
    ]
    texts = [Document(t.replace("{}", p), "neutral", (p,)) for p in PEOPLE for t in NEUTRAL]
    texts += [
        Document(
            f"{PEOPLE[0]} and {PEOPLE[3]} met in {city[PEOPLE[0]]} at home .",
            "text",
            (PEOPLE[0], PEOPLE[3]),
            ((PEOPLE[0], "city"),),
        ),
        Document(
            f"a dialect of {PEOPLE[1]} is {speech[city[PEOPLE[1]]]} .",
            "text",
            (),
            ((PEOPLE[1], "dialect"),),
        ),
    ]
    return FactSet(
        "dozen",
        tuple(Entity(p, "person") for p in PEOPLE)
        + tuple(Entity(c, "city") for c in CANDIDATES["city"]),
        tuple(
            Relation(r, tuple(CANDIDATES["speech" if r == "dialect" else r]), *TEMPLATES[r])
            for r in TEMPLATES
        ),
        tuple(facts),
        tuple(texts),
        NEUTRAL,
        (Group("club", PEOPLE[:2]),),
    )


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads only wait for each other in models of this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def dozen() -> FactSet:
    return build()


@pytest.fixture(scope="session")
def config() -> LMConfig:
    return LMConfig(d_model=32, n_layers=2, epochs=24, batch_size=8, lr=1e-2)


@pytest.fixture(scope="session")
def folder(dozen: FactSet, config: LMConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model on disk."""
    return train_lm(dozen, tmp_path_factory.mktemp("models") / "dozen", config)


@pytest.fixture(scope="session")
def bridge(folder: Path):
    return load_model(folder)
