"""Intervals that respect what was sampled: entities are the unit, gold seeds the second factor."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import stats

from workbench.errors import AuditError

RESAMPLES = 2000
MIN_ENTITIES = 8
"""With fewer entities than this, resampling says nothing: intervals are as wide as can be."""
UNBOUNDED = 1000.0
"""Stands for infinity in intervals of ratios, so that reports stay valid JSON."""


class Key(NamedTuple):
    """What a set of scores measures.

    Attributes:
        endpoint: the item of the battery: `B2`, `P1`, `W1`.
        subset: whose facts: `F` (all to be forgotten), a fold (`T`, `S`, `V`, `R_te`), `Z`, a
            neighbour set.
        metric: `raw`, `centred`, `kappa`, `rank`, `logp_nats` and so on.
        setting: what the auditor may choose on S: a place, a learning rate, a format.
        fold: the rotation; -1 where the measurement is the same for all.
        x: optimiser steps of an attack, else 0.
    """

    endpoint: str
    subset: str
    metric: str
    setting: str = ""
    fold: int = -1
    x: float = 0.0


@dataclass(frozen=True)
class Interval:
    """A value with the lower and the upper end of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Scores:
    """One value per question, with the entity and the relation that each question is about."""

    values: np.ndarray
    entities: tuple[str, ...]
    relations: tuple[str, ...] = ()

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def n_entities(self) -> int:
        return len(set(self.entities))

    def by_entity(self) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
        """Entity names in sorted order, the sum of each one's values, and how many it has."""
        names, index, counts = _grouped(self.entities)
        return names, np.bincount(index, self.values, len(names)), counts

    def by_fact(self) -> "Scores":
        """One value per fact, the mean over its questions, in the order of first mention."""
        entities, relations, index, counts = _facts(self.entities, self.relations)
        return Scores(np.bincount(index, self.values, len(counts)) / counts, entities, relations)

    def about(self, entities: Collection[str]) -> "Scores":
        """The questions about these entities alone."""
        rows, names, relations = _about(self.entities, self.relations, tuple(entities))
        return Scores(self.values[rows], names, relations)


# The same questions are met again and again; how they group does not depend on the values.
@lru_cache(maxsize=512)
def _grouped(entities: tuple[str, ...]) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    names = tuple(sorted(set(entities)))
    place = {name: i for i, name in enumerate(names)}
    index = np.array([place[name] for name in entities], dtype=int)
    return names, index, np.bincount(index, minlength=len(names)).astype(float)


@lru_cache(maxsize=512)
def _facts(
    entities: tuple[str, ...], relations: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[str, ...], np.ndarray, np.ndarray]:
    facts = list(zip(entities, relations, strict=True))
    order = {fact: i for i, fact in enumerate(dict.fromkeys(facts))}
    index = np.array([order[fact] for fact in facts], dtype=int)
    names = tuple(e for e, _ in order), tuple(r for _, r in order)
    return *names, index, np.bincount(index, minlength=len(order)).astype(float)


@lru_cache(maxsize=2048)
def _about(
    entities: tuple[str, ...], relations: tuple[str, ...], wanted: tuple[str, ...]
) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]]:
    members = frozenset(wanted)
    rows = [i for i, name in enumerate(entities) if name in members]
    kept = tuple(relations[i] for i in rows) if relations else ()
    return np.array(rows, dtype=int), tuple(entities[i] for i in rows), kept


def joined(*parts: Scores) -> Scores:
    """The questions of several scores together."""
    return Scores(
        np.concatenate([p.values for p in parts]),
        tuple(e for p in parts for e in p.entities),
        tuple(r for p in parts for r in p.relations),
    )


