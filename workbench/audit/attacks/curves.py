"""What is read off the scores of an attack."""

from collections.abc import Sequence

import numpy as np

from workbench.audit.statistics import UNBOUNDED, Scores


def area(curve: Sequence[Scores], steps: Sequence[int]) -> Scores:
    """Each question's area under its curve over log2(1 + steps), scaled to 0..1.

    Early recovery counts for more than late recovery; a question that is right throughout has
    area 1.

    Args:
        curve: scores of the same questions after each of `steps`, which rise.
    """
    x = np.log2(1 + np.array(steps, dtype=float))
    values = np.stack([scores.values for scores in curve])
    assert all(scores.entities == curve[0].entities for scores in curve), "other questions"
    under = np.trapezoid(values, x, axis=0) / (x[-1] - x[0]) if len(x) > 1 else values[0]
    return Scores(under, curve[0].entities, curve[0].relations)


def injection_index(after_gold: float, before_gold: float, before_original: float) -> float:
    """How much an attack teaches a model that never knew, as a share of what the original knows.

    0 where golds gain nothing, 1 where the attack lifts them to the original. An attack above 0.2
    tells nothing about what was left in an edited model. Where the original knows no more than the
    golds there is no scale, and any gain counts as unbounded.

    Source: the index is this project's; it answers the pitfall of injected information, 2506.00688.

    Args:
        after_gold: mean score of the golds after the attack.
        before_gold: the same before it.
        before_original: mean score of the original before it.
    """
    gained, known = after_gold - before_gold, before_original - before_gold
    if known <= 0:
        return UNBOUNDED if gained > 0 else 0.0
    return float(np.clip(gained / known, -UNBOUNDED, UNBOUNDED))
