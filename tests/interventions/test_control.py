"""Random controls: other features, matched, and nothing else changed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.interventions.members import normal
from workbench.errors import EditError, SAEError
from workbench.hooks import Site
from workbench.interventions import (
    Always,
    Clamp,
    Firing,
    Gate,
    MeanAblate,
    Project,
    Replace,
    Rescale,
    Sequence,
    Steer,
    Substitute,
    Weighted,
    random_control,
)

CHOSEN = torch.tensor([0, 30, 60, 90, 150, 199])


@pytest.fixture(scope="module")
def sae(make_sae: Callable) -> Any:
    """Two hundred features that push alike, whose densities run over three decades."""
    sae = make_sae("standard", d_sae=200)
    sae.density.copy_(torch.logspace(-3.5, -0.5, 200))
    sae.max_activation.fill_(2.0)
    return sae


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
    gate = Gate(clamp, Weighted(sae, torch.ones(200)), 1.5)
    control = random_control(clamp)
    assert (control.sae, control.dose, control.where) == (sae, -2.5, "everywhere")
    assert random_control(rescale).scale == -0.5
    guarded = random_control(gate)
    assert (guarded.evidence, guarded.over, guarded.threshold) == (gate.evidence, gate.over, 1.5)
    assert torch.equal(guarded.edit.features, control.features)


def test_sae_without_densities_is_an_error(make_sae: Callable) -> None:
    with pytest.raises(SAEError, match="no firing densities"):
        random_control(Clamp(make_sae(stats=["max_activation"]), torch.tensor([1])))


def test_sae_without_largest_activations_is_an_error(make_sae: Callable) -> None:
    with pytest.raises(SAEError, match="doses are multiples"):
        random_control(Clamp(make_sae(stats=["density"]), torch.tensor([1])))


def test_edit_with_nothing_to_choose_otherwise_has_no_control(sae: Any) -> None:
    for edit in (lambda resid: resid, Substitute(sae), Gate(Substitute(sae), Always(), 0.0)):
        with pytest.raises(EditError, match="has no random control"):
            random_control(edit)


def test_control_of_means_takes_means_of_its_own(sae: Any) -> None:
    rows = normal(100, 32)
    edit = MeanAblate.fit(sae, CHOSEN, rows, "active")
    with pytest.raises(EditError, match="pass rows="):
        random_control(edit)
    control = random_control(edit, 3, rows)
    assert control.where == "active"
    assert torch.equal(control.features, random_control(Clamp(sae, CHOSEN), 3).features)
    torch.testing.assert_close(control.means, sae.encode(rows).mean(0)[control.features])


def test_both_lists_of_a_replacement_are_matched(sae: Any) -> None:
    others = torch.tensor([10, 100])
    control = random_control(Replace(sae, CHOSEN, others, 0.5), 1)
    both = control.touched.tolist()
    assert len(both) == len(set(both)) == len(CHOSEN) + len(others)
    assert not set(both) & {*CHOSEN.tolist(), *others.tolist()}
    assert (sae.density[control.others] / sae.density[others]).log10().abs().max() < 0.2
    assert control.dose == 0.5


def test_features_of_a_sequence_stay_equal_and_different(sae: Any) -> None:
    """Also where gates and sequences stand within it."""
    first, second = torch.tensor([30, 60]), torch.tensor([60, 61])
    inner = Gate(Rescale(sae, second), Firing(sae, first), 0.5)
    edit = Sequence((Clamp(sae, first), Sequence((inner, Rescale(sae, torch.tensor([30]))))))
    for seed in range(5):
        control = random_control(edit, seed)
        a, b = control.edits[0].features.tolist()
        guarded, last = control.edits[1].edits
        same, c = guarded.edit.features.tolist()
        assert (same, last.features.tolist()) == (b, [a])
        assert len({a, b, c, 30, 60, 61}) == 6
        assert torch.equal(guarded.evidence.features, first)


def test_features_of_two_saes_are_matched_apart(make_sae: Callable) -> None:
    one, two = make_sae("standard"), make_sae("topk", seed=1)
    features = torch.tensor([1, 2])
    control = random_control(Sequence((Clamp(one, features), Clamp(two, features))), 2)
    for sae, part in zip((one, two), control.edits, strict=True):
        assert part.sae is sae
        assert torch.equal(part.features, random_control(Clamp(sae, features), 2).features)


@pytest.mark.parametrize("mode", ["simple", "orthogonal", "capped"])
def test_direction_gives_way_to_a_random_one_of_equal_length(mode: Any) -> None:
    edit = Steer(Site(1), 3 * normal(512), -0.5, mode)
    control, other = random_control(edit, 1), random_control(edit, 2)
    assert (control.site, control.strength, control.mode) == (Site(1), -0.5, mode)
    torch.testing.assert_close(control.direction.norm(), edit.direction.norm())
    for a, b in ((control, edit), (control, other)):
        assert torch.cosine_similarity(a.direction, b.direction, dim=0).abs() < 0.2
    assert torch.equal(random_control(edit, 1).direction, control.direction)


def test_random_directions_favour_none() -> None:
    edit = Steer(Site(1), torch.ones(8))
    drawn = torch.stack([random_control(edit, seed).direction for seed in range(800)]) / 8**0.5
    assert drawn.mean(0).abs().max() < 0.06
    torch.testing.assert_close(drawn.T @ drawn / 800, torch.eye(8) / 8, atol=0.02, rtol=0.0)


def test_directions_of_a_sequence_are_drawn_one_after_the_other() -> None:
    edit = Sequence((Steer(Site(1), torch.ones(64)), Steer(Site(1), torch.ones(64))))
    one, two = (part.direction for part in random_control(edit).edits)
    assert not torch.allclose(one, two)


def test_subspace_gives_way_to_a_random_one_of_equal_rank_through_the_same_point() -> None:
    rows, labels = normal(300, 32), torch.arange(300) % 4
    rows[torch.arange(300), labels] += 2
    edit = Project.leace(Site(1), rows, labels)
    control = random_control(edit, 7)
    assert control.rank == edit.rank == 3
    assert torch.equal(control.bias, edit.bias)
    eye = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(control.right @ control.left, eye)
    torch.testing.assert_close(control.left, control.right.T)
    assert not torch.allclose(control(rows), edit(rows), atol=0.1)
