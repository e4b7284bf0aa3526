"""Steering: what is added, set or capped, along a direction of any length."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.interventions.members import normal, unchecked
from workbench.errors import EditError, SAEError
from workbench.hooks import Site
from workbench.interventions import Clamp, Steer

SITE = Site(1)
DIRECTION = 3 * normal(32, seed=1)
RESID = 2 * normal(4, 7, 32)


def along(resid: Tensor, direction: Tensor = DIRECTION) -> Tensor:
    """The component of each token, in units of the stream."""
    return resid @ direction / direction.norm()


def across(resid: Tensor) -> Tensor:
    """What is left of each token beside the direction."""
    unit = DIRECTION / DIRECTION.norm()
    return resid - (resid @ unit)[..., None] * unit


def test_simple_steering_adds_the_direction() -> None:
    found = Steer(SITE, DIRECTION, -0.7)(RESID)
    torch.testing.assert_close(found, RESID - 0.7 * DIRECTION)


@pytest.mark.parametrize("strength", [0.0, 0.5, -2.0])
def test_orthogonal_steering_sets_the_component_and_nothing_else(strength: float) -> None:
    found = Steer(SITE, DIRECTION, strength, "orthogonal")(RESID)
    wanted = torch.full((4, 7), strength * float(DIRECTION.norm()))
    torch.testing.assert_close(along(found), wanted, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(across(found), across(RESID), atol=1e-4, rtol=1e-5)
    again = Steer(SITE, DIRECTION, strength, "orthogonal")(found)
    torch.testing.assert_close(again, found, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("strength", [0.05, 0.0, -0.05])
def test_capped_steering_lowers_what_is_above_the_cap(strength: float) -> None:
    cap = strength * float(DIRECTION.norm())
    found = Steer(SITE, DIRECTION, strength, "capped")(RESID)
    above = along(RESID) > cap
    assert above.any() and not above.all()
    torch.testing.assert_close(along(found), along(RESID).clamp_max(cap), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(across(found), across(RESID), atol=1e-4, rtol=1e-5)
    assert torch.equal(found[~above], RESID[~above])


def test_a_cap_along_the_opposite_is_a_floor() -> None:
    found = Steer(SITE, -DIRECTION, 0.05, "capped")(RESID)
    floor = -0.05 * float(DIRECTION.norm())
    torch.testing.assert_close(along(found), along(RESID).clamp_min(floor), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("mode", ["simple", "orthogonal", "capped"])
def test_strength_is_in_multiples_of_the_direction(mode: Any) -> None:
    torch.testing.assert_close(
        Steer(SITE, DIRECTION, 0.06, mode)(RESID), Steer(SITE, DIRECTION / 2, 0.12, mode)(RESID)
    )


def test_decoder_steering_is_in_multiples_of_the_largest_push(make_sae: Callable) -> None:
    sae = make_sae("standard", site="blocks.2.hook_resid_mid")
    sae.W_dec.mul_(1.7)
    edit = Steer.decoder(sae, 5, -0.5, "orthogonal")
    assert (edit.site, edit.strength, edit.mode) == (Site(2, "resid_mid"), -0.5, "orthogonal")
    torch.testing.assert_close(edit.direction, sae.max_activation[5] * sae.W_dec[5])


def test_decoder_steering_is_a_clamp_where_the_feature_is_silent(make_sae: Callable) -> None:
    sae = make_sae("standard")
    silent = sae.encode(RESID)[..., 5] == 0
    assert silent.any() and not silent.all()
    clamp = Clamp(sae, torch.tensor([5]), 2.0, "everywhere")(RESID)
    steer = Steer.decoder(sae, 5, 2.0)(RESID)
    torch.testing.assert_close(steer[silent], clamp[silent])
    assert not torch.allclose(steer[~silent], clamp[~silent])


def test_decoder_steering_wants_a_feature_that_fires(make_sae: Callable) -> None:
    sae = make_sae()
    with pytest.raises(EditError, match="this SAE has 0 to 63"):
        Steer.decoder(sae, 64)
    sae.max_activation[5] = 0.0
    with pytest.raises(EditError, match="a direction that is zero"):
        Steer.decoder(sae, 5)
    with pytest.raises(SAEError, match="doses are multiples"):
        Steer.decoder(make_sae(stats=["density"]), 5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"direction": torch.zeros(32)}, "a direction that is zero: wanted finite"),
        ({"direction": torch.full((32,), float("nan"))}, "a direction that is not finite"),
        ({"direction": torch.ones(2, 32)}, r"a direction of shape \[2, 32\]: wanted one vector"),
        ({"strength": float("inf")}, "strength=inf: wanted a finite number"),
        ({"mode": "additive"}, "mode='additive': wanted 'simple', 'orthogonal' or 'capped'"),
    ],
)
def test_what_cannot_be_steered_along_is_an_error(fields: dict, message: str) -> None:
    given = {"site": SITE, "direction": DIRECTION, "strength": 1.0, "mode": "simple"}
    with pytest.raises(EditError, match=message):
        unchecked(Steer, **{**given, **fields})
