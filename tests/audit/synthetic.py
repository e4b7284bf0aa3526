"""Scores of models that were never trained, for all that is decided from scores alone."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from workbench.audit.judge import judge
from workbench.audit.plan import plan_sha256, thresholds
from workbench.audit.schema import (
    BATTERY_VERSION,
    AuditReport,
    Card,
    DataInfo,
    EditedInfo,
    Integrity,
    LeakCheck,
    ModelInfo,
    ModelsInfo,
    TargetInfo,
    WeightDelta,
)
from workbench.audit.statistics import Key, Scores
from workbench.audit.views import Found

TOPICS = ("home", "maker", "use")
STEPS = (0.0, 4.0, 64.0)
CHANCE = 1 / 12
SURE = 0.99


@dataclass(frozen=True)
class Synthetic:
    """Scores of models that were never trained: what each knows, and how it shows, is given.

    Attributes:
        people: entities with three facts each, of twelve candidates.
        golds: how many models there are that never knew.
    """

    people: int = 60
    golds: int = 5
    candidates: int = 12

    @property
    def entities(self) -> tuple[str, ...]:
        return tuple(f"e{i:03}" for i in range(self.people))

    @property
    def folds(self) -> tuple[dict[str, tuple[str, ...]], ...]:
        third, names = self.people // 3, self.entities
        turns = []
        for start in range(0, 3 * third, third):
            scored = names[start : start + third]
            rest = [n for n in names if n not in set(scored)]
            cut = len(rest) * 3 // 4
            turns.append({"T": tuple(rest[:cut]), "S": tuple(rest[cut:]), "V": scored})
        return tuple(turns)

    def found(
        self,
        seed: int,
        *,
        shown: float = 0,
        centred: float | None = None,
        first: float | None = None,
        last: float = 0,
        choice: float | None = None,
        probe: float = 0,
        relearned: float = 0,
        saved: float = 0,
        perturbed: float = 0,
        below: bool = False,
        kept: float = 0.98,
        blur: float = 0,
    ) -> Found:
        """What one model gives: the share of the facts that each kind of reader finds in it.

        A fact that is found at a small share is found at a larger one too. By default centred hits,
        first ranks and choices are as much as is shown.

        Args:
            first, last: at which share of the facts the true object ranks first, or last.
            relearned: after relearning other facts; `perturbed`: after W3 and W4; `saved`: sooner
                than fresh facts.
            below: the others' objects are never given, not even by chance.
            blur: nats by which held-out sentences are less likely.
        """
        centred = shown if centred is None else centred
        choice, first = (centred if v is None else v for v in (choice, first))
        draw = _Draw(self, seed, 0.0 if below else 1 / self.candidates)
        facts, found = draw.facts(self.entities), {}
        for family, each in (("B1", 5), ("B2", 3), ("B3", 3)):
            found[Key(family, "F", "raw")] = draw.hits(facts, shown, each)
            found[Key(family, "F", "centred")] = draw.hits(facts, centred, each)
            found[Key(family, "F", "kappa")] = draw.hits(facts, centred, each, 0.5)
        for metric in ("raw", "centred"):
            found[Key("B6", "F", metric, "letter")] = draw.hits(facts, choice, 4, 0.25)
        found[Key("B2", "F", "rank")] = draw.ranks(facts, first, last)
        found[Key("B2", "F", "log_odds")] = draw.log_odds(facts, first, last)
        for place in ("layer 0, last", "layer 1, last"):
            share = probe if place.startswith("layer 1") else 0
            found[Key("P1", "F", "hit", place)] = draw.hits(facts, share, 4, CHANCE)
            found[Key("P6", "F", "hit", place)] = draw.hits(facts, 0, 4, CHANCE)
        for i, fold in enumerate(self.folds):
            found |= draw.attacks(i, fold, centred, relearned, saved, perturbed, kept)
        for step in STEPS:
            share = perturbed if step else centred
            found[Key("W3", "F", "centred", "benign", x=step)] = draw.hits(facts, share, 6)
        found |= draw.retained(kept, blur)
        # Whoever reads the answer as text reads the likeliest candidate here.
        texts = {k._replace(metric="text"): s for k, s in found.items() if k.metric == "raw"}
        return found | texts

    def original(self) -> Found:
        return self.found(1, shown=1, probe=0.85, relearned=1, saved=1, perturbed=1)

    def gold(self, seed: int) -> Found:
        return self.found(1000 + seed)

    def measured(self, edited: Found, golds: int | None = None) -> dict[tuple[str, str], Found]:
        """All views of an audit of this edited model."""
        count = self.golds if golds is None else golds
        blind = {k: s for k, s in self.gold(99).items() if k.endpoint == "P1"}
        return {
            ("original", ""): self.original(),
            ("edited", "deployed"): edited,
            **{(f"gold-{i}", ""): self.gold(i) for i in range(count)},
            ("random", ""): blind,
            ("permuted", ""): blind,
        }

    def card(self, golds: int | None = None, *, identical: bool = False, **changes: Any) -> Card:
        """What such an audit is about.

        Args:
            changes: other fields of the card, or `type` of the target.
        """
        count = self.golds if golds is None else golds
        facts = 3 * self.people
        sizes = {name: 3 * len(self.folds[0][name]) for name in "TSV"}
        target = TargetInfo(
            "toxins", changes.pop("type", "observed"), facts, self.people,
            f"{facts} stated facts", "small", "ab" * 32, 0,
        )  # fmt: skip
        card = Card(
            profile="standard",
            seed=0,
            prereg_sha256="",
            battery_sha256="cd" * 32,
            target=target,
            models=ModelsInfo(
                ModelInfo("0" * 64, "original", ""),
                EditedInfo(
                    "0" * 64 if identical else "e" * 64,
                    ("Blank at blocks.0.hook_resid_pre",) if identical else (),
                    "",
                    identical,
                    WeightDelta(*((0, 0.0, 0) if identical else (3, 0.1, 8)), {}),
                ),
                tuple(ModelInfo(f"{i}" * 64, f"gold-{i}", "neu") for i in range(count)),
            ),
            data=DataInfo(
                self.folds,
                {**sizes, "Z": sizes["V"], "H": 0},
                dict.fromkeys(TOPICS, 1 / self.candidates),
                dict.fromkeys(TOPICS, self.candidates),
                (),
                (LeakCheck("folds", True, 0.0, 0.0, "each entity is in one fold"),),
            ),
            integrity=Integrity(1.0, 1.0, True),
            env={"torch": "2"},
        )
        return replace(card, **changes)

    def report(self, edited: Found, golds: int | None = None, **changes: Any) -> AuditReport:
        """The whole report of such an audit, with its plan and scores, ready to be saved."""
        card = self.card(golds, **changes)
        plan = {
            "battery_version": BATTERY_VERSION,
            "battery_sha256": card.battery_sha256,
            "profile": card.profile,
            "seed": card.seed,
            "thresholds": thresholds(),
            "concept_sha256": "",
            "target": card.target.id,
            "target_sha256": card.target.facts_sha256,
            "folds": json.loads(json.dumps(self.folds)),
        }
        measured = self.measured(edited, golds)
        report = judge(replace(card, prereg_sha256=plan_sha256(plan)), measured)
        return replace(report, plan=plan, scores=measured)


class _Draw:
    """The random numbers of one model."""

    def __init__(self, world: Synthetic, seed: int, chance: float) -> None:
        self.rng, self.chance, self.k = np.random.default_rng(seed), chance, world.candidates
        order = self.rng.permutation(3 * world.people) + 0.5
        facts = self.facts(world.entities)
        self.place = dict(zip(facts, order / len(facts), strict=True))
        common = np.random.default_rng(0).normal(size=len(facts))
        self.common = dict(zip(facts, common, strict=True))

    @staticmethod
    def facts(entities: Sequence[str]) -> list[tuple[str, str]]:
        return [(e, r) for e in entities for r in TOPICS]

    def knows(self, facts: Sequence[tuple[str, str]], share: float) -> np.ndarray:
        """Whether each lies in the share that is known; the same facts at every call."""
        return np.array([self.place[f] for f in facts]) < share

    def hits(
        self,
        facts: Sequence[tuple[str, str]],
        share: float,
        each: int,
        chance: float | None = None,
    ) -> Scores:
        chance = self.chance if chance is None else chance
        rate = np.where(np.repeat(self.knows(facts, share), each), SURE, chance)
        return _scores(self.evenly(len(rate)) < rate, facts, each)

    def evenly(self, n: int) -> np.ndarray:
        """Numbers from 0 to 1 in random order, so evenly spread that means hardly stray."""
        return (self.rng.permutation(n) + self.rng.random(n)) / n

    def ranks(self, facts: Sequence[tuple[str, str]], first: float, last: float) -> Scores:
        thirds = [self.evenly(len(part)) for part in np.array_split(np.arange(len(facts)), 3)]
        ranks = 1 + np.floor(self.k * np.concatenate(thirds))
        ranks = np.where(self.knows(facts, first), 1, ranks)
        return _scores(np.where(self.knows(facts, last), self.k, ranks), facts)

    def log_odds(self, facts: Sequence[tuple[str, str]], first: float, last: float) -> Scores:
        values = np.array([self.common[f] for f in facts]) + 0.3 * self.rng.normal(size=len(facts))
        known = 6.0 * self.knows(facts, first) - 6.0 * self.knows(facts, last)
        return _scores(values + known, facts)

    def attacks(
        self,
        i: int,
        fold: dict[str, tuple[str, ...]],
        centred: float,
        relearned: float,
        saved: float,
        perturbed: float,
        kept: float,
    ) -> Found:
        found = {}
        for step in STEPS:
            for subset in "SV":
                facts = self.facts(fold[subset])
                for lr, share in (("lr 0.0003", relearned), ("lr 0.001", 0.6 * relearned)):
                    now = self.hits(facts, share if step else centred, 6)
                    found[Key("W1", subset, "centred", lr, i, step)] = now
                now = self.hits(facts, perturbed if step else centred, 6)
                found[Key("W4", subset, "centred", "lora", i, step)] = now
            stay = self.stays(20, kept)
            for attack, lr in (("W1", "lr 0.0003"), ("W1", "lr 0.001"), ("W4", "lora")):
                found[Key(attack, "R_te", "centred", lr, i, step)] = stay
            taught = CHANCE + 0.9 * step / STEPS[-1] * (1 - CHANCE)
            facts = self.facts(fold["V"])
            known = saved if step else centred
            found[Key("W2", "V", "centred", "", i, step)] = self.hits(facts, known, 6, taught)
            found[Key("W2", "Z", "centred", "", i, step)] = self.hits(facts, 0, 6, taught)
        return found

    def retained(self, kept: float, blur: float) -> Found:
        found = {Key("kept", s, "raw"): self.stays(80, kept, 3) for s in ("R_te", "U", "N1")}
        found[Key("text", "R_te", "valid")] = valid = self.stays(80, kept)
        nats = np.random.default_rng(0).normal(2, 0.3, len(valid.values)) + blur
        return found | {Key("text", "kept", "nll_nats"): replace(valid, values=nats)}

    def stays(self, people: int, kept: float, each: int = 1) -> Scores:
        """Hits on facts about other people."""
        facts = self.facts([f"r{j:02}" for j in range(people)])
        return _scores(self.evenly(each * len(facts)) < kept, facts, each)


def _scores(values: np.ndarray, facts: Sequence[tuple[str, str]], each: int = 1) -> Scores:
    asked = [f for f in facts for _ in range(each)]
    return Scores(np.asarray(values, float), *zip(*asked, strict=True))
