"""The scores are what they say: counts of firing, and the first-order effect of ablation."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from workbench.facts.schema import FactSet
from workbench.hooks import Site, edited
from workbench.interventions import Rescale
from workbench.locate.scores import attribution, firing_frequency, prompt_rows
from workbench.models.load import load_model
from workbench.models.score import Question, ask

SITES = ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_mid", "blocks.1.hook_resid_post"]


@pytest.fixture(scope="module")
def questions(world: FactSet) -> tuple[Question, ...]:
    """About toxins and foods, with answers that differ."""
    return ask(world.facts[10:16], "train")


def test_frequency_is_the_share_of_rows_on_which_a_feature_fires(sae: Any) -> None:
    rows = torch.randn(50, 32, generator=torch.Generator().manual_seed(0))
    expected = [sum(bool(sae.encode(row)[i] > 0) for row in rows) / 50 for i in range(64)]
    assert firing_frequency(sae, rows).tolist() == pytest.approx(expected)


# Rows


@pytest.mark.parametrize("from_subject", [True, False])
def test_rows_are_those_of_direct_forward_passes(
    bridge: Any, questions: tuple[Question, ...], from_subject: bool
) -> None:
    site = Site(1, "resid_mid")
    rows, owner = prompt_rows(bridge, questions, [site, Site(0)], from_subject=from_subject)[site]
    for i, question in enumerate(questions):
        words = question.prompt.split()
        start = 1 + words.index(question.fact.subject.split()[-1]) if from_subject else 1
        tokens = torch.tensor([bridge.tokenizer(question.prompt)["input_ids"]])
        _, cache = bridge.run_with_cache(tokens)
        assert tokens.shape[1] == len(words) + 1
        torch.testing.assert_close(rows[owner == i], cache[site.name][0, start:].detach())


def test_rows_carry_no_graph(bridge: Any, questions: tuple[Question, ...]) -> None:
    assert not prompt_rows(bridge, questions, [Site(1)])[Site(1)][0].requires_grad


# Attribution


def mean_margin(model: Any, world: FactSet, questions: tuple[Question, ...]) -> float:
    """True object's logit over the mean of all candidates, one prompt at a time."""
    total = 0.0
    homes = model.tokenizer.convert_tokens_to_ids(list(world.relation["home"].candidates))
    for question in questions:
        ids = model.tokenizer(question.prompt)["input_ids"]
        logits = model(torch.tensor([ids]))[0, -1]
        right = model.tokenizer.convert_tokens_to_ids(question.fact.object)
        total += (logits[right] - logits[homes].mean()).item()
    return total / len(questions)


@pytest.fixture(scope="module")
def double(make_llama: Callable[..., Any], tokenizer: Any) -> Any:
    return load_model(make_llama().double(), tokenizer=tokenizer)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("kind", ["topk", "standard"])
@torch.no_grad()
def test_attribution_is_the_first_order_effect_of_ablation(
    double: Any,
    make_sae: Callable[..., Any],
    world: FactSet,
    questions: tuple[Question, ...],
    kind: str,
    site: str,
) -> None:
    """Against the edit itself: each feature made a little weaker and a little stronger."""
    sae = copy.deepcopy(make_sae(kind, site=site)).to(torch.float64)
    scores = attribution(double, sae, world, questions)
    assert (scores != 0).sum() > 20
    step = 1e-3

    def margin(feature: Tensor, scale: float) -> float:
        with edited(double, [Rescale(sae, feature[None], scale)]):
            return mean_margin(double, world, questions)

    for feature in scores.abs().topk(4).indices:
        slope = (margin(feature, 1 + step) - margin(feature, 1 - step)) / (2 * step)
        assert scores[feature].item() == pytest.approx(slope, rel=1e-3)


def test_score_of_the_planted_feature_is_near_the_effect_of_ablating_it(
    planted: Any, world: FactSet
) -> None:
    """The first order is not all of it: norms follow."""
    questions = ask(world.facts[:4], "train")[1::2]  # the subject ends the prompt
    score = attribution(planted.model, planted.sae, world, questions)[planted.concept].item()
    before = mean_margin(planted.model, world, questions)
    with edited(planted.model, [Rescale(planted.sae, torch.tensor([planted.concept]), 0.0)]):
        effect = before - mean_margin(planted.model, world, questions)
    assert effect > 0.5 and 0.3 < score / effect < 3


def test_attribution_is_a_mean_over_questions(
    planted: Any, world: FactSet, questions: tuple[Question, ...]
) -> None:
    one_by_one = [attribution(planted.model, planted.sae, world, (q,)) for q in questions]
    whole = attribution(planted.model, planted.sae, world, questions)
    torch.testing.assert_close(torch.stack(one_by_one).mean(0), whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("site", SITES)
@torch.no_grad()
def test_frozen_model_gets_the_same_scores(
    make_llama: Callable[..., Any],
    make_sae: Callable[..., Any],
    tokenizer: Any,
    world: FactSet,
    questions: tuple[Question, ...],
    site: str,
) -> None:
    sae, model = make_sae(site=site), load_model(make_llama(), tokenizer=tokenizer)
    expected = attribution(model, sae, world, questions)
    model.requires_grad_(False)
    assert expected.any()
    assert torch.equal(attribution(model, sae, world, questions), expected)


def test_attribution_leaves_no_gradients_and_works_without_grad(
    planted: Any, world: FactSet, questions: tuple[Question, ...]
) -> None:
    expected = attribution(planted.model, planted.sae, world, questions)
    with torch.no_grad():
        assert torch.equal(attribution(planted.model, planted.sae, world, questions), expected)
    assert all(p.grad is None for p in planted.model.parameters())
