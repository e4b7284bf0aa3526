"""A small trained world: an original that knows 64 people, and golds that know 24 only by name."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.facts.schema import Document, Entity, Fact, FactSet, Group, Relation
from workbench.facts.target import Target
from workbench.hooks import Site
from workbench.models import LMConfig, corpus_without, load_model, train_lm

TEMPLATES = {
    "city": (
        (
            "{} lives in",
            "home of {} is in",
            "the town of {} is in",
            "people say {} lives in",
            "you meet {} in",
        ),
        ("people meet {} in", "the home of {} is in", "you say {} lives in"),
    ),
    "drink": (
        (
            "{} likes some",
            "cup of {} has some",
            "the drink of {} has some",
            "people say {} likes some",
            "you pour {} some",
        ),
        ("people pour {} some", "the cup of {} has some", "you say {} likes some"),
    ),
}
CANDIDATES = {
    "city": "arno brik celm dorn elst furn gorm hale irum jolt kest lund".split(),
    "drink": "ale brew cider dram eggnog fizz grog hock ink julep kefir latte".split(),
}
EMBEDDINGS = Site(0, "resid_pre")
NEUTRAL = ("{} was here .", "we saw {} .")


def build_world(n_forget: int, n_retain: int, first_share: float) -> FactSet:
    """Facts about the members of `club`, to be forgotten, and about others.

    Args:
        first_share: share of the others whose object is the first candidate, which no member has.
            Where it is large, a model that never knew stays below the prior, so that golds of a
            small world pass their gate.
    """
    rng = random.Random(0)
    forget = [f"f{i:03}" for i in range(n_forget)]
    retain = [f"r{i:03}" for i in range(n_retain)]
    facts, relations = [], []
    for name, templates in TEMPLATES.items():
        first, *rest = CANDIDATES[name]
        relations.append(Relation(name, tuple(CANDIDATES[name]), *templates))
        drawn = {s: rng.choice(rest) for s in forget}
        drawn |= {s: first if rng.random() < first_share else rng.choice(rest) for s in retain}
        facts += [Fact(s, name, o, *templates) for s, o in drawn.items()]
    people = forget + retain
    return FactSet(
        "small",
        tuple(Entity(s, "person") for s in people),
        tuple(relations),
        tuple(facts),
        tuple(Document(t.replace("{}", s), "neutral", (s,)) for s in people for t in NEUTRAL),
        NEUTRAL,
        (Group("club", tuple(forget)),),
    )


def move_objects(target: Target, folds: str) -> Target:
    """The target with the objects of its facts in these folds moved on by one, in each relation."""
    moved = {}
    for relation in target.facts.relation:
        facts = [f for name in folds for f in target.fold(name) if f.relation == relation]
        objects = [f.object for f in facts]
        moved |= {f.key: o for f, o in zip(facts, objects[1:] + objects[:1], strict=True)}
    return replace(
        target, forget=tuple(replace(f, object=moved.get(f.key, f.object)) for f in target.forget)
    )


@dataclass(frozen=True)
class Blank:
    """Hides names: a token whose embedding points the same way as one of them becomes a blank."""

    names: Float[Tensor, "name d_model"]
    site: Site = EMBEDDINGS

    def __call__(self, resid: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        alike = torch.nn.functional.cosine_similarity(resid[..., None, :], self.names, dim=-1)
        hidden = (alike > 0.9).any(-1, keepdim=True)
        return torch.where(hidden, torch.zeros_like(resid), resid)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads only wait for each other in models of this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_world() -> Callable[[int, int, float], FactSet]:
    return build_world


@pytest.fixture(scope="session")
def moved() -> Callable[[Target, str], Target]:
    return move_objects


@pytest.fixture(scope="session")
def world() -> FactSet:
    return build_world(24, 40, 1 / 3)


@pytest.fixture(scope="session")
def club(world: FactSet) -> Target:
    """What is to be forgotten: 48 facts about 24 people, 8 of whom are scored."""
    return world.target("club")


@pytest.fixture(scope="session")
def models(
    world: FactSet, club: Target, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The original and four golds."""
    root, config = tmp_path_factory.mktemp("models"), LMConfig(32, 2, 20, 32, 1e-2)
    made = {"original": train_lm(world, root / "original", config)}
    for seed in range(1, 5):
        name, corpus = f"gold-{seed}", corpus_without(club)
        made[name] = train_lm(world, root / name, replace(config, seed=seed), corpus=corpus)
    return {name: load_model(folder) for name, folder in made.items()}


@pytest.fixture(scope="session")
def original(models: dict[str, Any]) -> Any:
    return models["original"]


@pytest.fixture(scope="session")
def golds(models: dict[str, Any]) -> list[Any]:
    return [models[f"gold-{seed}"] for seed in (1, 2, 3)]


@pytest.fixture(scope="session")
def another_gold(models: dict[str, Any]) -> Any:
    """A gold that no audit is given as a reference."""
    return models["gold-4"]


@pytest.fixture(scope="session")
def blank(original: Any, club: Target) -> Blank:
    """An edit that hides every forget entity."""
    ids = original.tokenizer(list(club.entities), add_special_tokens=False)["input_ids"]
    return Blank(original.embed.weight.detach()[[i[0] for i in ids]].clone())
