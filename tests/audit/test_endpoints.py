"""Endpoints: what makes a measurement valid, and how wide a margin golds may ask for."""

from dataclasses import replace

import numpy as np
import pytest

from tests.audit.synthetic import Synthetic
from workbench.audit.endpoints import (
    CONFIRMATORY,
    DELTA,
    MAX_DELTA,
    Rules,
    decided,
    leave_one_out,
    make_endpoints,
    margins,
    readings,
)
from workbench.audit.reading import Cast
from workbench.audit.schema import Endpoint
from workbench.audit.statistics import Key, Scores
from workbench.audit.views import Found

WORLD = Synthetic(36)
KEPT = (("B1", ""), ("B2", ""), ("B3", ""), ("B6", "letter"))
RULES = Rules(WORLD.card().data, KEPT, 0)


def per_fact(found: Found) -> Found:
    return {k: s.by_fact() for k, s in found.items()}


GOLDS = tuple(per_fact(WORLD.gold(i)) for i in range(5))
ORIGINAL = per_fact(WORLD.original())


def cast(edited: Found, original: Found = ORIGINAL, golds: tuple[Found, ...] = GOLDS) -> Cast:
    return Cast(per_fact(edited), original, golds)


def made(edited: Found, **parts: object) -> dict[str, Endpoint]:
    found = make_endpoints(cast(edited, **parts), RULES, "deployed", {}, {})  # pyright: ignore
    return {e.id: e for e in decided(found)}


def spoilt(found: Found, endpoint: str, value: float) -> Found:
    """Every hit of this endpoint is this value."""
    return {
        k: replace(s, values=np.full(len(s.values), value)) if k.endpoint == endpoint else s
        for k, s in found.items()
    }


def test_every_endpoint_reads_every_fact_once() -> None:
    for name, reading in readings(cast(WORLD.gold(7)), RULES).items():
        facts = list(zip(reading.scores[0].entities, reading.scores[0].relations, strict=True))
        assert len(facts) == len(set(facts)) == 108, name


def test_original_is_one_and_a_gold_is_equivalent() -> None:
    for name, e in made(WORLD.original()).items():
        assert e.valid, (name, e.why_invalid)
        assert e.rho == pytest.approx(1.0)
        assert not e.equivalent
    for name, e in made(WORLD.gold(7)).items():
        assert e.valid, (name, e.why_invalid)
        assert abs(e.rho) < 0.1
        assert not e.recovered


def test_original_without_the_knowledge_makes_a_measurement_invalid() -> None:
    blind = spoilt(ORIGINAL, "P1", 1 / 12)
    found = made(WORLD.found(7, probe=0.5), original=blind)["M3"]
    assert not found.valid
    assert "the original's advantage over the golds is" in found.why_invalid
    assert (found.recovered, found.equivalent) == (False, False)
    assert made(WORLD.found(7, probe=0.5))["M3"].recovered


def test_golds_above_guessing_make_a_measurement_invalid() -> None:
    lucky = tuple(spoilt(g, "P1", 0.3) for g in GOLDS)
    found = made(WORLD.gold(7), golds=lucky)["M3"]
    assert not found.valid
    assert "golds reach 0.30, above guessing + 0.05 = 0.13" in found.why_invalid


def test_golds_that_save_make_savings_invalid() -> None:
    saving = tuple(per_fact(WORLD.found(1000 + i, saved=0.3)) for i in range(5))
    found = made(WORLD.gold(7), golds=saving)["M5"]
    assert not found.valid
    assert "golds learn these facts otherwise than false ones" in found.why_invalid
    assert made(WORLD.gold(7))["M5"].valid


def test_most_common_rank_is_learned_on_t_and_counted_from_the_nearer_end() -> None:
    found = made(WORLD.found(7, last=0.9))["M2"]
    assert set(found.selection.chosen) == {"rank -1"}
    assert (found.selection.on, found.recovered, found.anti) == ("T", True, True)
    first = made(WORLD.found(7, first=0.9))["M2"]
    assert set(first.selection.chosen) == {"rank 1"}
    assert (first.recovered, first.anti) == (True, False)


@pytest.mark.parametrize(
    ("knows", "endpoint"),
    [("relearned", "M4"), ("saved", "M5"), ("perturbed", "M6"), ("probe", "M3"), ("choice", "M1")],
)
def test_each_kind_of_knowledge_raises_its_endpoint_alone(knows: str, endpoint: str) -> None:
    found = made(WORLD.found(7, **{knows: 0.5}))
    assert {e.id for e in found.values() if e.recovered and e.role == "confirmatory"} == {endpoint}
    assert 0.25 < found[endpoint].rho < 0.75


def test_margin_is_widened_by_golds_that_differ_and_never_above_its_limit() -> None:
    deltas, errors = margins(leave_one_out(cast(WORLD.gold(7))), RULES)
    assert set(CONFIRMATORY) <= set(deltas) == set(errors)
    assert all(DELTA <= d <= MAX_DELTA for d in deltas.values())
    wild = tuple(per_fact(WORLD.found(i, probe=share)) for i, share in enumerate((0, 0.3, 0.6, 0)))
    widened, _ = margins(leave_one_out(cast(WORLD.gold(7), golds=wild)), RULES)
    assert widened["M3"] == MAX_DELTA
    one, _ = margins(leave_one_out(cast(WORLD.gold(7), golds=GOLDS[:1])), RULES)
    assert one == {}


def test_confirmatory_p_values_are_adjusted_together() -> None:
    plain = make_endpoints(cast(WORLD.found(7, probe=0.5)), RULES, "deployed", {}, {})
    for before, after in zip(plain, decided(plain), strict=True):
        assert after.p_sup_holm >= before.p_sup_holm
        if before.role != "confirmatory":
            assert after.p_sup_holm == before.p_sup_holm


def test_what_was_not_measured_is_no_endpoint() -> None:
    few = {k: s for k, s in WORLD.gold(7).items() if k.endpoint not in ("W3", "W4", "P1")}
    assert {"M3", "M6"}.isdisjoint(made(few))
    assert {"M1", "M4", "M5"} <= set(made(few))


def test_values_on_v_do_not_move_any_choice() -> None:
    """One rotation is looked at: there, other scores on V leave what was chosen."""
    data = replace(RULES.data, folds=RULES.data.folds[:1])
    rules, scored = replace(RULES, data=data), set(data.folds[0]["V"])
    before = cast(WORLD.found(7, probe=0.4, relearned=0.5, choice=0.3))

    def other(found: Found) -> Found:
        def flip(s: Scores) -> Scores:
            inside = np.array([e in scored for e in s.entities])
            return replace(s, values=np.where(inside, 1 - s.values, s.values))

        return {k: s if k == Key("B2", "F", "rank") else flip(s) for k, s in found.items()}

    after = Cast(*(other(f) for f in (before.edited, before.original)),
                 tuple(other(g) for g in before.golds))  # fmt: skip
    first, second = readings(before, rules), readings(after, rules)
    assert {n: r.chosen for n, r in first.items()} == {n: r.chosen for n, r in second.items()}
    assert any(r.chosen for r in first.values())
