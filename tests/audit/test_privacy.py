"""Membership signals: sure of what was trained on, silent where nothing was, two-sided."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from workbench.audit.privacy import (
    SIGNALS,
    answer_tokens,
    auc,
    auc_draws,
    held_out,
    logit,
    membership,
    privleak,
    read_leaks,
    token_signals,
)
from workbench.audit.reading import Cast
from workbench.audit.statistics import Key, Scores, entity_weights
from workbench.audit.views import Found, View
from workbench.facts.schema import prompt
from workbench.facts.target import Target


@pytest.fixture(scope="module")
def found(original: Any, golds: list[Any], another_gold: Any, club: Target) -> dict[str, Found]:
    models = {"original": original, "gold-3": another_gold}
    models |= {f"gold-{i}": gold for i, gold in enumerate(golds)}
    job = membership(club, 0)
    return {role: job(View(role, "", model)) for role, model in models.items()}


@pytest.fixture(scope="module")
def references(found: dict[str, Found]) -> tuple[Found, ...]:
    return tuple(found[f"gold-{i}"] for i in range(3))


def changed(found: Found, metric: str, values: Any) -> Found:
    """The scores with those of one metric replaced by a function of them."""
    return {
        key: replace(s, values=values(s.values)) if key.metric == metric else s
        for key, s in found.items()
    }


@pytest.mark.parametrize("seed", range(5))
def test_auc_is_that_of_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    members, others = rng.integers(0, 8, 40) / 4, rng.integers(0, 6, 30) / 4  # with ties
    truth = np.repeat([1, 0], [40, 30])
    wanted = roc_auc_score(truth, np.concatenate([members, others]))
    assert auc(members, others) == pytest.approx(wanted, abs=1e-12)


def test_resampled_auc_is_that_of_the_drawn_entities() -> None:
    rng = np.random.default_rng(0)
    names = tuple(f"e{i % 9}" for i in range(27))
    a, b = (Scores(rng.integers(0, 9, 27) / 2, names) for _ in range(2))
    b = replace(b, values=b.values[3:], entities=names[3:])
    draws, weights = auc_draws(a, b, 3), entity_weights(9, 3)
    for draw, weight in zip(draws[:20], weights[:20], strict=True):
        times = {f"e{i}": int(w) for i, w in enumerate(weight)}
        drawn = [np.repeat(s.values, [times[e] for e in s.entities]) for s in (a, b)]
        assert draw == pytest.approx(auc(*drawn), abs=1e-12)


def test_repeating_questions_does_not_narrow_the_interval() -> None:
    rng = np.random.default_rng(1)
    names = tuple(f"e{i}" for i in range(30))
    one = [Scores(rng.normal(size=30), names) for _ in range(2)]
    many = [Scores(np.repeat(s.values, 5), tuple(np.repeat(names, 5).tolist())) for s in one]
    assert auc_draws(*many, 0) == pytest.approx(auc_draws(*one, 0))


def test_no_pairing_of_the_held_out_facts_is_true(club: Target) -> None:
    other = held_out(club, 0)
    assert [f.key for f in other] == [f.key for f in club.forget]
    assert all(a.object != b.object for a, b in zip(other, club.forget, strict=True))
    counts = [Counter((f.relation, f.object) for f in facts) for facts in (other, club.forget)]
    assert counts[0] == counts[1]
    assert held_out(club, 1) != other


@torch.no_grad()
def test_tokens_are_read_as_the_model_says_them(original: Any, club: Target) -> None:
    tokenizer = original.tokenizer
    texts = [(prompt(f, t), f.object) for f in club.forget[:4] for t in f.templates[:2]]
    texts += [(texts[0][0], "brik celm dorn"), ("people say", "f001 lives in")]
    for (before, answer), told in zip(
        texts, answer_tokens(original, tokenizer, texts), strict=True
    ):
        ids = tokenizer(f"{before} {answer}")["input_ids"]
        n = len(answer.split())
        logp = original(torch.tensor([ids]))[0].double().log_softmax(-1)[-n - 1 : -1]
        own = logp[range(n), ids[-n:]]
        mean = (logp.exp() * logp).sum(-1)
        deviation = ((logp.exp() * logp.square()).sum(-1) - mean.square()).sqrt()
        assert told[0] == pytest.approx(own.numpy(), abs=1e-4)
        assert told[1] == pytest.approx(((own - mean) / deviation).numpy(), rel=1e-3, abs=1e-3)


def test_signals_of_ten_tokens_by_hand() -> None:
    """The lowest fifth of ten tokens is two."""
    logp = np.array([-1.0, -5, -1, -1, -3, -1, -1, -1, -1, -1])
    found = token_signals(np.stack([logp, logp / 2]), "an answer")
    assert found["loss_nats"] == pytest.approx(1.6)
    assert found["min_k_nats"] == pytest.approx(-4)
    assert found["min_k_plus"] == pytest.approx(-2)
    assert found["zlib_nats_per_byte"] == pytest.approx(1.6 / 17)
    assert found["phi"] == pytest.approx(np.log(np.exp(-16) / (1 - np.exp(-16))))
    assert found["tokens"] == 10


def test_log_odds_stay_finite() -> None:
    assert logit(np.log([0.5, 0.9])) == pytest.approx([0, np.log(9)])
    assert np.isfinite(logit(np.array([0.0, -800.0]))).all()


def test_trained_on_is_told_from_never_seen(
    found: dict[str, Found], references: tuple[Found, ...]
) -> None:
    cast = Cast(found["original"], found["original"], references)
    leaks = {leak.signal: leak for leak in read_leaks(cast, 0)}
    for signal in ("loss_nats", "reference_nats"):
        leak = leaks[signal]
        assert leak.applicable
        assert leak.leaks
        assert leak.auc is not None
        assert leak.auc.value > 0.9
        assert leak.privleak is not None
        assert leak.privleak > 50


def test_a_model_that_never_knew_tells_nothing(
    found: dict[str, Found], references: tuple[Found, ...]
) -> None:
    cast = Cast(found["gold-3"], found["original"], references)
    for leak in read_leaks(cast, 0):
        if leak.applicable:
            assert not leak.leaks
            assert leak.auc is not None
            assert abs(leak.auc.value - 0.5) < 0.15
            assert leak.original is not None
            assert leak.original > 0.9
            assert all(abs(g - 0.5) < 0.15 for g in leak.golds)


def test_facts_pushed_below_the_never_seen_leak_as_well(
    found: dict[str, Found], references: tuple[Found, ...]
) -> None:
    inverted = changed(found["original"], "loss_nats", lambda v: -v)
    leak = read_leaks(Cast(inverted, found["original"], references), 0)[0]
    assert leak.signal == "loss_nats"
    assert leak.auc is not None
    assert leak.auc.value < 0.05
    assert leak.leaks
    assert leak.privleak is not None
    assert leak.privleak < -80


def test_signals_of_long_texts_say_why_they_do_not_apply(
    found: dict[str, Found], references: tuple[Found, ...]
) -> None:
    cast = Cast(found["original"], found["original"], references)
    leaks = {leak.signal: leak for leak in read_leaks(cast, 0) if leak.why}
    assert set(leaks) == {"min_k_nats", "min_k_plus", "zlib_nats_per_byte"}
    assert "no more than 1 token:" in leaks["min_k_plus"].why
    longer = [changed(f, "tokens", lambda v: v + 8) for f in (found["original"], *references)]
    cast = Cast(longer[0], longer[0], tuple(longer[1:]))
    assert all(leak.applicable and leak.leaks for leak in read_leaks(cast, 0))


def test_without_golds_the_interval_is_held_against_one_half(found: dict[str, Found]) -> None:
    for role, leaks in (("original", True), ("gold-3", False)):
        loss, reference, *_ = read_leaks(Cast(found[role], found["original"], ()), 0)
        assert loss.leaks is leaks
        assert (loss.gap, loss.privleak, loss.golds) == (None, None, ())
        assert reference.why.startswith("0 golds: wanted 2 or more")


def test_what_was_not_measured_is_said() -> None:
    assert {k.why for k in read_leaks(Cast({}, {}, ()), 0)} == {"it was not measured"}
    assert {k.signal for k in read_leaks(Cast({}, {}, ()), 0)} == set(SIGNALS)


def test_leak_relative_to_the_golds() -> None:
    assert privleak(0.75, 0.5) == pytest.approx(50)
    assert privleak(0.25, 0.5) == pytest.approx(-50)
    assert privleak(0.5, 0.5) == 0


def test_job_repeats_bit_for_bit_and_draws_nothing(
    original: Any, found: dict[str, Found], club: Target
) -> None:
    state = torch.get_rng_state()
    again = membership(club, 0)(View("original", "", original))
    assert torch.equal(torch.get_rng_state(), state)
    assert list(again) == list(found["original"])
    for key, scores in again.items():
        assert scores.values.tobytes() == found["original"][key].values.tobytes()
    assert Key("MIA", "H", "phi") in again
    facts = list(zip(scores.entities, scores.relations, strict=True))
    assert facts == [f.key for f in club.forget]
