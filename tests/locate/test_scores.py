"""Every score is what it says, against a second reckoning of it."""

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor

from workbench.errors import EditError
from workbench.facts.schema import FactSet
from workbench.hooks import Site, edited, residuals
from workbench.interventions import Rescale, but_bos
from workbench.locate import Contrast, Prompt, effect, exact_effects, measure, saebench_filter
from workbench.locate import rows as reading
from workbench.locate.rows import Rows, prompt_streams, read_rows
from workbench.locate.scores import Measured, adjusted, auroc
from workbench.models.load import load_model
from workbench.models.score import ask, next_logits

SITES = ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_mid", "blocks.1.hook_resid_post"]


@pytest.fixture(scope="module")
def contrast(world: FactSet) -> Contrast:
    """Three toxins and four foods, two wordings each, some asked from their subject on."""

    def prompts(facts: Any) -> tuple[Prompt, ...]:
        return tuple(
            Prompt(t.format(f.subject), f.subject, i, f.subject if i else None, None, f.object)
            for f in facts
            for i, t in enumerate(f.templates)
        )

    return Contrast(prompts(world.facts[:3]), prompts(world.facts[12:16]))


@torch.no_grad()
def acts_of(model: Any, sae: Any, prompt: Prompt) -> Tensor:
    """Activations on the tokens that count, from the subject's last word on or from BOS on."""
    words = prompt.text.split()
    start = 1 if prompt.subject is None else 1 + words.index(prompt.subject.split()[-1])
    tokens = torch.tensor([model.tokenizer(prompt.text)["input_ids"]])
    site = Site.parse(sae.cfg.metadata.hook_name)
    return sae.encode(residuals(model, tokens, [site])[site])[0, start:]


def mean_of(model: Any, sae: Any, prompts: Any, what: Callable[[Tensor], Tensor]) -> np.ndarray:
    return torch.cat([what(acts_of(model, sae, p)) for p in prompts]).double().mean(0).numpy()


def fires(acts: Tensor) -> Tensor:
    return (acts > 0).double()


def test_frequency_is_the_share_of_tokens_on_which_a_feature_fires(
    bridge: Any, sae: Any, contrast: Contrast
) -> None:
    expected = []
    for side in (contrast.forget, contrast.retain):
        rows = [row for p in side for row in acts_of(bridge, sae, p)]
        expected.append([sum(bool(row[i] > 0) for row in rows) / len(rows) for i in range(64)])
    found = measure(bridge, sae, contrast, "frequency").scores()
    wanted = [a - b for a, b in zip(*expected, strict=True)]
    assert found.tolist() == pytest.approx(wanted, abs=1e-6)


def test_mean_difference_is_one_of_mean_activations(
    bridge: Any, sae: Any, contrast: Contrast
) -> None:
    sides = [mean_of(bridge, sae, side, lambda a: a) for side in (contrast.forget, contrast.retain)]
    found = measure(bridge, sae, contrast, "mean_difference").scores()
    np.testing.assert_allclose(found, sides[0] - sides[1], atol=1e-6)


# SAEBench


def saebench_top_features(forget: np.ndarray, retain: np.ndarray, threshold: float) -> np.ndarray:
    """As SAEBench stores, reads and filters firing rates."""
    forget, retain = (np.array([float(f"{x:f}") for x in rates]) for rates in (forget, retain))
    score = forget.copy()
    score[retain >= threshold] = 0
    return score


@pytest.mark.parametrize("threshold", [0.001, 0.01])
def test_saebench_filter_is_that_of_saebench(threshold: float) -> None:
    """With rates just below, at and just above the threshold, and many ties."""
    rng = np.random.default_rng(0)
    retain = threshold + rng.integers(-4, 5, 400) * 2e-7
    forget = rng.integers(0, 9, 400) / 3e6
    expected = saebench_top_features(forget, retain, threshold)
    found = saebench_filter(torch.tensor(forget), torch.tensor(retain), threshold)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert 50 < (expected == 0).sum() < 350
    blunt = np.where(retain >= threshold, 0, forget)
    assert ((blunt == 0) != (expected == 0)).any()


def test_saebench_score_is_the_rate_on_the_concept_alone(
    bridge: Any, make_sae: Callable, contrast: Contrast
) -> None:
    sae = make_sae("topk")
    rates = [mean_of(bridge, sae, side, fires) for side in (contrast.forget, contrast.retain)]
    for threshold in (0.01, 0.2):
        measured = measure(bridge, sae, contrast, "saebench", retain_threshold=threshold)
        expected = saebench_top_features(*rates, threshold)
        np.testing.assert_allclose(measured.scores(), expected, atol=1e-6)
        assert 0 < (expected > 0).sum() < 64


