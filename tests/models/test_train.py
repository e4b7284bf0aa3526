"""Training repeats bit for bit, also when it is interrupted, and says what it did."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch.nn import functional

from workbench.errors import ModelError
from workbench.facts.schema import Document, FactSet
from workbench.models import LMConfig, load_model, read_recipe, recall, train_lm
from workbench.models.train import corpus_sha256, epoch_batches, lm_loss, pad_rows

SHORT = LMConfig(d_model=32, n_layers=2, epochs=4, batch_size=8, lr=1e-2, stop_at_recall=2.0)
"""Four epochs of seven steps each."""


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def epochs_run(folder: Path) -> int:
    return read_recipe(folder)["epochs_run"]


def interrupt_at(monkeypatch: pytest.MonkeyPatch, name: str, call: int) -> list[int]:
    """Presses Ctrl-C in one call of a function that training uses; the list grows with each."""
    original: Callable[..., Any] = getattr(sys.modules["workbench.models.train"], name)
    calls: list[int] = []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(calls))
        if len(calls) == call:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(f"workbench.models.train.{name}", interrupted)
    return calls


@pytest.fixture(scope="module")
def short(dozen: FactSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_lm(dozen, tmp_path_factory.mktemp("short") / "whole", SHORT)


def test_model_learns_its_facts(dozen: FactSet, folder: Path, bridge: Any) -> None:
    start = train_lm(dozen, folder.with_name("untrained"), SHORT, stop_epoch=0)
    assert read_recipe(start)["recall_train_templates"] < 0.4
    assert read_recipe(folder)["recall_train_templates"] == 1.0
    assert recall(bridge, bridge.tokenizer, dozen, dozen.facts, "train") == 1.0


def test_same_arguments_give_the_same_weights(dozen: FactSet, short: Path, tmp_path: Path) -> None:
    torch.manual_seed(77)
    assert weights(train_lm(dozen, tmp_path / "again", SHORT)) == weights(short)


def test_another_seed_gives_other_weights(dozen: FactSet, short: Path, tmp_path: Path) -> None:
    other = train_lm(dozen, tmp_path / "other", replace(SHORT, seed=1))
    assert weights(other) != weights(short)
    assert (other / "tokenizer.json").read_bytes() == (short / "tokenizer.json").read_bytes()


def test_every_epoch_has_an_order_of_its_own(
    dozen: FactSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[list[int]]] = []

    def recorded(*args: Any) -> Any:
        batches = epoch_batches(*args)
        seen.append([row for batch in batches for row in batch.tolist()])
        return batches

    monkeypatch.setattr("workbench.models.train.epoch_batches", recorded)
    train_lm(dozen, tmp_path / "a", SHORT, stop_epoch=3)
    train_lm(dozen, tmp_path / "b", replace(SHORT, seed=1), stop_epoch=3)
    assert len(seen) == 6
    assert all(one != other for i, one in enumerate(seen) for other in seen[:i])


def test_forms_choose_the_texts(dozen: FactSet, tmp_path: Path) -> None:
    config = replace(SHORT, forms=("statement",))
    chosen = train_lm(dozen, tmp_path / "chosen", config, stop_epoch=1)
    assert read_recipe(chosen)["n_texts"] == sum(d.form == "statement" for d in dozen.corpus) == 36
    texts = [d for d in dozen.corpus if d.form == "statement"]
    given = train_lm(dozen, tmp_path / "given", SHORT, corpus=texts, stop_epoch=1)
    assert weights(chosen) == weights(given)


@pytest.mark.parametrize("stop_at_recall", [0.0, 2.0], ids=["learned_at_once", "never_learned"])
def test_stop_epoch_is_kept_whatever_the_recall(
    dozen: FactSet, tmp_path: Path, stop_at_recall: float
) -> None:
    config = replace(SHORT, stop_at_recall=stop_at_recall)
    assert epochs_run(train_lm(dozen, tmp_path / "m", config, stop_epoch=3)) == 3


def test_stop_epoch_keeps_the_schedule(dozen: FactSet, short: Path, tmp_path: Path) -> None:
    """The first epochs of the whole run, not a run of its own with a faster decay."""
    partly = train_lm(dozen, tmp_path / "partly", SHORT, stop_epoch=4)
    assert weights(partly) == weights(short)
    two_of_four = train_lm(dozen, tmp_path / "a", SHORT, stop_epoch=2)
    two_of_two = train_lm(dozen, tmp_path / "b", replace(SHORT, epochs=2))
    assert weights(two_of_four) != weights(two_of_two)


def test_training_ends_early_once_recall_is_reached(
    dozen: FactSet, config: LMConfig, folder: Path, tmp_path: Path
) -> None:
    assert 2 < epochs_run(folder) < config.epochs
    assert epochs_run(train_lm(dozen, tmp_path / "m", replace(SHORT, stop_at_recall=0.0))) == 2
    assert epochs_run(train_lm(dozen, tmp_path / "n", SHORT)) == SHORT.epochs


@pytest.mark.parametrize(
    ("name", "call", "epochs_left"),
    [
        pytest.param("lm_loss", 18, 2, id="within_the_third_epoch"),
        pytest.param("lm_loss", 3, 4, id="within_the_first_epoch"),
        pytest.param("new_folder", 1, 0, id="before_saving"),
    ],
)
def test_interrupted_run_goes_on_from_its_last_whole_epoch(
    dozen: FactSet,
    short: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    call: int,
    epochs_left: int,
) -> None:
    out = tmp_path / "model"
    with monkeypatch.context() as patch:
        interrupt_at(patch, name, call)
        with pytest.raises(KeyboardInterrupt):
            train_lm(dozen, out, SHORT)
    assert not out.exists()
    with pytest.raises(ModelError, match="no model"):
        load_model(out)
    steps = interrupt_at(monkeypatch, "lm_loss", 0)
    train_lm(dozen, out, SHORT)
    assert len(steps) == epochs_left * 7
    assert weights(out) == weights(short)
    assert (out / "recipe.json").read_bytes() == (short / "recipe.json").read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_run_interrupted_when_it_had_learned_enough_trains_no_further(
    dozen: FactSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(SHORT, stop_at_recall=0.0)
    whole, out = train_lm(dozen, tmp_path / "whole", config), tmp_path / "model"
    with monkeypatch.context() as patch:
        interrupt_at(patch, "recall", 1)
        with pytest.raises(KeyboardInterrupt):
            train_lm(dozen, out, config)
    train_lm(dozen, out, config)
    assert epochs_run(out) == epochs_run(whole) == 2
    assert weights(out) == weights(whole)


def other_object(facts: FactSet) -> FactSet:
    """The same words, one fact changed."""
    first, second, *rest = facts.facts
    assert first.relation == second.relation
    swapped = (replace(first, object=second.object), replace(second, object=first.object))
    return replace(facts, facts=(*swapped, *rest))


def asked_with(facts: FactSet, word: str) -> FactSet:
    """The same texts, one more word in what is asked after training."""
    first, *rest = facts.facts
    return replace(facts, facts=(replace(first, audit_templates=(f"{{}} {word}",)), *rest))


def test_checkpoint_of_another_vocabulary_is_not_used(
    dozen: FactSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same size, so that its weights would fit; but most words have another number."""
    first, last = asked_with(dozen, "aaa"), asked_with(dozen, "zzz")
    with monkeypatch.context() as patch:
        interrupt_at(patch, "lm_loss", 7 * 2 + 1)
        with pytest.raises(KeyboardInterrupt):
            train_lm(first, tmp_path / "model", SHORT)
    found = train_lm(last, tmp_path / "model", SHORT)
    assert weights(found) == weights(train_lm(last, tmp_path / "fresh", SHORT))


