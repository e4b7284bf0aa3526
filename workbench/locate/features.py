"""Finding a concept's features, with evidence from passages that had no part in the choice."""

from dataclasses import dataclass, fields
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.errors import EditError
from workbench.facts.target import Target
from workbench.hooks import Site
from workbench.locate.concept import Concept
from workbench.locate.control import control_features
from workbench.locate.effect import exact_effects
from workbench.locate.resample import DRAWS, ends, group_interval
from workbench.locate.scores import Measured, Method, adjusted, measure
from workbench.sae.load import require_fit

STABILITY = 100
"""Bootstrap draws behind the share in which a feature is chosen again."""


@dataclass(frozen=True)
class Evidence:
    """What some features do on passages that had no part in the choice, one value per feature.

    Intervals are 95 % percentile intervals over groups (entities, documents).

    Attributes:
        score: the score they were ranked by; `q`: false-discovery rate over the whole dictionary,
            of the feature not telling the concept apart.
        effect: mean loss of the answers about the concept if the feature is ablated, in nats of
            log-probability; without answers, how far the next-token distribution moves (see
            `Effects`).
        cost: the same for retained passages.
    """

    features: Int[Tensor, " k"]
    score: Float[Tensor, " k"]
    score_low: Float[Tensor, " k"]
    score_high: Float[Tensor, " k"]
    q: Float[Tensor, " k"]
    effect: Float[Tensor, " k"]
    effect_low: Float[Tensor, " k"]
    effect_high: Float[Tensor, " k"]
    cost: Float[Tensor, " k"]
    cost_low: Float[Tensor, " k"]
    cost_high: Float[Tensor, " k"]

    def frame(self) -> pd.DataFrame:
        """One row per feature."""
        return pd.DataFrame({f.name: getattr(self, f.name).tolist() for f in fields(self)})

    def split(self, k: int) -> tuple["Evidence", "Evidence"]:
        """The evidence on the first k features, and on the others."""
        values = [getattr(self, f.name) for f in fields(self)]
        return Evidence(*(v[:k] for v in values)), Evidence(*(v[k:] for v in values))


@dataclass(frozen=True)
class ConceptFeatures:
    """The features chosen for a concept, best first; print it for a table and a verdict.

    Attributes:
        scores: the score they were chosen by, on the passages of the choice.
        stable: share of bootstrap draws of the groups of the choice in which the feature is among
            the first k again; `wordings`: share of paraphrases that alone put it there (1 where
            there is only one).
        evidence: on other passages, which chose nothing.
        random: the same for as many random features, matched in firing rate and largest push.
        held_out_random: mean held-out score over all features that were not chosen.
        dictionary: features that were tested; `limit`: false-discovery rate up to which one passes.
    """

    site: Site
    concept: str
    method: str
    features: Int[Tensor, " k"]
    scores: Float[Tensor, " k"]
    stable: Float[Tensor, " k"]
    wordings: Float[Tensor, " k"]
    evidence: Evidence
    random: Evidence
    held_out_random: float
    selected_on: str
    evidence_on: str
    dictionary: int
    limit: float = 0.05

    @property
    def held_out(self) -> Float[Tensor, " k"]:
        """The score of the chosen features on passages that chose nothing."""
        return self.evidence.score

    @property
    def passing(self) -> Int[Tensor, " passing"]:
        """Chosen features that tell the concept apart on other passages too, by the limit on q."""
        return self.features[(self.evidence.q <= self.limit) & (self.evidence.score > 0)]

    def frame(self) -> pd.DataFrame:
        """One row per chosen feature: choice, stability and evidence."""
        chosen = {"chosen_by": self.scores, "stable": self.stable, "wordings": self.wordings}
        frame = self.evidence.frame()
        for name, values in chosen.items():
            frame.insert(1, name, values.tolist())
        return frame

    def __str__(self) -> str:
        found, chance = self.evidence, self.random
        passing = len(self.passing)
        said = (
            f"{passing} of {len(self.features)} features pass a false-discovery rate of "
            f"{self.limit:g} over {self.dictionary} features"
            if passing
            else f"Nothing passes: no chosen feature tells {self.concept!r} apart on other "
            f"passages at a false-discovery rate of {self.limit:g} over {self.dictionary} features"
        )
        return "\n".join(
            [
                f"{self.concept} at {self.site.name} by {self.method}",
                f"chosen on {self.selected_on}",
                f"evidence from {self.evidence_on}, with 95 % intervals",
                self._brief().to_string(index=False, max_rows=20),
                said,
                f"ablated one by one: the concept loses {found.effect.mean():.3f} nats a feature, "
                f"the rest {found.cost.mean():.3f}; matched random features: "
                f"{chance.effect.mean():.3f} and {chance.cost.mean():.3f}",
            ]
        )

    def _brief(self) -> pd.DataFrame:
        """The frame as it is printed: each interval beside its value."""
        frame = self.frame().round(3)
        for name in ("score", "effect", "cost"):
            low, high = frame.pop(f"{name}_low"), frame.pop(f"{name}_high")
            whole = zip(frame[name], low, high, strict=True)
            frame[name] = [f"{x:.3f} [{a:.3f}, {b:.3f}]" for x, a, b in whole]
        return frame

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "site": self.site.name,
            "concept": self.concept,
            "method": self.method,
            "features": self.features.tolist(),
            "scores": self.scores.tolist(),
            "stable": self.stable.tolist(),
            "wordings": self.wordings.tolist(),
            "evidence": self.evidence.frame().to_dict("list"),
            "random": self.random.frame().to_dict("list"),
            "held_out_random": self.held_out_random,
            "passing": self.passing.tolist(),
            "limit": self.limit,
            "selected_on": self.selected_on,
            "evidence_on": self.evidence_on,
        }


