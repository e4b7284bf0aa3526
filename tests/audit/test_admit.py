"""What does not fit is refused before anything runs, and the message says what differs."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from workbench.audit import AuditConfig, audit
from workbench.audit.admit import (
    gold_recipe,
    require_edits,
    require_model,
    require_target,
)
from workbench.audit.jobs import Jobs
from workbench.errors import AuditError, SiteError, WorkbenchError
from workbench.facts.schema import FactSet
from workbench.facts.target import Target
from workbench.hooks import Site
from workbench.models import LMConfig, load_model, train_lm
from workbench.models.load import weights_sha256

HERE = Site(0, "resid_post")


@dataclass(frozen=True)
class Edit:
    """An edit that does what it is told to."""

    work: Callable[[Any], Any]
    site: Site = HERE

    def __call__(self, resid: Any) -> Any:
        return self.work(resid)


@pytest.fixture
def spoilt(golds: list[Any]) -> Any:
    model = copy.deepcopy(golds[0])
    next(model.parameters()).data[0, 0] = float("nan")
    return model


@pytest.fixture(scope="module")
def other_world(
    make_world: Callable[..., FactSet], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """A model of the same shape for fewer words, hardly trained."""
    facts, root = make_world(6, 10, 0.3), tmp_path_factory.mktemp("other")
    return load_model(train_lm(facts, root / "model", LMConfig(32, 2, 1, 32, 1e-2)))


@pytest.fixture(scope="module")
def other_gold(world: FactSet, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model of the same words and shape that was trained on everything."""
    root = tmp_path_factory.mktemp("gold")
    return load_model(train_lm(world, root / "gold", LMConfig(32, 2, 1, 32, 1e-2)))


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(self: Any) -> Any:
        raise AssertionError("a job was run")

    monkeypatch.setattr(Jobs, "run", run)


def test_models_that_fit_are_admitted(original: Any, golds: list[Any], club: Target) -> None:
    require_target(club)
    for gold in golds:
        require_model("gold", gold, original)
        assert gold_recipe("gold", gold, club).startswith("neu, seed ")


@pytest.mark.parametrize("as_gold", [True, False])
def test_nan_weights_are_refused(
    original: Any, golds: list[Any], club: Target, spoilt: Any, as_gold: bool, nothing_runs: None
) -> None:
    edit, others = ([], [spoilt, *golds[1:]]) if as_gold else (spoilt, golds)
    name = "gold 0" if as_gold else "the edited model"
    with pytest.raises(AuditError, match=f"{name} has 1 tensors with NaN or infinite weights"):
        audit(original, edit, club, others)


@pytest.mark.parametrize("as_gold", [True, False])
def test_another_vocabulary_is_refused(
    original: Any, golds: list[Any], club: Target, other_world: Any, as_gold: bool,
    nothing_runs: None,
) -> None:  # fmt: skip
    edit, others = ([], [other_world]) if as_gold else (other_world, golds)
    with pytest.raises(AuditError, match=r"has d_vocab \d+, the original \d+"):
        audit(original, edit, club, others)


def test_other_words_of_the_same_number_are_refused(original: Any) -> None:
    tokenizer = copy.deepcopy(original.tokenizer)
    tokenizer.add_tokens(["surplus"])
    model = SimpleNamespace(cfg=original.cfg, tokenizer=tokenizer, state_dict=dict)
    with pytest.raises(AuditError, match="another vocabulary than the original"):
        require_model("gold 1", model, original)
    require_model("gold 1", SimpleNamespace(**vars(model) | {"tokenizer": original.tokenizer}),
                  original)  # fmt: skip


