"""Locating finds the planted feature, finds nothing where nothing is, and never looks at V."""

import copy
import json
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch

from workbench.errors import EditError, SAEError, TargetError
from workbench.facts.schema import Fact, FactSet
from workbench.facts.target import Target
from workbench.hooks import Site
from workbench.locate import Concept, ConceptFeatures, concept, locate, rank
from workbench.locate.resample import group_interval
from workbench.locate.scores import Method

METHODS = ("frequency", "attribution")
ALL = get_args(Method)


def same(one: ConceptFeatures, two: ConceptFeatures) -> bool:
    tensors = all(
        torch.equal(getattr(one, name), getattr(two, name))
        for name in ("features", "scores", "held_out")
    )
    frames = one.frame().equals(two.frame()) and one.random.frame().equals(two.random.frame())
    return tensors and frames and one.held_out_random == two.held_out_random


@pytest.mark.parametrize("method", ALL)
def test_planted_feature_is_first_and_holds_out(planted: Any, target: Target, method: Any) -> None:
    found = locate(planted.model, planted.sae, target, 1 if method == "saebench" else 5, method)
    assert found.features[0] == planted.concept
    assert found.held_out[0] > 0.2 > 0.1 > abs(found.held_out_random)
    assert found.held_out.argmax() == 0
    assert found.evidence.effect[0] > 0.5 and abs(found.evidence.cost[0]) < 0.01
    assert torch.equal(rank(planted.model, planted.sae, target, 1, method)[0], found.features[:1])


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
    asked, ask = [], concept.ask

    def spy(facts: tuple[Fact, ...], templates: Any) -> Any:
        asked.append((frozenset(f.key for f in facts), templates))
        return ask(facts, templates)

    monkeypatch.setattr(concept, "ask", spy)
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


# Evidence


def told(planted: Any, world: FactSet, chance: int | None = None, n: int = 32) -> Concept:
    """Prompts about toxins and about foods; with a seed, mixed and dealt out anew."""
    sides = [
        [(f"{t.format(e.name)}", "home0") for t in ("we keep {} at", "a shelf for {}")]
        for e in world.entities
    ]
    prompts = [pair for side in sides for pair in side]
    forget, retain = prompts[:24], prompts[24 : 24 + n]
    if chance is not None:
        mixed = random.Random(chance).sample([*forget, *retain], len(forget) + len(retain))
        forget, retain = mixed[: len(forget)], mixed[len(forget) :]
    return Concept.from_prompts(forget, retain, "poison")


@pytest.mark.parametrize("method", ["frequency", "auroc"])
def test_nothing_passes_where_labels_are_drawn_by_chance(
    planted: Any, world: FactSet, method: Any
) -> None:
    """In 19 of 20 draws; the true labels pass, and only the planted feature does."""
    found = locate(planted.model, planted.sae, told(planted, world), 3, method)
    assert planted.concept in found.passing.tolist()
    assert "Nothing passes" not in str(found) and "pass a false-discovery rate" in str(found)
    nothing = []
    for seed in range(20):
        found = locate(planted.model, planted.sae, told(planted, world, seed), 3, method)
        nothing.append("Nothing passes: no chosen feature tells 'poison' apart" in str(found))
        assert nothing[-1] == (not len(found.passing))
    assert sum(nothing) >= 19


def test_planted_feature_is_stable_and_a_chance_one_is_not(
    planted: Any, world: FactSet, target: Target
) -> None:
    found = locate(planted.model, planted.sae, target, 5)
    assert found.stable[0] > 0.95 and found.wordings[0] == 1
    stable = []
    for seed in range(6):
        names = {e.name for e in random.Random(seed).sample(world.entities, 12)}
        drawn = world.target(lambda fact, names=names: fact.subject in names, seed)
        stable.append(locate(planted.model, planted.sae, drawn, 5).stable.mean().item())
    assert sum(stable) / 6 < 0.75


def test_wordings_that_do_not_choose_a_feature_count_against_it(
    planted: Any, world: FactSet, target: Target
) -> None:
    """Of the two training templates, one comes last: there the subject is all that counts."""
    found = locate(planted.model, planted.sae, target, 5)
    assert found.wordings[0] == 1
    assert set(found.wordings.tolist()) <= {0.0, 0.5, 1.0} and found.wordings.min() < 1