# AUROC


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_auroc_is_that_of_sklearn_with_ties(levels: int) -> None:
    generator = torch.Generator().manual_seed(levels)
    values = torch.randint(levels, (40, 30), generator=generator).float()
    forget, retain = values[:15], values[15:]
    labels = [1] * 15 + [0] * 25
    expected = [roc_auc_score(labels, values[:, i].numpy()) for i in range(30)]
    assert auroc(forget, retain).tolist() == pytest.approx(expected)


def test_auroc_score_is_over_the_groups_highest_activations(
    bridge: Any, sae: Any, contrast: Contrast
) -> None:
    """Of two wordings, the mean of the two peaks."""
    peaks = [
        torch.stack([acts_of(bridge, sae, p).amax(0) for p in side]).reshape(-1, 2, 64).mean(1)
        for side in (contrast.forget, contrast.retain)
    ]
    expected = [
        roc_auc_score([1] * 3 + [0] * 4, torch.cat(peaks)[:, i].numpy()) - 0.5 for i in range(64)
    ]
    found = measure(bridge, sae, contrast, "auroc").scores()
    assert found.tolist() == pytest.approx(expected)


# TPP and SCR


@pytest.mark.parametrize("method", ["tpp", "scr"])
def test_tpp_and_scr_are_the_difference_along_a_probe(
    bridge: Any, sae: Any, contrast: Contrast, method: Any
) -> None:
    site = Site.parse(sae.cfg.metadata.hook_name)
    means = []
    for prompt in (*contrast.forget, *contrast.retain):
        tokens = torch.tensor([bridge.tokenizer(prompt.text)["input_ids"]])
        stream = residuals(bridge, tokens, [site])[site][0].detach()
        means.append(stream[-len(acts_of(bridge, sae, prompt)) :].mean(0))
    labels = [1] * len(contrast.forget) + [0] * len(contrast.retain)
    probe = LogisticRegression(max_iter=1000).fit(torch.stack(means).numpy(), labels).coef_[0]
    sides = [mean_of(bridge, sae, side, lambda a: a) for side in (contrast.forget, contrast.retain)]
    expected = []
    for feature in range(64):
        difference = sides[0][feature] - sides[1][feature]
        along = float(np.dot(sae.W_dec[feature].numpy(), probe))
        expected.append(max(difference, 0) * along if method == "tpp" else abs(difference * along))
    measured = measure(bridge, sae, contrast, method)
    assert measured.scores().tolist() == pytest.approx(expected, abs=1e-4)
    swapped = Contrast(contrast.retain, contrast.forget)
    again = measure(bridge, sae, swapped, method, like=measured)
    assert torch.equal(again.direction, measured.direction)


# Tests of significance


def by_count(a: list[float], b: list[float], kind: str) -> float:
    """Fisher's exact test of lying above a value that more than half of all share; else 0."""
    common = max(a + b, key=(a + b).count)
    if (a + b).count(common) <= len(a + b) / 2:
        return 0.0
    counts = [[sum(x > common for x in xs), sum(x <= common for x in xs)] for xs in (a, b)]
    p = {k: stats.fisher_exact(counts, alternative=k).pvalue for k in ("greater", "less")}
    return p["greater"] if kind == "greater" else min(1.0, 2 * min(p.values()))


@pytest.mark.parametrize("method", ["frequency", "scr", "auroc"])
def test_p_values_are_those_of_scipy_one_by_one(
    bridge: Any, sae: Any, contrast: Contrast, method: Any
) -> None:
    measured = measure(bridge, sae, contrast, method)
    forget, retain = (side.by_group()[0] for side in (measured.forget, measured.retain))
    assert len(forget) == 3 and len(retain) == 4
    expected = []
    for a, b in zip(forget.T.double().numpy(), retain.T.double().numpy(), strict=True):
        if len({*a, *b}) == 1:
            expected.append(1.0)
            continue
        kind = "two-sided" if method == "scr" else "greater"
        test = stats.mannwhitneyu(a, b, alternative=kind, method="asymptotic")
        expected.append(max(test.pvalue, by_count([*a], [*b], kind)))
    assert 1.0 in expected or method != "frequency"
    assert measured.p_values().tolist() == pytest.approx(expected)


def test_false_discovery_rates_are_those_of_benjamini_and_hochberg() -> None:
    p = torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 4
    order = p.argsort()
    expected = torch.empty(50, dtype=torch.float64)
    lowest = 1.0
    for rank in range(50, 0, -1):
        lowest = min(lowest, p[order[rank - 1]].item() * 50 / rank)
        expected[order[rank - 1]] = lowest
    torch.testing.assert_close(adjusted(p), expected)
    assert adjusted(torch.tensor([0.01, 0.02, 0.9, 1.0])).tolist() == pytest.approx(
        [0.04, 0.04, 1.0, 1.0]
    )


# Attribution


