"""Random controls: other features, matched, and nothing else changed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from workbench.errors import EditError, SAEError
from workbench.interventions import Clamp, Gate, Rescale, random_control
from workbench.interventions.control import matched_features

CHOSEN = torch.tensor([0, 30, 60, 90, 150, 199])


@pytest.fixture(scope="module")
def sae(make_sae: Callable) -> Any:
    """Two hundred features that push alike, whose densities run over three decades."""
    sae = make_sae("standard", d_sae=200)
    sae.density.copy_(torch.logspace(-3.5, -0.5, 200))
    sae.max_activation.fill_(2.0)
    return sae


@pytest.mark.parametrize("seed", range(5))
def test_controls_are_other_features_each_once(sae: Any, seed: int) -> None:
    found = matched_features(sae, CHOSEN, seed).tolist()
    assert len(found) == len(set(found)) == len(CHOSEN)
    assert not set(found) & set(CHOSEN.tolist())


@pytest.mark.parametrize("seed", range(5))
def test_controls_fire_as_often(sae: Any, seed: int) -> None:
    """Within a fifth of a decade where the densities run over three."""
    found = matched_features(sae, CHOSEN, seed)
    distance = (sae.density[found] / sae.density[CHOSEN]).log10().abs()
    assert distance.max() < 0.2


@pytest.mark.parametrize("decoder", ["unit", "inverse"])
@pytest.mark.parametrize("seed", range(5))
def test_controls_push_as_hard(make_sae: Callable, decoder: str, seed: int) -> None:
    """Also where neither the largest activation nor the decoder's length tells how hard."""
    sae = make_sae("standard", d_sae=200)
    sae.density.fill_(0.01)
    push = torch.logspace(-1, 1, 200)
    shuffled = torch.rand(200, generator=torch.Generator().manual_seed(0)) + 0.5
    norms = torch.ones(200) if decoder == "unit" else shuffled
    sae.W_dec.mul_(norms[:, None])
    sae.max_activation.copy_(push / norms)
    found = matched_features(sae, CHOSEN, seed)
    assert (push[found] / push[CHOSEN]).log10().abs().max() < 0.15


def test_features_that_never_fire_do_not_blur_the_match(make_sae: Callable) -> None:
    """The controls are those of the same SAE without them."""
    generator = torch.Generator().manual_seed(0)
    density, largest = torch.rand(2, 200, generator=generator)
    few, many = (make_sae("standard", d_sae=n) for n in (150, 200))
    for sae in (few, many):
        sae.density.copy_(density[: sae.cfg.d_sae])
        sae.max_activation.copy_(largest[: sae.cfg.d_sae])
    many.density[150:], many.max_activation[150:] = 0.0, 0.0
    chosen = torch.tensor([10, 50, 90])
    for seed in range(5):
        expected = matched_features(few, chosen, seed)
        assert torch.equal(matched_features(many, chosen, seed), expected)


def test_seed_decides_the_control(sae: Any) -> None:
    edit = Clamp(sae, CHOSEN)
    first, again, other = (random_control(edit, seed).features for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_global_random_numbers_have_no_part(sae: Any) -> None:
    state = torch.get_rng_state()
    random_control(Clamp(sae, CHOSEN), 3)
    assert torch.equal(torch.get_rng_state(), state)


def test_only_the_features_differ(sae: Any) -> None:
    clamp, rescale = Clamp(sae, CHOSEN, -2.5, "everywhere"), Rescale(sae, CHOSEN, -0.5)
    gate = Gate(clamp, sae, torch.ones(200), 1.5)
    control = random_control(clamp)
    assert (control.sae, control.dose, control.where) == (sae, -2.5, "everywhere")
    assert random_control(rescale).scale == -0.5
    guarded = random_control(gate)
    assert (guarded.sae, guarded.weights, guarded.threshold) == (sae, gate.weights, 1.5)
    assert torch.equal(guarded.edit.features, control.features)


def test_dead_features_are_no_controls(make_sae: Callable) -> None:
    sae = make_sae("standard", d_sae=20)
    sae.density.fill_(0.1)
    sae.density[10:] = 0.0
    found = matched_features(sae, torch.tensor([0, 1, 2, 3]), 0)
    assert set(found.tolist()) <= set(range(4, 10))


def test_too_few_others_are_an_error(make_sae: Callable) -> None:
    sae = make_sae("standard", d_sae=20)
    sae.density.fill_(0.1)
    assert len(matched_features(sae, torch.arange(10), 0)) == 10
    with pytest.raises(EditError, match="11 features leave too few others"):
        matched_features(sae, torch.arange(11), 0)


def test_sae_without_densities_is_an_error(make_sae: Callable) -> None:
    with pytest.raises(EditError, match="no firing densities"):
        random_control(Clamp(make_sae(stats=["max_activation"]), torch.tensor([1])))


def test_sae_without_largest_activations_is_an_error(make_sae: Callable) -> None:
    with pytest.raises(SAEError, match="doses are multiples"):
        random_control(Clamp(make_sae(stats=["density"]), torch.tensor([1])))


def test_edit_without_features_has_no_control() -> None:
    with pytest.raises(EditError, match="a function changes no SAE features"):
        random_control(lambda resid: resid)
