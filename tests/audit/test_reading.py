"""The auditor chooses on S and reads on V; every fact is read once."""

from dataclasses import replace

import numpy as np
import pytest

from workbench.audit.reading import (
    Candidate,
    Cast,
    Reading,
    candidate,
    chance_scores,
    curve_area,
    curve_candidate,
    read_all,
    read_best,
    read_own_best,
    without,
)
from workbench.audit.statistics import Key, Scores
from workbench.audit.views import Found

NAMES = tuple(f"e{i:02}" for i in range(24))
FOLDS = tuple(
    {"T": (), "S": tuple(n for n in NAMES if n not in v)[:4], "V": v}
    for v in (NAMES[:8], NAMES[8:16], NAMES[16:])
)
KINDS = ("a", "b", "c")


def found_from(shares: dict[str, float], seed: int = 0) -> Found:
    """Hits on all facts under each setting, as often as is said."""
    rng = np.random.default_rng(seed)
    return {
        Key("P1", "F", "hit", s): Scores(
            (rng.random(24) < share).astype(float), NAMES, ("home",) * 24
        )
        for s, share in shares.items()
    }


def set_on(found: Found, setting: str, names: tuple[str, ...], value: float) -> Found:
    key = Key("P1", "F", "hit", setting)
    values = np.where([n in names for n in NAMES], value, found[key].values)
    return {**found, key: replace(found[key], values=values)}


@pytest.fixture
def candidates() -> list[Candidate]:
    return [candidate("P1", "hit", s, FOLDS, 0.0) for s in KINDS]


@pytest.fixture
def cast() -> Cast:
    edited = found_from({"a": 0.3, "b": 0.5, "c": 0.4})
    original = found_from({"a": 0.95, "b": 0.9, "c": 1.0}, 1)
    golds = tuple(found_from(dict.fromkeys(KINDS, 0.1), s) for s in (2, 3, 4))
    return Cast(edited, original, golds)


def read(cast: Cast, candidates: list[Candidate]) -> Reading:
    reading = read_best(cast, candidates, 3)
    assert reading is not None
    return reading


def moved_on(cast: Cast, names: tuple[str, ...], seed: int) -> Cast:
    """The same models, but other hits on these entities, everywhere."""
    rng = np.random.default_rng(seed)

    def other(found: Found) -> Found:
        inside = [n in names for n in NAMES]
        return {
            k: replace(s, values=np.where(inside, rng.integers(0, 2, 24), s.values))
            for k, s in found.items()
        }

    return Cast(other(cast.edited), other(cast.original), tuple(other(g) for g in cast.golds))


def test_each_fact_is_read_exactly_once(cast: Cast, candidates: list[Candidate]) -> None:
    reading = read(cast, candidates)
    for scores in (*reading.scores, reading.chance):
        assert sorted(scores.entities) == list(NAMES)
    assert (reading.grid, reading.on, len(reading.chosen)) == (3, "S", 3)
    assert len(reading.scores) == len(reading.means) == 5


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("reader", [read_best, read_own_best])
def test_scored_facts_have_no_say_in_what_is_chosen(cast, candidates, reader, seed) -> None:
    """Only one rotation is read: in the others these entities lie in S."""
    chosen = reader(cast, candidates, 1).chosen
    assert reader(moved_on(cast, FOLDS[0]["V"], seed), candidates, 1).chosen == chosen


def test_facts_of_s_decide_what_is_chosen(cast: Cast, candidates: list[Candidate]) -> None:
    selected = FOLDS[0]["S"]
    for best in KINDS:
        edited, original, golds = cast.edited, cast.original, cast.golds
        for kind in KINDS:
            edited = set_on(edited, kind, selected, float(kind == best))
            original = set_on(original, kind, selected, 1.0)
            golds = tuple(set_on(g, kind, selected, 0.0) for g in golds)
        reading = read_best(Cast(edited, original, golds), candidates, 1)
        assert reading is not None
        assert reading.chosen == (f"P1 {best}",)
        wanted = cast.edited[Key("P1", "F", "hit", best)].about(FOLDS[0]["V"])
        np.testing.assert_array_equal(reading.scores[0].values, wanted.values)


def test_where_the_original_does_not_stand_out_nothing_is_chosen_for_the_edited_model(
    cast: Cast, candidates: list[Candidate]
) -> None:
    """Setting a finds all in the edited model, but nothing in the original."""
    original, edited = cast.original, cast.edited
    for fold in FOLDS:
        edited = set_on(edited, "a", fold["S"], 1.0)
        original = set_on(original, "a", fold["S"], 0.0)
    assert "P1 a" not in read(replace(cast, edited=edited, original=original), candidates).chosen
    assert "P1 a" in read(replace(cast, edited=edited), candidates).chosen