@pytest.fixture(scope="module")
def double(make_llama: Callable[..., Any], tokenizer: Any) -> Any:
    return load_model(make_llama().double(), tokenizer=tokenizer)


@torch.no_grad()
def logprob(model: Any, prompt: Prompt) -> float:
    ids = model.tokenizer(prompt.text)["input_ids"]
    answer = model.tokenizer(prompt.answer, add_special_tokens=False)["input_ids"]
    said = next_logits(model, torch.tensor([ids + answer]))[0].log_softmax(-1)
    return sum(said[len(ids) - 1 + i, token].item() for i, token in enumerate(answer))


def pushes(model: Any, sae: Any, prompts: Any, what: Any = "attribution") -> Tensor:
    """Of each prompt."""
    alone = tuple(replace(p, group=str(i)) for i, p in enumerate(prompts))
    return read_rows(model, sae, alone, what).values


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("kind", ["topk", "standard"])
def test_attribution_is_the_first_order_effect_of_ablation(
    double: Any, make_sae: Callable[..., Any], contrast: Contrast, kind: str, site: str
) -> None:
    """Against the edit itself: each feature made a little weaker and a little stronger."""
    sae = copy.deepcopy(make_sae(kind, site=site)).to(torch.float64)
    prompts = (contrast.forget[0], replace(contrast.retain[1], answer="home3 at home2"))
    scores, step = pushes(double, sae, prompts), 1e-3
    assert (scores != 0).sum() > 20

    def said(prompt: Prompt, feature: Tensor, scale: float) -> float:
        with edited(double, [but_bos(Rescale(sae, feature[None], scale))]):
            return logprob(double, prompt)

    for prompt, row in zip(prompts, scores, strict=True):
        for feature in row.abs().topk(3).indices:
            slope = (said(prompt, feature, 1 + step) - said(prompt, feature, 1 - step)) / (2 * step)
            assert row[feature].item() == pytest.approx(slope, rel=1e-3)