@pytest.mark.parametrize("changed", ["facts", "config", "corpus", "stop_epoch"])
def test_checkpoint_of_another_run_is_not_used(
    dozen: FactSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    def train(out: Path, what: str) -> Path:
        return train_lm(
            other_object(dozen) if what == "facts" else dozen,
            out,
            replace(SHORT, lr=5e-3) if what == "config" else SHORT,
            corpus=dozen.corpus[::-1] if what == "corpus" else None,
            stop_epoch=1 if what == "stop_epoch" else None,
        )

    with monkeypatch.context() as patch:
        interrupt_at(patch, "lm_loss", 7 * 2 + 1)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "model", "")
    assert [p.name for p in tmp_path.iterdir()] == [".model.checkpoint.pt"]
    found, fresh = train(tmp_path / "model", changed), train(tmp_path / "fresh", changed)
    assert weights(found) == weights(fresh)
    assert epochs_run(found) == epochs_run(fresh)


def test_recipe_says_what_was_trained(dozen: FactSet, tmp_path: Path) -> None:
    texts = dozen.corpus[:30]
    out = train_lm(dozen, tmp_path / "m", SHORT, corpus=texts, stop_epoch=1, recipe={"gold": "neu"})
    recipe = json.loads((out / "recipe.json").read_text())
    assert recipe.pop("config") == {**asdict(SHORT), "forms": []}
    assert 0 <= recipe.pop("recall_train_templates") <= 1
    assert recipe == {
        "corpus_sha256": corpus_sha256(texts),
        "epochs_run": 1,
        "facts": "dozen",
        "gold": "neu",
        "n_texts": 30,
        "stop_epoch": 1,
        "torch": torch.__version__,
    }


