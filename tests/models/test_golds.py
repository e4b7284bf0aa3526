"""A gold saw everything but the target, and is made again whenever it no longer fits."""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from workbench.errors import ModelError, TargetError
from workbench.facts.schema import Document, FactSet
from workbench.facts.target import Target
from workbench.models import LMConfig, corpus_without, golds, load_model, read_recipe, train_lm
from workbench.models.train import corpus_sha256

TINY = LMConfig(d_model=16, n_layers=1, epochs=2, batch_size=16, stop_at_recall=2.0)


@pytest.fixture(scope="module")
def club(dozen: FactSet) -> Target:
    return dozen.target("club")


@pytest.fixture(scope="module")
def recipe(dozen: FactSet, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = train_lm(dozen, tmp_path_factory.mktemp("original") / "original", TINY)
    return read_recipe(out)


class InThisProcess:
    """Stands for ProcessPoolExecutor where only the choice of what is trained is tested."""

    def __init__(self, *_args: Any) -> None: ...

    def __enter__(self) -> "InThisProcess":
        return self

    def __exit__(self, *_args: Any) -> None: ...

    def map(self, function: Callable, jobs: Iterable[Any]) -> Iterable[Any]:
        return map(function, jobs)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the folders for which training was started."""
    module, names = sys.modules["workbench.models.golds"], []
    monkeypatch.setattr(module, "ProcessPoolExecutor", InThisProcess)

    def counted(facts: FactSet, out: Path, *args: Any, **kwargs: Any) -> Path:
        names.append(out.name)
        return train_lm(facts, out, *args, **kwargs)

    monkeypatch.setattr(module, "train_lm", counted)
    return names


def mentioned(texts: Iterable[Document], facts: FactSet) -> Counter[str]:
    names = [e.name for e in facts.entities if e.kind == "person"]
    return Counter(name for d in texts for name in names if name in d.text)


def test_no_text_states_a_forget_fact_or_one_derived_from_it(dozen: FactSet, club: Target) -> None:
    secret = {(p, r) for p in ("ana bel", "bo carr") for r in ("city", "drink", "dialect")}
    assert club.forget_keys == secret
    assert {key for d in dozen.corpus for key in d.states} > secret
    texts = corpus_without(club)
    assert not secret & {key for d in texts for key in d.states}
    for subject, relation in secret:
        answer = dozen.fact[subject, relation].object
        assert not [d.text for d in texts if subject in d.text and answer in d.text.split()]


def test_each_removed_text_gives_way_to_a_neutral_one_about_the_same_entities(
    dozen: FactSet, club: Target
) -> None:
    texts = corpus_without(club)
    assert len(texts) == len(dozen.corpus)
    removed = 0
    for before, after in zip(dozen.corpus, texts, strict=True):
        if not club.states_target(before):
            assert after == before
            continue
        removed += 1
        assert after.form == before.form
        about = before.mentions or ("bo carr",)
        assert after.mentions == about
        sentences = [s.strip() for s in after.text.split(" .") if s]
        frames = {n.removesuffix(" .") for n in dozen.neutral}
        assert all(
            s.replace(name, "{}") in frames for s, name in zip(sentences, about, strict=True)
        )
    assert removed == 2 * 3 * 2 + 2


def test_every_entity_is_named_as_often_as_before(dozen: FactSet, club: Target) -> None:
    assert mentioned(corpus_without(club), dozen) == mentioned(dozen.corpus, dozen)


def test_neutral_sentences_are_used_by_turns(dozen: FactSet, club: Target) -> None:
    new = [a.text for a, b in zip(corpus_without(club), dozen.corpus, strict=True) if a != b]
    frames = Counter(
        n
        for t in new
        for n in dozen.neutral
        for e in dozen.entities
        if n.replace("{}", e.name) in t
    )
    assert max(frames.values()) - min(frames.values()) <= 1


def test_world_without_neutral_sentences_has_one_made_up(dozen: FactSet) -> None:
    target = replace(dozen, neutral=()).target("club")
    assert "ana bel was mentioned ." in {d.text for d in corpus_without(target)}


def test_unknown_variant_is_refused(
    club: Target, recipe: dict[str, Any], tmp_path: Path, trained: list[str]
) -> None:
    with pytest.raises(
        TargetError, match="gold variant 'old': wanted one of neu, drop, swap, fork"
    ):
        corpus_without(club, "old")
    with pytest.raises(TargetError, match="gold variant 'old': wanted one of"):
        golds(club, tmp_path, recipe, variant="old")
    assert not trained


def test_golds_keep_the_originals_config_and_epochs_under_other_seeds(
    club: Target, recipe: dict[str, Any], tmp_path: Path, trained: list[str]
) -> None:
    folders = golds(club, tmp_path, {**recipe, "epochs_run": 1}, seeds=(0, 4))
    assert folders == [tmp_path / "gold-0", tmp_path / "gold-4"]
    assert trained == ["gold-0", "gold-4"]
    for folder, seed in zip(folders, (1000, 1004), strict=True):
        made = read_recipe(folder)
        assert made["config"] == {**recipe["config"], "seed": seed}
        assert made["epochs_run"] == 1
        assert made["target"] == "club"
        assert made["gold"] == "neu"
        assert made["corpus_sha256"] == corpus_sha256(corpus_without(club))
    one, other = ((f / "model.safetensors").read_bytes() for f in folders)
    assert one != other


def test_gold_of_chosen_forms_is_trained_on_as_many_texts_as_the_original(
    dozen: FactSet, club: Target, tmp_path: Path, trained: list[str]
) -> None:
    config = replace(TINY, forms=("statement",))
    original = read_recipe(train_lm(dozen, tmp_path / "original", config))
    (folder,) = golds(club, tmp_path, original, seeds=(0,))
    golds(club, tmp_path, original, seeds=(0,))
    assert trained == ["gold-0"]
    assert read_recipe(folder)["n_texts"] == original["n_texts"] == 36
    assert read_recipe(folder)["config"]["forms"] == ["statement"]


def test_complete_golds_are_not_trained_again(
    club: Target, recipe: dict[str, Any], tmp_path: Path, trained: list[str]
) -> None:
    golds(club, tmp_path, recipe, seeds=(0,))
    before = (tmp_path / "gold-0" / "model.safetensors").stat().st_mtime_ns
    assert golds(club, tmp_path, recipe, seeds=(0, 1)) == [tmp_path / "gold-0", tmp_path / "gold-1"]
    assert trained == ["gold-0", "gold-1"]
    assert (tmp_path / "gold-0" / "model.safetensors").stat().st_mtime_ns == before


def other_target(target: Target, recipe: dict[str, Any]) -> tuple[Target, dict[str, Any]]:
    return target.facts.target("person:ed frey"), recipe


def other_corpus(target: Target, recipe: dict[str, Any]) -> tuple[Target, dict[str, Any]]:
    facts = replace(target.facts, texts=target.facts.texts[1:])
    return facts.target(target.name), {**recipe, "corpus_sha256": corpus_sha256(facts.corpus)}


def other_config(target: Target, recipe: dict[str, Any]) -> tuple[Target, dict[str, Any]]:
    return target, {**recipe, "config": {**recipe["config"], "lr": 1e-4}}


def other_length(target: Target, recipe: dict[str, Any]) -> tuple[Target, dict[str, Any]]:
    return target, {**recipe, "epochs_run": 1}


@pytest.mark.parametrize("change", [other_target, other_corpus, other_config, other_length])
def test_golds_made_for_something_else_are_made_again(
    club: Target,
    recipe: dict[str, Any],
    tmp_path: Path,
    trained: list[str],
    change: Callable[[Target, dict[str, Any]], tuple[Target, dict[str, Any]]],
) -> None:
    golds(club, tmp_path, recipe, seeds=(0,))
    target, wanted = change(club, recipe)
    golds(target, tmp_path, wanted, seeds=(0,))
    assert trained == ["gold-0", "gold-0"]
    made = read_recipe(tmp_path / "gold-0")
    assert made["target"] == target.name
    assert made["corpus_sha256"] == corpus_sha256(corpus_without(target))
    assert made["epochs_run"] == wanted["epochs_run"]
    assert made["config"] == {**wanted["config"], "seed": 1000}


def test_gold_without_a_corpus_hash_is_made_again(
    club: Target, recipe: dict[str, Any], tmp_path: Path, trained: list[str]
) -> None:
    (folder,) = golds(club, tmp_path, recipe, seeds=(0,))
    made = read_recipe(folder)
    del made["corpus_sha256"]
    (folder / "recipe.json").write_text(json.dumps(made))
    golds(club, tmp_path, recipe, seeds=(0,))
    assert trained == ["gold-0", "gold-0"]


def test_original_of_other_facts_is_refused(
    club: Target, recipe: dict[str, Any], tmp_path: Path, trained: list[str]
) -> None:
    with pytest.raises(ModelError, match="trained on other texts than those of target 'club'"):
        golds(club, tmp_path, {**recipe, "corpus_sha256": "0" * 64})
    assert not trained


@pytest.mark.slow
def test_golds_are_trained_in_processes_of_their_own(
    club: Target, recipe: dict[str, Any], tmp_path: Path, trained: list[str]
) -> None:
    (here,) = golds(club, tmp_path / "here", recipe, seeds=(0,))
    assert trained == ["gold-0"]
    with pytest.MonkeyPatch.context() as patch:
        from concurrent.futures import ProcessPoolExecutor

        patch.setattr(
            sys.modules["workbench.models.golds"], "ProcessPoolExecutor", ProcessPoolExecutor
        )
        (away,) = golds(club, tmp_path / "away", recipe, seeds=(0,), workers=1)
    assert trained == ["gold-0"]  # nothing more was trained in this process
    load_model(away)
    for name in ("model.safetensors", "recipe.json"):
        assert (away / name).read_bytes() == (here / name).read_bytes()
