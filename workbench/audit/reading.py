"""One endpoint's scores on every model, after the auditor's choices on unscored facts."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from workbench.audit.attacks import area, setting_name
from workbench.audit.rotation import Folds
from workbench.audit.statistics import (
    MIN_ENTITIES,
    Key,
    Scores,
    fraction,
    gold_mean_draws,
    joined,
    resampled_means,
)
from workbench.audit.views import Found

MIN_SPAN = 0.30
"""The least advantage of the original over the golds at which a measurement says anything."""

FactName = tuple[str, str]
Lookup = Callable[[Found, int, str], Scores | None]
"""The scores of one candidate, per fact: found, rotation and fold (`S` or `V`) to scores."""


@dataclass(frozen=True)
class Cast:
    """The models of one comparison, as found: the one judged, the one that knew, those that never.

    Attributes:
        golds: empty where the user has none; `Reading.chance` then takes their place.
        random: the same measurement on a model with random weights, if it was made.
    """

    edited: Found
    original: Found
    golds: tuple[Found, ...]
    random: Found | None = None

    @property
    def models(self) -> tuple[Found, ...]:
        return self.edited, self.original, *self.golds


@dataclass(frozen=True)
class Reading:
    """Scores of E, O and each gold on the same facts, pooled over the rotations.

    Attributes:
        scores: one per model, in the order of `Cast.models`, one value per fact.
        minus: what is subtracted from each (the false facts of W2), or nothing.
        chance: per fact, what guessing gives.
        chosen: what the auditor chose on S, per rotation.
        metric: what is counted, where it is not the endpoint's usual.
    """

    scores: tuple[Scores, ...]
    chance: Scores
    chosen: tuple[str, ...]
    grid: int
    on: str = "S"
    minus: tuple[Scores, ...] = ()
    random: Scores | None = None
    metric: str = ""

    @property
    def means(self) -> list[float]:
        """The value of each model."""
        means = [s.mean for s in self.scores]
        return [m - z.mean for m, z in zip(means, self.minus, strict=True)] if self.minus else means

    @property
    def gold(self) -> float:
        """The mean of the golds, or chance where there are none."""
        golds = self.means[2:]
        return float(np.mean(golds)) if golds else (0.0 if self.minus else self.chance.mean)

    def draws(self, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Resampled values of E, of O and of the golds' mean."""
        found = resampled_means([*self.scores, *self.minus, self.chance], seed)
        values, chance = found[: len(self.scores)], found[-1]
        if self.minus:
            values, chance = values - found[len(self.scores) : -1], np.zeros_like(chance)
        golds = gold_mean_draws(values[2:], self.means[2:], seed) if len(values) > 2 else chance
        return values[0], values[1], golds

    @property
    def few(self) -> bool:
        """Whether there are too few entities to resample."""
        return self.scores[0].n_entities < MIN_ENTITIES


@dataclass(frozen=True, eq=False)
class Candidate:
    """One way to take a measurement, of which the auditor chooses the best on S.

    Attributes:
        chance: what guessing gives, by relation or for all.
    """

    name: str
    look: Lookup
    chance: dict[str, float] | float


def candidate(
    endpoint: str,
    metric: str,
    setting: str,
    folds: Sequence[Folds],
    chance: dict[str, float] | float,
    x: float = 0.0,
) -> Candidate:
    """What was measured under this setting: on all facts at once, or on each fold by itself."""

    def look(found: Found, fold: int, subset: str) -> Scores | None:
        whole = [Key(endpoint, s, metric, setting, -1, x) for s in ("F", "D")]
        scores = next((found[key] for key in whole if key in found), None)
        if scores is not None:
            return scores.about(folds[fold][subset])
        return found.get(Key(endpoint, subset, metric, setting, fold, x))

    name = f"{endpoint} {setting_name(endpoint, setting, x) if x else setting}".strip()
    return Candidate(name, look, chance)


def curve_candidate(endpoint: str, setting: str, chance: dict[str, float] | float) -> Candidate:
    """The area under a curve over the steps of an attack, per fact."""

    def look(found: Found, fold: int, subset: str) -> Scores | None:
        return curve_area(found, endpoint, setting, fold, subset)

    return Candidate(f"{endpoint} {setting}".strip(), look, chance)


def curve_area(found: Found, endpoint: str, setting: str, fold: int, subset: str) -> Scores | None:
    """Area under hits over log2(1 + steps), scaled to 0..1, per fact; None if it was not run."""
    keys = sorted(
        (k for k in found if k[:2] == (endpoint, subset) and k[3:5] == (setting, fold)),
        key=lambda k: k.x,
    )
    if not keys:
        return None
    return area([found[k] for k in keys], [int(k.x) for k in keys])


