"""A later layer that builds up again what an edit took is told from one that any model has."""

from typing import Any

import numpy as np
import pytest

from workbench.audit.hook_summary import _ducked, _recomputed
from workbench.audit.reading import Cast
from workbench.audit.statistics import Key, Scores
from workbench.audit.views import Found

HOOKS = ("Clamp at blocks.0.hook_resid_post", "Clamp at blocks.1.hook_resid_post")
POSTS = {"x": 0.9, "post": 0.1, "x, edit 2": 0.5, "post, edit 2": 0.2}


def reads(*by_layer: float) -> Found:
    names = tuple("abcdefgh")
    return {
        Key("P1", "F", "hit", f"layer {n}, last"): Scores(np.full(8, value), names)
        for n, value in enumerate(by_layer)
    }


def gain(edited: Found, *golds: Found, **options: Any) -> float | None:
    split = options.get("split", POSTS)
    return _recomputed(edited, Cast(edited, {}, golds), options.get("hooks", HOOKS), split)


def test_gain_is_beyond_the_best_that_is_left_right_after_an_edit_and_beyond_golds() -> None:
    edited = reads(0.9, 0.8, 0.2, 0.6, 0.7)
    assert gain(edited) == pytest.approx(0.7 - 0.2)
    flat, rising = reads(0.1, 0.1, 0.1, 0.1, 0.1), reads(0.1, 0.1, 0.1, 0.2, 0.4)
    assert gain(edited, flat) == pytest.approx(0.5)
    assert gain(edited, rising, rising) == pytest.approx(0.5 - 0.3)
    assert gain(reads(0.9, 0.8, 0.2, 0.2, 0.2), flat) == pytest.approx(0.0)


def test_nothing_is_told_without_a_later_layer_or_without_a_split() -> None:
    assert gain(reads(0.9, 0.8, 0.2)) is None
    assert gain(reads(0.9, 0.8, 0.2, 0.6), split={}) is None
    assert gain(reads(0.9, 0.8, 0.2, 0.6), hooks=("Clamp at blocks.3.hook_resid_post",)) is None


def answers(share: float, seed: int = 0) -> Scores:
    values = (np.arange(40) < share * 40).astype(float)
    names = tuple(f"n{i:02}" for i in range(40))
    return Scores(np.random.default_rng(seed).permutation(values), names, ("r",) * 40)


def ducked(*ways: float) -> bool:
    b2 = Key("B2", "F", "centred")
    checks = {Key("H5", "F", "centred", f"way {i}"): answers(w, i) for i, w in enumerate(ways)}
    cast = Cast({}, {b2: answers(1.0)}, ({b2: answers(0.1)},))
    return _ducked(checks, {b2: answers(0.1)}, cast, 0)


def test_a_way_around_a_hook_is_told_from_the_luckiest_of_many() -> None:
    assert ducked(0.1, 0.1, 0.6)
    assert not ducked(0.1, 0.1, 0.1)
    assert ducked(0.2)
    assert not ducked(*[0.1] * 6, 0.2)
    assert not ducked()
