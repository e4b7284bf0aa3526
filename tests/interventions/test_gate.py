"""The gate: evidence looks back only, thresholds keep their promise, weights find the concept."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional

from tests.interventions.members import unchecked
from workbench.errors import EditError, SAEError
from workbench.interventions import (
    Always,
    Clamp,
    Firing,
    Gate,
    Probe,
    Rescale,
    Sequence,
    Weighted,
    but_bos,
    calibrated,
    fit_gate_weights,
    gate_peaks,
)
from workbench.sae.read import Reading

CONCEPT = 7


@pytest.fixture
def gate(sae: Any) -> Gate:
    weights = torch.randn(sae.cfg.d_sae, generator=torch.Generator().manual_seed(1))
    return Gate(Rescale(sae, torch.tensor([1, 2, 3]), -1.0), Weighted(sae, weights), 0.5)


@pytest.fixture
def resid() -> Tensor:
    return torch.randn(4, 9, 32, generator=torch.Generator().manual_seed(2))


def test_evidence_is_the_highest_sum_over_the_tokens_so_far(gate: Gate, resid: Tensor) -> None:
    expected = torch.zeros(4, 9)
    sums = torch.zeros(4, 9)
    for row in range(4):
        for pos in range(1, 9):
            acts = gate.evidence.sae.encode(resid[row, pos])
            added = sum(
                float(w) * float(a) for w, a in zip(gate.evidence.weights, acts, strict=True)
            )
            sums[row, pos] = sums[row, pos - 1] + added
            expected[row, pos] = max(sums[row, : pos + 1].tolist())
    torch.testing.assert_close(gate.gathered(resid), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(gate.gathered(resid[2]), gate.gathered(resid)[2])
    assert (sums.diff() < 0).any()


def test_evidence_never_decreases(gate: Gate, resid: Tensor) -> None:
    evidence, is_open = gate.gathered(resid), gate.open_at(resid)
    assert (evidence.diff() >= 0).all() and (evidence.diff() > 0).any()
    assert (is_open[:, 1:] >= is_open[:, :-1]).all() and is_open.any()


def test_later_tokens_change_nothing_before_them(gate: Gate, resid: Tensor) -> None:
    other = torch.cat([resid[:, :5], 9 * resid[:, 5:].flip(1)], dim=1)
    for longer in (resid, other):
        torch.testing.assert_close(gate.gathered(longer)[:, :5], gate.gathered(resid[:, :5]))
        torch.testing.assert_close(gate(longer)[:, :5], gate(resid[:, :5]))
    assert not torch.allclose(gate.gathered(other)[:, 5:], gate.gathered(resid)[:, 5:])


def test_bos_adds_no_evidence(gate: Gate, resid: Tensor) -> None:
    loud = torch.cat([100 * resid[:, :1].flip(-1), resid[:, 1:]], dim=1)
    assert torch.equal(gate.gathered(loud), gate.gathered(resid))
    assert not gate.gathered(resid)[:, 0].any()


def test_edit_acts_where_the_gate_is_open_and_nowhere_else(gate: Gate, resid: Tensor) -> None:
    is_open = gate.open_at(resid)
    assert is_open.any() and not is_open.all()
    found, edit = gate(resid), gate.edit(resid)
    assert torch.equal(found[is_open], edit[is_open])
    assert torch.equal(found[~is_open], resid[~is_open])


@pytest.mark.parametrize("after", [0.0, -1.0])
def test_gate_once_open_stays_open(make_sae: Callable, after: float) -> None:
    """Also on tokens that are no evidence themselves, or evidence to the contrary."""
    sae = make_sae("standard")
    planted = torch.zeros(1, 6, 32)
    planted[0, 3] = 10 * sae.W_dec[CONCEPT]
    planted[0, 4:] = 20 * sae.W_dec[CONCEPT + 1]
    weights = torch.zeros(64)
    weights[CONCEPT], weights[CONCEPT + 1] = 1.0, after
    gate = Gate(Rescale(sae, torch.tensor([CONCEPT])), Weighted(sae, weights), 5.0)
    assert gate.open_at(planted).tolist() == [[False] * 3 + [True] * 3]


def test_gate_of_another_site_is_an_error(make_sae: Callable) -> None:
    edit = Clamp(make_sae(), torch.tensor([1]))
    elsewhere = make_sae(site="blocks.0.hook_resid_mid")
    with pytest.raises(EditError, match=r"reading blocks\.0\.hook_resid_mid cannot guard"):
        Gate(edit, Weighted(elsewhere, torch.ones(64)), 0.0)


# Other evidence, and other ways to gather it


def test_each_token_for_itself(gate: Gate, resid: Tensor) -> None:
    scores = gate.evidence.sae.encode(resid) @ gate.evidence.weights
    scores[:, 0] = 0.0
    found = replace(gate, over="token").gathered(resid)
    torch.testing.assert_close(found, scores, atol=1e-4, rtol=1e-4)


def test_share_is_the_mean_over_the_tokens_so_far(gate: Gate, resid: Tensor) -> None:
    """BOS is neither among those that fire nor among those counted."""
    features = torch.tensor([7, 8, 30])
    sae = gate.evidence.sae
    fires = (sae.encode(resid)[..., features] > 0).any(-1).float()
    assert 0 < fires.mean() < 1
    found = Gate(gate.edit, Firing(sae, features), 0.1, "share").gathered(resid)
    assert not found[:, 0].any()
    for pos in range(1, 9):
        torch.testing.assert_close(found[:, pos], fires[:, 1 : pos + 1].mean(-1))


def test_probe_says_how_far_a_token_lies_along_its_direction(gate: Gate, resid: Tensor) -> None:
    direction = torch.randn(32, generator=torch.Generator().manual_seed(5))
    probe = Probe(direction, -0.25)
    expected = (resid.double() @ direction.double() - 0.25).float()
    torch.testing.assert_close(probe(Reading(None, resid)), expected, atol=1e-5, rtol=1e-5)
    assert probe(Reading(None, resid.bfloat16())).dtype == torch.float32


@pytest.mark.parametrize("direction", [torch.zeros(32), torch.full((32,), float("nan"))])
def test_probe_without_a_direction_is_an_error(direction: Tensor) -> None:
    with pytest.raises(EditError, match="wanted finite numbers, not all zero"):
        Probe(direction)


def test_weights_are_one_for_each_feature(make_sae: Callable) -> None:
    sae = make_sae()
    with pytest.raises(EditError, match="63 weights: wanted one for each of the SAE's 64 features"):
        unchecked(Weighted, sae=sae, weights=torch.ones(63))


def test_first_token_alone_is_left_as_it_is(gate: Gate, resid: Tensor) -> None:
    edit = Clamp(gate.evidence.sae, torch.tensor([1, 2]), 1.0, "everywhere")
    found = but_bos(edit)(resid)
    assert torch.equal(found[:, 0], resid[:, 0])
    assert torch.equal(found[:, 1:], edit(resid)[:, 1:])
    assert not torch.equal(edit(resid)[:, 0], resid[:, 0])


def test_gate_may_read_where_no_site_is_named(gate: Gate) -> None:
    assert Gate(gate.edit, Probe(torch.ones(32)), 0.0).site == gate.site
    assert Gate(gate.edit, Always(), 0.0).site == gate.site


def test_an_edit_of_the_same_sae_shares_what_the_evidence_read(
    make_sae: Callable, resid: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae, calls, addmm = make_sae("topk"), [], torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda *a, **k: calls.append(a) or addmm(*a, **k))
    edits = Sequence((Rescale(sae, torch.tensor([1])), Clamp(sae, torch.tensor([2]))))
    Gate(edits, Weighted(sae, torch.ones(64)), 0.0)(resid)
    assert len(calls) == 1


# Calibration


@pytest.mark.parametrize("share", [0.0, 0.01, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("n", [100, 101, 237])
def test_share_of_false_alarms_is_the_one_stated(gate: Gate, share: float, n: int) -> None:
    peaks = torch.randn(n, generator=torch.Generator().manual_seed(n))
    found = (peaks > calibrated(gate, peaks, share).threshold).float().mean().item()
    assert found == pytest.approx(share, abs=1 / n + 1e-6)


def test_calibrated_gate_opens_on_that_share_of_prompts(gate: Gate) -> None:
    prompts = torch.randn(200, 7, 32, generator=torch.Generator().manual_seed(3))
    tuned = calibrated(gate, gate.gathered(prompts).amax(-1), 0.1)
    assert tuned.open_at(prompts).any(-1).sum() == 20
    assert (tuned.edit, tuned.evidence) == (gate.edit, gate.evidence)


# Weights


def planted_prompts(sae: Any, n: int, concept: bool, seed: int) -> list[Tensor]:
    """BOS and three to six tokens each; in prompts of the concept, its feature fires once."""
    generator = torch.Generator().manual_seed(seed)
    prompts = []
    for length in torch.randint(3, 7, (n,), generator=generator).tolist():
        stream = 0.7 * torch.randn(1 + length, 32, generator=generator)
        if concept:
            stream[-2] += 5 * sae.W_dec[CONCEPT]
        prompts.append(stream)
    return prompts


def auc(sae: Any, weights: Tensor) -> float:
    """On prompts that no weights were fitted on."""
    gate = Gate(Rescale(sae, torch.tensor([CONCEPT])), Weighted(sae, weights), 0.0)
    concept, other = (
        gate_peaks(gate, planted_prompts(sae, 60, told, seed)).tolist()
        for told, seed in ((True, 10), (False, 11))
    )
    return float(roc_auc_score([1] * 60 + [0] * 60, concept + other))


@pytest.mark.parametrize("concept_weight", [1.0, 10.0])
def test_fitted_weights_find_the_planted_concept(sae: Any, concept_weight: float) -> None:
    concept, retained = planted_prompts(sae, 60, True, 0), planted_prompts(sae, 60, False, 1)
    weights = fit_gate_weights(sae, concept, retained, concept_weight=concept_weight)
    assert weights.argmax() == CONCEPT
    assert auc(sae, weights) > 0.97


def test_weights_fitted_on_shuffled_labels_do_not(sae: Any) -> None:
    """Half of the prompts of either label hold the concept; labels weigh the same."""

    def mixed(seed: int) -> list[Tensor]:
        return [s for c in (True, False) for s in planted_prompts(sae, 30, c, seed + c)]

    found = [
        auc(sae, fit_gate_weights(sae, mixed(20 * i), mixed(20 * i + 10), concept_weight=1.0))
        for i in range(8)
    ]
    assert 0.3 < sum(found) / len(found) < 0.7


def test_weights_are_where_the_stated_loss_has_no_slope(sae: Any) -> None:
    """Weighted log loss plus half the squared weights over the penalty, without an intercept."""
    groups = [planted_prompts(sae, n, c, n) for n, c in ((30, True), (40, False), (50, False))]
    x = torch.stack([sae.encode(s[1:]).sum(0) for g in groups for s in g]) / sae.max_activation
    y = torch.tensor([1.0] * 30 + [0.0] * 90)

    def slope(sample_weight: list[float], penalty: float) -> float:
        w = (fitted * sae.max_activation).clone().requires_grad_()
        weight = torch.tensor(sample_weight)
        loss = functional.binary_cross_entropy_with_logits(x @ w, y, weight, reduction="sum")
        (gradient,) = torch.autograd.grad(loss + w.square().sum() / (2 * penalty), w)
        return (gradient.abs().max() / weight.sum()).item()

    fitted = fit_gate_weights(sae, *groups, penalty=0.3, concept_weight=4.0, unrelated_weight=0.5)
    assert slope([4.0] * 30 + [1.0] * 40 + [0.5] * 50, 0.3) < 1e-3
    assert slope([1.0] * 30 + [1.0] * 40 + [0.5] * 50, 0.3) > 1e-2
    assert slope([4.0] * 30 + [1.0] * 40 + [5.0] * 50, 0.3) > 1e-2
    assert slope([4.0] * 30 + [1.0] * 40 + [0.5] * 50, 0.03) > 1e-2


def test_weights_do_not_depend_on_the_order_of_prompts_nor_on_bos(sae: Any) -> None:
    concept, other = planted_prompts(sae, 30, True, 0), planted_prompts(sae, 30, False, 1)
    changed = [torch.cat([100 * s[:1].flip(-1), s[1:]]) for s in reversed(concept)]
    torch.testing.assert_close(
        fit_gate_weights(sae, changed, other),
        fit_gate_weights(sae, concept, other),
        atol=1e-4,
        rtol=1e-3,
    )


def test_weights_want_the_largest_activations(make_sae: Callable) -> None:
    sae = make_sae(stats=["density"])
    prompts = planted_prompts(sae, 5, True, 0)
    with pytest.raises(SAEError, match="doses are multiples"):
        fit_gate_weights(sae, prompts, prompts)