def rank(
    model: Any, sae: Any, concept: Concept | Target, k: int = 64, method: Method = "frequency"
) -> tuple[Int[Tensor, " k"], Float[Tensor, " k"]]:
    """The k features with the highest scores on the passages of the choice, without evidence.

    Raises:
        As `locate`.
    """
    require_fit(sae, model)
    concept = Concept.from_target(concept) if isinstance(concept, Target) else concept
    return _top(measure(model, sae, concept.select, method), concept.name, k)


def locate(
    model: Any,
    sae: Any,
    concept: Concept | Target,
    k: int = 64,
    method: Method = "frequency",
    *,
    seed: int = 0,
) -> ConceptFeatures:
    """Ranks an SAE's features by how much they belong to a concept, and tests the choice elsewhere.

    Scores are those of `measure`. Features are chosen on one part of the concept's passages; the
    score with its interval, the false-discovery rate over all features, and the exact effect of
    ablating each feature, on the concept and on what is to stay, come from the other.

    Raises:
        SAEError: the SAE belongs to other weights, or too few other features ever fire to match
            the chosen ones.
        TargetError: no questions on a forget or retain fold. EditError: fewer than `k` features
            score above zero, or the method does not fit the concept.
    """
    require_fit(sae, model)
    concept = Concept.from_target(concept) if isinstance(concept, Target) else concept
    chosen_by = measure(model, sae, concept.select, method)
    features, scores = _top(chosen_by, concept.name, k)
    generator = torch.Generator().manual_seed(seed)
    reported = measure(model, sae, concept.report, method, like=chosen_by)
    both = torch.cat([features, control_features(model, sae, concept, features, seed)])
    found, control = _evidence(model, sae, concept, reported, both, generator).split(k)
    others = torch.ones(sae.cfg.d_sae, dtype=torch.bool)
    others[features] = False
    return ConceptFeatures(
        Site.parse(sae.cfg.metadata.hook_name),
        concept.name,
        method,
        features,
        scores,
        _stability(chosen_by, features, generator),
        _over_wordings(chosen_by, features),
        found,
        control,
        reported.scores()[others].mean().item(),
        concept.selected_on,
        concept.reported_on,
        sae.cfg.d_sae,
    )


def _top(measured: Measured, name: str, k: int) -> tuple[Int[Tensor, " k"], Float[Tensor, " k"]]:
    """The k highest scores; of equal ones the first."""
    scores = measured.scores()
    positive = int((scores > 0).sum())
    if not 1 <= k <= positive:
        raise EditError(f"only {positive} features score above zero for {name!r}; asked for k={k}")
    best = scores.argsort(descending=True, stable=True)[:k]
    return best, scores[best]


def _evidence(
    model: Any,
    sae: Any,
    concept: Concept,
    reported: Measured,
    features: Int[Tensor, " some"],
    generator: torch.Generator,
) -> Evidence:
    low, high = ends(resampled(reported.only(features), DRAWS, generator))
    q = adjusted(reported.p_values())[features].float()
    sides = []
    for prompts in (concept.report.forget, concept.report.retain):
        each = exact_effects(model, sae, prompts, features).each
        sides += [each.mean(0), *group_interval(each, prompts, generator)]
    return Evidence(features, reported.scores()[features], low, high, q, *sides)


def resampled(
    measured: Measured, draws: int, generator: torch.Generator
) -> Float[Tensor, "n some"]:
    """The scores with groups of both sides drawn anew, with replacement, `draws` times."""
    (forget, forget_weight), (retain, retain_weight) = (
        side.by_group() for side in (measured.forget, measured.retain)
    )
    drawn = []
    for _ in range(draws):
        f, r = (
            torch.randint(len(side), (len(side),), generator=generator) for side in (forget, retain)
        )
        drawn.append(measured.of(forget[f], forget_weight[f], retain[r], retain_weight[r]))
    return torch.stack(drawn)


def _stability(
    measured: Measured, features: Int[Tensor, " k"], generator: torch.Generator
) -> Float[Tensor, " k"]:
    return _among_first(resampled(measured, STABILITY, generator), features)


def _over_wordings(measured: Measured, features: Int[Tensor, " k"]) -> Float[Tensor, " k"]:
    """Share of paraphrases found on both sides that each put the feature among the first k."""
    shared = set(measured.forget.wording.tolist()) & set(measured.retain.wording.tolist())
    each = [measured.of_wording(wording).scores() for wording in sorted(shared)]
    return _among_first(torch.stack(each), features)


def _among_first(
    scores: Float[Tensor, "n d_sae"], features: Int[Tensor, " k"]
) -> Float[Tensor, " k"]:
    """Share of rows in which each of k features is among the k highest, and above zero."""
    lowest = scores.topk(len(features), dim=-1).values[:, -1:]
    mine = scores[:, features]
    return ((mine >= lowest) & (mine > 0)).float().mean(0)
