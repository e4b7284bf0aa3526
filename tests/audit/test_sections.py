"""What stands beside a verdict is read off the scores, and nothing is made up without them."""

from dataclasses import replace

import numpy as np
import pytest

from tests.audit.synthetic import Synthetic
from tests.audit.test_verdict import REMOVED, TARGET
from workbench.audit.claims import MAX_GAP, make_claims
from workbench.audit.cost import make_collateral
from workbench.audit.endpoints import Rules
from workbench.audit.reading import Cast
from workbench.audit.schema import Family, Gap, LeakRow
from workbench.audit.sections import (
    CHECKLISTS,
    make_coverage,
    make_depth,
    make_derivation,
    make_erasures,
    make_fluency,
    make_leaks,
)
from workbench.audit.statistics import Key, Scores
from workbench.audit.verdict import decide
from workbench.audit.views import Found

WORLD = Synthetic(9)
NAMES = tuple(f"name {i:02}" for i in range(24))


def scores(value: float | np.ndarray, relation: str = "home") -> Scores:
    return Scores(np.broadcast_to(value, len(NAMES)).astype(float), NAMES, (relation,) * len(NAMES))


def cast(edited: Found, original: Found, *golds: Found) -> Cast:
    return Cast(edited, original, golds)


def depth(forget: float, kept: float) -> Found:
    return {
        Key("P10", subset, "lost_nats", f"layer {n}"): scores(value * (n > 0))
        for n in range(3)
        for subset, value in (("F", forget), ("R_te", kept))
    }


def test_depth_is_told_where_golds_share_the_basis_and_refused_where_not() -> None:
    found = make_depth(cast(depth(1.0, 0.0), depth(0, 0), depth(2.0, 0.01), depth(2.0, 0.03)))
    assert found is not None
    assert found.removal == pytest.approx(0.5)
    assert [r.layer for r in found.rows] == ["layer 0", "layer 1", "layer 2"]
    assert (found.rows[1].E, found.rows[1].G) == (1.0, 2.0)
    scratch = make_depth(cast(depth(1.0, 0.0), depth(0, 0), depth(7.0, 7.0)))
    assert scratch is not None
    assert scratch.removal is None
    assert "forked" in scratch.why
    alone = make_depth(cast(depth(1.0, 0.0), depth(0, 0)))
    assert alone is not None
    assert "no golds" in alone.why
    assert make_depth(cast({}, {})) is None


def erased(hidden: float, random: float) -> Found:
    found: Found = {Key("P9", "F", "raw", f"layer 1, random {i}"): scores(random) for i in range(2)}
    found[Key("P9", "F", "raw", "layer 1, concept")] = scores(hidden)
    found[Key("P9", "F", "guard", "layer 1, concept")] = scores(1e-9)
    found[Key("P9", "F", "raw", "none")] = scores(1.0)
    return found


def test_what_erasing_costs_is_beyond_random_subspaces() -> None:
    (row,) = make_erasures(cast(erased(0.1, 0.4), erased(0.2, 0.8), erased(0.1, 0.1)))
    assert (row.layer, row.E, row.O, row.G) == ("layer 1", *map(pytest.approx, (0.3, 0.6, 0.0)))
    assert row.guard < 1e-6
    assert make_erasures(cast({}, {})) == ()


def chained(edited: float) -> Found:
    return {
        Key("derivation", "D", "raw", "chained"): scores(edited, "ships"),
        Key("derivation", "D", "success_du"): scores(1 - edited, "ships"),
    }


def test_derived_facts_are_told_by_role_and_flagged_where_they_come_back() -> None:
    chance = {"ships": 0.1}
    found = make_derivation(cast(chained(0.9), chained(1.0), chained(0.1), chained(0.1)), chance, 0)
    assert found is not None
    assert found.asked["chained"] == {"O": 1.0, "E": pytest.approx(0.9), "G": pytest.approx(0.1)}
    assert found.asked["latent"] == {"O": None, "E": None, "G": None}
    assert found.n == len(NAMES)
    flags = {f.name: f for f in found.flags}
    assert (flags["REDERIVABLE"].raised, flags["REDERIVABLE"].gold_too) == (True, False)
    assert not flags["OVERREACH"].raised
    silent = make_derivation(
        cast(chained(0.1), chained(1.0), chained(0.1), chained(0.1)), chance, 0
    )
    assert silent is not None
    assert not any(f.raised for f in silent.flags)
    assert make_derivation(cast({}, {}), chance, 0) is None


def leaking(apart: float, seed: int) -> Found:
    noise = np.random.default_rng(seed).normal(size=(2, len(NAMES)))
    return {
        Key("MIA", "F", "loss_nats"): scores(noise[0] - apart),
        Key("MIA", "H", "loss_nats"): scores(noise[1]),
        Key("MIA", "F", "tokens"): scores(1.0),
        Key("MIA", "H", "tokens"): scores(1.0),
    }


