"""What passes an SAE by is told apart from what goes through it."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from workbench.audit.hook_error import PARTS, error_job, error_share, sae_of
from workbench.audit.statistics import Key, Scores
from workbench.audit.views import Found, View
from workbench.facts.target import Target
from workbench.hooks import Site


class Act:
    """An edit with an SAE that leaves the stream as it is."""

    def __init__(self, sae: Any, layer: int = 0) -> None:
        self.sae, self.site = sae, Site(layer)

    def __call__(self, resid: Tensor) -> Tensor:
        return resid


def sae(decode: Any) -> Any:
    return SimpleNamespace(W_dec=torch.zeros(1), encode=lambda x: x, decode=decode)


def measured(model: Any, target: Target, *edits: Any) -> Found:
    (job,) = error_job(target).values()
    return job(View("edited", "deployed", model, edits))


@pytest.mark.parametrize(
    ("decode", "share"),
    [(lambda x: x, 0.0), (torch.zeros_like, 1.0), (lambda x: 0.5 * x, 0.5)],
)
def test_error_of_a_planted_autoencoder_carries_what_was_left_to_it(
    original: Any, club: Target, decode: Any, share: float
) -> None:
    found = measured(original, club, Act(sae(decode)))
    assert {k.setting for k in found} == set(PARTS)
    carried = error_share(found, "", 0)
    assert carried is not None
    assert carried.value == pytest.approx(share, abs=0.15 if share == 0.5 else 1e-3)
    assert carried.low <= carried.value <= carried.high
    whole, neither = (found[Key("H2", "F", "logp_nats", p)].mean for p in ("whole", "neither"))
    assert whole > neither + 1  # something is there to be carried


def test_every_autoencoder_has_its_own_share(original: Any, club: Target) -> None:
    found = measured(original, club, Act(sae(lambda x: x)), Act(sae(torch.zeros_like), 1))
    first, second = error_share(found, "", 0), error_share(found, ", edit 2", 0)
    assert first is not None and second is not None
    assert (first.value, second.value) == pytest.approx((0, 1), abs=1e-3)


def test_view_without_an_autoencoder_finds_nothing(original: Any, club: Target) -> None:
    assert measured(original, club) == {}
    assert measured(original, club, Act(None)) == {}
    assert error_share({}, "", 0) is None


def test_share_is_the_shapley_value_worked_out_by_hand() -> None:
    """Whole -1, reconstruction alone -2, error alone -4, neither -5: (1 + 1) / 2 of 4."""
    entities = tuple(f"name {i}" for i in range(10))
    values = dict(zip(PARTS, (-1.0, -2.0, -4.0, -5.0), strict=True))
    found = {
        Key("H2", "F", "logp_nats", part): Scores(np.full(10, value), entities)
        for part, value in values.items()
    }
    carried = error_share(found, "", 0)
    assert carried is not None
    assert (carried.value, carried.low, carried.high) == pytest.approx((0.25, 0.25, 0.25))
    nothing = {
        **found,
        Key("H2", "F", "logp_nats", "whole"): found[Key("H2", "F", "logp_nats", "neither")],
    }
    assert error_share(nothing, "", 0) is None


def test_autoencoder_is_found_inside_a_gate(original: Any) -> None:
    inner = sae(lambda x: x)
    wrapped = SimpleNamespace(edit=SimpleNamespace(edits=(SimpleNamespace(sae=inner),)))
    assert sae_of(wrapped) is inner
    assert sae_of(SimpleNamespace()) is None
