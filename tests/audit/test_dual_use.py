"""Dual use by hand: features of the target alone, of both, of the rest alone."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from workbench.audit.dual_use import changed_features, dual_cost, feature_share_retain, mass_job
from workbench.audit.statistics import Key, Scores
from workbench.audit.views import Found, View
from workbench.errors import AuditError
from workbench.facts.target import Target
from workbench.hooks import Site

PLACE = "edit 1"


def masses(forget: float, retain: float) -> Found:
    def scores(value: float, name: str) -> Scores:
        return Scores(np.full(10, value), tuple(f"{name} {i}" for i in range(10)))

    return {
        Key("H2", "F", "mass", PLACE): scores(forget, "toxin"),
        Key("H2", "R_te", "mass", PLACE): scores(retain, "remedy"),
    }


@pytest.mark.parametrize(
    ("forget", "retain", "share"), [(4, 0, 0.0), (2, 2, 0.5), (0, 3, 1.0), (3, 1, 0.25)]
)
def test_share_of_the_mass_on_what_stays(forget: float, retain: float, share: float) -> None:
    found = feature_share_retain(masses(forget, retain), PLACE, 0)
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((share, share, share))


def test_features_that_never_fire_have_no_share() -> None:
    assert feature_share_retain(masses(0, 0), PLACE, 0) is None
    assert feature_share_retain({}, PLACE, 0) is None


class Act:
    """An edit of one feature of an autoencoder whose features are the stream's coordinates."""

    def __init__(self, encode: Any) -> None:
        self.sae = SimpleNamespace(W_dec=torch.zeros(1), encode=encode)
        self.site, self.features = Site(0), torch.tensor([0])

    def __call__(self, resid: Tensor) -> Tensor:
        return resid


def test_mass_is_per_token_of_the_features_that_the_edit_changes(
    original: Any, club: Target
) -> None:
    def encode(x: Tensor) -> Tensor:
        """Feature 0 is 2 everywhere, all others are more."""
        acts = torch.full_like(x, 7.0)
        acts[..., 0] = 2.0
        return acts

    (job,) = mass_job(club).values()
    found = job(View("edited", "deployed", original, (Act(encode),)))
    assert {k.subset for k in found} == {"F", "R_te"}
    assert all((s.values == 2.0).all() for s in found.values())
    share = feature_share_retain(found, PLACE, 0)
    assert share is not None and share.value == pytest.approx(0.5)
    assert job(View("original", "", original)) == {}


def test_features_are_found_inside_a_gate_each_with_its_own_sae() -> None:
    parts = [
        SimpleNamespace(sae=name, features=torch.tensor(f))
        for name, f in (("narrow", [3, 1]), ("wide", [900]))
    ]
    wrapped = SimpleNamespace(edit=SimpleNamespace(edits=parts), sae="the gate's own")
    found = [(sae, f.tolist()) for sae, f in changed_features(wrapped)]
    assert found == [("narrow", [3, 1]), ("wide", [900])]
    assert list(changed_features(SimpleNamespace())) == []


def test_cost_counts_losses_and_no_gains() -> None:
    gold = {"use": 0.9, "describe": 0.8, "other": 0.5}
    assert dual_cost(gold, gold) == 0
    edited = {"use": 0.6, "describe": 0.8, "other": 0.9}
    assert dual_cost(edited, gold) == pytest.approx(0.1)


@pytest.mark.parametrize(("edited", "gold"), [({}, {}), ({"use": 1.0}, {"other": 1.0})])
def test_other_sets_are_refused(edited: dict[str, float], gold: dict[str, float]) -> None:
    with pytest.raises(AuditError, match="wanted the same ones"):
        dual_cost(edited, gold)
