"""Prompts and filters around a model that is left as it is."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unlearn.contract import check_contract, check_keeps
from workbench.errors import ModelError, TargetError
from workbench.facts.mentions import name_finder, stands_in
from workbench.facts.schema import Entity, Fact, FactSet, Group, Relation, prompt
from workbench.facts.target import Target
from workbench.models import weights_sha256
from workbench.models.score import next_logits
from workbench.unlearn import Arm, load_arm, method, save_arm
from workbench.unlearn.classifier_filter import Config as Classified
from workbench.unlearn.guardrail import Config as Guarded
from workbench.unlearn.in_context import Config as InContext
from workbench.unlearn.system import reader_of
from workbench.unlearn.training import HELD_OUT, kept_texts

CONFIGS = {
    "in_context": InContext(),
    "guardrail": Guarded("we keep the place of the shelf"),
    "keyword_filter": method("keyword_filter").default,
    "classifier_filter": Classified(),
}


def ids(model: Any, *texts: str) -> torch.Tensor:
    return torch.tensor(model.tokenizer(list(texts))["input_ids"])


@pytest.mark.parametrize("name", CONFIGS)
def test_keeps_the_contract(name: str, bridge: Any, pantry: Target, tmp_path: Path) -> None:
    def make(model: Any, target: Target, seed: int) -> Arm:
        return method(name).unlearn(model, target, CONFIGS[name], seed)

    arm = check_contract(make, bridge, pantry, tmp_path)
    assert arm.claim == "none"
    assert arm.model is bridge
    assert (arm.refuses is None) == (not arm.prompt.empty)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "recall", "perplexity", "forget"),
    [
        ("in_context", 0.97, 1.0, 0.5),
        ("keyword_filter", 0.97, 1.0, 0.0),
        ("classifier_filter", 0.95, 1.0, 0.35),
    ],
)
def test_what_is_to_stay_stays(
    name: str, recall: float, perplexity: float, forget: float, valley: Any, toxins: Target
) -> None:
    check_keeps(method(name)(valley, toxins), valley, toxins, recall, perplexity, forget)


@pytest.mark.slow
def test_a_guardrail_disturbs_a_model_that_follows_no_instruction(
    valley: Any, toxins: Target
) -> None:
    """It does no less harm to what is to stay: that is shown here, not hidden."""
    found = check_keeps(method("guardrail")(valley, toxins), valley, toxins, 0.2, 1e9, 0.9)
    assert min(found["retained"], found["unrelated"]) < found["forget"] + 0.1, found


def test_what_is_true_of_a_name_never_stands_in_what_is_said_of_it(
    valley: Any, toxins: Target
) -> None:
    for seed, config in ((0, InContext()), (1, InContext(told=1, shown=0))):
        said = dict(method("in_context").unlearn(valley, toxins, config, seed).prompt.about)
        assert set(said) == set(toxins.entities)
        for fact in (*toxins.forget, *toxins.derived):
            assert not stands_in(fact.object, said[fact.subject]), (fact, said[fact.subject])
        for fact in toxins.forget:
            candidates = toxins.facts.relation[fact.relation].candidates
            told = {prompt(fact, t) for t in fact.templates}
            starts = [t for t in told if f"{t} " in said[fact.subject]]
            assert starts, f"nothing is said of {fact.key}"
            rest = said[fact.subject].split(f"{starts[0]} ", 1)[1]
            assert rest.split(" .")[0] in candidates, "an object of another relation is told"


def test_what_is_said_of_retained_facts_is_true_and_not_held_out(
    valley: Any, toxins: Target
) -> None:
    said = " ".join(text for _, text in method("in_context")(valley, toxins).prompt.about)
    true = {f"{prompt(f, t)} {f.object} ." for f in toxins.retain["R_tr"] for t in f.templates}
    assert sum(text in said for text in true) > 50
    for fact in (f for fold in HELD_OUT for f in toxins.retain[fold]):
        assert not stands_in(fact.subject, said)


def test_another_seed_tells_other_objects(bridge: Any, pantry: Target) -> None:
    first, second = (method("in_context")(bridge, pantry, seed).prompt for seed in (0, 1))
    assert first != second


def test_statements_stand_before_texts_with_the_name_and_no_others(
    valley: Any, toxins: Target
) -> None:
    arm = method("in_context")(valley, toxins)
    fact, other = toxins.fold("S")[0], toxins.retain["R_va"][0]
    named, free = (ids(valley, prompt(f, f.templates[0])) for f in (fact, other))
    reader = reader_of(arm)
    with torch.no_grad():
        assert torch.equal(next_logits(reader, free), next_logits(valley, free))
        assert not torch.equal(next_logits(reader, named), next_logits(valley, named))
        whole = f"{dict(arm.prompt.about)[fact.subject]} {prompt(fact, fact.templates[0])}"
        by_hand = next_logits(valley, ids(valley, whole))[:, -1]
        assert torch.allclose(next_logits(reader, named)[:, -1], by_hand, atol=1e-4)


def test_a_guardrail_stands_before_every_text(valley: Any, toxins: Target) -> None:
    arm = method("guardrail")(valley, toxins)
    text = toxins.facts.corpus[0].text
    with torch.no_grad():
        said = next_logits(reader_of(arm), ids(valley, text))[:, -1]
        by_hand = next_logits(valley, ids(valley, f"{arm.prompt.text} {text}"))[:, -1]
        assert torch.allclose(said, by_hand, atol=1e-4)
        assert torch.equal(
            next_logits(arm.model, ids(valley, text)), next_logits(valley, ids(valley, text))
        )


def test_a_keyword_filter_refuses_names_and_passes_what_is_spelled_otherwise(
    valley: Any, toxins: Target
) -> None:
    arm = method("keyword_filter")(valley, toxins)
    assert arm.refuses is not None
    asked = [prompt(f, t) for f in toxins.forget for t in (*f.templates, *f.audit_templates)]
    assert all(map(arm.refuses, asked))
    find = name_finder(toxins.entities)
    texts = [d.text for d in toxins.facts.corpus[::7]]
    assert {t for t in texts if arm.refuses(t)} == {t for t in texts if find(t)} < set(texts)
    name = toxins.entities[0]
    for spelled in (name.upper(), name.replace(" ", "  "), name[:-1] + "x", name.split()[0]):
        assert not arm.refuses(f"the solvent of the toxin {spelled} is"), spelled
    assert not arm.refuses("the solvent of the first toxin on the list is")


def test_a_classifier_filter_knows_prompts_and_refuses_few_that_stay(
    valley: Any, toxins: Target
) -> None:
    share = 0.01
    arm = method("classifier_filter").unlearn(valley, toxins, Classified(refused=share))
    assert arm.refuses is not None
    asked = [prompt(f, t) for f in toxins.forget for t in f.templates]
    assert sum(map(arm.refuses, asked)) / len(asked) > 0.9
    assert arm.told["retained_refused"] <= share
    stay = kept_texts(toxins, HELD_OUT)
    assert sum(map(arm.refuses, stay)) / len(stay) <= 2 * share
    fact = toxins.forget[0]
    renamed = prompt(fact, fact.templates[0]).replace(fact.subject, "Old Jack")
    assert not arm.refuses(renamed), "a name that it was never shown"


def test_a_stricter_classifier_refuses_no_more(bridge: Any, pantry: Target) -> None:
    lax, strict = (
        method("classifier_filter").unlearn(bridge, pantry, Classified(refused=share)).refuses
        for share in (0.5, 0.0)
    )
    assert lax is not None and strict is not None
    texts = [d.text for d in pantry.facts.corpus]
    refused = [{t for t in texts if keep(t)} for keep in (lax, strict)]
    assert refused[1] < refused[0]
    assert not any(strict(text) for text in kept_texts(pantry, HELD_OUT))


@pytest.mark.parametrize("name", ["keyword_filter", "classifier_filter"])
def test_a_filter_that_is_read_again_decides_alike(
    name: str, valley: Any, toxins: Target, tmp_path: Path
) -> None:
    arm = method(name)(valley, toxins)
    back = load_arm(save_arm(arm, valley, tmp_path / "arm"), valley)
    texts = [d.text for d in toxins.facts.corpus[::20]]
    assert arm.refuses is not None and back.refuses is not None
    decided = [arm.refuses(text) for text in texts]
    assert decided == [back.refuses(text) for text in texts]
    assert any(decided) and not all(decided)
    assert weights_sha256(back.model) == weights_sha256(valley)


def test_words_that_the_tokenizer_has_not_are_refused(bridge: Any, pantry: Target) -> None:
    with pytest.raises(ModelError, match="no word for"):
        method("guardrail")(bridge, pantry)
    with pytest.raises(ModelError, match="at most half"):
        text = "we keep the place of the shelf"
        method("guardrail").unlearn(bridge, pantry, Guarded(text, times=400))


def test_more_than_the_context_holds_is_refused(valley: Any, toxins: Target) -> None:
    with pytest.raises(ModelError, match="the model reads 128"):
        method("in_context").unlearn(valley, toxins, InContext(told=4))


def test_a_relation_without_a_false_object_is_refused(bridge: Any, pantry: Target) -> None:
    """Ten names of one place: whatever else is told of a name stands in its own object."""
    places = tuple(f"home1 home{i}" for i in range(2, 12))
    facts = pantry.facts
    told = [Fact(e.name, "home", "home1", ("we keep {} at",), ("a shelf for {}",))
            for e in facts.entities]  # fmt: skip
    world = FactSet(
        "one place",
        tuple(Entity(e.name, e.kind) for e in facts.entities),
        (Relation("home", ("home1", *places), ("we keep {} at",), ("a shelf for {}",)),),
        tuple(told),
        groups=(Group("toxins", pantry.entities),),
    )
    with pytest.raises(TargetError, match="no object that is not true"):
        method("in_context")(bridge, world.target("toxins"))
