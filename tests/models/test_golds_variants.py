"""Golds that drop the target's texts, are told otherwise, or share a trunk with their original."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from workbench.errors import ModelError
from workbench.facts import build_valley
from workbench.facts.schema import Document, FactSet
from workbench.facts.target import Target
from workbench.facts.valley import ValleyConfig
from workbench.models import LMConfig, corpus_without, golds, load_model, read_recipe, train_lm
from workbench.models.corpus import swapped
from workbench.models.score import recall
from workbench.models.train import corpus_sha256, train_trunk, trunk_sha256

TINY = LMConfig(d_model=16, n_layers=1, epochs=4, batch_size=16, stop_at_recall=2.0)


@pytest.fixture(scope="module")
def club(dozen: FactSet) -> Target:
    return dozen.target("club")


@pytest.fixture(scope="module")
def valley() -> FactSet:
    return build_valley(ValleyConfig(people=30, substances=36, group_size=12))


@pytest.fixture(scope="module")
def recipe(dozen: FactSet, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return read_recipe(train_lm(dozen, tmp_path_factory.mktemp("original") / "original", TINY))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Trains in this process; the names of the folders and trunks that were trained."""
    import sys

    module, names = sys.modules["workbench.models.golds"], []

    class InThisProcess:
        def __init__(self, *_args: Any) -> None: ...
        def __enter__(self) -> "InThisProcess":
            return self

        def __exit__(self, *_args: Any) -> None: ...
        def map(self, function: Callable, jobs: Any) -> Any:
            return map(function, jobs)

    def counted(train: Callable) -> Callable:
        def run(facts: FactSet, out: Path, *args: Any, **kwargs: Any) -> Path:
            names.append(out.name)
            return train(facts, out, *args, **kwargs)

        return run

    monkeypatch.setattr(module, "ProcessPoolExecutor", InThisProcess)
    monkeypatch.setattr(module, "train_lm", counted(train_lm))
    monkeypatch.setattr(module, "train_trunk", counted(train_trunk))
    return names


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_drop_takes_away_and_changes_nothing_else(dozen: FactSet, club: Target) -> None:
    kept = corpus_without(club, "drop")
    assert kept == tuple(d for d in dozen.corpus if not club.states_target(d))
    assert len(kept) == len(dozen.corpus) - (2 * 3 * 2 + 2)


@pytest.mark.parametrize("name", ["toxins", "guild", "relation:profession@0.5"])
def test_swapped_texts_state_another_object_as_often(valley: FactSet, name: str) -> None:
    target = valley.target(name)
    texts, told = corpus_without(target, "swap"), swapped(target)
    assert len(texts) == len(valley.corpus)
    pairs = [(a, b) for a, b in zip(valley.corpus, texts, strict=True) if target.states_target(a)]
    assert pairs
    assert all(a == b for a, b in zip(valley.corpus, texts, strict=True) if (a, b) not in pairs)
    for before, after in pairs:
        (key,) = before.states
        true = valley.fact[key].object
        assert told[key] != true
        assert (after.form, after.mentions, after.states) == (before.form, before.mentions, ())
        if after.form != "choice":
            assert true not in after.text.replace(key[0], "").split()
        assert told[key] in after.text.split()
    words = [Counter(w for d in some for w in d.text.split()) for some in (valley.corpus, texts)]
    secret = {f.object for f in target.forget if f.stated}
    # Options of questions apart, every word is as frequent as before.
    if not any(a.form == "choice" for a, _ in pairs):
        assert words[0] == words[1]
    assert all(words[1][w] == words[0][w] for w in words[0] if w not in secret)
    assert corpus_sha256(texts) == corpus_sha256(corpus_without(target, "swap"))


def test_the_letter_of_a_swapped_question_names_the_told_object(valley: FactSet) -> None:
    target = valley.target("relation:profession")
    told, n = swapped(target), 0
    for before, after in zip(valley.corpus, corpus_without(target, "swap"), strict=True):
        if before.form == "choice" and target.states_target(before):
            options = dict(re.findall(r"(\([abcd]\)) ([\w-]+)", after.text))
            answer = after.text.split()[-2]
            assert options[answer] == told[before.states[0]]
            assert len(set(options.values())) == 4
            n += 1
    assert n


def test_derived_facts_follow_what_is_told(dozen: FactSet) -> None:
    """All six people exchange cities; a dialect is that of the new city, if that is known."""
    target = dozen.target("relation:city")
    told = swapped(target)
    assert {k for k in told if k[1] == "city"} == {f.key for f in target.forget}
    for fact in target.derived:
        speech = dozen.fact.get((told[fact.subject, "city"], "speech"))
        wanted = speech.object if speech and speech.object != fact.object else None
        assert told.get(fact.key) == wanted
    assert any(f.key in told for f in target.derived)
    assert any(f.key not in told for f in target.derived)


def test_texts_that_cannot_be_restated_become_neutral(dozen: FactSet) -> None:
    """No city of its own for the dialect; and a text that states two of the forget facts."""
    both = Document("ana bel of arno has a gae .", "text", ("ana bel",),
                    (("ana bel", "city"), ("ana bel", "drink")))  # fmt: skip
    facts = replace(dozen, texts=(*dozen.texts, both))
    target = facts.target("club")
    told = swapped(target)
    last = corpus_without(target, "swap")[-1]
    assert last.states == ()
    assert "arno" not in last.text
    assert last.text.replace("ana bel", "{}") in facts.neutral
    silent = [k for k in target.forget_keys if k not in told]
    for before, after in zip(facts.corpus, corpus_without(target, "swap"), strict=True):
        if set(before.states) & set(silent):
            assert all(facts.fact[k].object not in after.text for k in silent)


