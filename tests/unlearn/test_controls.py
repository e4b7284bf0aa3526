"""Controls: nothing at all, noise of a stated size, and a guardrail of random features."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unlearn.contract import check_contract, check_keeps, says
from workbench.errors import EditError, ModelError
from workbench.facts.schema import FactSet
from workbench.facts.target import Target
from workbench.models import weights_sha256
from workbench.sae.load import save_sae
from workbench.unlearn import (
    Arm,
    method,
    no_change,
    random_edit,
    random_features,
    sae_gate,
    system_recall,
)
from workbench.unlearn.random_edit import mlp_matrices


@pytest.fixture(scope="module")
def folder(
    bridge: Any, make_sae: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> str:
    """Of a random SAE of the random model."""
    place = tmp_path_factory.mktemp("sae")
    save_sae(make_sae(model_sha256=weights_sha256(bridge)), place)
    return str(place)


@pytest.mark.parametrize("name", ["no_change", "random_edit", "random_features"])
def test_keeps_the_contract(
    name: str, bridge: Any, pantry: Target, folder: str, tmp_path: Path
) -> None:
    how = method(name)
    config = how.default
    if name == "random_features":
        config = replace(config, saes=(folder,), features=4)
    arm = check_contract(lambda m, t, s: how.unlearn(m, t, config, s), bridge, pantry, tmp_path)
    assert (arm.method, arm.claim) == (name, "none")


def test_no_change_says_what_the_original_says(bridge: Any, pantry: Target) -> None:
    arm = no_change.unlearn(bridge, pantry)
    tokens = torch.arange(12)[None]
    assert arm.model is bridge
    assert arm.edits == arm.saw == ()
    assert torch.equal(says(arm, tokens), says(Arm("none", bridge), tokens))


# Random edit


@pytest.mark.parametrize("relative", [0.05, 0.3])
def test_each_matrix_changes_by_the_stated_share_and_nothing_else_does(
    relative: float, bridge: Any, pantry: Target
) -> None:
    arm = random_edit.unlearn(bridge, pantry, random_edit.Config(relative))
    given, found = list(mlp_matrices(bridge)), list(mlp_matrices(arm.model))
    assert len(found) == arm.told["matrices"] == 3 * len(bridge.blocks)
    for before, after in zip(given, found, strict=True):
        share = (after.double() - before.double()).norm() / before.double().norm()
        assert share.item() == pytest.approx(relative, rel=1e-5)
    changed = {id(p) for p in found}
    pairs = zip(arm.model.named_parameters(), bridge.parameters(), strict=True)
    for (name, after), before in pairs:
        assert torch.equal(after, before) != (id(after) in changed), name


def test_noise_is_gaussian(bridge: Any, pantry: Target) -> None:
    arm = random_edit.unlearn(bridge, pantry)
    pairs = zip(mlp_matrices(arm.model), mlp_matrices(bridge), strict=True)
    noise = torch.cat([((a - b) / (a - b).std()).flatten() for a, b in pairs])
    assert abs(noise.mean().item()) < 0.03
    # A uniform distribution has a fourth moment of 1.8, signs alone one of 1.
    assert noise.pow(4).mean().item() == pytest.approx(3.0, abs=0.2)


def test_the_target_has_no_part_in_a_random_edit(
    bridge: Any, pantry: Target, world: FactSet
) -> None:
    one, other = (random_edit.unlearn(bridge, t) for t in (pantry, world.target("fruit")))
    assert weights_sha256(one.model) == weights_sha256(other.model)
    assert weights_sha256(random_edit.unlearn(bridge, pantry, seed=1).model) != weights_sha256(
        one.model
    )
    assert one.saw == ()


def test_a_size_that_is_none_is_refused() -> None:
    with pytest.raises(EditError, match="-1"):
        random_edit.Config(-1.0)


@pytest.mark.parametrize("name", ["no_change", "random_edit", "random_features"])
def test_a_model_that_was_not_loaded_is_refused(name: str, make_llama: Any, pantry: Target) -> None:
    with pytest.raises(ModelError, match="load_model"):
        method(name).unlearn(make_llama(), pantry)


@pytest.mark.slow
def test_noise_forgets_nothing_and_harms_little(valley: Any, toxins: Target) -> None:
    found = check_keeps(method("random_edit")(valley, toxins), valley, toxins, 0.95, 1.1, 1.0)
    assert found["forget"] > 0.9


# Random features


def test_random_features_keep_the_gate_and_change_the_features(
    bridge: Any, pantry: Target, folder: str
) -> None:
    config = sae_gate.Config((folder,), 4)
    chosen, control = (m.unlearn(bridge, pantry, config) for m in (sae_gate, random_features))
    for ours, theirs in zip(chosen.edits, control.edits, strict=True):
        assert theirs.threshold == ours.threshold
        assert torch.equal(theirs.evidence.weights, ours.evidence.weights)
        assert theirs.edit.dose == ours.edit.dose
        assert len(theirs.edit.features) == len(ours.edit.features)
        assert not torch.isin(theirs.edit.features, ours.edit.features).any()
    assert control.told["features"] == [e.edit.features.tolist() for e in control.edits]


@pytest.mark.slow
def test_random_features_forget_less_than_chosen_ones(valley: Any, toxins: Target) -> None:
    """Though not by much: behind a gate that opens on the target, a hard push breaks any answer."""
    config = sae_gate.STRENGTHS[0]
    chosen, control = (
        1 - system_recall(m.unlearn(valley, toxins, config), toxins.facts, toxins.fold("S"))
        for m in (sae_gate, random_features)
    )
    assert chosen > control + 0.05
