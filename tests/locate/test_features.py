"""Locating finds the planted feature, finds nothing where nothing is, and never looks at V."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from workbench.errors import EditError, SAEError, TargetError
from workbench.facts.schema import Fact, FactSet
from workbench.facts.target import Target
from workbench.hooks import Site
from workbench.locate import ConceptFeatures, locate
from workbench.locate import features as locating

METHODS = ("frequency", "attribution")


def same(one: ConceptFeatures, two: ConceptFeatures) -> bool:
    tensors = all(
        torch.equal(getattr(one, name), getattr(two, name))
        for name in ("features", "scores", "held_out")
    )
    return tensors and one.held_out_random == two.held_out_random


@pytest.mark.parametrize("method", METHODS)
def test_planted_feature_is_first_and_holds_out(planted: Any, target: Target, method: Any) -> None:
    found = locate(planted.model, planted.sae, target, 5, method)
    assert found.features[0] == planted.concept
    assert found.held_out[0] > 0.4 > 0.1 > abs(found.held_out_random)
    assert found.held_out.argmax() == 0


def test_planted_feature_fires_on_every_subject_and_on_no_other(
    planted: Any, target: Target
) -> None:
    """Two of the three tokens from the subject on, over the templates, are subjects."""
    found = locate(planted.model, planted.sae, target, 1)
    assert found.scores.tolist() == pytest.approx([2 / 3])
    assert found.held_out.tolist() == pytest.approx([2 / 3])


@pytest.mark.parametrize("method", METHODS)
def test_groups_drawn_by_chance_have_no_feature(
    planted: Any, world: FactSet, target: Target, method: Any
) -> None:
    """The same number of subjects, whatever they are: what leads on T is nothing on S."""
    firsts, gaps = [], []
    for seed in range(8):
        names = {e.name for e in random.Random(seed).sample(world.entities, 12)}
        drawn = world.target(lambda fact, names=names: fact.subject in names, seed)
        found = locate(planted.model, planted.sae, drawn, 5, method)
        firsts.append(int(found.features[0]))
        gaps.append(found.held_out.mean().item() - found.held_out_random)
    real = locate(planted.model, planted.sae, target, 5, method)
    assert abs(sum(gaps) / 8) < (real.held_out[0].item() - real.held_out_random) / 4
    assert firsts.count(planted.concept) <= 4


@pytest.mark.parametrize("method", METHODS)
def test_features_are_ranked_and_scored_alike(planted: Any, target: Target, method: Any) -> None:
    few, many = (locate(planted.model, planted.sae, target, k, method) for k in (3, 6))
    assert torch.equal(few.features, many.features[:3])
    assert torch.equal(few.held_out, many.held_out[:3])
    assert (many.scores.diff() <= 0).all() and many.scores[-1] > 0
    assert len(many.features.unique()) == 6


@pytest.mark.parametrize("method", METHODS)
def test_same_call_gives_the_same_features(planted: Any, target: Target, method: Any) -> None:
    assert same(*(locate(planted.model, planted.sae, target, 5, method) for _ in range(2)))


def test_random_mean_is_over_the_other_features(planted: Any, target: Target) -> None:
    one, five = (locate(planted.model, planted.sae, target, k) for k in (1, 5))
    total = one.held_out_random * 63 + one.held_out.sum().item()
    assert five.held_out_random * 59 + five.held_out.sum().item() == pytest.approx(total, abs=1e-4)


def test_result_says_where_and_on_what(planted: Any, target: Target) -> None:
    found = locate(planted.model, planted.sae, target, 3)
    assert found.site == Site(1) and found.method == "frequency"
    assert found.selected_on == "T and R_tr, training templates of toxins"
    assert found.evidence_on == "S and R_va, audit-only templates of toxins"
    assert json.loads(json.dumps(found.as_dict()))["features"] == found.features.tolist()


# Folds


def with_objects(world: FactSet, change: Callable[[Fact], str]) -> Target:
    facts = tuple(replace(f, object=change(f)) for f in world.facts)
    return replace(world, facts=facts).target("toxins")


def swapped(fact: Fact) -> str:
    return f"home{(int(fact.object.removeprefix('home')) + 5) % 12}"


@pytest.mark.parametrize("method", METHODS)
def test_v_and_r_te_have_no_part(planted: Any, world: FactSet, target: Target, method: Any) -> None:
    unused = {f.key for f in (*target.fold("V"), *target.retain["R_te"])}
    other = with_objects(world, lambda f: swapped(f) if f.key in unused else f.object)
    assert other.folds == target.folds and other.forget != target.forget
    found, again = (locate(planted.model, planted.sae, t, 5, method) for t in (target, other))
    assert same(found, again)


def test_answers_of_the_other_folds_do_have_a_part(
    planted: Any, world: FactSet, target: Target
) -> None:
    """The positive control of the test above."""
    scores = []
    for fold in ("T", "S"):
        used = {f.key for f in target.fold(fold)}
        other = with_objects(world, lambda f, u=used: swapped(f) if f.key in u else f.object)
        scores.append(locate(planted.model, planted.sae, other, 5, "attribution"))
    found = locate(planted.model, planted.sae, target, 5, "attribution")
    assert not torch.equal(scores[0].scores, found.scores)
    assert torch.equal(scores[1].scores, found.scores)
    assert not torch.equal(scores[1].held_out, found.held_out)


@pytest.mark.parametrize("method", METHODS)
def test_folds_are_asked_with_their_own_templates(
    planted: Any, target: Target, method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, ask = [], locating.ask

    def spy(facts: tuple[Fact, ...], templates: Any) -> Any:
        asked.append((frozenset(f.key for f in facts), templates))
        return ask(facts, templates)

    monkeypatch.setattr(locating, "ask", spy)
    locate(planted.model, planted.sae, target, 5, method)
    folds = {
        "T": target.fold("T"),
        "S": target.fold("S"),
        "R_tr": target.retain["R_tr"],
        "R_va": target.retain["R_va"],
    }
    keys = {name: frozenset(f.key for f in facts) for name, facts in folds.items()}
    wanted = {"T": "train", "R_tr": "train", "S": "audit", "R_va": "audit"}
    assert set(asked) == {(keys[name], templates) for name, templates in wanted.items()}


def test_target_of_one_entity_says_that_all_facts_were_used(planted: Any, world: FactSet) -> None:
    target = world.target("toxin:item toxin3")
    assert not target.folds["T"] and not target.folds["S"]
    found = locate(planted.model, planted.sae, target, 1)
    assert found.selected_on.startswith("all forget facts and R_tr")
    assert found.evidence_on.startswith("all forget facts and R_va")


# Errors


@pytest.mark.parametrize("k", [0, -1, 64, 65, 1000])
def test_more_features_than_score_above_zero_are_an_error(
    planted: Any, target: Target, k: int
) -> None:
    with pytest.raises(
        EditError, match=rf"features score above zero for 'toxins'; asked for k={k}"
    ):
        locate(planted.model, planted.sae, target, k)


def test_sae_of_other_weights_is_refused(planted: Any, target: Target, bridge: Any) -> None:
    with pytest.raises(SAEError, match="trained on weights"):
        locate(bridge, planted.sae, target, 5)


def test_facts_without_audit_templates_are_an_error(planted: Any, world: FactSet) -> None:
    bare = replace(world, facts=tuple(replace(f, audit_templates=()) for f in world.facts))
    with pytest.raises(TargetError, match="no forget facts with audit templates"):
        locate(planted.model, planted.sae, bare.target("toxins"), 5)


def test_target_without_retained_facts_is_an_error(planted: Any, world: FactSet) -> None:
    alone = replace(world, facts=tuple(f for f in world.facts if f.object == "home0"))
    with pytest.raises(TargetError, match="no retained facts in fold R_tr with train templates"):
        locate(planted.model, planted.sae, alone.target("toxins"), 5)