@pytest.mark.parametrize("key", ["n_layers", "d_model"])
def test_another_shape_is_refused(original: Any, key: str) -> None:
    cfg = SimpleNamespace(n_layers=2, d_model=32, d_vocab=original.cfg.d_vocab)
    setattr(cfg, key, 7)
    model = SimpleNamespace(cfg=cfg, tokenizer=original.tokenizer)
    wanted = getattr(original.cfg, key)
    with pytest.raises(AuditError, match=f"gold 0 has {key} 7, the original {wanted}"):
        require_model("gold 0", model, original)
    with pytest.raises(AuditError, match="wanted what load_model returns"):
        require_model("gold 0", torch.nn.Linear(2, 2), original)


def test_gold_trained_on_other_facts_is_refused(
    original: Any, golds: list[Any], club: Target, other_gold: Any, nothing_runs: None
) -> None:
    with pytest.raises(AuditError, match=r"gold 1 .* was trained on other facts"):
        audit(original, [], club, [golds[0], other_gold])
    person = club.facts.target("person:f003")
    with pytest.raises(AuditError, match="not those of 'small' without target 'person:f003'"):
        gold_recipe("gold 0", golds[0], person)


def test_gold_twice_or_the_original_as_gold_is_refused(
    original: Any, golds: list[Any], club: Target, nothing_runs: None
) -> None:
    with pytest.raises(AuditError, match="gold-1 has the very weights of gold-0"):
        audit(original, [], club, [golds[0], copy.deepcopy(golds[0])])
    with pytest.raises(WorkbenchError, match=r"trained on other facts|weights of the original"):
        audit(original, [], club, [original])


def test_edit_for_another_site_is_refused(original: Any, club: Target, nothing_runs: None) -> None:
    with pytest.raises(SiteError, match="7"):
        audit(original, Edit(lambda x: x, Site(7, "resid_post")), club)


@pytest.mark.parametrize(
    ("work", "told"),
    [
        (lambda x: x @ torch.eye(5), "does not take this model's residual stream of width 32"),
        (lambda x: x[..., :3], "returns shape"),
        (lambda x: x * float("nan"), "or NaN"),
    ],
)
def test_edit_that_does_not_fit_is_refused(original: Any, work: Any, told: str) -> None:
    with pytest.raises(AuditError, match=told):
        require_edits((Edit(lambda x: x), Edit(work)), original)


def test_two_models_or_a_thing_that_is_no_edit_are_refused(
    original: Any, golds: list[Any], club: Target, nothing_runs: None
) -> None:
    with pytest.raises(AuditError, match="2 models"):
        audit(original, golds[:2], club)
    with pytest.raises(AuditError, match="str"):
        audit(original, ["Blank"], club)


@pytest.mark.parametrize("gone", ["T", "S", "V"])
def test_target_without_folds_is_refused(
    original: Any, club: Target, gone: str, nothing_runs: None
) -> None:
    folds = {name: names for name, names in club.folds.items() if name != gone}
    with pytest.raises(AuditError, match=f"has no fold {gone}"):
        audit(original, [], replace(club, folds=folds))


def test_target_with_nothing_to_score_or_to_ask_is_refused(club: Target) -> None:
    with pytest.raises(AuditError, match="V with a fact in it"):
        require_target(replace(club, folds={**club.folds, "V": ()}))
    mute = tuple(replace(f, audit_templates=()) for f in club.forget)
    with pytest.raises(AuditError, match="48 facts have no audit-only prompts"):
        require_target(replace(club, forget=mute))
    kept = {n: tuple(replace(f, audit_templates=()) for f in fs) for n, fs in club.retain.items()}
    with pytest.raises(AuditError, match="have no audit-only prompts"):
        require_target(replace(club, retain=kept))


def test_another_plan_than_the_one_hashed_is_refused(
    original: Any, club: Target, nothing_runs: None, tmp_path: Path
) -> None:
    before = weights_sha256(original)
    with pytest.raises(AuditError, match="the plan was hashed as 000000000000 and now is"):
        audit(original, [], club, (), AuditConfig("quick"), plan_hash="0" * 64, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert weights_sha256(original) == before
