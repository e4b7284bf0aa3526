"""W2: are forgotten facts learned again sooner than facts that were never known?"""

import random
from dataclasses import replace
from functools import partial

import numpy as np

from workbench.audit.attacks.config import AttackConfig
from workbench.audit.attacks.training import Course, finetuned, statements
from workbench.audit.questions import centred_hits
from workbench.audit.rotation import ROTATIONS, Folds, facts_of, rotations
from workbench.audit.statistics import Key, Scores
from workbench.audit.views import Found, Measure, View
from workbench.facts.schema import Fact
from workbench.facts.target import Target

Kinds = dict[str, tuple[Fact, ...]]
"""Forget facts of fold V under `V`, and as many that no text ever stated under `Z`."""


def savings_jobs(target: Target, config: AttackConfig, seed: int = 0) -> dict[str, Measure]:
    """W2, one job per fold; where all folds are run, each once more with the halves swapped.

    So every fact is once stated as it is and once falsely, which halves the variance. The swapped
    folds are numbered after the others.

    The attack states V's facts and fresh ones about the same entities, in equal counts per batch
    and equally many templates, so it teaches by design: only how much sooner V is learned than Z
    says anything, and only beside the same difference in golds. Source: savings in relearning,
    Ebbinghaus 1885. Differs: fresh facts are of V's own relations, with objects drawn anew. Those
    that the world withholds (`target.fresh`) are of another relation, which golds of the bundled
    world learn more slowly, so that they would seem to save.
    """
    turns = rotations(target)[: config.folds]
    dealt = [
        (fold, matched(target, turn, f"{seed}, fold {fold}")) for fold, turn in enumerate(turns)
    ]
    if config.folds >= ROTATIONS:
        dealt += [
            (len(turns) + fold, matched(target, turn, f"{seed}, fold {fold}", swapped=True))
            for fold, turn in enumerate(turns)
        ]
    return {
        f"W2 fold {fold}": partial(
            savings,
            target=target,
            kinds=kinds,
            course=course(kinds, config, f"{seed}, fold {fold}"),
            steps=config.savings_steps,
            label=Key("W2", "", "centred", fold=fold),
        )
        for fold, kinds in dealt
        if all(kinds.values())
    }


def savings(
    view: View, target: Target, kinds: Kinds, course: Course, steps: tuple[int, ...], label: Key
) -> Found:
    """Centred hits on both kinds after each of `steps` on the course that states them."""
    found: Found = {}
    asked = [f for facts in kinds.values() for f in facts]
    ends = np.cumsum([sum(len(f.audit_templates) for f in facts) for facts in kinds.values()])
    for step, attacked in finetuned(view, course, steps):
        # Asked together, so that both are centred on the same mean.
        scores = centred_hits(attacked.model, view.edits, target.facts, asked, "audit")
        for kind, part in zip(kinds, np.split(np.arange(ends[-1]), ends[:-1]), strict=True):
            found[label._replace(subset=kind, x=step)] = _picked(scores, part)
    return found


def _picked(scores: Scores, rows: np.ndarray) -> Scores:
    return Scores(
        scores.values[rows],
        tuple(scores.entities[i] for i in rows),
        tuple(scores.relations[i] for i in rows),
    )


def course(kinds: Kinds, config: AttackConfig, order: str) -> Course:
    """Equal counts of both kinds in each batch, in equally many templates."""
    n_templates = min(len(f.templates) for facts in kinds.values() for f in facts)
    pools = tuple(statements(facts, n_templates) for facts in kinds.values())
    half = config.batch_size // 2
    return Course(pools, (half, half), config.gentle_lr, order)


def matched(target: Target, turn: Folds, order: str, swapped: bool = False) -> Kinds:
    """V's facts dealt into two halves within each entity; in one, objects are drawn anew.

    Which half a fact falls into is drawn without a look at its object, so in a model that never
    knew, both are equally hard to learn. Of an odd number of facts one is left out; entities with
    a single fact fall into either half in turn.

    Args:
        swapped: the halves change places.
    """
    rng = random.Random(f"{order}, deal")
    by_entity: dict[str, list[Fact]] = {}
    for fact in facts_of(target, turn["V"]):
        if fact.templates and fact.audit_templates:
            by_entity.setdefault(fact.subject, []).append(fact)
    known: list[Fact] = []
    fresh: list[Fact] = []
    for facts in (rng.sample(some, len(some)) for some in by_entity.values()):
        if len(facts) == 1:
            min(known, fresh, key=len).append(facts[0])
        half = len(facts) // 2
        known += facts[:half]
        fresh += facts[half : 2 * half]
    if swapped:
        known, fresh = fresh, known
    return {"V": tuple(known), "Z": tuple(_redrawn(target, fact, rng) for fact in fresh)}


def _redrawn(target: Target, fact: Fact, rng: random.Random) -> Fact:
    """The fact with another object of its relation, as likely as any."""
    candidates = target.facts.relation[fact.relation].candidates
    return replace(fact, object=rng.choice([c for c in candidates if c != fact.object]))
