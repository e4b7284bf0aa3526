"""U-LiRA: the membership attack that has a threshold of its own for each fact."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from workbench.audit.privacy import auc
from workbench.errors import AuditError

MIN_SHADOWS = 8
MIN_FACTS = 400
SHADOW_ROLES = ("unlearned", "retrained")
"""Of the models that the attack learns from: `unlearned-0` and so on."""


@dataclass(frozen=True)
class ULira:
    """How well an attacker with shadow models tells unlearned from never trained.

    Attributes:
        auc: 0.5 is guessing; below it the shadows are misleading, which is no protection.
        tpr_5, tpr_1: share of unlearned facts found where 5 % and 1 % of the others are called so.
        n_facts, n_shadows: what it rests on; shadows of both kinds.
        found: whether each tested fact of each unlearned model is found, of 5 % false alarms.
    """

    auc: float
    tpr_5: float
    tpr_1: float
    n_facts: int
    n_shadows: tuple[int, int]
    found: Bool[np.ndarray, " model_fact"]


def u_lira(
    unlearned: Float[np.ndarray, "shadow fact"],
    retrained: Float[np.ndarray, "shadow2 fact"],
    tested_unlearned: Float[np.ndarray, "model fact"],
    tested_retrained: Float[np.ndarray, "model2 fact"],
) -> ULira:
    """Attacks models by what shadow models of known past say to the same facts.

    All four hold φ, the log-odds of the true answer (metric `phi` of endpoint `MIA`), per model and
    fact. No tested model may be among the shadows.

    Args:
        unlearned: shadows trained with the facts and unlearned the same way as the tested model.
        retrained: shadows never trained on them.
        tested_unlearned: the edited model, or several edits of other seeds.
        tested_retrained: golds held out of the shadows; false alarms are counted on them.

    Raises:
        AuditError: fewer than 8 + 8 shadows or than 400 facts, which leave nothing to say at a
            false-positive rate of 1 %; or nothing to test.

    Source: U-LiRA, 2403.01218; LiRA, Carlini 2022, 2112.03570.
    """
    counts, facts = (len(unlearned), len(retrained)), unlearned.shape[1]
    if min(counts) < MIN_SHADOWS:
        raise AuditError(
            f"U-LiRA was given {counts[0]} unlearned and {counts[1]} retrained shadow models: "
            f"wanted {MIN_SHADOWS} or more of each, since each fact's spread is read off them"
        )
    if facts < MIN_FACTS:
        raise AuditError(
            f"U-LiRA was given {facts} facts: wanted {MIN_FACTS} or more, so that a "
            "false-positive rate of 1 % is more than a few facts"
        )
    if not len(tested_unlearned) or not len(tested_retrained):
        raise AuditError(
            f"U-LiRA was given {len(tested_unlearned)} unlearned and {len(tested_retrained)} "
            "retrained models to test: wanted one or more of each, none of them a shadow"
        )
    members, others = (
        np.concatenate([log_ratio(phi, unlearned, retrained) for phi in tested])
        for tested in (tested_unlearned, tested_retrained)
    )
    tpr_5, tpr_1 = tpr_at(members, others, 0.05), tpr_at(members, others, 0.01)
    found = members > threshold_at(others, 0.05)
    return ULira(auc(members, others), tpr_5, tpr_1, facts, counts, found)


def log_ratio(
    phi: Float[np.ndarray, " fact"],
    unlearned: Float[np.ndarray, "shadow fact"],
    retrained: Float[np.ndarray, "shadow2 fact"],
) -> Float[np.ndarray, " fact"]:
    """Log Λ = log N(φ; μ_U, σ_U) - log N(φ; μ_G, σ_G): above 0 speaks for unlearned.

    Each fact has its own two means; σ_U and σ_G are pooled over facts, since a few shadows give no
    good variance for a single one.

    Source: Carlini 2022, equation 3. Differs: their code pools around the mean of all examples,
    which takes the spread between examples for noise; here deviations are from each fact's mean.
    """
    return _log_density(phi, unlearned) - _log_density(phi, retrained)


def _log_density(
    phi: Float[np.ndarray, " fact"], shadows: Float[np.ndarray, "shadow fact"]
) -> Float[np.ndarray, " fact"]:
    pooled = float(np.sqrt(shadows.var(axis=0, ddof=1).mean()))
    return np.asarray(stats.norm.logpdf(phi, shadows.mean(axis=0), max(pooled, 1e-12)))


def tpr_at(members: Float[np.ndarray, " m"], others: Float[np.ndarray, " n"], fpr: float) -> float:
    """Share of members above the lowest threshold that at most `fpr` of the others exceed.

    Nothing is read between thresholds: where others tie, the rate may be lower than `fpr`.
    """
    return float((members > threshold_at(others, fpr)).mean())


def threshold_at(others: Float[np.ndarray, " n"], fpr: float) -> float:
    """The lowest threshold that at most `fpr` of the others exceed."""
    allowed = int(np.floor(fpr * len(others) + 1e-9))
    return float(np.sort(others)[::-1][allowed])
