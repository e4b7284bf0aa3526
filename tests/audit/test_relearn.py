"""Relearning attacks a copy, learns from what it may see alone, and repeats under a seed."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from workbench.audit.questions import centred_scores, put
from workbench.audit.relearn import RelearnConfig, relearn
from workbench.audit.statistics import Key, Scores
from workbench.facts.schema import statement
from workbench.facts.target import Target
from workbench.hooks import Site
from workbench.models import weights_sha256

MODULE = import_module("workbench.audit.relearn")
CONFIG = RelearnConfig(lr=1e-3, steps=(0, 1, 3, 6), batch_size=16)
AREA = Key("relearn_area", "V", "centred")


def step(subset: str, x: float) -> Key:
    return Key("relearn", subset, "centred", x)


def values(found: dict[Key, Scores]) -> dict[Key, list[float]]:
    return {key: scores.values.tolist() for key, scores in found.items()}


@pytest.fixture(scope="module")
def found(another_gold: Any, club: Target) -> dict[Key, Scores]:
    return relearn(another_gold, [], club, CONFIG)


@pytest.fixture
def attacked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Hashes of the attacked weights each time they are scored, twice a step."""
    hashes: list[str] = []

    def recorded(model: Any, *args: Any) -> Any:
        hashes.append(weights_sha256(model))
        return put(model, *args)

    monkeypatch.setattr(MODULE, "put", recorded)
    return hashes


def test_callers_model_is_not_changed(original: Any, club: Target, attacked: list[str]) -> None:
    before = weights_sha256(original)
    gradients = [p.requires_grad for p in original.parameters()]
    relearn(original, [], club, CONFIG)
    assert weights_sha256(original) == before
    assert [p.requires_grad for p in original.parameters()] == gradients
    assert all(p.grad is None for p in original.parameters())
    assert not original.training
    assert attacked[:2] == [before] * 2
    assert len(set(attacked)) == len(CONFIG.steps)


def test_no_label_of_a_scored_fact_reaches_the_attack(
    another_gold: Any,
    club: Target,
    found: dict[Key, Scores],
    moved: Callable[[Target, str], Target],
    attacked: list[str],
) -> None:
    relearn(another_gold, [], club, CONFIG)
    before = attacked.copy()
    attacked.clear()
    other = relearn(another_gold, [], moved(club, "SV"), CONFIG)
    assert attacked == before
    for x in CONFIG.steps:
        assert other[step("R_te", x)].values.tolist() == found[step("R_te", x)].values.tolist()
    attacked.clear()
    relearn(another_gold, [], moved(club, "T"), CONFIG)
    assert attacked[:2] == before[:2]
    assert set(attacked[2:]).isdisjoint(before[2:])


def test_same_seed_repeats_and_another_does_not(
    another_gold: Any, club: Target, attacked: list[str]
) -> None:
    first = relearn(another_gold, [], club, CONFIG)
    before = attacked.copy()
    attacked.clear()
    torch.manual_seed(1)
    assert values(relearn(another_gold, [], club, CONFIG)) == values(first)
    assert attacked == before
    attacked.clear()
    relearn(another_gold, [], club, RelearnConfig(1e-3, (0, 1, 3, 6), 16, seed=1))
    assert set(attacked[2:]).isdisjoint(before[2:])


def test_step_zero_is_asking(another_gold: Any, club: Target, found: dict[Key, Scores]) -> None:
    for subset, facts in (("V", club.fold("V")), ("R_te", club.retain["R_te"])):
        asked = centred_scores(put(another_gold, [], club.facts, facts, "audit"))
        assert found[step(subset, 0)].values.tolist() == asked.values.tolist()
        assert found[step(subset, 0)].entities == asked.entities


def test_area_is_the_trapezoid_over_doublings(found: dict[Key, Scores]) -> None:
    curve = [found[step("V", x)].values for x in CONFIG.steps]
    x = np.log2([1, 2, 4, 7])
    manual = sum((x[i + 1] - x[i]) * (curve[i] + curve[i + 1]) / 2 for i in range(3)) / x[-1]
    np.testing.assert_allclose(found[AREA].values, manual)
    assert found[AREA].entities == found[step("V", 0)].entities


def test_area_is_one_for_what_is_known_throughout_and_zero_for_the_rest(
    original: Any, another_gold: Any, club: Target
) -> None:
    """A learning rate of 0 keeps every curve where it starts."""
    for model in (original, another_gold):
        scores = relearn(model, [], club, RelearnConfig(0.0, (0, 1, 2, 5), 4))
        hits = scores[step("V", 0)].values
        assert 1.0 in hits
        np.testing.assert_allclose(scores[AREA].values, hits)


def test_attack_teaches_what_it_states(another_gold: Any, club: Target) -> None:
    """A positive control: where the scored facts are those that are stated, the curve rises."""
    taught = replace(club, folds={"T": club.folds["T"], "S": (), "V": club.folds["T"]})
    scores = relearn(another_gold, [], taught, RelearnConfig(1e-2, (0, 80), 64, replay=0.0))
    assert scores[step("V", 0)].mean < 0.3
    assert scores[step("V", 80)].mean > 0.8


@pytest.mark.parametrize(("replay", "n_retain"), [(0.5, 8), (0.25, 4), (0.0, 0)])
def test_batches_state_t_and_replayed_facts_alone(
    original: Any, club: Target, monkeypatch: pytest.MonkeyPatch, replay: float, n_retain: int
) -> None:
    texts: list[list[str]] = []
    loss = MODULE.lm_loss

    def recorded(logits: Tensor, tokens: Tensor, pad: int) -> Tensor:
        texts.append(original.tokenizer.batch_decode(tokens, skip_special_tokens=True))
        return loss(logits, tokens, pad)

    monkeypatch.setattr(MODULE, "lm_loss", recorded)
    relearn(original, [], club, RelearnConfig(1e-3, (0, 4), 16, replay))
    stated, replayed = (
        {statement(f, t) for f in facts for t in f.templates}
        for facts in (club.fold("T"), club.retain["R_tr"])
    )
    assert len(texts) == 4
    for batch in texts:
        assert len(batch) == 16
        assert sum(text in replayed for text in batch) == n_retain
        assert sum(text in stated for text in batch) == 16 - n_retain


@dataclass(frozen=True)
class Watching:
    """Changes nothing and notes whether a gradient could flow."""

    site: Site
    graph: list[bool] = field(default_factory=list)

    def __call__(self, resid: Tensor) -> Tensor:
        self.graph.append(resid.requires_grad)
        return resid


def test_edits_stay_attached_while_the_attack_trains(original: Any, club: Target) -> None:
    edit = Watching(Site(1))
    relearn(original, [edit], club, CONFIG)
    assert edit.graph.count(True) == max(CONFIG.steps)
    assert edit.graph.count(False) >= 2 * len(CONFIG.steps)


def test_edit_is_seen_at_step_zero(original: Any, blank: Any, club: Target) -> None:
    config = RelearnConfig(steps=(0, 1), batch_size=4)
    plain, hidden = (relearn(original, edits, club, config) for edits in ([], [blank]))
    assert hidden[step("V", 0)].mean < 0.4 < 0.7 < plain[step("V", 0)].mean
    assert hidden[step("R_te", 0)].values.tolist() == plain[step("R_te", 0)].values.tolist()


def test_progress_counts_the_steps(original: Any, club: Target) -> None:
    seen: list[int] = []
    relearn(original, [], club, RelearnConfig(steps=(0, 3), batch_size=4), seen.append)
    assert seen == [0, 1, 2, 3]
