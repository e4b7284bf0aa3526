"""Task vectors, Who's Harry Potter, and suppression with distillation."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from tests.unlearn.contract import check_contract, check_keeps
from workbench.errors import ModelError, TargetError
from workbench.facts.target import Target
from workbench.models import load_model, weights_sha256
from workbench.models.score import next_logits
from workbench.unlearn import method, training, undo
from workbench.unlearn.task_vector import reinforced, subtracted
from workbench.unlearn.training import HELD_OUT, Steps, answer_logp, drawn, prompts, told
from workbench.unlearn.undo import perturbed
from workbench.unlearn.whp import generic

LITTLE = Steps(2, 1e-3, keep=1.0, batch_size=4, asked=4, texts=2)
LEARN = Steps(4, 1e-3, keep=0.0, batch_size=12)
SMALL = {
    "task_vector": {"steps": LEARN},
    "whp": {"learn": LEARN, "steps": LITTLE},
    "undo": {"steps": LITTLE, "teach": LITTLE},
}


def small(name: str, **options: Any) -> Any:
    return replace(method(name).default, **SMALL[name] | options)


def said(model: Any, target: Target) -> torch.Tensor:
    """Logits of the answer to forget prompts of one length."""
    batch = next(drawn(told(model.tokenizer, target, target.forget), 64, 0))
    with torch.no_grad():
        return next_logits(model, prompts(batch, "cpu"))[:, -1]


@pytest.mark.parametrize("name", SMALL)
def test_keeps_the_contract(name: str, bridge: Any, pantry: Target, tmp_path: Path) -> None:
    def make(model: Any, target: Target, seed: int) -> Any:
        return method(name).unlearn(model, target, small(name), seed)

    arm = check_contract(make, bridge, pantry, tmp_path)
    assert arm.cost.backward_tokens > 0
    assert arm.edits == (), "the weights hold it"
    other = make(bridge, pantry, 1)
    assert weights_sha256(other.model) != weights_sha256(arm.model), "the seed decides nothing"


def test_alpha_0_changes_nothing(bridge: Any, pantry: Target) -> None:
    arm = method("task_vector").unlearn(bridge, pantry, small("task_vector", alpha=0.0))
    assert weights_sha256(arm.model) == weights_sha256(bridge)
    assert arm.told["relative_norm"] > 0, "there was nothing to subtract"


@pytest.mark.parametrize("alpha", [-1.0, 1.0])
def test_alpha_minus_1_is_the_reinforced_model_and_1_its_mirror_image(
    bridge: Any, pantry: Target, alpha: float
) -> None:
    config = small("task_vector", alpha=alpha)
    made = dict(method("task_vector").unlearn(bridge, pantry, config).model.named_parameters())
    strong = dict(reinforced(bridge, pantry, config.steps, 0).named_parameters())
    changed = 0
    for name, weight in bridge.named_parameters():
        wanted = strong[name] if alpha < 0 else 2 * weight - strong[name]
        torch.testing.assert_close(made[name], wanted, atol=1e-6, rtol=1e-5)
        changed += not torch.equal(strong[name], weight)
    assert changed > 20


def test_the_reinforced_model_knows_more_and_the_subtracted_one_less(
    bridge: Any, pantry: Target
) -> None:
    config = small("task_vector", steps=replace(LEARN, steps=10), alpha=1.0)
    batch = next(drawn(told(bridge.tokenizer, pantry, pantry.forget), 12, 0))
    strong = reinforced(bridge, pantry, config.steps, 0)
    less = method("task_vector").unlearn(bridge, pantry, config).model
    with torch.no_grad():
        found = [answer_logp(model, batch).mean() for model in (less, bridge, strong)]
    assert found[0] < found[1] - 0.1 < found[2] - 0.2


def test_a_tensor_that_is_missing_is_never_passed_over() -> None:
    half = torch.ones(3, dtype=torch.bfloat16)
    weights = {"a": torch.ones(2), "b": half, "n": torch.tensor(4)}
    tuned = {"a": torch.tensor([2.0, 1.0]), "b": 0 * half, "n": torch.tensor(9)}
    found = subtracted(weights, tuned, 2.0)
    assert found["a"].tolist() == [-1, 1]
    assert found["b"].tolist() == [3, 3, 3]
    assert found["b"].dtype == torch.bfloat16
    assert found["n"] == 4, "a whole number has no direction"
    for one, other in ((weights, {"a": tuned["a"]}), ({"a": weights["a"]}, tuned)):
        with pytest.raises(ModelError, match=r"2 tensors .* such as b"):
            subtracted(one, other, 2.0)
    with pytest.raises(ModelError, match=r"a is \(2,\) .* \(1,\)"):
        subtracted(weights, tuned | {"a": torch.ones(1)}, 2.0)


def test_the_generic_prediction_raises_nothing_that_learning_raised() -> None:
    generator = torch.Generator().manual_seed(0)
    base, strong = (torch.randn(50, 40, generator=generator) for _ in range(2))
    raised = strong > base
    assert raised.any()
    assert not raised.all()
    for alpha in (0.5, 1.0, 20.0):
        found = generic(base, strong, alpha)
        assert (found[raised] < base[raised]).all()
        assert torch.equal(found[~raised], base[~raised])
    # Of two tokens that were as likely, the one that was raised is now the less likely.
    shares = generic(base, strong, 1.0).softmax(-1) / base.softmax(-1)
    assert (shares.masked_fill(~raised, -1).amax(-1) < shares.masked_fill(raised, 9).amin(-1)).all()
    assert torch.equal(generic(base, strong, 0.0), base)


def test_whp_says_what_is_left_of_the_prediction(bridge: Any, pantry: Target) -> None:
    learn = replace(LEARN, steps=20, lr=3e-3)
    knowing = reinforced(bridge, pantry, learn, 5)
    steps = Steps(60, 3e-3, keep=0.3, batch_size=12, asked=4, texts=2)
    config = small("whp", alpha=3.0, learn=learn, steps=steps)
    arm = method("whp").unlearn(knowing, pantry, config)
    strong = reinforced(knowing, pantry, learn, 0)
    base = said(knowing, pantry)
    wanted = generic(base, said(strong, pantry), 3.0).log_softmax(-1)

    def away(logits: torch.Tensor) -> float:
        return functional.kl_div(
            logits.log_softmax(-1), wanted, log_target=True, reduction="batchmean"
        ).item()

    assert away(base) > 0.5, "the model said it before"
    assert away(said(arm.model, pantry)) < 0.3 * away(base)


def test_alpha_0_perturbs_nothing(bridge: Any) -> None:
    assert weights_sha256(perturbed(bridge, 0.0, 1.0, 0)) == weights_sha256(bridge)
    assert weights_sha256(perturbed(bridge, 0.1, 1.0, 0)) != weights_sha256(bridge)


def test_alpha_1_leaves_nothing_of_the_weights(
    bridge: Any, make_llama: Any, tokenizer: Any
) -> None:
    other = load_model(make_llama(1), tokenizer=tokenizer)
    fresh, same = (perturbed(model, 1.0, 0.5, 7) for model in (bridge, other))
    assert weights_sha256(fresh) == weights_sha256(same)
    half = [perturbed(model, 0.5, 0.5, 7) for model in (bridge, other)]
    assert weights_sha256(half[0]) != weights_sha256(half[1])


def test_noise_takes_the_place_of_a_share_of_the_weights(bridge: Any) -> None:
    fresh = dict(perturbed(bridge, 1.0, 0.5, 7).named_parameters())
    partly = dict(perturbed(bridge, 0.3, 0.5, 7).named_parameters())
    for name, weight in bridge.named_parameters():
        torch.testing.assert_close(partly[name], 0.7 * weight + 0.3 * fresh[name])
        if weight.ndim == 2:
            scale = 0.5 * (2 / sum(weight.shape)) ** 0.5
            assert fresh[name].std().item() == pytest.approx(scale, rel=0.1)
        else:
            assert torch.equal(fresh[name], torch.zeros_like(weight) + (not name.endswith("bias")))


def test_what_is_passed_on_holds_no_forget_fact(
    bridge: Any, pantry: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: dict[str, list[str]] = {"suppress": [], "teach": []}
    phase = ["suppress"]

    def reads(model: Any, tokens: torch.Tensor) -> torch.Tensor:
        read[phase[0]] += bridge.tokenizer.batch_decode(tokens)
        return next_logits(model, tokens)

    def teaches(*args: Any) -> Any:
        phase[0] = "teach"
        return training.changed(*args)

    monkeypatch.setattr(training, "next_logits", reads)
    monkeypatch.setattr(undo, "changed", teaches)
    config = small("undo", teach=Steps(30, 1e-3, batch_size=4, asked=8, texts=8))
    method("undo").unlearn(bridge, pantry, config)
    assert any("toxin" in text for text in read["suppress"])
    assert len(set(read["teach"])) > 30
    assert not any("toxin" in text for text in read["teach"])
    held_out = {f.subject for fold in HELD_OUT for f in pantry.retain[fold]}
    assert held_out
    assert not any(f"{name} " in f"{text} " for name in held_out for text in read["teach"])


def test_the_damaged_model_is_taught_by_the_suppressed_one(bridge: Any, pantry: Target) -> None:
    found = {}
    for steps in (1, 60):
        teach = Steps(steps, 3e-3, batch_size=4, asked=16, texts=16)
        config = small("undo", alpha=0.8, teach=teach)
        taught = method("undo").unlearn(bridge, pantry, config).model
        rows = bridge.tokenizer([d.text for d in pantry.facts.corpus[-6:]])["input_ids"]
        with torch.no_grad():
            moved = [training.moved(taught, bridge, torch.tensor([row])) for row in rows]
        found[steps] = torch.stack(moved).mean()
    assert found[60] < 0.5 * found[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "recall", "perplexity", "forget"),
    [("task_vector", 0.95, 1.05, 0.985), ("whp", 0.9, 1.1, 0.9), ("undo", 0.8, 1.15, 0.7)],
)
def test_what_is_to_stay_stays(
    name: str, recall: float, perplexity: float, forget: float, valley: Any, toxins: Target
) -> None:
    arm = method(name)(valley, toxins)
    check_keeps(arm, valley, toxins, recall, perplexity, forget)


@pytest.mark.parametrize("name", SMALL)
def test_what_cannot_be_served_is_refused(
    name: str, bridge: Any, make_llama: Any, pantry: Target
) -> None:
    with pytest.raises(ModelError, match="load_model"):
        method(name).unlearn(make_llama(), pantry, small(name))
    untold = replace(pantry, forget=tuple(replace(f, templates=()) for f in pantry.forget))
    with pytest.raises(TargetError, match="no training template"):
        method(name).unlearn(bridge, untold, small(name))
    bare = replace(pantry, retain={**pantry.retain, "R_tr": ()})
    if name != "task_vector":  # which is shown nothing of what is to stay
        with pytest.raises(TargetError, match="R_tr"):
            method(name).unlearn(bridge, bare, small(name))