def test_leaks_are_told_with_the_reason_of_those_that_do_not_apply() -> None:
    golds = [leaking(0, s) for s in (1, 2, 3)]
    told, blind = (
        {row.signal: row for row in make_leaks(cast(leaking(apart, 4), leaking(9, 5), *golds), 0)}
        for apart in (9, 0)
    )
    assert told["loss_nats"].leaks
    assert told["loss_nats"].auc == Gap(1.0, 1.0, 1.0)
    assert not blind["loss_nats"].leaks
    assert not told["zlib_nats_per_byte"].leaks
    assert "tokens" not in told["loss_nats"].why
    assert "fifth is one token" in told["min_k_nats"].why
    assert make_leaks(cast({}, {}), 0) == ()


def leak(value: float, low: float, high: float, leaks: bool) -> LeakRow:
    return LeakRow("loss_nats", "", None, 1.0, (0.5,) * 3, Gap(value, low, high), 0.0, leaks)


@pytest.mark.parametrize(
    ("leaks", "status"),
    [
        ((), "not_tested"),
        ((leak(0.0, -0.01, 0.01, False),), "supported"),
        ((leak(0.0, -0.2, 0.2, False),), "not_testable"),
        ((replace(leak(0.0, -0.01, 0.01, False), original=0.52),), "not_testable"),
        ((replace(leak(0.0, -0.01, 0.01, False), golds=(0.5,)),), "not_testable"),
        ((leak(0.3, 0.2, 0.4, True),), "contradicted"),
        ((leak(-0.3, -0.4, -0.2, True), leak(0.0, -0.01, 0.01, False)), "contradicted"),
        ((replace(leak(0.0, 0.0, 0.0, False), gap=None),), "not_testable"),
    ],
)
def test_claim_of_privacy_follows_from_the_signals(leaks: tuple[LeakRow, ...], status: str) -> None:
    verdict = decide(REMOVED, TARGET)
    claims = make_claims(verdict, REMOVED, TARGET, {}, leaks)
    (claim,) = (c for c in claims if c.claim == "retrain_indistinguishable")
    assert claim.status == status
    assert bool(claim.evidence) == (status == "contradicted")
    assert 0 < MAX_GAP < 0.1


def test_removal_of_what_can_be_derived_is_never_supported() -> None:
    golds = [chained(0.1)] * 3
    for edited, status in ((0.9, "contradicted"), (0.1, "not_testable")):
        derived = make_derivation(cast(chained(edited), chained(1.0), *golds), 0.1, 0)
        claims = make_claims(decide(REMOVED, TARGET), REMOVED, TARGET, {}, (), derived)
        found = [c for c in claims if c.claim == "removal_from_weights"]
        assert [(c.target_type, c.status) for c in found] == [
            ("observed", "supported"),
            ("latent", status),
        ]


def test_coverage_names_what_was_run_and_what_was_not() -> None:
    asked = [Key("B10", "F", "raw"), Key("B7", "F", "raw"), Key("W1", "V", "centred")]
    families = [
        Family("B10", "case", "A0", True, "", {}, {}, {}),
        Family("B10", "typo", "A0", False, "the original reaches .1", {}, {}, {}),
        Family("B7", "4", "A1", False, "the original reaches .1", {}, {}, {}),
    ]
    rows = make_coverage(asked, 3, families)
    assert len(rows) == sum(len(items) for items in CHECKLISTS.values())
    by_item = {row.item: row for row in rows}
    assert by_item["other languages"].run == ("B10",)
    assert by_item["fine-tuning"].run == ("W1",)
    assert by_item["relearning in context"].run == ()  # asked in vain
    assert by_item["comparison with retraining"].run == ("gold",)
    assert by_item["perturbed weights"].run == ()
    assert not any(row.run for row in make_coverage([], 0, []))


def test_cost_tells_divergence_flips_and_what_near_sets_lost() -> None:
    def shifted(first: float) -> Found:
        logp = np.log([first, 1 - first])
        return (
            {Key("damage", "N2", "logp_nats", str(k)): scores(logp[k]) for k in range(2)}
            | {Key("kept", "N2", m): scores(first > 0.5) for m in ("raw", "text")}
            | {Key("fluency", "kept", "repeat4"): scores(0.25)}
        )

    rules = Rules(WORLD.card().data, (), 0)
    found = make_collateral(cast(shifted(0.2), shifted(0.8), shifted(0.8), shifted(0.8)), rules)
    (kept,) = found.sets
    assert kept.kl_nats == pytest.approx(0.8 * np.log(4) + 0.2 * np.log(0.25))
    assert kept.kl_gold_nats == pytest.approx(0)
    assert (kept.flipped, found.dual_cost) == (1.0, pytest.approx(1.0))
    assert found.fluency == {"repeat4": (0.25, 0.25, 0.25)}
    plain = make_collateral(WORLD_CAST, rules)
    assert plain.fluency == {}
    assert all(s.kl_nats is None and s.flipped is None for s in plain.sets)
    assert make_fluency(WORLD_CAST) == {}


WORLD_CAST = cast(WORLD.gold(7), WORLD.original(), WORLD.gold(0), WORLD.gold(1))
