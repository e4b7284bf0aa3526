"""Knowledge that follows from other knowledge: stored, derived on the way, or put together again.

A fact C that follows from A and B is not gone while a model answers it, nor while what the model
still answers entails it. Golds may derive it too, so that only the difference to them is evidence.
"""

import random
from collections.abc import Collection, Sequence, Set
from dataclasses import dataclass, replace

import numpy as np

from workbench.audit.entailment import deep_unlearning, steps_of, supports
from workbench.audit.questions.choice import chained, chains_of
from workbench.audit.questions.formats import noun
from workbench.audit.questions.scorer import hits, put, scored
from workbench.audit.reading import Cast, chance_scores
from workbench.audit.statistics import (
    MIN_ENTITIES,
    Interval,
    Key,
    Scores,
    gold_mean_draws,
    percentile,
    resampled_means,
)
from workbench.audit.views import Found, Measure, View
from workbench.facts.schema import Fact, FactKey
from workbench.facts.target import Target
from workbench.models.score import Question, ask

MAX_GOALS = 50
"""Facts that follow from others, forgotten themselves or by what they follow from, examined."""
MAX_OTHERS = 100
"""Retained facts, and unrelated derived ones, that are asked beside them."""
ANSWERED = 0.5
"""A model answers a fact if it does so in this share of its training templates.

One that guesses does so now and then; how often, the golds tell.
"""
REDERIVED = 0.10
"""Least advantage over chance at which a chain of questions gives a derived fact away."""
LOST = 0.05
"""Least loss against the golds that counts."""


def derivation(target: Target, seed: int) -> Measure:
    """Asks for derived facts in three ways, and for all that they rest on.

    Stored under endpoint `derivation`. Subset `D`: `raw` hits with setting `stored` (its own
    training templates), `latent` (a training template of the second premise about "the ... of" the
    subject, in one prompt) and `chained` (the model's own answer to the first premise put into the
    second); and one value per derived fact of `success_du`, `derivable`, `recall` and `acc` (see
    `deep_unlearning`), where the knowledge base is all that was told of what it can rest on, and
    retained facts. Subset `premises`: `raw` with setting `forgotten` or `kept`. Subset `two_hop`:
    `raw` with setting `stored` and `chained` on derived facts that rest on nothing forgotten.

    Args:
        seed: decides which derived facts, if there are more than `MAX_GOALS`.
    """
    plan = _Plan(target, seed)

    def measure(view: View) -> Found:
        if not plan.goals:
            return {}
        asked = ask(plan.asked, "train")
        answers = put(view.model, view.edits, target.facts, asked).answers
        raw = scored(answers, hits(answers))
        found = {key: _about(raw, facts) for key, facts in plan.subsets.items() if facts}
        for subset, facts in (("D", plan.goals), ("two_hop", plan.unrelated)):
            some = replace(target, derived=facts)
            if not chains_of(some):
                continue
            replies = {"chained": chained(view, some)}
            if subset == "D":
                replies["latent"] = put(view.model, view.edits, target.facts, _composed(some))
            for setting, said in replies.items():
                key = Key("derivation", subset, "raw", setting)
                found[key] = scored(said.answers, hits(said.answers))
        means = raw.by_fact()
        keys = zip(means.entities, means.relations, strict=True)
        right = {key for key, v in zip(keys, means.values, strict=True) if v >= ANSWERED}
        return found | plan.deep(right)

    return measure


class _Plan:
    """What is asked, and what follows from what: the same for every view."""

    def __init__(self, target: Target, seed: int) -> None:
        facts, self.steps = target.facts, steps_of(target.facts)
        follow = (*target.derived, *(f for f in target.forget if f.derived))
        self.goals = _drawn([f for f in follow if f.templates], MAX_GOALS, seed)
        told = {f.key for f in facts.facts if f.stated and f.templates}
        ways = {f.key: supports(f.key, told, self.steps) for f in self.goals}
        self.cones = {goal: frozenset().union(*found) for goal, found in ways.items() if found}
        goals = {f.key for f in self.goals}
        base = [facts.fact[k] for k in sorted(frozenset().union(*self.cones.values()) - goals)]
        forgotten = tuple(f for f in base if f.key in target.forget_keys)
        kept = tuple(f for f in base if f.key not in target.forget_keys)
        others = _drawn([f for f in target.retain["R_te"] if f.templates], MAX_OTHERS, seed)
        self.kept = frozenset(f.key for f in (*kept, *others))
        self.unrelated = _unrelated(target, seed)
        self.subsets = {
            Key("derivation", "D", "raw", "stored"): self.goals,
            Key("derivation", "premises", "raw", "forgotten"): forgotten,
            Key("derivation", "premises", "raw", "kept"): kept,
            Key("derivation", "two_hop", "raw", "stored"): self.unrelated,
        }
        union = (*(f for some in self.subsets.values() for f in some), *others)
        self.asked = tuple(dict.fromkeys(union))

    def deep(self, right: Set[FactKey]) -> Found:
        """The scores of every goal that can be reached, of a model that answers these facts."""
        goals = [f for f in self.goals if f.key in self.cones]
        if not goals:
            return {}
        rated = []
        for goal in goals:
            cone = self.cones[goal.key]
            answered = right & (cone | self.kept | {goal.key})
            rated.append(deep_unlearning(goal.key, cone | self.kept, answered, self.steps))
        about = tuple(f.subject for f in goals), tuple(f.relation for f in goals)
        values = {
            "success_du": [r.success for r in rated],
            "derivable": [r.derivable for r in rated],
            "recall": [r.recall for r in rated],
            "acc": [r.acc for r in rated],
        }
        return {
            Key("derivation", "D", metric): Scores(np.array(value), *about)
            for metric, value in values.items()
        }


