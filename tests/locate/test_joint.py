"""Features that forget only together are found together, within the harm that is allowed."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from workbench.errors import EditError
from workbench.facts.schema import FactSet
from workbench.locate import Concept, Goal, Prompt, choose_jointly, exact_effects
from workbench.locate.joint import drawn_evenly
from workbench.models.load import load_model

HALVES, SHARED = (5, 9), 20


@pytest.fixture(scope="module")
def halves(
    world: FactSet, make_llama: Callable, make_sae: Callable, tokenizer: Any
) -> tuple[Any, Any]:
    """Either of two directions tells the home of toxins; a third holds up both kinds' homes."""
    drawn = torch.randn(32, 3, generator=torch.Generator().manual_seed(9))
    directions = torch.linalg.qr(drawn)[0].T
    u1, u2, shared = directions
    llama = make_llama()
    toxins, foods = (
        tokenizer.convert_tokens_to_ids(
            [e.name.split()[1] for e in world.entities if e.kind == kind]
        )
        for kind in ("toxin", "food")
    )
    home0, home1 = tokenizer.convert_tokens_to_ids(["home0", "home1"])
    with torch.no_grad():
        embed, unembed = llama.model.embed_tokens.weight, llama.lm_head.weight
        embed -= embed @ directions.T @ directions
        embed[toxins] += 3 * (u1 + u2 + shared)
        embed[foods] += 3 * shared
        unembed[home0] += 2 * (u1 + u2) + shared
        unembed[home1] += shared
        for layer in llama.model.layers:
            layer.self_attn.o_proj.weight.mul_(0.1)
            layer.mlp.down_proj.weight.mul_(0.1)
    sae = make_sae("standard")
    with torch.no_grad():
        sae.W_enc -= directions.T @ (directions @ sae.W_enc)
        for feature, direction in zip((*HALVES, SHARED), directions, strict=True):
            sae.W_enc[:, feature], sae.W_dec[feature] = direction, direction
            sae.b_enc[feature] = -0.05
        sae.b_dec.zero_()
        sae.max_activation[[*HALVES, SHARED]] = 3.0
    return load_model(llama, tokenizer=tokenizer), sae


@pytest.fixture(scope="module")
def homes(world: FactSet) -> Concept:
    toxins, foods = (
        [(f"a shelf for {e.name}", home) for e in world.entities if e.kind == kind]
        for kind, home in (("toxin", "home0"), ("food", "home1"))
    )
    return Concept.from_prompts(toxins, foods, "poison")


def chosen(halves: Any, homes: Concept, goal: Goal, **options: Any) -> Any:
    given = {"dose": 0.0, "candidates": 64, "doses": (0.0, -0.5, -1.0)} | options
    return choose_jointly(*halves, homes, goal, **given)


def test_either_half_alone_does_little_and_both_forget(halves: Any, homes: Concept) -> None:
    """What is planted is as planned."""
    one, two = (torch.tensor([f]) for f in HALVES)
    found = exact_effects(*halves, homes.select.forget, one, base=two)
    alone = exact_effects(*halves, homes.select.forget, one)
    assert found.base.abs().max() < 0.3 and alone.each.abs().max() < 0.3
    assert found.each.min() > 0.4


def test_both_halves_are_found(halves: Any, homes: Concept) -> None:
    found = chosen(halves, homes, Goal(0.4, 0.05))
    assert set(HALVES) <= set(found.features.tolist())
    assert found.met and found.steps[-1].forget > 0.4 and found.steps[-1].harm <= 0.05
    assert "goal of 0.4 nats forgotten and at most 0.05 lost elsewhere: reached" in str(found)


def test_a_feature_that_harms_is_taken_only_if_harm_is_allowed(halves: Any, homes: Concept) -> None:
    frugal, lavish = (
        chosen(halves, homes, Goal(50.0, harm), k=8, curve=False) for harm in (0.05, 5000.0)
    )
    assert SHARED not in frugal.features and SHARED in lavish.features
    assert all(step.harm <= 0.05 for step in frugal.steps)
    assert lavish.steps[-1].harm > 0.5 and lavish.steps[-1].forget > frugal.steps[-1].forget
    assert not frugal.met
    assert "not reached" in str(chosen(halves, homes, Goal(50.0, 0.05), k=4))


def test_dose_is_the_one_that_forgets_most_within_the_harm(halves: Any, homes: Concept) -> None:
    found = chosen(halves, homes, Goal(0.4, 0.05))
    allowed = [p for p in found.doses if p.harm <= 0.05]
    assert found.dose == max(allowed, key=lambda p: p.forget).dose
    assert max(found.doses, key=lambda p: p.forget) not in allowed
    for point in (*found.sizes, *found.doses):
        some = found.features[: point.k]
        none = torch.zeros(0, dtype=torch.long)
        sides = (homes.report.forget, homes.report.retain)
        losses = [
            exact_effects(*halves, s, none, dose=point.dose, base=some).base.mean() for s in sides
        ]
        assert [point.forget, point.harm] == pytest.approx([x.item() for x in losses], abs=1e-5)
        assert point.forget_low <= point.forget <= point.forget_high
        assert point.random_forget < max(point.forget, 0.1)
    assert [p.k for p in found.sizes] == sorted({p.k for p in found.sizes})
    assert found.sizes[-1].k == len(found.features) == len(found.features.unique())
    assert len(found.frame()) == len(found.sizes) + len(found.doses)


def test_passages_of_the_report_choose_no_feature(halves: Any, homes: Concept) -> None:
    other = replace(homes, report=homes.select)
    found, again = (
        chosen(halves, c, Goal(0.4, 0.05), curve=False, doses=()) for c in (homes, other)
    )
    assert torch.equal(found.features, again.features) and found.steps == again.steps
    assert found.met and not found.sizes and not found.doses


def test_nothing_to_find_is_an_error(halves: Any, homes: Concept) -> None:
    swapped = Concept("food", homes.select, homes.report, "", "")
    with pytest.raises(EditError, match="no feature of this SAE forgets 'food'"):
        model, sae = halves
        dead = type(sae)(sae.cfg)
        dead.load_state_dict(sae.state_dict(), strict=False)
        dead.b_enc.data.fill_(-1e3)
        for name in ("density", "max_activation"):
            dead.register_buffer(name, getattr(sae, name), persistent=False)
        choose_jointly(model, dead, swapped, Goal(0.4, 0.05))


@pytest.mark.parametrize("goal", [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0)])
def test_goals_are_above_zero(goal: tuple[float, float]) -> None:
    with pytest.raises(EditError, match="wanted both above zero"):
        Goal(*goal)


@pytest.mark.parametrize("n", [1, 7, 12, 100])
def test_prompts_are_drawn_evenly_over_groups(n: int) -> None:
    prompts = [Prompt(f"{g} {i}", g) for g, m in (("a", 9), ("b", 2), ("c", 5)) for i in range(m)]
    drawn = drawn_evenly(prompts, n, 0)
    counts = {g: sum(p.group == g for p in drawn) for g in "abc"}
    assert len(set(drawn)) == len(drawn) == min(n, 16)
    assert counts["b"] == 2 or max(counts.values()) - min(counts.values()) <= 1
    assert counts["a"] - counts["c"] <= 1 or counts["c"] == 5
    assert drawn == drawn_evenly(prompts, n, 0)
