"""Intervals cover what they should, and count entities rather than questions."""

import numpy as np
import pytest
from scipy import stats

from workbench.audit.statistics import (
    MIN_ENTITIES,
    RESAMPLES,
    UNBOUNDED,
    Interval,
    Scores,
    detectable,
    entity_interval,
    fraction,
    gold_mean_draws,
    holm,
    joined,
    p_above_zero,
    p_equivalent,
    percentile,
    resampled_means,
    residual_draws,
)


def names(entities: int, each: int, prefix: str = "e") -> tuple[str, ...]:
    return tuple(f"{prefix}{i:03}" for i in range(entities) for _ in range(each))


def hits(rate: float, entities: int = 40, each: int = 3, seed: int = 0) -> Scores:
    """Questions about entities, some of which are known better than others."""
    rng = np.random.default_rng(seed)
    known = rng.beta(4 * rate + 1e-9, 4 * (1 - rate) + 1e-9, entities)
    values = rng.random((entities, each)) < known[:, None]
    return Scores(values.astype(float).ravel(), names(entities, each))


def constant(value: float, entities: int = 40) -> Scores:
    return Scores(np.full(entities, value), names(entities, 1))


def shift(scores: Scores, by: float) -> Scores:
    return Scores(scores.values + by, scores.entities)


def width(interval: Interval) -> float:
    return interval.high - interval.low


def repeated(scores: Scores, times: int) -> Scores:
    return Scores(np.tile(scores.values, times), scores.entities * times)


def rho_draws(edited: Scores, original: Scores, golds: list[Scores], seed: int = 0) -> np.ndarray:
    """As the endpoints make them."""
    e, o, *g = resampled_means([edited, original, *golds], seed)
    mean = gold_mean_draws(np.array(g), [s.mean for s in golds], seed)
    return residual_draws(e, o, mean, edited.n_entities < MIN_ENTITIES)


def test_repeating_every_question_does_not_narrow_the_interval() -> None:
    scores = hits(0.5, each=1)
    assert entity_interval(repeated(scores, 10)) == entity_interval(scores)
    golds = [hits(0.1, seed=s) for s in range(3)]
    many = rho_draws(repeated(scores, 4), hits(0.9), [repeated(g, 4) for g in golds])
    np.testing.assert_allclose(many, rho_draws(scores, hits(0.9), golds))


def test_more_entities_narrow_the_interval() -> None:
    few, many = hits(0.5, 20), hits(0.5, 180)
    assert width(entity_interval(many)) == pytest.approx(width(entity_interval(few)) / 3, rel=0.35)


def test_questions_about_one_entity_count_as_one_when_they_agree() -> None:
    """Twenty entities of ten equal answers are worth twenty answers, not two hundred."""
    alone = Scores(np.array([0.0, 1.0] * 10), names(20, 1))
    tenfold = Scores(np.repeat(alone.values, 10), names(20, 10))
    independent = Scores(np.tile([0.0, 1.0], 100), names(200, 1))
    assert entity_interval(tenfold) == entity_interval(alone)
    assert width(entity_interval(tenfold)) > 2.5 * width(entity_interval(independent))


@pytest.mark.parametrize("entities", [1, MIN_ENTITIES - 1])
def test_too_few_entities_give_the_widest_interval(entities: int) -> None:
    scores = constant(1.0, entities)
    assert entity_interval(scores) == Interval(1.0, 0.0, 1.0)
    draws = rho_draws(scores, scores, [shift(scores, -1.0)] * 3)
    at = percentile(1.0, draws)
    assert (at.low, at.high) == (-UNBOUNDED, UNBOUNDED)
    assert p_above_zero(draws) == pytest.approx(0.5, abs=0.01)
    assert p_equivalent(draws, 0.2) == pytest.approx(0.5, abs=0.01)
    assert width(entity_interval(constant(1.0, MIN_ENTITIES))) < 1


def test_resampled_means_have_the_spread_of_a_mean_of_entities() -> None:
    scores = Scores(np.random.default_rng(1).normal(size=60), names(60, 1))
    means = resampled_means([scores], seed=0)[0]
    assert means.shape == (RESAMPLES,)
    assert means.mean() == pytest.approx(scores.mean, abs=0.02)
    assert means.std() == pytest.approx(scores.values.std() / 60**0.5, rel=0.1)


def test_interval_is_that_of_scipy_where_each_entity_has_one_question() -> None:
    values = np.random.default_rng(2).exponential(size=80)
    found = entity_interval(Scores(values, names(80, 1)))
    wanted = stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=0.03)


