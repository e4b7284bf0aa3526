"""LEACE: what no linear reader finds afterwards, and that it was there before."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from tests.unlearn.contract import check_contract, check_keeps
from workbench.errors import ModelError
from workbench.facts.schema import FactSet
from workbench.facts.target import Target
from workbench.hooks import Site, edited
from workbench.models import weights_sha256
from workbench.unlearn import leace, method
from workbench.unlearn.gates import shown, streams_of


@pytest.mark.parametrize("layers", [(1,), None])
def test_keeps_the_contract(
    layers: tuple[int, ...] | None, bridge: Any, homes: Target, tmp_path: Path
) -> None:
    config = replace(leace.DEFAULT, layers=layers, false_alarms=0.5)
    arm = check_contract(lambda m, t, s: leace.unlearn(m, t, config, s), bridge, homes, tmp_path)
    assert arm.claim == "certified for linear readers"
    assert arm.model is bridge
    assert len(arm.edits) == (3 if layers is None else 1)
    assert all(share > 0 for share in arm.told["open"])


@pytest.fixture(scope="session")
def homes(world: FactSet) -> Target:
    """Foods kept in different places: there is an object to erase."""
    return world.target("fruit")


def weight(rows: Tensor, labels: Tensor, scale: Tensor) -> float:
    """The largest coefficient of a logistic regression on centred rows.

    Args:
        scale: standard deviations before erasure, which rows are divided by: by their own,
            dimensions that are gone would be blown up from rounding.
    """
    x = (rows - rows.mean(0)) / scale
    found = LogisticRegression(max_iter=2000).fit(x.numpy(), labels.numpy())
    return float(np.abs(found.coef_).max())


def assert_unreadable(model: Any, target: Target, arm: Any, seed: int) -> None:
    """At every edited site, among all tokens on which its gate is open, each relation by itself."""
    given = shown(target, seed)
    for i, gate in enumerate(arm.edits):
        with edited(model, arm.edits[:i], must_fire=i > 0):
            streams = streams_of(model, given.forget, gate.site, torch.float64)
        rows, relations, objects = leace.open_rows(gate, given.forget, streams)
        erased, scale = gate.edit(rows), rows.std(0, correction=0).clamp_min(1e-12)
        tried = 0
        for relation in relations.unique():
            mine = relations == relation
            if len(objects[mine].unique()) < 2:
                continue
            assert weight(rows[mine], objects[mine], scale) > 1e-2, "nothing was there to erase"
            assert weight(erased[mine], objects[mine], scale) < 1e-4
            tried += 1
        assert tried


@pytest.mark.parametrize("layers", [(1,), None])
def test_no_linear_reader_finds_the_object(
    layers: tuple[int, ...] | None, bridge: Any, homes: Target
) -> None:
    config = replace(leace.DEFAULT, layers=layers, false_alarms=0.5)
    assert_unreadable(bridge, homes, leace.unlearn(bridge, homes, config), 0)


@pytest.mark.slow
def test_no_linear_reader_finds_the_object_in_the_bundled_world_and_the_rest_stays(
    valley: Any, toxins: Target
) -> None:
    before = weights_sha256(valley)
    arm = method("leace")(valley, toxins)
    assert arm.model is valley
    assert weights_sha256(valley) == before
    assert_unreadable(valley, toxins, arm, 0)
    check_keeps(arm, valley, toxins, recall=0.96, perplexity=1.15, forget=0.6)


def test_relations_keep_their_means_and_objects_lose_theirs() -> None:
    generator = torch.Generator().manual_seed(0)
    objects = torch.arange(600) % 6
    relations = objects // 3
    means = 3 * torch.randn(6, 16, generator=generator, dtype=torch.float64)
    rows = torch.randn(600, 16, generator=generator, dtype=torch.float64) + means[objects]
    project = leace.within(Site(0), rows, relations, objects)
    erased = project(rows)
    assert project.rank == 4
    for thing in range(6):
        mine = erased[objects == thing].mean(0)
        torch.testing.assert_close(mine, erased[relations == thing // 3].mean(0))
        assert (rows[objects == thing].mean(0) - rows[relations == thing // 3].mean(0)).norm() > 1
    apart = erased[relations == 0].mean(0) - erased[relations == 1].mean(0)
    assert apart.norm() > 0.5, "what is asked was erased too"


def test_a_layer_that_is_not_there_is_refused(bridge: Any, homes: Target) -> None:
    with pytest.raises(ModelError, match=r"\[7\].*0 to 2"):
        leace.unlearn(bridge, homes, leace.Config((7,)))


def test_a_model_that_was_not_loaded_is_refused(make_llama: Any, pantry: Target) -> None:
    with pytest.raises(ModelError, match="load_model"):
        leace.unlearn(make_llama(), pantry)
