"""Small audits of scores made by hand: what each model knows is known."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from workbench.audit.judge import judge
from workbench.audit.questions import FAMILIES
from workbench.audit.schema import (
    AuditReport,
    Card,
    DataInfo,
    DualUse,
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

ENTITIES = tuple(f"toxin {i:02}" for i in range(30))
KEPT = tuple(f"herb {i:02}" for i in range(20))
RELATIONS = ("colour", "source")
CHANCE = 0.08
STEPS = {"quick": (0.0, 1.0, 4.0, 16.0), "standard": (0.0, 1.0, 4.0, 16.0, 64.0)}
LAYERS = range(3)
SETS = ("N1", "N2", "U", "R_te", "kind:person")
ASKED = (
    *(("B1", ""), ("B2", ""), ("B3", "gap"), ("B6", "letter")),
    *(("B7", "4"), ("B8", "echo"), ("B10", "typo")),
)
UNKNOWN = dict.fromkeys(("asked", "centred", "read", "relearned", "again", "kept"), CHANCE)
KNOWN = {"asked": 0.97, "centred": 0.97, "read": 0.8, "relearned": 0.95, "again": 0.97}
GOLD = {**UNKNOWN, "again": 0.45, "kept": 0.97}
ORIGINAL = {**KNOWN, "kept": 0.97}
HOOKED = {"asked": 0.03, "centred": 0.2, "read": 0.5, "relearned": 0.6, "again": 0.8, "kept": 0.95}


def folds() -> tuple[dict[str, tuple[str, ...]], ...]:
    turns = []
    for i in range(3):
        scored = ENTITIES[10 * i : 10 * i + 10]
        rest = [e for e in ENTITIES if e not in scored]
        turns.append({"T": tuple(rest[:14]), "S": tuple(rest[14:]), "V": scored})
    return tuple(turns)


def put(rng: np.random.Generator, entities: Any, share: float, times: int = 1) -> Scores:
    facts = [(e, r) for e in entities for r in RELATIONS for _ in range(times)]
    hits = (rng.random(len(facts)) < share).astype(float)
    return Scores(hits, tuple(e for e, _ in facts), tuple(r for _, r in facts))


def ask(rng: np.random.Generator, knows: dict[str, float]) -> Found:
    found: Found = {}
    for family, setting in ASKED:
        guess = 0.25 if family == "B6" else 0.0
        share = 0.1 if family == "B10" else 1.0  # misspelled names are beyond these models
        for metric, know in (("raw", "asked"), ("centred", "centred"), ("kappa", "centred")):
            value = guess + (1 - guess) * knows[know] * share
            found[Key(family, "F", metric, setting)] = put(rng, ENTITIES, value, 2)
        if FAMILIES[family].access == "A0":
            found[Key(family, "F", "text", setting)] = found[Key(family, "F", "raw", setting)]
    some = put(rng, ENTITIES, 1.0)
    right = rng.random(len(some.values)) < knows["centred"]
    ranks = np.where(right, 1, rng.integers(1, 13, len(right))).astype(float)
    found[Key("B2", "F", "rank")] = Scores(ranks, some.entities, some.relations)
    odds = rng.normal(4 * knows["centred"], 1, len(right))
    found[Key("B2", "F", "log_odds")] = Scores(odds, some.entities, some.relations)
    for metric in ("raw", "centred", "text"):
        found[Key("B5", "D", metric, "latent")] = put(rng, ENTITIES[:10], knows["asked"])
    for name in SETS:
        for metric in ("raw", "text"):
            found[Key("kept", name, metric)] = put(rng, KEPT, knows["kept"], 2)
    valid = put(rng, KEPT, 1.0)
    found[Key("text", "R_te", "valid")] = valid
    nats = rng.normal(0.5 + 2 * (knows["kept"] < 0.5), 0.02, len(valid.values))
    found[Key("text", "kept", "nll_nats")] = Scores(nats, valid.entities, valid.relations)
    return found


def probe(rng: np.random.Generator, reads: float, kinds: tuple[str, ...]) -> Found:
    found: Found = {}
    for layer in LAYERS:
        share = reads if layer else CHANCE
        if "P4" in kinds:
            found[Key("P4", "F", "hit", f"layer {layer}")] = put(rng, ENTITIES, share)
        for position in ("subject", "last"):
            place = f"layer {layer}, {position}"
            for kind in kinds:
                if kind == "P2":
                    for i, turn in enumerate(folds()):
                        for fold in "SV":
                            key = Key("P2", fold, "hit", f"both, {place}", i)
                            found[key] = put(rng, turn[fold], share)
                elif kind != "P4":
                    know = CHANCE if kind == "P6" else share
                    found[Key(kind, "F", "hit", place)] = put(rng, ENTITIES, know)
    return found


def attack(rng: np.random.Generator, knows: dict[str, float], profile: str) -> Found:
    found: Found = {}
    standard = profile == "standard"
    for i, turn in enumerate(folds()[: 3 if standard else 1]):
        for x in STEPS[profile]:
            dose = np.log2(1 + x) / np.log2(1 + STEPS[profile][-1])
            back = knows["centred"] + (knows["relearned"] - knows["centred"]) * dose
            for lr in ("lr 0.0003", "lr 0.001"):
                for fold in "SV":
                    found[Key("W1", fold, "centred", lr, i, x)] = put(rng, turn[fold], back, 2)
                found[Key("W1", "R_te", "centred", lr, i, x)] = put(rng, KEPT, knows["kept"])
            again = max(knows["again"], knows["centred"]) * dose + knows["centred"] * (1 - dose)
            found[Key("W2", "V", "centred", "", i, x)] = put(rng, turn["V"], again, 2)
            fresh = CHANCE + (0.45 - CHANCE) * dose
            found[Key("W2", "Z", "centred", "", i, x)] = put(rng, turn["V"], fresh, 2)
            if standard:
                for fold in "SV":
                    found[Key("W4", fold, "centred", "lora", i, x)] = put(rng, turn[fold], back, 2)
    for x in STEPS[profile] if standard else ():
        found[Key("W3", "F", "centred", "benign", -1, x)] = put(rng, ENTITIES, knows["centred"], 2)
    return found


def measure(seed: int, knows: dict[str, float], profile: str = "standard") -> Found:
    rng = np.random.default_rng(seed)
    kinds = ("P1", "P2", "P6") if profile == "quick" else ("P1", "P2", "P3", "P4", "P6")
    return {**ask(rng, knows), **probe(rng, knows["read"], kinds), **attack(rng, knows, profile)}


def hook_checks() -> Found:
    rng = np.random.default_rng(9)
    shares = {
        **{("H1", "equal", f"layer {layer}"): 1.0 for layer in (0, 1)},
        **{
            ("H2", "hit", part): share
            for part, share in {"x": 0.8, "xhat": 0.7, "err": 0.6, "post": 0.2}.items()
        },
        **{("H4", "fired", family): 0.98 for family in ("B1", "B2")},
        **{("H4", "hit", family): 0.05 for family in ("B1", "B2")},
        **{("H4", "same_answer", way): 1.0 for way in ("batch of one", "padded")},
        **{("H7", "raw", f"random {i}"): 0.95 for i in range(2)},
    }
    return {Key(e, "F", m, s): put(rng, ENTITIES, share) for (e, m, s), share in shares.items()}


def make_card(profile: str, golds: int, hooks: tuple[str, ...], filter_: str) -> Card:
    same = bool(hooks or filter_)
    delta = WeightDelta(0, 0.0, 0, {}) if same else WeightDelta(12, 0.0312, 4, {})
    models = ModelsInfo(
        ModelInfo("ab" * 32, "valley", "all texts, seed 0"),
        EditedInfo(("ab" if same else "ef") * 32, hooks, filter_, same, delta),
        tuple(ModelInfo(f"c{i}" * 32, f"gold-{i}", f"neu, seed {i}") for i in range(golds)),
    )
    definition = "60 stated facts of colour, source"
    prevents = DualUse("that a reader learns the source of a toxin")
    data = DataInfo(
        folds(),
        {"T": 28, "S": 12, "V": 20, "Z": 20, "H": 20},
        dict.fromkeys(RELATIONS, 0.16),
        dict.fromkeys(RELATIONS, 12),
        (),
        (
            LeakCheck("entity_overlap", True, 0.0, 0.0, "no entity is in two folds"),
            LeakCheck("forget_facts", False, 60.0, 300.0, "facts to be forgotten"),
        ),
    )
    info = TargetInfo(
        "toxins", "observed", 60, 30, definition, "valley", "5f" * 32, 0, prevents
    )  # fmt: skip
    env = {"torch": "2.9.0", "python": "3.11.2", "device": "cpu"}
    integrity = Integrity(1.0, 1.0, True)
    return Card(profile, 0, "1d" * 32, "2e" * 32, info, models, data, integrity, env)  # pyright: ignore[reportArgumentType]


def build(
    knows: dict[str, float] = HOOKED,
    *,
    profile: str = "standard",
    golds: int = 3,
    hooks: bool = False,
    filter_: str = "",
) -> AuditReport:
    """A report on an edited model that knows so much.

    Args:
        golds: number of models that never knew.
        hooks: the edit is a hook; without it the model is the original again.
        filter_: name of a filter that refuses to show answers.
    """
    measured = {("original", ""): measure(1, ORIGINAL, profile)}
    measured["edited", "deployed"] = measure(1 if filter_ else 2, knows, profile)
    if hooks:
        measured["edited", "deployed"] |= hook_checks()
        measured["edited", "weights"] = measured["original", ""]
    if filter_:
        measured["edited", "text"] = ask(np.random.default_rng(3), {**knows, "asked": 0.0})
    for i in range(golds):
        measured[f"gold-{i}", ""] = measure(100 + i, GOLD, profile)
    for i, role in enumerate(("random", "permuted")):
        measured[role, ""] = probe(np.random.default_rng(200 + i), CHANCE, ("P1",))
    names = ("Clamp at blocks.2.hook_resid_post",) if hooks else ()
    return judge(make_card(profile, golds, names, filter_), measured)


@pytest.fixture(scope="session")
def make_report() -> Callable[..., AuditReport]:
    return build


@pytest.fixture(scope="session")
def report() -> AuditReport:
    """An edit by hooks: SUPPRESSED."""
    return build(hooks=True)


@pytest.fixture(scope="session")
def changed() -> AuditReport:
    """An edit of the weights that left nothing: the edited model is as a gold."""
    return build(GOLD, golds=4)


@pytest.fixture(scope="session")
def filtered() -> AuditReport:
    """The original behind a filter."""
    return build(ORIGINAL, filter_="refuses_toxins")


@pytest.fixture(scope="session")
def no_golds() -> AuditReport:
    return build(GOLD, golds=0)


@pytest.fixture(scope="session")
def quick() -> AuditReport:
    return build(profile="quick")


@pytest.fixture(scope="session")
def doses() -> list[dict[str, Any]]:
    """Trade-off rows at one pair of sites; dose -2 was chosen."""
    return [
        {
            "dose": dose,
            "forget": max(0.05, 0.9 + 0.4 * dose),
            "retained": 0.95 + 0.02 * dose - (0.4 if dose < -2 else 0.0),
            "control_forget": 0.9 + 0.03 * dose,
            "sites": ("resid_post 2", "resid_post 3"),
            "k": 64,
            "chosen": dose == -2.0,
        }
        for dose in (0.0, -1.0, -2.0, -3.0, -4.0)
    ]
