"""Methods that work by an SAE's features: clamps behind hooks, and adapters that silence them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unlearn.contract import check_contract, check_keeps
from workbench.errors import EditError, ModelError, SAEError
from workbench.facts.target import Target
from workbench.hooks import edited
from workbench.models import weights_sha256
from workbench.models.score import ask, next_logits
from workbench.sae import load_sae
from workbench.sae.load import save_sae
from workbench.sae.matched import matched_features
from workbench.unlearn import method, sae_clamp, sae_conditional, sae_gate
from workbench.unlearn.gates import gate_peaks, shown, streams_of
from workbench.unlearn.sae_edits import counted_on, marked, most, per_token, saes_for
from workbench.unlearn.training import Steps

HOOKS = ("sae_clamp", "sae_gate", "sae_conditional")
LITTLE = Steps(2, 1e-3, batch_size=4, asked=4, texts=2)
SITE = "valley/blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def folder(
    bridge: Any, make_sae: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> str:
    """Of a random SAE of the random model."""
    place = tmp_path_factory.mktemp("sae")
    save_sae(make_sae(model_sha256=weights_sha256(bridge)), place)
    return str(place)


def small(name: str, folder: str) -> Any:
    config = replace(method(name).default, saes=(folder,), features=4)
    if name == "crisp":
        return replace(config, steps=LITTLE, ratio=1.0)
    return replace(config, retain_rate=0.5) if name == "sae_clamp" else config


@pytest.mark.parametrize("name", [*HOOKS, "crisp"])
def test_keeps_the_contract(
    name: str, bridge: Any, pantry: Target, folder: str, tmp_path: Path
) -> None:
    how, config = method(name), small(name, folder)
    arm = check_contract(lambda m, t, s: how.unlearn(m, t, config, s), bridge, pantry, tmp_path)
    assert arm.claim == "none"
    assert len(arm.told["features"]) == 1
    if name in HOOKS:
        assert arm.model is bridge
        assert len(arm.edits) == 1
    else:
        assert not arm.edits
        assert weights_sha256(arm.model) != weights_sha256(bridge)


@pytest.mark.parametrize("name", HOOKS)
def test_what_a_hook_does_is_gone_without_it(
    name: str, bridge: Any, pantry: Target, folder: str
) -> None:
    before, tokens = weights_sha256(bridge), torch.arange(3, 15)[None]
    with torch.no_grad():
        said = next_logits(bridge, tokens)
        arm = method(name).unlearn(bridge, pantry, small(name, folder))
        assert weights_sha256(arm.model) == before
        assert torch.equal(next_logits(arm.model, tokens), said)


# Which features


def test_features_are_those_that_fire_on_the_target(make_sae: Callable[..., Any]) -> None:
    sae = make_sae()
    scores = torch.zeros(64)
    scores[[5, 9, 20]] = torch.tensor([0.1, 0.3, 0.2])
    assert most(scores, 2, sae, "fires").tolist() == [9, 20]
    assert most(scores, 8, sae, "fires").tolist() == [9, 20, 5]
    with pytest.raises(EditError, match="no feature that fires"):
        most(torch.zeros(64), 2, sae, "fires")


def test_clamped_features_are_rare_elsewhere(bridge: Any, pantry: Target, folder: str) -> None:
    config = small("sae_clamp", folder)
    arm = sae_clamp.unlearn(bridge, pantry, config)
    sae, counted = load_sae(folder), counted_on(pantry, 0)
    forget, retained = (
        per_token(bridge, sae, side, "rate") for side in (counted.forget, counted.retain)
    )
    chosen = torch.tensor(arm.told["features"][0])
    assert (retained[chosen] < config.retain_rate).all()
    allowed = retained < config.retain_rate
    assert forget[chosen].min() >= forget[allowed].sort(descending=True).values[len(chosen) - 1]
    # More would have been chosen without the limit.
    assert (forget[~allowed] > forget[chosen].min()).any()


def test_marking_features_fire_so_much_more_often_on_the_target(
    bridge: Any, pantry: Target, folder: str
) -> None:
    sae, counted = load_sae(folder), counted_on(pantry, 0)
    forget, retained = (
        per_token(bridge, sae, side, "rate") for side in (counted.forget, counted.retain)
    )
    chosen = marked(bridge, sae, counted, 4)
    assert (forget[chosen] > 2 * retained[chosen]).all()
    assert (forget <= 2 * retained).any()


def test_nothing_held_out_is_counted(pantry: Target) -> None:
    counted, given = counted_on(pantry, 0), shown(pantry, 0)
    barred = {f.subject for fold in ("R_va", "R_te") for f in pantry.retain[fold]}
    texts = [p.text for side in (counted.forget, counted.retain) for p in side]
    texts += [q.prompt for q in (*given.forget, *given.others, *given.spared)]
    assert len(texts) > 100
    assert not [t for t in texts if any(t.endswith(b) or f"{b} " in t for b in barred)]
    assert not {q.fact.subject for q in given.spared} & {q.fact.subject for q in given.retained}


# SAEs


def test_a_model_without_an_sae_is_told_to_train_one(bridge: Any, pantry: Target) -> None:
    for name in (*HOOKS, "crisp"):
        with pytest.raises(SAEError, match="train one on this model"):
            method(name).unlearn(bridge, pantry)


def test_an_sae_of_other_weights_is_refused(bridge: Any, pantry: Target) -> None:
    with pytest.raises(SAEError):
        sae_gate.unlearn(bridge, pantry, sae_gate.Config((SITE,)))


def test_the_bundled_saes_fit_the_bundled_model(valley: Any) -> None:
    assert [s.cfg.metadata.hook_name for s in saes_for(valley, ())] == [
        "blocks.0.hook_resid_post",
        "blocks.1.hook_resid_post",
    ]


@pytest.mark.parametrize("name", [*HOOKS, "crisp"])
def test_a_model_that_was_not_loaded_is_refused(name: str, make_llama: Any, pantry: Target) -> None:
    with pytest.raises(ModelError, match="load_model"):
        method(name).unlearn(make_llama(), pantry)


# In the bundled world


@pytest.fixture(scope="module")
def gated(valley: Any, toxins: Target) -> Any:
    return method("sae_gate")(valley, toxins)


def changed_tokens(model: Any, arm: Any, target: Target, facts: Any) -> float:
    """Share of tokens that the edits change, on training prompts."""
    rows = model.tokenizer([q.prompt for q in ask(facts, "train")])["input_ids"]
    with torch.no_grad(), edited(model, arm.edits) as log:
        for row in rows:
            model(torch.tensor([row]))
    return sum(log.changed) / sum(log.tokens)


@pytest.mark.slow
def test_the_gate_stays_shut_on_what_is_unrelated(valley: Any, toxins: Target, gated: Any) -> None:
    unrelated = [f for f in toxins.neighbours["U"] if f.stated and f.templates][::60]
    assert changed_tokens(valley, gated, toxins, toxins.fold("S")[::10]) > 0.1
    assert changed_tokens(valley, gated, toxins, unrelated) < 0.01


@pytest.mark.slow
def test_the_threshold_is_of_prompts_that_fitted_nothing(
    valley: Any, toxins: Target, gated: Any
) -> None:
    given, gate = shown(toxins, 0), gated.edits[0]
    dtype = gate.evidence.sae.W_dec.dtype
    share = 0.05 / len(gated.edits)
    peaks = gate_peaks(gate, streams_of(valley, given.spared, gate.site, dtype))
    assert (peaks > gate.threshold).float().mean() <= share


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "recall", "perplexity", "forget"),
    [("sae_clamp", 0.95, 1.05, 0.98), ("sae_conditional", 0.96, 1.15, 0.96)],
)
def test_what_is_to_stay_stays(
    name: str, recall: float, perplexity: float, forget: float, valley: Any, toxins: Target
) -> None:
    check_keeps(method(name)(valley, toxins), valley, toxins, recall, perplexity, forget)


@pytest.mark.slow
def test_the_guardrail_forgets_and_the_rest_stays(valley: Any, toxins: Target, gated: Any) -> None:
    check_keeps(gated, valley, toxins, recall=0.96, perplexity=1.05, forget=0.3)


@pytest.mark.slow
def test_crisp_silences_its_features_and_leaves_others(valley: Any, toxins: Target) -> None:
    arm = method("crisp")(valley, toxins)
    check_keeps(arm, valley, toxins, recall=0.96, perplexity=1.05, forget=0.92)
    counted = counted_on(toxins, 0)
    for sae, told in zip(saes_for(valley, ()), arm.told["features"], strict=True):
        chosen = torch.tensor(told)
        others = matched_features(sae, chosen, 0)
        before, after = (
            per_token(m, sae, counted.forget[:300], "mean") for m in (valley, arm.model)
        )
        left = after[chosen].sum() / before[chosen].sum()
        left_of_others = after[others].sum() / before[others].sum()
        assert left < 0.7
        assert left < left_of_others - 0.15


def test_sae_conditional_judges_each_token_by_itself(
    bridge: Any, pantry: Target, folder: str
) -> None:
    arm = sae_conditional.unlearn(bridge, pantry, small("sae_conditional", folder))
    gate = arm.edits[0]
    assert gate.over == "token"
    stream = torch.randn(9, 32, generator=torch.Generator().manual_seed(0))
    opened = replace(gate, threshold=float(gate.gathered(stream)[1:].median())).open_at(stream)
    swapped = stream.clone()
    swapped[1:] = stream[1:].flip(0)
    again = replace(gate, threshold=float(gate.gathered(stream)[1:].median())).open_at(swapped)
    assert opened[1:].any()
    assert not opened[1:].all()
    assert torch.equal(again[1:], opened[1:].flip(0))