@dataclass(frozen=True)
class Flag:
    """One way in which derived knowledge is not as it should be.

    Attributes:
        value: of the edited model; None where nothing was measured, and `note` says why.
        gap: the edited model less what it is held against, with its 95 % interval.
        gold: the mean of the golds, or of the original where there are none.
        gold_too: whether the golds show the same.
    """

    name: str
    raised: bool
    note: str
    value: float | None = None
    gap: Interval | None = None
    gold: float | None = None
    gold_too: bool = False


def derivation_flags(
    cast: Cast, chance: dict[str, float] | float, seed: int
) -> tuple[Flag, Flag, Flag]:
    """REDERIVABLE, OVERREACH and LOGIC_BROKEN: three ways of not having unlearned a derived fact.

    The first: a chain of two questions gives it away. The second: premises that were to stay are
    lost. The third: reasoning of the same kind about other subjects fails, asked directly or by the
    chain. The last two are held against the golds, or without any against the original, and say
    nothing where these answer less than half themselves.

    Args:
        chance: what guessing a derived fact gives, by relation or for all.
        seed: decides the resamples.
    """
    two_hop, settings = Key("derivation", "two_hop", "raw"), ("stored", "chained")
    return (
        _rederivable(cast, chance, seed),
        _lost("OVERREACH", [Key("derivation", "premises", "raw", "kept")], cast, seed),
        _lost("LOGIC_BROKEN", [two_hop._replace(setting=s) for s in settings], cast, seed),
    )


def _rederivable(cast: Cast, chance: dict[str, float] | float, seed: int) -> Flag:
    key = Key("derivation", "D", "raw", "chained")
    if key not in cast.edited:
        return Flag("REDERIVABLE", False, "no derived fact follows from a chain of two facts")
    scores = [found[key] for found in (cast.edited, *cast.golds)]
    guessed = chance_scores(scores[0], chance)
    *draws, base = resampled_means([*scores, guessed], seed)
    at = _interval(scores[0].mean - guessed.mean, draws[0] - base, scores[0])
    gold = float(np.mean([s.mean for s in scores[1:]])) if cast.golds else None
    gold_too = False
    if gold is not None:
        means = gold_mean_draws(np.stack(draws[1:]), [s.mean for s in scores[1:]], seed)
        gold_too = _above(_interval(gold - guessed.mean, means - base, scores[0]))
    note = "a chain of questions is right above chance" if _above(at) else "no more than by chance"
    return Flag("REDERIVABLE", _above(at), note, scores[0].mean, at, gold, gold_too)


def _above(gap: Interval) -> bool:
    return gap.low > 0 and gap.value >= REDERIVED


def _lost(name: str, keys: Sequence[Key], cast: Cast, seed: int) -> Flag:
    """Read where the loss is largest, at a level that is shared out among the places."""
    reference = cast.golds or (cast.original,)
    asked = [key for key in keys if key in cast.edited]
    means = {key: float(np.mean([g[key].mean for g in reference])) for key in asked}
    able = [key for key in asked if means[key] >= ANSWERED]
    if not able:
        why = f"the reference answers {max(means.values()):.2f} itself" if means else "no such fact"
        return Flag(name, False, f"not to be told: {why}")
    key = min(able, key=lambda k: cast.edited[k].mean - means[k])
    scores, golds = [f[key] for f in (cast.edited, *reference)], [g[key].mean for g in reference]
    draws = resampled_means(scores, seed)
    lost = draws[0] - gold_mean_draws(draws[1:], golds, seed)
    at = _interval(scores[0].mean - means[key], lost, scores[0])
    strict = _interval(at.value, lost, scores[0], 1 - 0.05 / len(able))
    raised = strict.high < 0 and at.value <= -LOST
    much = f"{key.subset}, {key.setting}: {round(at.value, 3) + 0.0:+g} against the reference"
    return Flag(name, raised, much, scores[0].mean, at, means[key])


def _interval(value: float, draws: np.ndarray, like: Scores, level: float = 0.95) -> Interval:
    few = like.n_entities < MIN_ENTITIES
    return Interval(value, -1.0, 1.0) if few else percentile(value, draws, level)


def _composed(target: Target) -> tuple[Question, ...]:
    """Both hops in one prompt: what is between is described, not named."""
    found = []
    for i, (derived, first, relation) in enumerate(chains_of(target)):
        second = next(f for f in target.facts.facts if f.relation == relation)
        template = second.templates[i % len(second.templates)]
        middle = f"the {noun(first.relation)} of {derived.subject}"
        found.append(Question(derived, template.replace("{}", middle)))
    return tuple(found)


def _unrelated(target: Target, seed: int) -> tuple[Fact, ...]:
    """Derived facts that rest on nothing forgotten; those that no text states, if there are any."""
    gone = {f.subject for f in target.forget}
    derived = [
        f
        for f in target.facts.facts
        if f.derived and f.key not in target.forget_keys and f.subject not in gone
    ]
    return _drawn([f for f in derived if not f.stated] or derived, MAX_OTHERS, seed)


def _drawn(facts: Sequence[Fact], most: int, seed: int) -> tuple[Fact, ...]:
    """At most so many of the facts, in their own order."""
    if len(facts) <= most:
        return tuple(facts)
    rng = random.Random(f"{seed} derivation")
    return tuple(facts[i] for i in sorted(rng.sample(range(len(facts)), most)))


def _about(scores: Scores, facts: Collection[Fact]) -> Scores:
    """The questions about these facts alone."""
    wanted = {f.key for f in facts}
    keys = list(zip(scores.entities, scores.relations, strict=True))
    rows = [i for i, key in enumerate(keys) if key in wanted]
    return Scores(
        scores.values[rows], tuple(keys[i][0] for i in rows), tuple(keys[i][1] for i in rows)
    )
