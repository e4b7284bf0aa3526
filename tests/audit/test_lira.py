"""The per-fact attack: right by hand, nothing where there is nothing, and silent on too little."""

import numpy as np
import pytest

from workbench.audit.lira import log_ratio, tpr_at, u_lira
from workbench.audit.reading import Cast
from workbench.audit.schema import ShadowAttack
from workbench.audit.sections import make_shadows
from workbench.audit.statistics import Key, Scores
from workbench.audit.views import Found
from workbench.errors import AuditError


def test_likelihood_ratio_by_hand() -> None:
    """Both pooled variances are (2 + 0) / 2 = 1; the means are (2, 5) and (0, 0)."""
    unlearned = np.array([[1.0, 5.0], [3.0, 5.0]])
    retrained = np.array([[-1.0, 0.0], [1.0, 0.0]])
    found = log_ratio(np.array([2.0, 0.0]), unlearned, retrained)
    assert found == pytest.approx([2**2 / 2, -(5**2) / 2])


def test_unequal_spreads_by_hand() -> None:
    """Deviations 2 and 1 about one mean, 0: at 2, -log 2 - 1/2 against -2."""
    unlearned, retrained = np.array([[-1.0], [1.0]]) * 2**0.5, np.array([[-0.5], [0.5]]) * 2**0.5
    found = log_ratio(np.array([2.0]), unlearned, retrained)
    assert found == pytest.approx([-np.log(2) - 0.5 + 2])


def test_rate_of_finds_at_a_rate_of_false_alarms() -> None:
    others = np.arange(100.0)
    assert tpr_at(np.array([94.5, 94.0, 95.0, 200.0]), others, 0.05) == 0.75
    assert tpr_at(np.array([98.5, 98.0]), others, 0.01) == 0.5
    assert tpr_at(np.array([99.0, 99.5]), others, 0.0) == 0.5
    assert tpr_at(np.ones(10), np.ones(10), 0.05) == 0.0


def drawn(shift: float, n: int, facts: int, seed: int) -> np.ndarray:
    level = 3 * np.random.default_rng(99).normal(size=facts)  # every fact has its own
    return level + shift + np.random.default_rng(seed).normal(size=(n, facts))


@pytest.mark.parametrize(("shift", "low", "high"), [(0.0, 0.45, 0.55), (2.0, 0.85, 0.95)])
def test_finds_what_is_there_and_nothing_else(shift: float, low: float, high: float) -> None:
    """Two normals 2 deviations apart have an AUC of 0.92 with known means."""
    found = u_lira(
        drawn(shift, 8, 500, 1), drawn(0, 8, 500, 2), drawn(shift, 1, 500, 3), drawn(0, 2, 500, 4)
    )
    assert low < found.auc < high
    assert (found.n_facts, found.n_shadows) == (500, (8, 8))
    assert found.tpr_1 <= found.tpr_5
    if shift:
        assert found.tpr_5 > 0.4
    else:
        assert found.tpr_5 < 0.1


def test_one_threshold_for_all_facts_would_find_less() -> None:
    from workbench.audit.privacy import auc

    members, others = drawn(2, 1, 500, 3), drawn(0, 1, 500, 4)
    found = u_lira(drawn(2, 8, 500, 1), drawn(0, 8, 500, 2), members, others)
    assert found.auc > auc(members[0], others[0]) + 0.1


@pytest.mark.parametrize(
    ("n", "facts", "tested", "said"),
    [
        ((7, 8), 400, (1, 1), "7 unlearned and 8 retrained shadow models: wanted 8 or more"),
        ((8, 7), 400, (1, 1), "8 unlearned and 7 retrained shadow models: wanted 8 or more"),
        ((8, 8), 399, (1, 1), "399 facts: wanted 400 or more"),
        ((8, 8), 400, (1, 0), "1 unlearned and 0 retrained models to test"),
    ],
)
def test_too_little_is_refused(
    n: tuple[int, int], facts: int, tested: tuple[int, int], said: str
) -> None:
    sizes = (*n, *tested)
    with pytest.raises(AuditError, match=said):
        u_lira(*(drawn(0, size, facts, i) for i, size in enumerate(sizes)))


def roles(shift: float, shadows: int = 8) -> dict[tuple[str, str], Found]:
    """Log-odds of an edited model that is `shift` from the golds, and of shadows of both kinds."""
    about = tuple(f"e{i}" for i in range(500)), tuple("r" for _ in range(500))

    def phi(values: np.ndarray) -> Found:
        return {Key("MIA", "F", "phi"): Scores(values, *about)}

    models = {("edited", "deployed"): phi(drawn(shift, 1, 500, 3)[0])}
    models |= {(f"gold-{i}", ""): phi(v) for i, v in enumerate(drawn(0, 2, 500, 4))}
    models |= {(f"unlearned-{i}", ""): phi(v) for i, v in enumerate(drawn(shift, shadows, 500, 1))}
    return models | {
        (f"retrained-{i}", ""): phi(v) for i, v in enumerate(drawn(0, shadows, 500, 2))
    }


def attack(models: dict[tuple[str, str], Found]) -> ShadowAttack | None:
    edited = models["edited", "deployed"]
    return make_shadows(models, Cast(edited, edited, ()), 0)


def test_report_says_whether_shadows_tell_the_edited_model_from_golds() -> None:
    told, quiet = attack(roles(2.0)), attack(roles(0.0))
    assert told is not None and quiet is not None
    assert told.leaks and not quiet.leaks
    assert (told.unlearned, told.retrained, told.n_facts) == (8, 8, 500)
    assert told.low is not None and told.tpr_5 is not None and 0.1 < told.low < told.tpr_5


def test_report_says_why_shadows_say_nothing_and_is_silent_without_any() -> None:
    few = attack(roles(2.0, shadows=3))
    assert few is not None and "wanted 8 or more of each" in few.why
    assert few.auc is None and not few.leaks
    assert attack({k: v for k, v in roles(2.0).items() if k[0] in ("edited", "gold-0")}) is None
    assert make_shadows({}, Cast({}, {}, ()), 0) is None
