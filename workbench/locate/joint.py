"""Choosing a set of features together: forget at least this much, harm at most that much."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from workbench.errors import EditError
from workbench.facts.target import Target
from workbench.hooks import Site
from workbench.locate.concept import Concept, Prompt
from workbench.locate.control import control_features
from workbench.locate.effect import Effects, exact_effects
from workbench.locate.resample import group_interval
from workbench.sae.load import require_fit

FIRST_ROUND = 4
"""Features added in the first round, at most; later ones add half as many as there are."""


@dataclass(frozen=True)
class Goal:
    """What an edit is to reach, in nats of the answers' log-probability.

    Attributes:
        forget: answers about the concept lose at least this much on average.
        harm: retained answers lose at most this much on average.
    """

    forget: float = 2.0
    harm: float = 0.1

    def __post_init__(self) -> None:
        if not (self.forget > 0 and self.harm > 0):
            raise EditError(
                f"a goal of {self.forget:g} nats forgotten and {self.harm:g} of harm: wanted both "
                "above zero"
            )

    @property
    def price(self) -> float:
        """Nats that must be forgotten for one nat of harm."""
        return self.forget / self.harm

    def met_by(self, forget: float, harm: float) -> bool:
        return forget >= self.forget and harm <= self.harm


@dataclass(frozen=True)
class Step:
    """Features after one round of the choice; mean losses on its passages."""

    k: int
    forget: float
    harm: float


@dataclass(frozen=True)
class Point:
    """One edit: so many features, clamped to a dose where they fire on any token but BOS.

    Attributes:
        forget: mean loss of the concept's answers, with a 95 % interval over groups; `harm`: that
            of retained answers.
        random_forget: with matched random features in the place of the chosen ones; `random_harm`.
    """

    k: int
    dose: float
    forget: float
    forget_low: float
    forget_high: float
    harm: float
    harm_low: float
    harm_high: float
    random_forget: float
    random_harm: float


@dataclass(frozen=True)
class JointChoice:
    """A set of features in the order they were added, and what editing it does.

    Attributes:
        steps: what each round came to, on the passages of the choice.
        sizes: the first features at the dose of the choice; `doses`: all of them at each dose. Both
            on passages that chose no feature; the dose was chosen on them.
        met: whether the chosen dose reaches the goal there.
    """

    site: Site
    concept: str
    goal: Goal
    features: Int[Tensor, " k"]
    dose: float
    met: bool
    steps: tuple[Step, ...]
    sizes: tuple[Point, ...]
    doses: tuple[Point, ...]

    def frame(self) -> pd.DataFrame:
        """The trade-off: one row per size, then one per dose."""
        return pd.DataFrame([vars(p) for p in (*self.sizes, *self.doses)])

    def __str__(self) -> str:
        said = "reached" if self.met else "not reached"
        return "\n".join(
            [
                f"{self.concept} at {self.site.name}: {len(self.features)} features, dose "
                f"{self.dose:g}",
                self.frame().round(3).to_string(index=False),
                f"goal of {self.goal.forget:g} nats forgotten and at most {self.goal.harm:g} lost "
                f"elsewhere: {said}",
            ]
        )


def choose_jointly(
    model: Any,
    sae: Any,
    concept: Concept | Target,
    goal: Goal | None = None,
    *,
    k: int = 64,
    dose: float = -1.0,
    doses: Sequence[float] = (0.0, -0.5, -1.0, -2.0, -4.0),
    candidates: int = 48,
    prompts: int = 100,
    curve: bool = True,
    seed: int = 0,
) -> JointChoice:
    """Adds features greedily by what they do together with those already chosen.

    A round measures what each candidate adds to the set so far, exactly, and takes those that
    forget most after paying for harm at the goal's rate (nats forgotten per nat of harm), among
    those whose harm still fits. If together they harm more than the goal allows, fewer are taken.
    It ends when the goal is reached, no candidate pays and fits, or there are k. Features are
    chosen on the concept's passages of the choice; the trade-off is measured on the others, and
    there the dose is chosen: the most forgetting within the allowed harm.

    Args:
        dose: the clamp's dose during the choice; `doses` are those of the curve.
        candidates: features measured in each round after the first, which measures all; the
            likeliest by the previous one.
        prompts: passages of either kind in the choice, drawn evenly over groups.
        curve: measure the trade-off; without it the dose is `dose` and `met` is on the passages of
            the choice.

    Raises:
        EditError: no feature forgets more than its harm costs. SAEError: the SAE belongs to other
            weights or carries no largest activations.
    """
    require_fit(sae, model)
    goal = goal or Goal()
    concept = Concept.from_target(concept) if isinstance(concept, Target) else concept
    bench = _Bench(model, sae, goal, dose)
    site = Site.parse(sae.cfg.metadata.hook_name)
    select = [
        drawn_evenly(side, prompts, seed) for side in (concept.select.forget, concept.select.retain)
    ]
    features, steps = _grown(bench, select, k, candidates)
    if not steps:
        raise EditError(
            f"no feature of this SAE forgets {concept.name!r} at less than "
            f"{1 / goal.price:g} nats of harm per nat forgotten"
        )
    if not curve:
        met = goal.met_by(steps[-1].forget, steps[-1].harm)
        return JointChoice(site, concept.name, goal, features, dose, met, steps, (), ())
    chance = control_features(model, sae, concept, features, seed)
    report = concept.report.forget, concept.report.retain
    sizes = [*(2**i for i in range(64) if 2**i < len(features)), len(features)]
    by_size = tuple(bench.point(report, features[:n], chance[:n], dose) for n in sizes)
    by_dose = tuple(bench.point(report, features, chance, d) for d in doses)
    allowed = [p for p in by_dose if p.harm <= goal.harm]
    best = max(allowed, key=lambda p: p.forget) if allowed else min(by_dose, key=lambda p: p.harm)
    met = goal.met_by(best.forget, best.harm)
    return JointChoice(site, concept.name, goal, features, best.dose, met, steps, by_size, by_dose)


def drawn_evenly(prompts: Sequence[Prompt], n: int, seed: int) -> tuple[Prompt, ...]:
    """At most n prompts, as many of each group as of any other, up to one."""
    rng = random.Random(seed)
    groups: dict[str, list[Prompt]] = {}
    for prompt in rng.sample(prompts, len(prompts)):
        groups.setdefault(prompt.group, []).append(prompt)
    turns = [(turn, i, p) for i, ps in enumerate(groups.values()) for turn, p in enumerate(ps)]
    return tuple(p for _, _, p in sorted(turns, key=lambda t: t[:2])[:n])


def _grown(
    bench: "_Bench", sides: Sequence[Sequence[Prompt]], k: int, candidates: int
) -> tuple[Int[Tensor, " k"], tuple[Step, ...]]:
    """The features in the order they were added, and what each round came to."""
    pool, chosen = torch.arange(bench.sae.cfg.d_sae), torch.zeros(0, dtype=torch.long)
    steps: list[Step] = []
    while len(chosen) < k and len(pool):
        pool, best = bench.ordered(sides, pool, chosen)
        most = min(max(FIRST_ROUND, len(chosen) // 2), k - len(chosen))
        if not len(best):
            break
        steps.append(bench.fitting(sides, chosen, best[:most]))
        chosen = torch.cat([chosen, best[: steps[-1].k - len(chosen)]])
        if steps[-1].forget >= bench.goal.forget:
            break
        pool = pool[~torch.isin(pool, chosen)][:candidates]
    return chosen, tuple(steps)


@dataclass(frozen=True)
class _Bench:
    """Measures sets of features on passages."""

    model: Any
    sae: Any
    goal: Goal
    dose: float

    def ordered(
        self, sides: Sequence[Sequence[Prompt]], pool: Int[Tensor, " some"], chosen: Tensor
    ) -> tuple[Int[Tensor, " some"], Int[Tensor, " paying"]]:
        """A pool by what each adds, best first; and those of it that pay and fit the harm left."""
        forgot, harmed = (self.effects(prompts, pool, chosen) for prompts in sides)
        added, cost = ((e.each - e.base[:, None]).mean(0) for e in (forgot, harmed))
        worth = added - self.goal.price * cost.clamp_min(0)
        fits = harmed.each.mean(0) <= self.goal.harm
        order = worth.argsort(descending=True, stable=True)
        return pool[order], pool[order[(worth > 0)[order] & fits[order]]]

    def fitting(
        self, sides: Sequence[Sequence[Prompt]], chosen: Tensor, best: Int[Tensor, " some"]
    ) -> Step:
        """What adding the first features comes to: as many as together fit, of which one does."""
        while True:
            whole = torch.cat([chosen, best])
            step = Step(len(whole), *(self.together(prompts, whole) for prompts in sides))
            if step.harm <= self.goal.harm or len(best) == 1:
                return step
            best = best[: len(best) // 2]

    def together(self, prompts: Sequence[Prompt], chosen: Int[Tensor, " k"]) -> float:
        """Mean loss of the answers with all chosen features edited."""
        return self.effects(prompts, chosen[:0], chosen).base.mean().item()

    def effects(
        self, prompts: Sequence[Prompt], pool: Tensor, chosen: Tensor, dose: float | None = None
    ) -> Effects:
        dose = self.dose if dose is None else dose
        return exact_effects(self.model, self.sae, prompts, pool, dose=dose, base=chosen)

    def point(
        self,
        sides: Sequence[Sequence[Prompt]],
        features: Int[Tensor, " k"],
        chance: Int[Tensor, " k"],
        dose: float,
    ) -> Point:
        """One edit on the passages of the report, and its control."""
        found, control = [], []
        for prompts in sides:
            loss, other = (
                self.effects(prompts, some[:0], some, dose).base for some in (features, chance)
            )
            low, high = group_interval(loss[:, None], prompts, torch.Generator().manual_seed(0))
            found += [loss.mean().item(), low.item(), high.item()]
            control.append(other.mean().item())
        return Point(len(features), dose, *found, *control)