def without(scores: Scores, drop: Collection[FactName]) -> Scores:
    """The scores of all facts but these."""
    if not drop:
        return scores
    facts = list(zip(scores.entities, scores.relations, strict=True))
    rows = [i for i, fact in enumerate(facts) if fact not in drop]
    return Scores(
        scores.values[rows],
        tuple(scores.entities[i] for i in rows),
        tuple(scores.relations[i] for i in rows),
    )


def read_best(
    cast: Cast, candidates: Sequence[Candidate], n_folds: int, most_taught: float = np.inf
) -> Reading | None:
    """Chooses on S where E stands out most against O and the golds; reads V there.

    Only candidates count on which O stands out from the golds on S: where nothing is found in a
    model that knows, finding nothing in another says nothing. What is scored on V has no say.

    Args:
        most_taught: share of what O shows above chance that golds may show, of a candidate that
            counts.
    """
    parts, chosen = [], []
    for fold in range(n_folds):
        looked = {
            c: _complete([c.look(found, fold, "S") for found in cast.models]) for c in candidates
        }
        usable = {c: s for c, s in looked.items() if s is not None}
        if not usable:
            continue
        best = max(usable, key=lambda c: _standing(usable[c], c.chance, most_taught))
        scored = _complete([best.look(found, fold, "V") for found in cast.models])
        if scored is None:
            continue
        random = best.look(cast.random, fold, "V") if cast.random else None
        parts.append(_Part(scored, chance_scores(scored[0], best.chance), random))
        chosen.append(best.name)
    return _pooled(parts, chosen, len(candidates))


def read_own_best(cast: Cast, candidates: Sequence[Candidate], n_folds: int) -> Reading | None:
    """Chooses on S, for each model by itself, where it scores highest; reads V there.

    So that every model is attacked with the setting that suits it.
    """
    parts, chosen = [], []
    for fold in range(n_folds):
        row, picked = [], []
        for found in cast.models:
            looked = {c: c.look(found, fold, "S") for c in candidates}
            usable = {c: s for c, s in looked.items() if s is not None and len(s.values)}
            if usable:
                best = max(usable, key=lambda c: usable[c].mean)
                row.append(best.look(found, fold, "V"))
                picked.append(best)
        scored = _complete(row)
        if scored is not None and len(row) == len(cast.models):
            parts.append(_Part(scored, chance_scores(scored[0], picked[0].chance)))
            chosen.append(picked[0].name)
    return _pooled(parts, chosen, len(candidates))


def read_all(cast: Cast, candidates: Sequence[Candidate], n_folds: int) -> Reading | None:
    """Nothing is chosen: the questions of all candidates together."""
    parts = []
    for fold in range(n_folds):
        each = [_complete([c.look(f, fold, "V") for f in cast.models]) for c in candidates]
        whole = [e for e in each if e is not None]
        if whole:
            scored = tuple(
                joined(*(e[i] for e in whole)).by_fact() for i in range(len(cast.models))
            )
            parts.append(_Part(scored, chance_scores(scored[0], candidates[0].chance)))
    reading = _pooled(parts, [], len(candidates))
    return replace(reading, on="nothing", grid=1) if reading else None


def chance_scores(like: Scores, chance: dict[str, float] | float) -> Scores:
    """What guessing gives on each of these facts."""
    if isinstance(chance, dict):
        values = np.array([chance.get(r, 0.0) for r in like.relations])
    else:
        values = np.full(len(like.values), chance)
    return Scores(values, like.entities, like.relations)


def _complete(scores: Sequence[Scores | None]) -> tuple[Scores, ...] | None:
    whole = tuple(s for s in scores if s is not None and len(s.values))
    return whole if len(whole) == len(scores) else None


def _standing(
    scores: tuple[Scores, ...], chance: dict[str, float] | float, most_taught: float
) -> tuple[bool, float, float]:
    """Whether O stands out; how far E does, in thousandths; how far O does."""
    guessed = chance_scores(scores[0], chance).mean
    golds = [s.mean for s in scores[2:]] or [guessed]
    gold, edited, original = float(np.mean(golds)), scores[0].mean, scores[1].mean
    taught = gold - guessed > most_taught * (original - guessed)
    stands = original - gold >= MIN_SPAN and not taught
    return stands, round(fraction(edited, original, gold), 3) if stands else 0.0, original - gold


@dataclass(frozen=True)
class _Part:
    """The scores of one rotation."""

    scores: tuple[Scores, ...]
    chance: Scores
    random: Scores | None = None


def _pooled(parts: Sequence[_Part], chosen: Sequence[str], grid: int) -> Reading | None:
    if not parts:
        return None
    randoms = [p.random for p in parts if p.random is not None]
    return Reading(
        tuple(joined(*scores) for scores in zip(*(p.scores for p in parts), strict=True)),
        joined(*(p.chance for p in parts)),
        tuple(chosen),
        grid,
        random=joined(*randoms) if len(randoms) == len(parts) else None,
    )
