"""SAEBench's sweep, its score, and the score on questions that did not choose."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from workbench.audit.statistics import Scores, entity_interval
from workbench.errors import DataError


@dataclass(frozen=True)
class SAEBenchConfig:
    """What is tried; the defaults are SAEBench's, and so are the names of what it has too.

    Attributes:
        retain_thresholds: features that fire on this share of retain tokens or more are left out.
        n_features_list: how many of the others are clamped, those that fire most on forget text.
        multipliers: each clamped feature is set to minus this, as an activation.
        min_side_effect: share of the other questions that must still be answered right.
        controls: draws of matched random features; 0 for none.
        splits: random halves over which the gain of choosing on the scored questions is averaged.
    """

    retain_thresholds: tuple[float, ...] = (0.001, 0.01)
    n_features_list: tuple[int, ...] = (10, 20)
    multipliers: tuple[int | float, ...] = (25, 50, 100, 200)
    min_side_effect: float = 0.99
    random_seed: int = 42
    controls: int = 3
    splits: int = 200

    def __post_init__(self) -> None:
        swept = (self.retain_thresholds, self.n_features_list, self.multipliers)
        if not all(values and min(values) > 0 for values in swept):
            raise DataError(
                f"retain_thresholds {self.retain_thresholds}, n_features_list "
                f"{self.n_features_list}, multipliers {self.multipliers}: wanted one or more "
                "of each, all above 0"
            )
        if not 0 <= self.min_side_effect <= 1 or self.controls < 0 or self.splits < 1:
            raise DataError(
                f"min_side_effect {self.min_side_effect}, controls {self.controls}, splits "
                f"{self.splits}: wanted 0 to 1, 0 or more, and 1 or more"
            )

    def settings(self) -> list[tuple[float, int, int | float]]:
        """Threshold, number of features and multiplier of every trial, in SAEBench's order."""
        return list(
            itertools.product(self.retain_thresholds, self.n_features_list, self.multipliers)
        )


@dataclass(frozen=True)
class SAEBenchTrial:
    """One setting, and what the model answers right under it of what it knew."""

    retain_threshold: float
    n_features: int
    multiplier: int | float
    features: tuple[int, ...]
    forget_accuracy: float
    side_effect_accuracy: float


@dataclass(frozen=True)
class HeldOut:
    """The score of the setting that one half of the questions chooses, on the other half.

    Attributes:
        chosen: index of its trial; None where none kept enough, which scores 0.
        choosing_score: on the half it was chosen by.
        low: of the interval of `unlearning_score` under resampling of groups, the choice fixed;
            `high` its upper end.
        side_effect_accuracy: on the other half. It can be below the limit of the choice; the score
            is not set to 0 for that.
        mean_choosing_score: over many random halves; `mean_unlearning_score` on the others.
        share_qualified: of these halves, in which the choice kept the limit on the other half too;
            choosing nothing keeps it.
    """

    chosen: int | None
    choosing_score: float
    unlearning_score: float
    low: float
    high: float
    side_effect_accuracy: float
    n_questions: int
    n_groups: int
    mean_choosing_score: float
    mean_unlearning_score: float
    share_qualified: float


@dataclass(frozen=True)
class Scored:
    """All trials of one way to pick features, and both scores of it."""

    trials: tuple[SAEBenchTrial, ...]
    chosen: int | None
    unlearning_score: float
    held_out: HeldOut


@dataclass(frozen=True)
class SAEBenchResult:
    """SAEBench's score of an SAE with what it must be read beside.

    Attributes:
        features: as the protocol picks them; `controls`: matched random ones, one for each draw.
        n_forget: questions that the unmodified model knows, of `n_forget_asked`.
        n_side_effect: the same for what must stay.
    """

    site: str
    config: SAEBenchConfig
    features: Scored
    controls: tuple[Scored, ...]
    n_forget: int
    n_forget_asked: int
    n_side_effect: int
    n_side_effect_asked: int

    @property
    def unlearning_score(self) -> float:
        """SAEBench's number: the best trial on the questions that it is picked by."""
        return self.features.unlearning_score

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what SAEBench has too stands under its names."""
        content = asdict(self)
        return {
            "eval_type_id": "unlearning",
            "eval_config": content.pop("config"),
            "eval_result_metrics": {"unlearning": {"unlearning_score": self.unlearning_score}},
            **content,
        }


Hits = Bool[np.ndarray, "trial _question"]


def best_trial(forget: Hits, side: Hits, min_side_effect: float) -> int | None:
    """The trial with the fewest forget questions right among those that harm little enough.

    The first of equals; None where no trial keeps `min_side_effect` of the other questions.
    """
    accuracy = forget.mean(1)
    qualified = np.flatnonzero(side.mean(1) >= min_side_effect)
    return int(qualified[accuracy[qualified].argmin()]) if len(qualified) else None


def score(forget: Hits, chosen: int | None) -> float:
    """Share of forget questions that are no longer answered right; 0 where nothing was chosen."""
    return 0.0 if chosen is None else float(1 - forget[chosen].mean())


def halves(groups: Sequence[str], seed: int) -> Bool[np.ndarray, " question"]:
    """True on the questions of a random half of the groups; the odd group is not among them.

    Raises:
        DataError: there are not two groups.
    """
    names = sorted(set(groups))
    if len(names) < 2:
        raise DataError(
            f"questions of {len(names)} group: wanted two or more, to hold one half out"
        )
    chosen = set(random.Random(seed).sample(names, len(names) // 2))
    return np.array([group in chosen for group in groups])


def held_out(
    forget: Hits,
    side: Hits,
    groups: tuple[Sequence[str], Sequence[str]],
    config: SAEBenchConfig,
) -> HeldOut:
    """Chooses a trial on half of the groups and scores it on the others.

    Args:
        groups: of the forget questions and of the others.
    """

    def split(seed: int) -> tuple[int | None, float, float, float, np.ndarray]:
        a, b = (halves(g, seed) for g in groups)
        chosen = best_trial(forget[:, a], side[:, b], config.min_side_effect)
        kept = 1.0 if chosen is None else float(side[chosen][~b].mean())
        return chosen, score(forget[:, a], chosen), score(forget[:, ~a], chosen), kept, ~a

    chosen, choosing, scored, kept, other = split(config.random_seed)
    names = tuple(np.array(groups[0])[other].tolist())
    lost = np.zeros(other.sum()) if chosen is None else 1.0 - forget[chosen][other]
    interval = entity_interval(Scores(lost, names), config.random_seed)
    many = [split(config.random_seed + 1 + i) for i in range(config.splits)]
    return HeldOut(
        chosen,
        choosing,
        scored,
        interval.low,
        interval.high,
        kept,
        len(names),
        len(set(names)),
        float(np.mean([s[1] for s in many])),
        float(np.mean([s[2] for s in many])),
        float(np.mean([s[3] >= config.min_side_effect for s in many])),
    )