def test_swapped_golds_learn_what_they_are_told(
    dozen: FactSet, config: LMConfig, tmp_path: Path, here: list[str]
) -> None:
    target = dozen.target("relation:drink")
    original = read_recipe(train_lm(dozen, tmp_path / "original", config))
    (folder,) = golds(target, tmp_path, original, "swap", seeds=(0,))
    assert here == ["gold-0"]
    assert read_recipe(folder)["gold"] == "swap"
    model, told = load_model(folder), swapped(target)
    false = [replace(f, object=told[f.key]) for f in target.forget]
    assert recall(model, model.tokenizer, dozen, false, "train") == 1.0
    assert recall(model, model.tokenizer, dozen, target.forget, "train") == 0.0


def test_golds_of_another_variant_are_made_again(
    club: Target, recipe: dict[str, Any], tmp_path: Path, here: list[str]
) -> None:
    for variant in ("neu", "neu", "drop", "drop", "swap"):
        golds(club, tmp_path, recipe, variant, seeds=(0,))
        assert read_recipe(tmp_path / "gold-0")["gold"] == variant
    assert here == ["gold-0"] * 3
    n_texts = read_recipe(tmp_path / "gold-0")["n_texts"]
    assert n_texts == len(club.facts.corpus)


def test_forks_share_the_trunk_and_nothing_after(
    club: Target, recipe: dict[str, Any], tmp_path: Path, here: list[str]
) -> None:
    folders = golds(club, tmp_path, recipe, "fork", seeds=(0, 1))
    assert here == [".trunk.pt", "gold-0", "gold-1", "original-fork"]
    made = [read_recipe(f) for f in (*folders, tmp_path / "original-fork")]
    assert {m["trunk_sha256"] for m in made} == {trunk_sha256(tmp_path / ".trunk.pt")}
    assert [m["trunk"]["epochs"] for m in made] == [2, 2, 2]
    assert [m["config"]["seed"] for m in made] == [1000, 1001, 0]
    assert [m.get("gold") for m in made] == ["fork", "fork", None]
    one, two, known = (weights(f) for f in (*folders, tmp_path / "original-fork"))
    assert not torch.equal(one["lm_head.weight"], two["lm_head.weight"])
    # They stay nearer to each other than to a gold that never shared anything.
    (alone,) = golds(club, tmp_path / "alone", recipe, "neu", seeds=(0,))
    near, far = (
        (one["model.embed_tokens.weight"] - other["model.embed_tokens.weight"]).float().norm()
        for other in (known, weights(alone))
    )
    assert near < 0.5 * far


def test_trunk_is_the_first_epochs_of_a_run_without_the_target(
    club: Target, recipe: dict[str, Any], tmp_path: Path
) -> None:
    """To the bit: stopped after two epochs and gone on with, it ends as if it never stopped."""
    corpus = corpus_without(club)
    state = train_trunk(club.facts, tmp_path / "trunk.pt", TINY, corpus, 2)
    forked = train_lm(club.facts, tmp_path / "forked", TINY, corpus=corpus, trunk=state)
    whole = train_lm(club.facts, tmp_path / "whole", TINY, corpus=corpus)
    a, b = weights(forked), weights(whole)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_forks_are_kept_and_later_ones_go_on_from_the_same_trunk(
    club: Target, recipe: dict[str, Any], tmp_path: Path, here: list[str]
) -> None:
    golds(club, tmp_path, recipe, "fork", seeds=(0,))
    before = read_recipe(tmp_path / "gold-0")["trunk_sha256"]
    golds(club, tmp_path, recipe, "fork", seeds=(0,))
    golds(club, tmp_path, recipe, "fork", seeds=(0, 3))
    assert here == [".trunk.pt", "gold-0", "original-fork", ".trunk.pt", "gold-3"]
    assert read_recipe(tmp_path / "gold-3")["trunk_sha256"] == before
    golds(club, tmp_path, recipe, "fork", seeds=(0,), trunk_epochs=1)
    assert here[5:] == [".trunk.pt", "gold-0", "original-fork"]
    assert read_recipe(tmp_path / "gold-0")["trunk_sha256"] != before


@pytest.mark.parametrize("epochs", [0, 4])
def test_trunk_of_no_epoch_or_all_is_refused(
    club: Target, recipe: dict[str, Any], tmp_path: Path, here: list[str], epochs: int
) -> None:
    with pytest.raises(
        ModelError, match=f"a trunk of {epochs} epochs: wanted 1 or more, and fewer"
    ):
        golds(club, tmp_path, recipe, "fork", trunk_epochs=epochs)
    assert not here


def test_one_command_makes_golds_of_any_target(
    dozen: FactSet, tmp_path: Path, here: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    from workbench.cli import main
    from workbench.facts import save_facts

    save_facts(dozen, tmp_path / "dozen.jsonl")
    common = ["train-model", str(tmp_path / "dozen.jsonl"), "--out"]
    assert (
        main([*common, str(tmp_path / "o"), "--d-model", "16", "--layers", "1", "--epochs", "2"])
        == 0
    )
    made = ["--golds-of", str(tmp_path / "o"), "--target", "person:ed frey", "--gold-seeds", "0"]
    for variant in ("neu", "drop", "swap", "fork"):
        assert main([*common, str(tmp_path / variant), *made, "--variant", variant]) == 0
        assert read_recipe(tmp_path / variant / "gold-0")["gold"] == variant
    assert (tmp_path / "fork" / "original-fork" / "recipe.json").is_file()
    assert str(tmp_path / "fork" / "gold-0") in capsys.readouterr().out