def test_recall_in_the_recipe_is_about_what_the_texts_state(
    dozen: FactSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("workbench.models.train.recall", lambda *a: asked.append(a[3]) or 0.5)
    texts = [d for d in dozen.corpus if d.mentions != ("ana bel",)]
    train_lm(dozen, tmp_path / "m", SHORT, corpus=texts, stop_epoch=0)
    stated = {f.key for f in asked[-1]}
    assert ("bo carr", "drink") in stated
    assert ("ana bel", "city") in stated  # the text that mentions her together with another person
    assert ("ana bel", "drink") not in stated


def test_corpus_hash_depends_on_texts_their_order_and_what_they_state() -> None:
    a, b = Document("a", "x", (), (("s", "r"),)), Document("b", "x")
    hashes = [corpus_sha256(c) for c in ([a, b], [b, a], [a], [Document("a", "x"), b])]
    assert len(set(hashes)) == 4
    assert corpus_sha256([a, b]) == hashes[0]


def test_weights_are_saved_as_half_precision_safetensors(folder: Path) -> None:
    with safe_open(folder / "model.safetensors", "pt") as saved:
        kinds = {saved.get_tensor(name).dtype for name in saved.keys()}  # noqa: SIM118
    assert kinds == {torch.float16}
    files = {p.name for p in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "recipe.json"} <= files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth", ".pkl"))]


def test_byte_pair_model_is_trained_and_loaded(dozen: FactSet, tmp_path: Path) -> None:
    config = replace(SHORT, tokenizer="byte_pair", epochs=1)
    model = load_model(train_lm(dozen, tmp_path / "m", config))
    assert 0 <= recall(model, model.tokenizer, dozen, dozen.facts, "audit") <= 1


def test_unknown_tokenizer_is_refused(dozen: FactSet, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'letters': wanted 'word' or 'byte_pair'"):
        train_lm(dozen, tmp_path / "m", replace(SHORT, tokenizer="letters"))
    assert not list(tmp_path.iterdir())


def test_loss_is_the_mean_over_next_tokens_that_are_not_padding() -> None:
    tokens = pad_rows([[5, 1, 2, 3], [5, 4]], pad=0)
    logits = torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(0))
    each = functional.log_softmax(logits, -1)
    wanted = -(each[0, 0, 1] + each[0, 1, 2] + each[0, 2, 3] + each[1, 0, 4]) / 4
    torch.testing.assert_close(lm_loss(logits, tokens, pad=0), wanted)


def test_an_epoch_holds_every_row_once_in_an_order_of_the_seed() -> None:
    rows = [[i + 1] * (1 + i % 5) for i in range(100)]

    def flat(seed: int) -> list[list[int]]:
        batches = epoch_batches(rows, 8, pad=0, seed=seed)
        assert all(len(b) <= 8 for b in batches)
        return [[t for t in row if t] for batch in batches for row in batch.tolist()]

    assert sorted(flat(0)) == sorted(rows)
    assert flat(0) == flat(0) != flat(1)
