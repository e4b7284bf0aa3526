"""Dual use: how much of what is taken away serves what was to stay."""

from collections.abc import Mapping

from jaxtyping import Float, Int
from torch import Tensor

from workbench.errors import AuditError


def feature_share_retain(
    retain: Float[Tensor, "token d_sae"],
    forget: Float[Tensor, "token2 d_sae"],
    features: Int[Tensor, " k"],
) -> float:
    """Share of the features' activation mass that falls on prompts which were to stay.

    0 where they are active on the target alone, 0.5 where they are as active on both, 1 where they
    are active on what was to stay alone. Both masses are per token, so that it does not matter of
    which prompts there are more. Features that never fire have no mass, and give 0.

    Args:
        retain: activations on prompts about what was to stay.
        forget: activations on prompts about the target.
        features: indices of the features that the edit takes away.
    """
    kept, gone = (acts[:, features].abs().sum(-1).double().mean() for acts in (retain, forget))
    total = float(kept + gone)
    return float(kept) / total if total > 0 else 0.0


def dual_cost(edited: Mapping[str, float], gold: Mapping[str, float]) -> float:
    """Mean over benign task sets of what the edit loses against the golds, gains counted as 0.

    Args:
        edited: recall of the edited model on each set.
        gold: the golds' mean recall on the same sets.

    Raises:
        AuditError: no sets, or other ones.
    """
    if not edited or edited.keys() != gold.keys():
        raise AuditError(
            f"dual cost of sets {sorted(edited)} against {sorted(gold)}: wanted the same ones"
        )
    return sum(max(0.0, gold[name] - edited[name]) for name in edited) / len(edited)
