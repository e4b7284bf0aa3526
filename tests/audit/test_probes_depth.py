"""Patching and distance tell how deep a change goes, and refuse what they cannot tell."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from workbench.audit.probes.copies import random_init
from workbench.audit.probes.depth import (
    Patch,
    Removal,
    cka,
    depth_job,
    drift_job,
    removal_depth,
)
from workbench.audit.statistics import Key
from workbench.audit.views import Found, View
from workbench.facts.target import Target
from workbench.hooks import Site
from workbench.models import weights_sha256


def measured(jobs: dict[str, Any], model: Any, *edits: Any) -> Found:
    (job,) = jobs.values()
    return job(View("edited", "deployed", model, edits))


class Wipe:
    site = Site(0)

    def __call__(self, resid: Tensor) -> Tensor:
        return torch.zeros_like(resid)


def test_nothing_is_lost_by_the_originals_own_stream(original: Any, club: Target) -> None:
    found = measured(depth_job(club, View("original", "", original)), original)
    assert {k.setting for k in found} == {f"layer {n}" for n in range(3)}
    assert {k.subset for k in found} == {"F", "R_te"}
    assert all(abs(s.values).max() < 1e-4 for s in found.values())


def test_what_an_edit_wipes_is_lost_from_its_layer_on(original: Any, club: Target) -> None:
    found = measured(depth_job(club, View("original", "", original)), original, Wipe())
    lost = [found[Key("P10", "F", "lost_nats", f"layer {n}")].mean for n in range(3)]
    assert abs(lost[0]) < 1e-4
    assert min(lost[1:]) > 1


def test_model_of_another_basis_is_refused_by_what_it_costs_retained_facts(
    original: Any, club: Target, golds: list[Any]
) -> None:
    jobs = depth_job(club, View("original", "", original))
    lost = {}
    for name, model in (("gold", golds[0]), ("random", random_init(original))):
        found = measured(jobs, model)
        for subset in ("F", "R_te"):
            keys = [Key("P10", subset, "lost_nats", f"layer {n}") for n in range(3)]
            lost[name, subset] = np.stack([found[key].values for key in keys])
    gate = lost["gold", "R_te"].mean(1)
    assert gate.max() > 0.1
    told = removal_depth(lost["random", "F"], lost["gold", "F"], gate)
    assert told.value is None and "basis is another one" in told.why


def rows(*layers: float | list[float]) -> np.ndarray:
    """Layers by facts; one number stands for two facts alike."""
    return np.array([[x, x] if isinstance(x, float) else x for x in layers])


def test_depth_is_worked_out_by_hand() -> None:
    gold, gate = rows(0.01, 1.0, 3.0), np.array([5.0, 0.05, -0.05])
    assert removal_depth(rows(9.0, 0.0, 0.0), gold, gate) == Removal(0.0, 1.0)
    assert removal_depth(rows(0.0, 1.0, 9.0), gold, gate) == Removal(1.0, 1.0)
    found = removal_depth(rows(0.0, 0.5, -1.0), gold, gate)
    assert found.value == pytest.approx(0.5 / 4)
    none = removal_depth(gold, rows(0.01, 0.0, 0.05), gate)
    assert none.value is None and "no layer of the golds" in none.why
    other = removal_depth(gold, gold, np.array([5.0, 0.05, 0.2]))
    assert other.value is None and "basis is another one" in other.why


def test_depth_of_one_fact_does_not_stand_for_that_of_another() -> None:
    """Twice a gold's loss on one fact and none on the other is half removed, not whole."""
    gold, gate = rows(5.0), np.array([0.0])
    assert removal_depth(rows([10.0, 0.0]), gold, gate) == Removal(0.5, 1.0)
    assert removal_depth(rows([10.0, 7.0]), rows([5.0, 0.02]), gate) == Removal(1.0, 0.5)


def test_patch_starts_where_it_is_told_to() -> None:
    resid, rows = torch.zeros(2, 3, 1), torch.ones(2, 3, 1)
    patched = Patch(Site(0), rows, torch.tensor([1, 2]))(resid)
    assert patched[..., 0].tolist() == [[0, 1, 1], [0, 0, 1]]


def test_models_stay_as_they_are(original: Any, club: Target) -> None:
    before = weights_sha256(original)
    for jobs in (depth_job, drift_job):
        measured(jobs(club, View("original", "", original)), original, Wipe())
    assert weights_sha256(original) == before


def test_drift_is_none_for_the_same_model_and_large_for_another(
    original: Any, club: Target, golds: list[Any]
) -> None:
    jobs = drift_job(club, View("original", "", original))
    same, other = measured(jobs, original), measured(jobs, golds[0])
    place = "layer 2, last"
    assert same[Key("P12", "F", "cosine", place)].mean == pytest.approx(1)
    assert same[Key("P12", "F", "moved", place)].mean == 0
    assert same[Key("P12", "F", "cka", place)].mean == pytest.approx(1)
    assert other[Key("P12", "F", "moved", place)].mean > 0.5
    assert other[Key("P12", "F", "cka", place)].mean < 0.9


def test_alignment_knows_no_basis_and_tells_noise() -> None:
    rows = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))[0]
    noise = torch.randn(200, 6, generator=torch.Generator().manual_seed(2))
    assert cka(rows, 3 * rows @ turn + 5) == pytest.approx(1)
    assert cka(rows, noise) < 0.1
    assert cka(rows, torch.zeros(200, 6)) == 0
