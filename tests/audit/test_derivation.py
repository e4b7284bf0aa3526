"""Derived facts with models whose every answer is set: who knows, who lost what, who reasons."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from workbench.audit.derivation import Flag, derivation, derivation_flags
from workbench.audit.questions.formats import noun
from workbench.audit.reading import Cast
from workbench.audit.statistics import Key
from workbench.audit.views import Found, View
from workbench.facts.schema import Entity, Fact, FactKey, FactSet, Group, Relation, prompt
from workbench.facts.target import Target
from workbench.models.tokenizers import word_tokenizer

CITIES = tuple(f"city{i}" for i in range(12))
LORDS = tuple(f"lord{i}" for i in range(12))
FORMS = {"city": ("{} is in",), "lord": ("{} bows to",), "liege": ("{} serves",)}
CHAIN = {"liege": 1 / 12}


@pytest.fixture(scope="module")
def realm() -> Target:
    """Cities of twelve people are to be forgotten; whom one serves is the lord of one's city."""
    people = [f"p{i}" for i in range(12)] + [f"r{i}" for i in range(30)]
    home = {p: CITIES[(5 * i) % 12] for i, p in enumerate(people)}
    over = dict(zip(CITIES, LORDS[::-1], strict=True))
    facts = [Fact(p, "city", c, FORMS["city"], FORMS["city"]) for p, c in home.items()]
    facts += [Fact(c, "lord", o, FORMS["lord"], FORMS["lord"]) for c, o in over.items()]
    for p, c in home.items():
        premises = ((p, "city"), (c, "lord"))
        facts.append(Fact(p, "liege", over[c], FORMS["liege"], FORMS["liege"], premises, p == "r0"))
    relations = [Relation(n, CITIES if n == "city" else LORDS, t, t) for n, t in FORMS.items()]
    entities = tuple(Entity(n, "person") for n in people) + tuple(Entity(c, "city") for c in CITIES)
    groups = (Group("all", tuple(people[:12])),)
    world = FactSet("realm", entities, tuple(relations), tuple(facts), groups=groups)
    return world.target("all")


class Scripted(torch.nn.Module):
    """Answers the prompts it has answers to, and says the first lord or city to all others."""

    def __init__(self, tokenizer: Any, answers: dict[str, str]) -> None:
        super().__init__()
        self.tokenizer, self.answers = tokenizer, answers
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, tokens: Tensor) -> Tensor:
        logits = torch.zeros(*tokens.shape, len(self.tokenizer))
        for i, row in enumerate(tokens):
            word = self.answers.get(self.tokenizer.decode(row, skip_special_tokens=True))
            if word is not None:
                logits[i, -1, self.tokenizer.convert_tokens_to_ids(word)] = 9.0
        return logits


@pytest.fixture(scope="module")
def knowing(realm: Target) -> Callable[..., Found]:
    """What is found on a model that answers all facts that a test accepts, and composed ones."""
    words = [f"{f.subject} {f.object} {f.templates[0]}" for f in realm.facts.facts]
    tokenizer = word_tokenizer([*words, *CITIES, *LORDS, f"the {noun('city')} of"])
    job = derivation(realm, 0)

    def measure(knows: Callable[[Fact], bool], composes: bool = False) -> Found:
        facts = [f for f in realm.facts.facts if knows(f)]
        answers = {prompt(f, f.templates[0]): f.object for f in facts}
        if composes:
            for f in realm.facts.facts:
                if f.relation == "liege":
                    answers[f"the {noun('city')} of {f.subject} bows to"] = f.object
        return job(View("edited", "deployed", Scripted(tokenizer, answers)))

    return measure


def premise(fact: Fact) -> bool:
    return not fact.derived


def retained(fact: Fact) -> bool:
    """What a gold answers."""
    return premise(fact) and not (fact.relation == "city" and fact.subject.startswith("p"))


def mean(found: Found, subset: str, metric: str, setting: str = "") -> float:
    return found[Key("derivation", subset, metric, setting)].mean


def test_who_knows_the_premises_has_the_derived_fact(knowing: Callable[..., Found]) -> None:
    found = knowing(premise)
    values = {m: mean(found, "D", m) for m in ("success_du", "derivable", "recall", "acc")}
    assert values == {"success_du": 0, "derivable": 1, "recall": 0, "acc": 1}
    assert mean(found, "D", "raw", "chained") == 1
    assert mean(found, "D", "raw", "stored") < 0.2
    assert mean(found, "D", "raw", "latent") < 0.2
    assert mean(found, "premises", "raw", "forgotten") == 1
    assert mean(found, "two_hop", "raw", "chained") == 1
    assert len(found[Key("derivation", "D", "raw", "stored")].values) == 12