def test_intervals_hold_their_values(planted: Any, world: FactSet) -> None:
    found = locate(planted.model, planted.sae, told(planted, world), 5)
    for evidence in (found.evidence, found.random):
        frame = evidence.frame()
        for name in ("score", "effect", "cost"):
            assert (frame[f"{name}_low"] <= frame[name] + 1e-6).all()
            assert (frame[name] <= frame[f"{name}_high"] + 1e-6).all()
        assert (frame.effect_low < frame.effect_high).any()


def test_intervals_cover_the_true_mean_as_often_as_they_say() -> None:
    """Groups of three prompts alike; were prompts drawn alone, intervals would be too short."""
    generator = torch.Generator().manual_seed(0)
    prompts = [concept.Prompt("", f"group {i // 3}") for i in range(120)]
    means = torch.randn(40, 300, generator=generator)
    values = means.repeat_interleave(3, 0) + 0.1 * torch.randn(120, 300, generator=generator)
    low, high = group_interval(values, prompts, generator)
    assert 0.90 < ((low < 0) & (high > 0)).float().mean() < 0.98
    alone = [replace(p, group=str(i)) for i, p in enumerate(prompts)]
    low, high = group_interval(values, alone, generator)
    assert ((low < 0) & (high > 0)).float().mean() < 0.8


def test_random_features_do_less(planted: Any, target: Target) -> None:
    found = locate(planted.model, planted.sae, target, 5)
    assert not set(found.random.features.tolist()) & set(found.features.tolist())
    assert found.random.effect.mean() < found.evidence.effect.mean() / 3
    assert found.random.effect.abs().any()


@pytest.mark.parametrize("stats", [(), ("density",), ("max_activation",)])
def test_sae_without_statistics_is_matched_on_the_passages_of_the_choice(
    planted: Any, target: Target, stats: tuple[str, ...]
) -> None:
    bare = copy.deepcopy(planted.sae)
    for name in {"density", "max_activation"} - set(stats):
        delattr(bare, name)
    found = locate(planted.model, bare, target, 5)
    full = locate(planted.model, planted.sae, target, 5)
    assert torch.equal(found.features, full.features)
    assert len(set(found.random.features.tolist()) - set(found.features.tolist())) == 5
    assert found.random.effect.abs().any()
    assert found.random.effect.mean() < found.evidence.effect.mean() / 3


def test_table_can_be_read(planted: Any, world: FactSet) -> None:
    lines = str(locate(planted.model, planted.sae, told(planted, world), 5)).splitlines()
    assert max(len(line) for line in lines) <= 150
    assert lines[0] == "poison at blocks.1.hook_resid_post by frequency"
    row = next(line for line in lines if line.split()[0] == str(planted.concept))
    assert row.count("[") == 3
    assert all(word in lines[3] for word in ("feature", "stable", "q", "effect", "cost"))


def test_result_is_plain_values(planted: Any, target: Target) -> None:
    found = locate(planted.model, planted.sae, target, 2)
    read = json.loads(json.dumps(found.as_dict()))
    assert read["evidence"]["effect"] == pytest.approx(found.evidence.effect.tolist())
    assert read["random"]["features"] == found.random.features.tolist()
    assert read["passing"] == found.passing.tolist() and read["concept"] == "toxins"


def test_effects_of_prompts_without_answers_are_divergences(planted: Any, world: FactSet) -> None:
    pairs = [(p.text, p.group) for p in told(planted, world).select.forget]
    other = [p.text for p in told(planted, world).select.retain]
    bare = Concept.from_prompts([text for text, _ in pairs], other, "poison")
    found = locate(planted.model, planted.sae, bare, 10, "auroc")
    mine = found.features == planted.concept
    assert found.evidence.effect[mine] > 0.1 > 1e-3 > found.evidence.cost[mine]
    with pytest.raises(EditError, match="attribution follows the answer"):
        locate(planted.model, planted.sae, bare, 1, "attribution")


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
