"""Scores by entity, by fact and about some entities; the distance between two sets of them."""

import numpy as np
import pytest
from scipy import stats

from workbench.audit.statistics import RESAMPLES, Scores, ks_draws, spread


def scores(values: np.ndarray, each: int = 1) -> Scores:
    entities = tuple(f"e{i // each:03}" for i in range(len(values)))
    return Scores(np.asarray(values, float), entities, ("home",) * len(values))


MIXED = Scores(
    np.array([1.0, 0.0, 1.0, 1.0, 0.5]),
    ("b", "a", "b", "b", "a"),
    ("home", "home", "use", "home", "home"),
)


def test_scores_of_an_entity_are_summed_under_its_name() -> None:
    found, sums, counts = MIXED.by_entity()
    assert (found, sums.tolist(), counts.tolist()) == (("a", "b"), [0.5, 3.0], [2.0, 3.0])
    assert MIXED.n_entities == 2


def test_scores_of_a_fact_are_averaged_in_the_order_of_first_mention() -> None:
    found = MIXED.by_fact()
    assert list(zip(found.entities, found.relations, strict=True)) == [
        ("b", "home"), ("a", "home"), ("b", "use"),
    ]  # fmt: skip
    assert found.values.tolist() == [1.0, 0.25, 1.0]
    again = found.by_fact()
    assert (again.entities, again.relations) == (found.entities, found.relations)
    np.testing.assert_array_equal(again.values, found.values)


def test_scores_about_some_entities_keep_their_order() -> None:
    found = MIXED.about(("b",))
    assert found.values.tolist() == [1.0, 1.0, 1.0]
    assert found.relations == ("home", "use", "home")
    assert len(MIXED.about(()).values) == 0
    bare = Scores(MIXED.values, MIXED.entities)
    assert bare.about(("a",)).relations == ()


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("shift", [0.0, 0.7, 20.0])
def test_distance_is_that_of_scipy(ties: bool, shift: float) -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=120), rng.normal(size=90) + shift
    if ties:
        first, second = np.round(first), np.round(second)
    draws = ks_draws(scores(first), scores(second), 0)
    assert draws.shape == (RESAMPLES + 1,)
    assert draws[0] == pytest.approx(stats.ks_2samp(first, second).statistic, abs=1e-6)


def test_distance_does_not_shrink_when_questions_are_repeated() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=60), rng.normal(size=60)
    once = ks_draws(scores(first), scores(second), 0)
    often = ks_draws(scores(np.repeat(first, 5), 5), scores(np.repeat(second, 5), 5), 0)
    np.testing.assert_allclose(often, once, atol=1e-5)


def test_distance_of_scores_from_themselves_is_none_in_every_resample() -> None:
    one = scores(np.random.default_rng(2).normal(size=50))
    np.testing.assert_allclose(ks_draws(one, one, 0), 0, atol=1e-6)


def test_resampled_distance_has_the_spread_of_other_samples() -> None:
    """The upper bound holds the distance of the whole populations in most samples."""
    rng, truth, held = np.random.default_rng(3), 2 * stats.norm.cdf(0.25) - 1, 0
    for seed in range(40):
        draws = ks_draws(scores(rng.normal(size=80)), scores(rng.normal(0.5, 1, 80)), seed, 200)
        held += np.quantile(draws[1:], 0.95) >= truth
    assert held >= 36


def test_spread_is_the_standard_deviation_of_normal_draws_and_bounded_for_others() -> None:
    rng = np.random.default_rng(0)
    assert spread(rng.normal(0, 0.3, 20_000)) == pytest.approx(0.3, rel=0.03)
    wild = rng.normal(0, 0.3, 20_000)
    wild[::10] = 1000.0
    assert spread(wild) < 0.5