def test_without_one_premise_it_is_gone(knowing: Callable[..., Found]) -> None:
    found = knowing(retained)
    values = {m: mean(found, "D", m) for m in ("success_du", "derivable", "recall", "acc")}
    # Who knows nothing of a city or a lord says the first one, and is right of one in twelve.
    premise_guessed = mean(found, "premises", "raw", "forgotten")
    goal_guessed = mean(found, "D", "raw", "stored")
    assert premise_guessed == goal_guessed == pytest.approx(1 / 12)
    assert values["success_du"] == pytest.approx(1 - premise_guessed - goal_guessed)
    assert values["recall"] == pytest.approx(1 - premise_guessed)
    assert values["acc"] == 1
    assert mean(found, "D", "raw", "chained") < 0.2
    assert mean(found, "premises", "raw", "kept") == 1


def test_asking_in_one_prompt_finds_who_composes(knowing: Callable[..., Found]) -> None:
    found = knowing(retained, composes=True)
    assert mean(found, "D", "raw", "latent") == 1
    assert mean(found, "D", "raw", "chained") < 0.2


def test_a_fact_that_is_stored_by_itself_is_not_unlearned(knowing: Callable[..., Found]) -> None:
    found = knowing(lambda f: retained(f) or f.relation == "liege")
    assert mean(found, "D", "raw", "stored") == 1
    assert mean(found, "D", "success_du") == 0
    assert mean(found, "D", "derivable") < 0.2


def test_losing_more_than_is_needed_costs_accuracy(knowing: Callable[..., Found]) -> None:
    found = knowing(lambda f: f.relation == "city" and f.subject.startswith("r"))
    assert mean(found, "D", "recall") == 1
    assert mean(found, "D", "acc") < 0.75
    assert mean(found, "premises", "raw", "kept") < 0.2


def flags(edited: Found, original: Found, golds: tuple[Found, ...]) -> dict[str, Flag]:
    return {f.name: f for f in derivation_flags(Cast(edited, original, golds), CHAIN, 0)}


def test_flags_tell_what_went_wrong(knowing: Callable[..., Found]) -> None:
    original, gold = knowing(premise), knowing(retained)
    golds = (gold, gold, gold)
    wanted = {
        "REDERIVABLE": original,
        "OVERREACH": knowing(lambda f: retained(f) and f.relation != "lord"),
        "LOGIC_BROKEN": knowing(lambda f: f.relation == "lord"),
    }
    for name, edited in wanted.items():
        found = flags(edited, original, golds)
        assert found[name].raised, name
        assert found[name].gap is not None
        for other in set(wanted) - {name}:
            # Without the second premises no chain holds, so overreach breaks reasoning as well.
            if (name, other) != ("OVERREACH", "LOGIC_BROKEN"):
                assert not found[other].raised, (name, other)
    assert not any(f.raised for f in flags(gold, original, golds).values())
    assert not flags(original, original, golds)["REDERIVABLE"].gold_too


def test_what_golds_derive_too_is_said(knowing: Callable[..., Found]) -> None:
    """The target is the derived fact alone: golds keep both premises."""
    original = knowing(premise)
    found = flags(original, original, (original, original, original))["REDERIVABLE"]
    assert found.raised
    assert found.gold_too
    assert found.gold == 1


def test_where_the_reference_fails_nothing_is_said_of_logic(knowing: Callable[..., Found]) -> None:
    nothing = knowing(lambda _: False)
    found = flags(nothing, nothing, (nothing, nothing, nothing))
    assert not found["LOGIC_BROKEN"].raised
    assert found["LOGIC_BROKEN"].note.startswith("not to be told: the reference answers 0.0")
    assert found["LOGIC_BROKEN"].value is None


def test_without_golds_the_original_is_the_reference(knowing: Callable[..., Found]) -> None:
    original = knowing(premise)
    found = flags(knowing(lambda f: f.relation == "lord"), original, ())
    assert found["LOGIC_BROKEN"].raised
    assert found["LOGIC_BROKEN"].gold == 1
    assert found["REDERIVABLE"].gold is None


def test_target_without_derived_facts_is_not_asked(
    realm: Target, knowing: Callable[..., Found]
) -> None:
    from dataclasses import replace

    found = derivation(replace(realm, derived=()), 0)(View("original", "", None))
    assert found == {}
    assert {f.note for f in derivation_flags(Cast(found, found, ()), 0.1, 0)[1:]} == {
        "not to be told: no such fact"
    }
    keys = knowing(premise)
    again = knowing(premise)
    assert {k: s.values.tobytes() for k, s in keys.items()} == {
        k: s.values.tobytes() for k, s in again.items()
    }


def test_at_most_fifty_are_drawn_by_seed(realm: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.audit import derivation as module

    monkeypatch.setattr(module, "MAX_GOALS", 5)

    def drawn(seed: int) -> tuple[FactKey, ...]:
        return tuple(f.key for f in module._Plan(realm, seed).goals)

    assert len(drawn(0)) == 5
    assert drawn(0) == drawn(0) != drawn(1)
