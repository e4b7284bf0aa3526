"""Intervals that respect what was sampled: entities are the unit, gold seeds the second factor."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000
MIN_ENTITIES = 8
"""With fewer entities than this, resampling says nothing: intervals are as wide as can be."""
UNBOUNDED = 1000.0
"""Stands for infinity in intervals of ratios, so that reports stay valid JSON."""


class Key(NamedTuple):
    """What a set of scores measures: endpoint, which facts, which variant, and layer or step."""

    endpoint: str
    subset: str
    detail: str
    x: float = 0.0


@dataclass(frozen=True)
class Interval:
    """A value with the lower and the upper end of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Scores:
    """One value per question, with the entity that each question is about."""

    values: np.ndarray
    entities: tuple[str, ...]

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def n_entities(self) -> int:
        return len(set(self.entities))

    def by_entity(self) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
        """Entity names in sorted order, the sum of each one's values, and how many it has."""
        names, index = np.unique(np.array(self.entities), return_inverse=True)
        return (
            tuple(names.tolist()),
            np.bincount(index, self.values),
            np.bincount(index).astype(float),
        )


def resampled_means(scores: Sequence[Scores], seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """Bootstrap means, entities drawn with replacement, the same draw for all of `scores`.

    Returns:
        Array [score, resample].
    """
    names = scores[0].by_entity()[0]
    assert all(s.by_entity()[0] == names for s in scores), (
        "paired scores must be about the same entities"
    )
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    sums = np.stack([s.by_entity()[1] for s in scores])
    counts = np.stack([s.by_entity()[2] for s in scores])
    return (sums @ weights.T) / (counts @ weights.T)


def entity_interval(scores: Scores, seed: int = 0) -> Interval:
    """Mean with its percentile interval under resampling of entities.

    Repeating questions does not narrow it.
    """
    if scores.n_entities < MIN_ENTITIES:
        return Interval(scores.mean, 0.0, 1.0)
    return percentile(scores.mean, resampled_means([scores], seed)[0])


def gold_interval(golds: Sequence[Scores], seed: int = 0) -> Interval:
    """Mean over golds, resampling entities and gold seeds."""
    value = float(np.mean([g.mean for g in golds]))
    if golds[0].n_entities < MIN_ENTITIES:
        return Interval(value, 0.0, 1.0)
    means = resampled_means(golds, seed)
    return percentile(value, _resample_golds(means, seed))


def residual_fraction(
    edited: Scores, original: Scores, golds: Sequence[Scores], seed: int = 0
) -> np.ndarray:
    """Resampled values of ρ = (E - G) / (O - G): 1 as the original, 0 as the golds, below 0 less.

    A resample in which O does not exceed G says nothing: it counts as unbounded in both directions
    by turns, which widens the interval instead of narrowing it by being left out.
    """
    means = resampled_means([edited, original, *golds], seed)
    gold = _resample_golds(means[2:], seed)
    span, gain = means[1] - gold, means[0] - gold
    either = np.where(np.arange(len(span)) % 2, UNBOUNDED, -UNBOUNDED)
    too_few = edited.n_entities < MIN_ENTITIES
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((span > 0) & (not too_few), gain / span, either).clip(-UNBOUNDED, UNBOUNDED)


def fraction(edited: float, original: float, gold: float) -> float:
    """ρ of the means; 0 where the original has no advantage over the golds."""
    return (edited - gold) / (original - gold) if original > gold else 0.0


def percentile(value: float, draws: np.ndarray, level: float = 0.95) -> Interval:
    """Percentile interval, widened to hold the value.

    Where draws are clipped, the value can lie outside them.
    """
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, min(value, float(low)), max(value, float(high)))


def joined(*parts: Scores) -> Scores:
    """The questions of several scores together."""
    return Scores(
        np.concatenate([p.values for p in parts]), tuple(e for p in parts for e in p.entities)
    )


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """Holm's adjustment of one-sided p-values."""
    adjusted, running = {}, 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        running = max(running, min(1.0, (len(p_values) - rank) * p))
        adjusted[name] = running
    return adjusted


def p_above_zero(draws: np.ndarray) -> float:
    """One-sided bootstrap p-value that the quantity is not above zero."""
    return float((1 + (draws <= 0).sum()) / (1 + len(draws)))


def _resample_golds(means: np.ndarray, seed: int) -> np.ndarray:
    """Mean over a bootstrap draw of the golds (rows), one draw per resample (column)."""
    rng = np.random.default_rng(seed + 1)
    chosen = rng.integers(0, len(means), size=means.shape)
    return np.take_along_axis(means, chosen, axis=0).mean(0)
