"""Matched random features: as frequent, as strong, and others."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from workbench.errors import SAEError
from workbench.sae.matched import matched_features

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
    with pytest.raises(SAEError, match="11 features leave too few others"):
        matched_features(sae, torch.arange(11), 0)


@pytest.mark.parametrize(
    ("stats", "message"),
    [(["max_activation"], "no firing densities"), (["density"], "doses are multiples")],
)
def test_sae_without_statistics_is_an_error(
    make_sae: Callable, stats: list[str], message: str
) -> None:
    with pytest.raises(SAEError, match=message):
        matched_features(make_sae(stats=stats), torch.tensor([1]), 0)