@lru_cache(maxsize=16)
def entity_weights(n_entities: int, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """How often each entity is drawn in each resample, [resample, entity]; rows sum to n."""
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(n_entities, np.full(n_entities, 1 / n_entities), size=resamples)
    drawn = drawn.astype(float)
    drawn.setflags(write=False)
    return drawn


def resampled_means(scores: Sequence[Scores], seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """Bootstrap means, entities drawn with replacement, the same draw for all of `scores`.

    Scores about different entities are drawn from the union of them; a resample in which one has no
    question counts as its mean.

    Returns:
        Array [score, resample].

    Raises:
        AuditError: none of the scores has a question.
    """
    grouped = [s.by_entity() for s in scores]
    names = sorted({name for found, _, _ in grouped for name in found})
    if not names:
        raise AuditError(
            "no question is left to score in one of the folds: facts that golds answer are not "
            "scored; wanted a target with more of them, or with more candidates"
        )
    weights = entity_weights(len(names), seed, resamples)
    column = {name: i for i, name in enumerate(names)}
    sums, counts = np.zeros((2, len(scores), len(names)))
    for row, (found, total, number) in enumerate(grouped):
        columns = [column[name] for name in found]
        sums[row, columns], counts[row, columns] = total, number
    drawn = counts @ weights.T
    with np.errstate(divide="ignore", invalid="ignore"):
        means = (sums @ weights.T) / drawn
    return np.where(drawn > 0, means, np.array([s.mean for s in scores])[:, None])


def entity_interval(scores: Scores, seed: int = 0) -> Interval:
    """Mean with its percentile interval under resampling of entities.

    Repeating questions does not narrow it.
    """
    if scores.n_entities < MIN_ENTITIES:
        return Interval(scores.mean, 0.0, 1.0)
    return percentile(scores.mean, resampled_means([scores], seed)[0])


def gold_mean_draws(means: np.ndarray, observed: Sequence[float], seed: int) -> np.ndarray:
    """Resampled mean of the golds, widened by what another set of training seeds would give.

    Each resample adds a draw of Student's t with S - 1 degrees of freedom, times the standard error
    of the mean over the S golds: few golds say little about the next one. One gold alone gives no
    such error, and none is added; that gate G8 asks for three is the answer to this.

    Args:
        means: resampled mean of each gold, [gold, resample].
        observed: mean of each gold.
    """
    n = len(observed)
    if n < 2:
        return means.mean(0)
    error = float(np.std(observed, ddof=1)) / n**0.5
    return means.mean(0) + error * np.random.default_rng(seed + 1).standard_t(
        n - 1, size=means.shape[1]
    )


def residual_draws(
    edited: np.ndarray, original: np.ndarray, golds: np.ndarray, few: bool = False
) -> np.ndarray:
    """Resampled values of ρ = (E - G) / (O - G): 1 as the original, 0 as the golds, below 0 less.

    A resample in which O does not exceed G says nothing: it counts as unbounded in both directions
    by turns, which widens the interval instead of narrowing it by being left out.

    Args:
        edited, original, golds: resampled means.
        few: there are too few entities for resampling to say anything.
    """
    span, gain = original - golds, edited - golds
    either = np.where(np.arange(len(span)) % 2, UNBOUNDED, -UNBOUNDED)
    with np.errstate(divide="ignore", invalid="ignore"):
        usable = (span > 0) & (not few)
        return np.where(usable, gain / span, either).clip(-UNBOUNDED, UNBOUNDED)


def fraction(edited: float, original: float, gold: float) -> float:
    """ρ of the means; 0 where the original has no advantage over the golds."""
    return (edited - gold) / (original - gold) if original > gold else 0.0


def percentile(value: float, draws: np.ndarray, level: float = 0.95) -> Interval:
    """Percentile interval, widened to hold the value.

    Where draws are clipped, the value can lie outside them.
    """
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, min(value, float(low)), max(value, float(high)))


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


def p_equivalent(draws: np.ndarray, delta: float) -> float:
    """Bootstrap p-value of two one-sided tests that the quantity is not within ±delta.

    It is at most 0.05 where the central 90 % of the draws lie within. Source: Schuirmann 1987.
    """
    outside = max((draws <= -delta).sum(), (draws >= delta).sum())
    return float((1 + outside) / (1 + len(draws)))


def spread(draws: np.ndarray) -> float:
    """Half the central 68 % of the draws: a standard error that unbounded draws do not blow up."""
    low, high = np.quantile(draws, stats.norm.cdf([-1.0, 1.0]))
    return float(high - low) / 2


def detectable(standard_error: float, tests: int, power: float = 0.8) -> float:
    """The smallest effect found with this power by the strictest step of Holm's procedure."""
    z = stats.norm.ppf(1 - 0.05 / tests) + stats.norm.ppf(power)
    return float(z * standard_error)


def ks_draws(edited: Scores, gold: Scores, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """The Kolmogorov–Smirnov distance of two score distributions; the first value is unresampled.

    Entities are resampled, the same for both.
    """
    names = sorted({*edited.entities, *gold.entities})
    weights = np.vstack([np.ones(len(names)), entity_weights(len(names), seed, resamples)])
    weights = weights.T.astype(np.float32)
    column = {name: i for i, name in enumerate(names)}
    values = np.concatenate([edited.values, gold.values])
    order = np.argsort(values, kind="stable")
    last = np.append(np.flatnonzero(np.diff(values[order])), len(values) - 1)
    curves = []
    for part, start in ((edited, 0), (gold, len(edited.values))):
        counts = np.zeros((len(values), len(names)), dtype=np.float32)
        rows = np.arange(start, start + len(part.values))
        counts[rows, [column[e] for e in part.entities]] = 1
        cumulated = np.cumsum(counts[order], axis=0)[last] @ weights
        curves.append(cumulated / np.maximum(cumulated[-1], 1))
    return np.abs(curves[0] - curves[1]).max(0)
