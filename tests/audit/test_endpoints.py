"""From planted scores to endpoints, gates and objectives."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from workbench.audit.endpoints import (
    AREA,
    AUDIT,
    CENTRED,
    OPEN,
    SIZE_CHECKS,
    STEP0,
    TRAIN,
    Found,
    Roles,
    injection_index,
    make_endpoints,
    make_gates,
    make_objectives,
    mean_prior,
)
from workbench.audit.schema import Endpoint, Gate
from workbench.audit.statistics import Key, Scores
from workbench.facts.contract import Check, check_contract
from workbench.facts.schema import FactSet
from workbench.facts.target import Target

STAYED = (Key("recall", "R_te", "audit"), Key("recall", "N2", "audit"))


def scores(rate: float, entities: int = 40, each: int = 5) -> Scores:
    """Every entity is known equally well, so nothing is left to chance."""
    known = np.arange(each) < round(rate * each)
    names = tuple(f"e{i:02}" for i in range(entities) for _ in range(each))
    return Scores(np.tile(known.astype(float), entities), names)


def place(subset: str, layer: int) -> Key:
    return Key("probe", subset, "subject", float(layer))


def model(v: float, stayed: float = 1.0, entities: int = 40) -> Found:
    """Scores of a model that answers the share `v` of everything on V and `stayed` of the rest."""
    found = {key: scores(v, entities) for key in (TRAIN, AUDIT, CENTRED, OPEN, AREA, STEP0)}
    found |= {key: scores(stayed, entities) for key in STAYED}
    for name in ("S", "V"):
        found |= {place(name, layer): scores(v, entities) for layer in (0, 1)}
    return found


def roles(edited: float = 0.0, original: float = 1.0, gold: float = 0.0, **more: Any) -> Roles:
    return replace(
        Roles(model(original), model(edited), None, [model(gold)] * 3, model(0.0)), **more
    )


def by_id(made: tuple[Endpoint, ...]) -> dict[str, Endpoint]:
    return {e.id: e for e in made}


def endpoints(given: Roles, target: Target) -> dict[str, Endpoint]:
    return by_id(make_endpoints(given, target, "hooks_on", 0))


def gates(given: Roles, target: Target, checks: tuple[Check, ...] = ()) -> dict[str, Gate]:
    """Gates by their name; those of the data contract by the name of their check."""
    made = make_gates(given, target, checks)
    return {g.id if g.id != "G3" else g.note.split(":")[0]: g for g in made}


def test_prior_is_the_share_of_the_commonest_answer_among_the_retained(club: Target) -> None:
    shares = []
    for fact in club.fold("V"):
        same = [f.object for f in club.retained if f.relation == fact.relation]
        shares.append(max(same.count(o) for o in set(same)) / len(same))
    assert mean_prior(club) == pytest.approx(sum(shares) / len(shares))
    assert 0.25 < mean_prior(club) < 0.5


def test_one_endpoint_per_kind_of_access(club: Target) -> None:
    found = endpoints(roles(edited=0.4, hooks_off=model(1.0)), club)
    assert {e.id: (e.access, e.view) for e in found.values()} == {
        "open": ("A0", "hooks_on"),
        "training templates": ("A0", "hooks_on"),
        "audit-only templates": ("A0", "hooks_on"),
        "centred answers": ("A1", "hooks_on"),
        "transfer probe": ("A2", "hooks_on"),
        "hooks removed": ("A3", "hooks_off"),
        "relearning": ("A4", "hooks_on"),
    }
    for e in found.values():
        assert e.rho == pytest.approx(1.0 if e.id == "hooks removed" else 0.4)
        assert (e.original, e.gold, e.gold_each) == (1.0, 0.0, (0.0, 0.0, 0.0))
        assert (e.n, e.n_entities) == (200, 40)
        assert e.valid and e.recovered and e.low <= e.rho <= e.high


def test_what_was_not_measured_has_no_endpoint(club: Target) -> None:
    def without(found: Found) -> Found:
        return {k: s for k, s in found.items() if k.endpoint == "recall"}

    given = Roles(*(without(model(v)) for v in (1.0, 0.2)), None, [without(model(0.0))] * 3, {})
    assert set(endpoints(given, club)) == {
        "open", "training templates", "audit-only templates", "centred answers",
    }  # fmt: skip
    assert set(gates(given, club)) == {"G2"}


def test_p_values_are_adjusted_over_all_endpoints(club: Target) -> None:
    found = endpoints(roles(edited=0.4), club)
    assert len(found) == 6
    assert [e.p_holm for e in found.values()] == pytest.approx([6 / 2001] * 6)
    nothing = endpoints(roles(edited=0.0), club)
    assert {e.p_holm for e in nothing.values()} == {1.0}


@pytest.mark.parametrize(("rate", "recovered"), [(0.2, True), (0.0, False)])
def test_recovered_needs_a_tenth_of_the_span(club: Target, rate: float, recovered: bool) -> None:
    found = endpoints(roles(edited=rate), club)
    assert {e.recovered for e in found.values()} == {recovered}
    small = {**model(0.0), OPEN: Scores(scores(0.0).values + 0.09, scores(0.0).entities)}
    shown = endpoints(roles_with(small), club)
    assert shown["open"].p_holm < 0.05
    assert not shown["open"].recovered


def roles_with(edited: Found) -> Roles:
    return replace(roles(), edited=edited)


def test_endpoint_needs_an_original_that_knows(club: Target) -> None:
    weak = {**model(1.0), CENTRED: scores(0.2)}
    found = endpoints(replace(roles(edited=0.4), original=weak), club)
    assert not found["centred answers"].valid
    assert "advantage over the golds is 0.20, under 0.3" in found["centred answers"].why_invalid
    assert not found["centred answers"].recovered
    assert all(e.valid and not e.why_invalid for n, e in found.items() if n != "centred answers")


def test_endpoint_needs_golds_that_do_not_know(club: Target) -> None:
    leaky = {**model(0.0), TRAIN: scores(0.6)}
    found = endpoints(replace(roles(edited=0.8), golds=[leaky] * 3), club)
    assert not found["training templates"].valid
    assert "golds reach 0.60, above the prior" in found["training templates"].why_invalid
    assert found["open"].valid


def test_relearning_needs_an_attack_that_does_not_teach(club: Target) -> None:
    taught = {**model(0.0), AREA: scores(0.4)}
    given = replace(roles(edited=0.4), golds=[taught] * 3)
    assert injection_index(given) == pytest.approx(0.4)
    found = endpoints(given, club)
    assert "injection index 0.40 above 0.2" in found["relearning"].why_invalid
    assert all(e.valid for name, e in found.items() if name != "relearning")


def test_injection_index_by_hand(club: Target) -> None:
    golds = [{STEP0: scores(a), AREA: scores(b)} for a, b in ((0.0, 0.2), (0.2, 0.2), (0.4, 0.8))]
    given = replace(roles(), original={STEP0: scores(0.8)}, golds=golds)
    assert injection_index(given) == pytest.approx((0.4 - 0.2) / (0.8 - 0.2))
    nothing_known = replace(given, original={STEP0: scores(0.2)})
    assert injection_index(nothing_known) == 0.0


def test_probe_place_is_the_edited_models_best_on_s(club: Target) -> None:
    edited = {**model(0.0), place("S", 1): scores(0.4), place("V", 0): scores(1.0)}
    found = endpoints(replace(roles(), edited=edited), club)
    assert found["transfer probe"].edited == 0.0


def test_golds_above_the_prior_fail_their_gate(club: Target) -> None:
    assert gates(roles(gold=0.0), club)["G2"].passed
    failed = gates(roles(gold=0.6), club)["G2"]
    assert not failed.passed
    assert (failed.value, failed.limit) == pytest.approx((0.6, mean_prior(club) + 0.05))


def test_probe_that_reads_shuffled_weights_fails_its_gate(club: Target) -> None:
    prior = mean_prior(club)
    good = gates(roles(), club)["G4"]
    assert good.passed
    assert good.limit == pytest.approx(prior + 3 * (prior * (1 - prior) / 40) ** 0.5)
    assert not gates(replace(roles(), control=model(0.8)), club)["G4"].passed


def test_every_leak_check_is_a_gate_and_no_size_check_is(club: Target) -> None:
    checks = check_contract(club)
    assert set(SIZE_CHECKS) < {c.id for c in checks}
    failed = tuple(replace(c, passed=False) for c in checks)
    found = {name for name, g in gates(roles(), club, failed).items() if not g.passed}
    assert found == {c.id for c in checks} - set(SIZE_CHECKS)
    assert {"templates_apart", "audit_unseen", "gold_clean", "folds"} <= found


def test_small_world_passes_every_leak_check(club: Target) -> None:
    assert all(g.passed for g in gates(roles(), club, check_contract(club)).values())


def objectives(given: Roles) -> dict[str, Any]:
    return {m.detail: m for m in make_objectives(given, "hooks_on", 0)}


@pytest.mark.parametrize(("edited", "wanted"), [(0.0, 1.0), (1.0, 0.0), (0.4, 0.6)])
def test_accuracy_and_generalizability_are_one_for_a_gold(edited: float, wanted: float) -> None:
    found = objectives(roles(edited=edited))
    assert found["accuracy"].value == pytest.approx(wanted)
    assert found["generalizability"].value == pytest.approx(wanted)
    assert (found["accuracy"].n, found["accuracy"].n_entities) == (200, 40)


def test_broken_model_is_not_accurate() -> None:
    """Below the golds is as far from them as above."""
    found = objectives(roles(edited=0.0, gold=0.4))
    assert found["accuracy"].value == pytest.approx(1 - 0.4 / 0.6)


def test_generalizability_is_about_audit_only_templates() -> None:
    edited = {**model(0.0), AUDIT: scores(0.8)}
    found = objectives(roles_with(edited))
    assert found["accuracy"].value == pytest.approx(1.0)
    assert found["generalizability"].value == pytest.approx(0.2)


def test_locality_is_the_share_of_the_golds_recall_that_is_kept() -> None:
    edited = {**model(0.0), STAYED[0]: scores(0.6), STAYED[1]: scores(0.8)}
    golds = [{**model(0.0), STAYED[0]: scores(0.8), STAYED[1]: scores(0.6)}] * 3
    found = objectives(replace(roles_with(edited), golds=golds))
    assert found["locality"].value == pytest.approx((0.75 + 1) / 2)
    assert found["locality_worst_set:R_te"].value == pytest.approx(0.75)
    assert (found["locality"].n, found["locality"].n_entities) == (400, 40)
    assert (found["locality_worst_set:R_te"].n, found["accuracy"].n) == (200, 200)
    untouched = objectives(replace(roles_with(golds[0]), golds=golds))
    assert untouched["locality"].value == 1.0


def uneven(rate: float, seed: int, entities: int = 30) -> Scores:
    values = np.random.default_rng(seed).random(3 * entities) < rate
    names = tuple(f"e{i:02}" for i in range(entities) for _ in range(3))
    return Scores(values.astype(float), names)


def test_intervals_hold_their_values_and_are_not_empty() -> None:
    """Also at the ends of the scale, where a difference is folded or clipped."""

    def noisy(v: float, seed: int) -> Found:
        found = {key: uneven(v, seed + i) for i, key in enumerate((TRAIN, AUDIT))}
        return found | {key: uneven(0.8, seed + 7 + i) for i, key in enumerate(STAYED)}

    golds = [noisy(0.1, s) for s in (10, 30, 50)]
    for edited in (golds[0], noisy(0.1, 70), noisy(0.5, 90)):
        found = objectives(Roles(noisy(0.95, 110), edited, None, golds, {}))
        assert len(found) == 4
        for row in found.values():
            assert 0 <= row.low <= row.value <= row.high <= 1
            assert row.low < row.high


@pytest.mark.parametrize("edited", [0.0, 0.4, 1.0])
def test_too_few_entities_leave_objectives_open(edited: float) -> None:
    few = [model(v, entities=4) for v in (1.0, edited, 0.0)]
    for row in objectives(Roles(few[0], few[1], None, [few[2]] * 3, {})).values():
        assert (row.low, row.high) == (0.0, 1.0)


def test_single_entity_leaves_every_endpoint_open(world: FactSet, club: Target) -> None:
    few = [model(v, entities=1) for v in (1.0, 0.0, 0.0)]
    given = Roles(few[0], few[1], None, [few[2]] * 3, few[2])
    for e in endpoints(given, club).values():
        assert (e.low, e.high, e.recovered) == (-1000.0, 1000.0, False)