@pytest.mark.parametrize("site", SITES)
def test_integrated_pushes_add_up_to_what_all_features_do(
    double: Any,
    make_sae: Callable[..., Any],
    contrast: Contrast,
    site: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Completeness of integrated gradients; the first order alone does not add up."""
    sae = copy.deepcopy(make_sae("topk", site=site)).to(torch.float64)
    prompts = contrast.forget[:3]
    wanted = []
    for prompt in prompts:
        with edited(double, [but_bos(_Without(sae))]):
            without = logprob(double, prompt)
        wanted.append(logprob(double, prompt) - without)
    gaps = {}
    for steps in (8, 64):
        monkeypatch.setattr(reading, "STEPS", steps)
        found = pushes(double, sae, prompts, "integrated").sum(-1).double()
        gaps[steps] = (found - torch.tensor(wanted)).abs().max().item()
    first = pushes(double, sae, prompts).sum(-1).double()
    size = torch.tensor(wanted).abs().max().item()
    assert gaps[64] < 0.01 * size and gaps[8] < 0.2 * size
    assert (first - torch.tensor(wanted)).abs().max() > 5 * gaps[64]


class _Without:
    """Takes all features' parts out of the stream as it was read, as one linear edit."""

    def __init__(self, sae: Any) -> None:
        self.sae, self.site = sae, Site.parse(sae.cfg.metadata.hook_name)

    def __call__(self, resid: Tensor) -> Tensor:
        return resid - self.sae.encode(resid) @ self.sae.W_dec


@pytest.mark.parametrize("method", ["attribution", "integrated", "effect"])
def test_causal_scores_are_means_over_prompts(
    bridge: Any, sae: Any, contrast: Contrast, method: Any
) -> None:
    rows = {
        side: pushes(bridge, sae, prompts, method).mean(0)
        for side, prompts in (("forget", contrast.forget), ("retain", contrast.retain))
    }
    found = measure(bridge, sae, contrast, method).scores()
    torch.testing.assert_close(found, rows["forget"] - rows["retain"], atol=1e-5, rtol=1e-4)
    assert found.any()


def test_effect_is_the_exact_effect_of_ablation(bridge: Any, sae: Any, contrast: Contrast) -> None:
    sides = [
        exact_effects(bridge, sae, side, torch.arange(64)).each.mean(0)
        for side in (contrast.forget, contrast.retain)
    ]
    found = measure(bridge, sae, contrast, "effect").scores()
    torch.testing.assert_close(found, sides[0] - sides[1])


def test_score_of_the_planted_feature_is_near_the_effect_of_ablating_it(
    planted: Any, world: FactSet
) -> None:
    """The first order is not all of it, since norms follow; the path comes nearer."""
    prompts = [Prompt(f"a shelf for {f.subject}", f.subject, answer="home0") for f in world.facts]
    rows = {
        what: pushes(planted.model, planted.sae, prompts[:4], what)[:, planted.concept].mean()
        for what in ("attribution", "integrated", "effect")
    }
    assert rows["effect"] > 0.5
    assert 0.3 < rows["attribution"] / rows["effect"] < 3
    assert abs(rows["integrated"] - rows["effect"]) < abs(rows["attribution"] - rows["effect"])


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("what", ["attribution", "integrated"])
def test_frozen_model_gets_the_same_scores(
    make_llama: Callable[..., Any],
    make_sae: Callable[..., Any],
    tokenizer: Any,
    contrast: Contrast,
    site: str,
    what: Any,
) -> None:
    sae, model = make_sae(site=site), load_model(make_llama(), tokenizer=tokenizer)
    expected = pushes(model, sae, contrast.forget, what)
    model.requires_grad_(False)
    assert expected.any()
    found = pushes(model, sae, contrast.forget, what)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_attribution_leaves_no_gradients_and_works_without_grad(
    planted: Any, contrast: Contrast
) -> None:
    expected = pushes(planted.model, planted.sae, contrast.forget)
    with torch.no_grad():
        found = pushes(planted.model, planted.sae, contrast.forget)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert not expected.requires_grad
    assert all(p.grad is None for p in planted.model.parameters())


# Rows


@pytest.mark.parametrize("what", ["rate", "mean", "peak", "attribution", "effect"])
def test_batches_change_nothing(
    bridge: Any, sae: Any, contrast: Contrast, what: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read_rows(bridge, sae, contrast.forget, what)
    for module in (reading, effect):
        monkeypatch.setattr(module, "VALUES", 64 * 12)
    parts = read_rows(bridge, sae, contrast.forget, what)
    torch.testing.assert_close(parts.values, whole.values, atol=1e-5, rtol=1e-4)
    assert torch.equal(parts.weight, whole.weight)


def test_rows_are_of_groups_and_wordings(bridge: Any, sae: Any, contrast: Contrast) -> None:
    rows = read_rows(bridge, sae, contrast.forget, "rate")
    assert list(zip(rows.group.tolist(), rows.wording.tolist(), strict=True)) == [
        *itertools.product(range(3), range(2))
    ]
    values = [fires(acts_of(bridge, sae, p)).mean(0) for p in contrast.forget]
    torch.testing.assert_close(rows.values, torch.stack(values).float())
    assert rows.weight.tolist() == [len(acts_of(bridge, sae, p)) for p in contrast.forget]
    only = rows.of_wording(1)
    assert torch.equal(only.values, rows.values[1::2])
    pooled, weight = rows.by_group()
    torch.testing.assert_close(pooled[0], rows.weight[:2] @ rows.values[:2] / weight[0])


def test_streams_of_prompts_are_those_of_direct_forward_passes(bridge: Any, world: FactSet) -> None:
    questions, site = ask(world.facts[10:16], "train"), Site(1, "resid_mid")
    for question, found in zip(questions, prompt_streams(bridge, questions, site), strict=True):
        tokens = torch.tensor([bridge.tokenizer(question.prompt)["input_ids"]])
        _, cache = bridge.run_with_cache(tokens)
        torch.testing.assert_close(found, cache[site.name][0].detach())
        assert not found.requires_grad
    assert prompt_streams(bridge, [], site) == []


# Errors


def test_unknown_methods_are_an_error(bridge: Any, sae: Any, contrast: Contrast) -> None:
    with pytest.raises((EditError, TypeError), match="magic"):
        measure(bridge, sae, contrast, "magic")


@pytest.mark.parametrize("method", ["attribution", "integrated", "effect"])
def test_methods_that_follow_answers_say_so(
    bridge: Any, sae: Any, contrast: Contrast, method: Any
) -> None:
    mixed = (replace(contrast.forget[0], answer=None), *contrast.forget[1:])
    with pytest.raises(EditError, match="some prompts have"):
        measure(bridge, sae, Contrast(mixed, contrast.retain), method)


@pytest.mark.parametrize(("concept", "others"), [(25, 300), (24, 90), (8, 60)])
def test_sparse_features_do_not_pass_by_chance_with_few_groups_against_many(
    concept: int, others: int
) -> None:
    """A thousand features that each fire in a few groups, whatever these are about."""
    passing = 0
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        fires = torch.rand(concept + others, 1024, generator=generator) < 2 / (concept + others)
        values = fires * torch.rand(fires.shape, generator=generator)
        groups, one = torch.arange(concept + others), torch.zeros(concept + others).long()
        sides = [
            Rows(values[part], torch.ones(len(groups[part])), groups[part], one[part])
            for part in (slice(0, concept), slice(concept, None))
        ]
        passing += bool((adjusted(Measured("frequency", *sides).p_values()) <= 0.05).any())
    assert passing <= 3
    sides[0].values[:, 7] = 1.0
    assert adjusted(Measured("frequency", *sides).p_values())[7] <= 0.05