def test_each_model_has_the_setting_that_suits_it() -> None:
    def curves(best: str) -> Found:
        made: Found = {}
        for i, fold in enumerate(FOLDS):
            for setting in ("slow", "fast"):
                for step in (0.0, 3.0):
                    for subset in "SV":
                        value = float(step > 0 and setting == best)
                        names = fold[subset]
                        made[Key("W1", subset, "centred", setting, i, step)] = Scores(
                            np.full(len(names), value), names, ("home",) * len(names)
                        )
        return made

    cast = Cast(curves("slow"), curves("fast"), (curves("fast"), curves("slow")))
    reading = read_own_best(cast, [curve_candidate("W1", s, 0.1) for s in ("slow", "fast")], 3)
    assert reading is not None
    assert reading.chosen == ("W1 slow",) * 3
    assert reading.means == [0.5] * 4
    alike = read_best(cast, [curve_candidate("W1", s, 0.1) for s in ("slow", "fast")], 3)
    assert alike is not None
    assert min(alike.means) == 0.0


def test_chance_is_that_of_the_chosen_candidate(cast: Cast) -> None:
    edited, original = cast.edited, cast.original
    for fold in FOLDS:
        for kind in KINDS:
            edited = set_on(edited, kind, fold["S"], float(kind == "b"))
            original = set_on(original, kind, fold["S"], 1.0)
    levels = {"a": 0.25, "b": 0.1, "c": {"home": 0.5}}
    candidates = [candidate("P1", "hit", s, FOLDS, level) for s, level in levels.items()]
    reading = read(Cast(edited, original, cast.golds), candidates)
    assert set(reading.chosen) == {"P1 b"}
    assert reading.chance.mean == pytest.approx(0.1)
    assert read(cast, candidates[2:]).chance.mean == pytest.approx(0.5)
    like = Scores(np.zeros(2), ("x", "y"), ("home", "use"))
    assert chance_scores(like, {"home": 0.2}).values.tolist() == [0.2, 0.0]


def test_without_golds_chance_takes_their_place(cast: Cast) -> None:
    candidates = [candidate("P1", "hit", s, FOLDS, {"home": 0.2}) for s in KINDS]
    reading = read(replace(cast, golds=()), candidates)
    assert reading.gold == pytest.approx(0.2)
    _, _, golds = reading.draws(0)
    np.testing.assert_allclose(golds, 0.2)
    assert read(cast, candidates).gold == pytest.approx(np.mean(read(cast, candidates).means[2:]))


def test_all_candidates_together_are_the_mean_over_their_questions(
    cast: Cast, candidates: list[Candidate]
) -> None:
    reading = read_all(cast, candidates, 3)
    assert reading is not None
    assert (reading.on, reading.grid, reading.chosen) == ("nothing", 1, ())
    wanted = np.mean([s.mean for s in cast.edited.values()])
    assert reading.means[0] == pytest.approx(wanted)
    assert sorted(reading.scores[0].entities) == list(NAMES)


def test_candidates_that_a_model_lacks_are_left_out(
    cast: Cast, candidates: list[Candidate]
) -> None:
    partly = {k: s for k, s in cast.original.items() if k.setting != "b"}
    assert "P1 b" not in read(replace(cast, original=partly), candidates).chosen
    assert read_best(replace(cast, original={}), candidates, 3) is None
    assert read_all(replace(cast, original={}), candidates, 3) is None
    assert read_own_best(replace(cast, original={}), candidates, 3) is None


def test_area_is_one_for_a_fact_known_throughout_and_counts_early_hits_more() -> None:
    def at(step: float, *values: float) -> tuple[Key, Scores]:
        return Key("W1", "V", "centred", "lr", 0, step), Scores(
            np.array(values), ("a", "b", "c"), ("home",) * 3
        )

    found = dict([at(0, 1, 0, 0), at(1, 1, 1, 0), at(3, 1, 1, 1)])
    area = curve_area(found, "W1", "lr", 0, "V")
    assert area is not None
    assert area.values.tolist() == [1.0, 0.75, 0.25]
    assert curve_area(found, "W1", "other", 0, "V") is None


def test_guessable_facts_are_left_out() -> None:
    scores = Scores(np.arange(3.0), ("a", "a", "b"), ("home", "use", "home"))
    found = without(scores, {("a", "use")})
    assert (found.values.tolist(), found.entities, found.relations) == (
        [0.0, 2.0], ("a", "b"), ("home", "home"),
    )  # fmt: skip
    assert without(scores, ()) is scores
