"""The rule by which an edit is chosen, on trials with known outcomes."""

from workbench.experiments.choose import ChooseConfig, Trial, _best


def trial(forget: float, harm: float, dose: float = -1.0, sites: tuple[str, ...] = ("a",)) -> Trial:
    return Trial(sites, "frequency", 0.01, dose, 64, forget, 1 - harm, harm)


def test_the_edit_nearest_to_the_prior_wins_among_harmless_ones():
    trials = [trial(0.5, 0.0), trial(0.12, 0.01), trial(0.10, 0.2), trial(0.3, 0.0)]
    assert _best(trials, max_harm=0.03, prior=0.1) == 1


def test_falling_far_below_the_prior_is_no_better_than_staying_above_it():
    assert _best([trial(0.0, 0.0), trial(0.15, 0.0)], max_harm=0.03, prior=0.1) == 1


def test_of_edits_equally_near_to_the_prior_the_less_harmful_wins():
    trials = [
        trial(0.101, 0.006, -1.0),
        trial(0.104, 0.003, -4.0),
        trial(0.104, 0.003, -4.0, ("a", "b")),
    ]
    assert _best(trials, max_harm=0.03, prior=0.1) == 1


def test_ties_go_to_fewer_sites_and_then_to_the_weaker_dose():
    trials = [
        trial(0.1, 0.0, -4.0),
        trial(0.1, 0.0, -1.0, ("a", "b")),
        trial(0.1, 0.0, -2.0),
    ]
    assert _best(trials, max_harm=0.03, prior=0.1) == 2


def test_if_every_edit_harms_the_least_harmful_is_kept():
    assert _best([trial(0.1, 0.5), trial(0.9, 0.1)], max_harm=0.03, prior=0.1) == 1


def test_the_floor_and_the_grid_are_in_the_config():
    assert ChooseConfig().max_harm < 0.05
    assert len(ChooseConfig().doses) >= 3