def test_resampling_keeps_all_questions_of_an_entity_together() -> None:
    """An entity with three questions weighs three times as much as one with one, in every draw."""
    scores = Scores(np.array([1.0, 1.0, 1.0, 0.0]), ("a", "a", "a", "b"))
    found = set(np.round(resampled_means([scores], seed=0)[0], 6).tolist())
    assert found == {0.0, 0.75, 1.0}


def test_members_of_a_comparison_share_their_draws() -> None:
    first = hits(0.5)
    means = resampled_means([first, shift(first, -0.25)], seed=0)
    np.testing.assert_allclose(means[0] - means[1], 0.25)
    order = np.random.default_rng(0).permutation(len(first.values))
    mixed = Scores(first.values[order], tuple(first.entities[i] for i in order))
    means = resampled_means([first, mixed], seed=0)
    np.testing.assert_allclose(means[0], means[1])


def test_scores_about_other_entities_are_drawn_from_the_union() -> None:
    first, other = hits(0.5), Scores(np.ones(5), names(5, 1, "x"))
    means = resampled_means([first, other], seed=0)
    assert np.isfinite(means).all()
    assert (means[1] == 1.0).all()
    assert means[0].std() > 0


def test_draws_repeat_under_a_seed() -> None:
    a, b = hits(0.5), hits(0.4, seed=1)
    golds = [hits(0.1, seed=s) for s in (2, 3, 4)]
    assert entity_interval(a, 3) == entity_interval(a, 3) != entity_interval(a, 4)
    np.testing.assert_array_equal(rho_draws(b, a, golds, 3), rho_draws(b, a, golds, 3))


@pytest.mark.parametrize(("rate", "entities"), [(0.5, 40), (0.2, 60), (0.8, 30)])
def test_intervals_cover_the_truth_about_as_often_as_they_say(rate: float, entities: int) -> None:
    covered = 0
    for seed in range(200):
        interval = entity_interval(hits(rate, entities, seed=seed), seed)
        covered += interval.low <= rate <= interval.high
    assert 0.88 <= covered / 200 <= 0.99


@pytest.mark.parametrize(("edited", "rho"), [(0.5, 0.5), (0.1, 0.0)])
def test_residual_fraction_covers_the_truth_about_as_often_as_it_says(
    edited: float, rho: float
) -> None:
    """The second case is a gold against the others."""
    rng, covered, entities = np.random.default_rng(0), 0, names(60, 1)
    for seed in range(200):
        rates = (edited, 0.9, 0.1, 0.1, 0.1, 0.1)
        made = [Scores((rng.random(60) < rate).astype(float), entities) for rate in rates]
        at = percentile(rho, rho_draws(made[0], made[1], made[2:], seed))
        covered += at.low < rho < at.high
    assert 0.88 <= covered / 200 <= 0.995


GOLDS = [hits(0.1, seed=s) for s in (10, 11, 12)]
ORIGINAL = hits(0.95, seed=13)


def rho(edited: Scores, original: Scores = ORIGINAL, golds: list[Scores] = GOLDS) -> Interval:
    gold = float(np.mean([g.mean for g in golds]))
    return percentile(
        fraction(edited.mean, original.mean, gold), rho_draws(edited, original, golds)
    )


def test_rho_of_the_original_is_one_exactly() -> None:
    at = rho(ORIGINAL)
    assert (at.value, at.low, at.high) == pytest.approx((1, 1, 1))


def test_rho_half_way_is_one_half() -> None:
    assert rho(constant(0.5), constant(1.0), [constant(0.0)] * 3) == Interval(0.5, 0.5, 0.5)


def test_rho_below_the_golds_is_negative() -> None:
    assert rho(constant(0.0), golds=[hits(0.35, seed=s) for s in range(1, 6)]).high < 0


def test_rho_is_anything_where_the_original_knows_no_more_than_the_golds() -> None:
    at = rho(hits(0.9, seed=3), hits(0.12, seed=4), GOLDS)
    assert (at.low, at.high) == (-UNBOUNDED, UNBOUNDED)
    assert rho(ORIGINAL, constant(0.0), [constant(0.0)] * 3).value == 0.0
    same = rho_draws(constant(0.0), constant(0.0), [constant(0.0)] * 3)
    assert p_above_zero(same) == pytest.approx(0.5, abs=0.01)
    assert p_equivalent(same, 0.2) > 0.4


def test_resamples_without_a_span_are_unbounded_by_turns_and_no_others() -> None:
    edited, original = np.full(4, 0.5), np.array([1.0, 0.0, 0.0, 1.0])
    found = residual_draws(edited, original, np.zeros(4))
    assert found.tolist() == [0.5, UNBOUNDED, -UNBOUNDED, 0.5]
    assert residual_draws(edited, original, np.zeros(4), few=True).tolist() == [
        -UNBOUNDED, UNBOUNDED, -UNBOUNDED, UNBOUNDED,
    ]  # fmt: skip


