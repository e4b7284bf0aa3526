"""Dual use by hand: features of the target alone, of both, of the rest alone."""

import pytest
import torch

from workbench.audit.dual_use import dual_cost, feature_share_retain
from workbench.errors import AuditError


def test_share_of_the_mass_on_what_stays() -> None:
    """Feature 0 fires on the target alone, 1 on both, 2 on the rest alone, 3 never."""
    retain = torch.tensor([[0.0, 2, 1, 0], [0, 0, 3, 0]])
    forget = torch.tensor([[4.0, 1, 0, 0]])

    def share(*features: int) -> float:
        return feature_share_retain(retain, forget, torch.tensor(features, dtype=torch.long))

    assert share(0) == 0
    assert share(1) == pytest.approx(0.5)
    assert share(2) == 1
    assert share(0, 1) == pytest.approx(1 / 6)
    assert share(3) == share() == 0
    assert feature_share_retain(retain.repeat(7, 1), forget, torch.tensor([0, 1])) == (
        pytest.approx(share(0, 1))
    )


def test_cost_counts_losses_and_no_gains() -> None:
    gold = {"use": 0.9, "describe": 0.8, "other": 0.5}
    assert dual_cost(gold, gold) == 0
    edited = {"use": 0.6, "describe": 0.8, "other": 0.9}
    assert dual_cost(edited, gold) == pytest.approx(0.1)


@pytest.mark.parametrize(("edited", "gold"), [({}, {}), ({"use": 1.0}, {"other": 1.0})])
def test_other_sets_are_refused(edited: dict[str, float], gold: dict[str, float]) -> None:
    with pytest.raises(AuditError, match="wanted the same ones"):
        dual_cost(edited, gold)