def test_equivalence_is_found_for_a_gold_and_not_for_the_original() -> None:
    golds = [hits(0.1, 200, seed=s) for s in range(5)]
    same = rho_draws(golds[0], hits(0.95, 200, seed=9), [golds[0]] * 3)
    np.testing.assert_allclose(same, 0, atol=1e-12)
    assert p_equivalent(same, 0.1) <= 0.05
    other = rho_draws(hits(0.1, 200, seed=8), hits(0.95, 200, seed=9), golds)
    assert p_equivalent(other, 0.1) <= 0.05
    assert p_above_zero(other) > 0.05
    known = rho_draws(hits(0.95, 200, seed=9), hits(0.95, 200, seed=9), golds)
    assert p_equivalent(known, 0.1) > 0.99
    assert p_above_zero(known) < 0.001


def test_p_of_equivalence_agrees_with_the_interval_and_with_two_t_tests() -> None:
    rng = np.random.default_rng(0)
    for centre in (0.0, 0.03, 0.05, 0.08):
        values = rng.normal(centre, 0.3, 100)
        draws = resampled_means([Scores(values, names(100, 1))], 0)[0]
        found = p_equivalent(draws, 0.1)
        low, high = np.quantile(draws, [0.05, 0.95])
        assert (found <= 0.05) == (low > -0.1 and high < 0.1)
        above, below = (
            stats.ttest_1samp(values, limit, alternative=side).pvalue
            for limit, side in ((-0.1, "greater"), (0.1, "less"))
        )
        assert found == pytest.approx(max(above, below), abs=0.03)


def test_golds_that_differ_widen_by_students_t_of_their_standard_error() -> None:
    observed = [0.0, 0.2, 0.4]
    draws = gold_mean_draws(np.repeat(np.array(observed)[:, None], 20_000, 1), observed, 0)
    error = np.std(observed, ddof=1) / 3**0.5
    for level in (0.025, 0.5, 0.975):
        wanted = 0.2 + error * stats.t.ppf(level, 2)
        assert np.quantile(draws, level) == pytest.approx(wanted, abs=0.04)
    alike = gold_mean_draws(np.full((3, 50), 0.2), [0.2] * 3, 0)
    np.testing.assert_allclose(alike, 0.2)
    alone = gold_mean_draws(np.full((1, 50), 0.2), [0.2], 0)
    np.testing.assert_allclose(alone, 0.2)


def test_percentile_is_that_of_the_draws_and_holds_the_value() -> None:
    draws = np.linspace(0, 1, 1001)
    at = percentile(0.4, draws)
    assert (at.value, at.low, at.high) == pytest.approx((0.4, 0.025, 0.975))
    assert (percentile(1.5, draws).high, percentile(-1.0, draws).low) == (1.5, -1.0)


def test_p_value_is_the_share_of_draws_that_are_not_above_zero() -> None:
    assert p_above_zero(np.array([-1.0, 0.0, 1.0, 2.0])) == pytest.approx(3 / 5)
    assert p_above_zero(np.ones(1999)) == pytest.approx(1 / 2000)


def test_detectable_effect_is_found_with_the_power_it_promises() -> None:
    error, tests = 0.03, 6
    effect = detectable(error, tests)
    rng = np.random.default_rng(0)
    p = stats.norm.sf(rng.normal(effect, error, 20_000) / error)
    assert (p < 0.05 / tests).mean() == pytest.approx(0.8, abs=0.01)
    assert detectable(error, 1) < effect < detectable(error, tests, power=0.95)


def test_fraction_is_zero_without_an_advantage() -> None:
    assert fraction(0.6, 1.0, 0.2) == pytest.approx(0.5)
    assert fraction(0.6, 0.2, 0.2) == fraction(0.6, 0.1, 0.2) == 0.0


def test_joined_scores_are_all_questions_of_both() -> None:
    found = joined(hits(0.5), constant(1.0))
    assert len(found.values) == len(found.entities) == 160
    assert found.mean == pytest.approx((hits(0.5).mean * 120 + 40) / 160)
    assert found.n_entities == 40


def test_holm_by_hand() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06}
    )
    assert (holm({"a": 0.5, "b": 0.9}), holm({})) == ({"a": 1.0, "b": 1.0}, {})


@pytest.mark.peer
def test_holm_agrees_with_statsmodels() -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    rng = np.random.default_rng(0)
    for n in (1, 2, 7, 20):
        p = rng.beta(0.5, 2, n)
        p[: n // 3] = p[0]
        expected = multitest.multipletests(p, method="holm")[1]
        found = holm({f"e{i:02}": float(v) for i, v in enumerate(p)})
        assert [found[f"e{i:02}"] for i in range(n)] == pytest.approx(expected.tolist())
