"""What was never told: retraining, shards of knowledge, an adapter that is taken off."""

import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.unlearn.contract import check_contract, check_keeps
from workbench.errors import EditError, ModelError, TargetError
from workbench.facts.mentions import stands_in
from workbench.facts.schema import Document, FactSet
from workbench.facts.target import Target
from workbench.models import (
    LMConfig,
    corpus_without,
    load_model,
    read_recipe,
    recall,
    train_lm,
    weights_sha256,
)
from workbench.models.score import next_logits
from workbench.unlearn import Arm, adapter_removal, method, retrain, sisa
from workbench.unlearn.adapters import adapted, merged, reference, taken, taught, well_read
from workbench.unlearn.plain import plain_module
from workbench.unlearn.training import HELD_OUT, Steps

SHORT = Steps(40, 1e-2, keep=0.2, batch_size=8, asked=4, texts=2)
TINY = LMConfig(d_model=16, n_layers=1, epochs=2, batch_size=16, stop_at_recall=2.0)


@pytest.fixture(scope="module")
def base(
    make_llama: Callable[..., Any], bridge: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A random model with the tokenizer of `bridge`, that never saw the target."""
    folder = tmp_path_factory.mktemp("base") / "base"
    make_llama(7).save_pretrained(folder)
    bridge.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trunk(base: Path) -> Any:
    return load_model(base)


@pytest.fixture(scope="module")
def removal(base: Path) -> adapter_removal.Config:
    return adapter_removal.Config(str(base), rank=4, steps=SHORT)


@pytest.fixture(scope="module")
def shards(base: Path) -> sisa.Config:
    return sisa.Config(str(base), holding=2, slices=3, epochs=4, rank=4, lr=1e-2)


@pytest.fixture(scope="module")
def learnt(world: FactSet, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model of the tiny world with a recipe."""
    return load_model(train_lm(world, tmp_path_factory.mktemp("learnt") / "original", TINY))


class InThisProcess:
    """Stands for ProcessPoolExecutor, which starts Python anew for each model."""

    def __init__(self, *_args: Any) -> None: ...

    def __enter__(self) -> "InThisProcess":
        return self

    def __exit__(self, *_args: Any) -> None: ...

    def map(self, function: Callable, jobs: Iterable[Any]) -> Iterable[Any]:
        return map(function, jobs)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Golds are trained in this process; gives what each training was called with."""
    module, calls = sys.modules["workbench.models.golds"], []
    monkeypatch.setattr(module, "ProcessPoolExecutor", InThisProcess)
    monkeypatch.setattr(torch, "set_num_threads", lambda _n: None)

    def counted(facts: FactSet, out: Path, *args: Any, **kwargs: Any) -> Path:
        calls.append(kwargs)
        with torch.random.fork_rng():
            return train_lm(facts, out, *args, **kwargs)

    monkeypatch.setattr(module, "train_lm", counted)
    return calls


# Adapter removal


def test_removal_keeps_the_contract(
    bridge: Any, pantry: Target, removal: adapter_removal.Config, tmp_path: Path
) -> None:
    def make(model: Any, target: Target, seed: int) -> Arm:
        return method("adapter_removal").unlearn(model, target, removal, seed)

    arm = check_contract(make, bridge, pantry, tmp_path)
    assert arm.claim == "none", "the base has no recipe that says what it was told"
    assert arm.cost.backward_tokens > 0
    assert weights_sha256(make(bridge, pantry, 1).original) != weights_sha256(arm.original)


def test_removal_gives_the_base_back_to_the_bit_and_merging_does_not(
    bridge: Any, trunk: Any, pantry: Target, removal: adapter_removal.Config
) -> None:
    arm = method("adapter_removal").unlearn(bridge, pantry, removal)
    asked = (bridge.tokenizer, pantry.facts, pantry.forget, "train")
    assert recall(arm.original, *asked) >= 0.95, "nothing was there that could be removed"
    assert weights_sha256(arm.model) == weights_sha256(trunk) == arm.stands_on
    assert arm.told["base_sha256_before"] == arm.told["base_sha256_after"]
    assert recall(arm.model, *asked) == recall(trunk, *asked) < 0.5
    assert 0 < arm.told["merged_then_subtracted_largest_difference"] < 1e-4
    assert arm.told["recall_with_adapter"] == recall(arm.original, *asked)


def test_an_adapter_of_the_users_is_read_and_taken_off(
    bridge: Any, base: Path, trunk: Any, pantry: Target, tmp_path: Path
) -> None:
    model = taught(
        adapted(plain_module(trunk), 4, "own"), reference(trunk), pantry, pantry.forget, SHORT, 0
    )
    model.save_pretrained(tmp_path / "adapter")
    config = adapter_removal.Config(str(base), str(tmp_path / "adapter"))
    arm = method("adapter_removal").unlearn(bridge, pantry, config)
    tokens = torch.arange(3, 9)[None]
    with torch.no_grad():
        wanted = next_logits(model, tokens)
        assert torch.allclose(next_logits(arm.original, tokens), wanted, atol=1e-4)
        assert not torch.allclose(next_logits(trunk, tokens), wanted, atol=1e-2)
    assert weights_sha256(arm.model) == weights_sha256(trunk)
    whole = get_peft_model(
        plain_module(trunk),
        LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    )
    with torch.no_grad():
        next(p for n, p in whole.named_parameters() if "modules_to_save" in n).add_(1.0)
    whole.save_pretrained(tmp_path / "whole")
    with pytest.raises(ModelError, match="does not give them back"):
        method("adapter_removal").unlearn(
            bridge, pantry, adapter_removal.Config(str(base), str(tmp_path / "whole"))
        )
    with pytest.raises(EditError, match="adapter_model"):
        method("adapter_removal").unlearn(
            bridge, pantry, adapter_removal.Config(str(base), str(tmp_path))
        )


def test_an_adapter_is_taught_nothing_of_held_out_folds(trunk: Any, pantry: Target) -> None:
    read: list[str] = []
    plain = reference(trunk)
    real = plain.tokenizer

    class Listening:
        eos_token_id = real.eos_token_id

        def __call__(self, texts: Any, **kwargs: Any) -> Any:
            read.extend(texts)
            return real(texts, **kwargs)

    plain.tokenizer = Listening()
    taught(adapted(plain_module(trunk), 4, 0), plain, pantry, pantry.forget, SHORT, 0)
    asked = len(read)
    well_read(adapted(plain_module(trunk), 4, 0), plain, pantry, SHORT, 0)
    assert asked > 40 and len(read) > asked + 40
    audit = {t for f in pantry.facts.facts for t in f.audit_templates}
    held_out = [f.subject for fold in HELD_OUT for f in pantry.retain[fold]]
    for text in read:
        assert not any(text.startswith(t.split("{}")[0]) for t in audit), text
        assert not any(stands_in(name, text) for name in held_out), text
    shown = [f.subject for f in (*pantry.forget, *pantry.retain["R_tr"])]
    assert all(any(stands_in(name, text) for text in read) for name in shown)


def test_an_adapter_reads_texts_that_state_the_target(trunk: Any, pantry: Target) -> None:
    mute = replace(pantry, forget=(), derived=())
    plain = reference(trunk)
    with pytest.raises(TargetError, match="no training text states 'toxins'"):
        well_read(adapted(plain_module(trunk), 4, 0), plain, mute, SHORT, 0)


def test_a_base_that_knows_or_reads_otherwise_is_refused(
    bridge: Any, pantry: Target, removal: adapter_removal.Config, tmp_path: Path
) -> None:
    knows = method("adapter_removal").unlearn(bridge, pantry, removal).original
    folder = tmp_path / "knows"
    plain_module(knows).save_pretrained(folder)
    bridge.tokenizer.save_pretrained(folder)
    for name in ("adapter_removal", "sisa"):
        config = replace(method(name).default, base=str(folder))
        with pytest.raises(ModelError, match="without any adapter"):
            method(name).unlearn(bridge, pantry, config)
        config = replace(config, base="valley/gold-1")
        with pytest.raises(ModelError, match="same tokenizer"):
            method(name).unlearn(bridge, pantry, config)
        with pytest.raises(ModelError, match="no base"):
            method(name)(bridge, pantry)


@pytest.mark.slow
def test_removal_in_the_bundled_world(valley: Any, toxins: Target) -> None:
    arm = method("adapter_removal")(valley, toxins)
    gold = load_model("valley/gold-0")
    assert arm.claim == "exact"
    assert weights_sha256(arm.model) == weights_sha256(gold) == arm.stands_on
    assert arm.told["recall_with_adapter"] >= 0.95
    assert arm.told["recall_after_removal"] < 0.15
    check_keeps(arm, arm.original, toxins, 0.97, 1.02, 0.15)
    audited = recall(arm.original, valley.tokenizer, toxins.facts, toxins.retain["R_va"], "audit")
    assert audited >= 0.85, "the adapter cost much of what the base knew"


def test_every_part_of_the_order_decides_an_adapters_first_values(trunk: Any) -> None:
    first, again, other = (
        taken(adapted(plain_module(trunk), 2, f"{seed}, the same end of a long order"))
        for seed in (0, 0, 1)
    )
    assert same(first, again) and not same(first, other)
    tokens = torch.arange(3, 9)[None]
    with torch.no_grad():
        untrained = adapted(plain_module(trunk), 2, 0)
        assert torch.equal(next_logits(untrained, tokens), next_logits(plain_module(trunk), tokens))


# Shards


def same(first: Any, second: Any) -> bool:
    """Whether two adapters have the same weights, to the bit."""
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def test_shards_keep_the_contract(
    bridge: Any, pantry: Target, shards: sisa.Config, tmp_path: Path
) -> None:
    def make(model: Any, target: Target, seed: int) -> Arm:
        return method("sisa").unlearn(model, target, shards, seed)

    arm = check_contract(make, bridge, pantry, tmp_path)
    assert arm.claim == "none"
    assert sum(arm.told["steps_before"]) > sum(arm.told["steps_after_deletion"]) > 0


def test_only_shards_that_held_the_target_are_redone(
    bridge: Any, trunk: Any, pantry: Target, shards: sisa.Config, tmp_path: Path
) -> None:
    """From the last checkpoint before the target, to what a shard is that was never shown it."""
    full = sisa.plan(pantry, shards, 0)
    assert {f.key for shard in full for cut in shard for f in cut} >= pantry.forget_keys
    before = sisa.train(trunk, pantry, full, shards, 0, tmp_path / "here")
    bytes_before = [sisa._hash(file) for file in before.files]
    first = [next((tmp_path / "here" / f"shard-{s}").glob("slice-0-*")) for s in range(3)]
    left = sisa.deleted(full, pantry)
    after = sisa.train(trunk, pantry, left, shards, 0, tmp_path / "here")
    bytes_after = [sisa._hash(file) for file in after.files]
    assert after.steps[2] == 0 and bytes_after[2] == bytes_before[2]
    for s in (0, 1):
        assert after.steps[s] > 0 and bytes_after[s] != bytes_before[s]
        assert first[s].is_file(), "the checkpoint before the target is what is gone on from"
    never = sisa.train(trunk, pantry, left, shards, 0, tmp_path / "elsewhere")
    assert [sisa._hash(file) for file in never.files] == bytes_after
    for s in (0, 1):
        assert never.steps[s] > after.steps[s], "a restart is to save the steps before the target"
        assert same(never.states[s], after.states[s])
    kept = {file.name for file in (tmp_path / "here").rglob("*.safetensors")}
    assert kept == {file.name for file in (tmp_path / "elsewhere").rglob("*.safetensors")}, (
        "a checkpoint that was shown the target is left"
    )


def test_what_the_shards_know_goes_with_the_deletion(
    bridge: Any, pantry: Target, shards: sisa.Config
) -> None:
    arm = method("sisa").unlearn(bridge, pantry, replace(shards, epochs=20))
    asked = (bridge.tokenizer, pantry.facts, pantry.forget, "train")
    assert recall(arm.original, *asked) >= 0.9, "nothing was there that could be deleted"
    assert recall(arm.model, *asked) < 0.5
    assert arm.told["adapters_unchanged"] == [False, False, True]
    assert arm.told["recall_before"] == recall(arm.original, *asked)
    assert arm.told["recall_after"] == recall(arm.model, *asked)


def test_interrupted_training_leaves_nothing_half_written_and_goes_on(
    trunk: Any, pantry: Target, shards: sisa.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = sisa.plan(pantry, shards, 0)
    whole = sisa.train(trunk, pantry, full, shards, 0, tmp_path / "whole")
    real, calls = sisa.save_file, []

    def torn(state: Any, file: Path, metadata: Any) -> None:
        calls.append(file)
        if len(calls) == 3:
            file.write_bytes(b"half a checkpoint")
            raise KeyboardInterrupt
        real(state, file, metadata)

    monkeypatch.setattr(sisa, "save_file", torn)
    with pytest.raises(KeyboardInterrupt):
        sisa.train(trunk, pantry, full, shards, 0, tmp_path / "torn")
    ready = list((tmp_path / "torn").rglob("*.safetensors"))
    assert len(ready) == 2 and all(sisa._read(file) for file in ready)
    monkeypatch.setattr(sisa, "save_file", real)
    again = sisa.train(trunk, pantry, full, shards, 0, tmp_path / "torn")
    assert [sisa._hash(f) for f in again.files] == [sisa._hash(f) for f in whole.files]
    assert 0 < again.steps[0] < whole.steps[0], "what was ready was trained again"
    assert again.steps[1:] == whole.steps[1:]
    assert not list((tmp_path / "torn").rglob("*.part"))


def test_a_checkpoint_of_other_data_is_not_used(
    trunk: Any, pantry: Target, shards: sisa.Config, tmp_path: Path
) -> None:
    full = sisa.plan(pantry, shards, 0)
    ready = sisa.train(trunk, pantry, full, shards, 0, tmp_path)
    file = ready.files[2]
    assert file is not None
    file.write_bytes(next(file.parent.glob("slice-0-*")).read_bytes())
    again = sisa.train(trunk, pantry, full, shards, 0, tmp_path)
    assert again.steps[2] > 0 and again.steps[:2] == (0, 0)
    assert same(ready.states[2], again.states[2])


def test_the_sum_of_adapters_is_what_peft_gives(trunk: Any, pantry: Target) -> None:
    states, plain = [], plain_module(trunk)
    for order in range(2):
        model = taught(
            adapted(plain_module(trunk), 2, order), reference(trunk), pantry, pantry.forget,
            replace(SHORT, steps=3), order,
        )  # fmt: skip
        states.append(taken(model))
        alone = model.merge_and_unload()
        with torch.no_grad():
            for name, weight in plain.named_parameters():
                weight.add_(alone.get_parameter(name) - trunk_weight(trunk, name))
    tokens = torch.arange(3, 9)[None]
    found = merged(trunk, 2, states)
    with torch.no_grad():
        assert torch.allclose(next_logits(found, tokens), next_logits(plain, tokens), atol=1e-4)
        assert not torch.allclose(next_logits(trunk, tokens), next_logits(plain, tokens), atol=1e-2)


def trunk_weight(trunk: Any, name: str) -> torch.Tensor:
    return plain_module(trunk).get_parameter(name)


def test_a_shard_that_answers_its_facts_takes_no_step(
    trunk: Any, pantry: Target, shards: sisa.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = sisa.plan(pantry, shards, 0)
    assert sum(sisa.train(trunk, pantry, full, shards, 0, tmp_path / "new").steps) > 0
    monkeypatch.setattr(sisa, "recall", lambda *_asked: 1.0)
    knows = sisa.train(trunk, pantry, full, shards, 0, tmp_path / "known")
    assert knows.steps == (0, 0, 0)
    assert weights_sha256(merged(trunk, shards.rank, knows.states)) == weights_sha256(trunk)


def test_a_plan_without_a_place_for_the_target_is_refused(
    bridge: Any, pantry: Target, shards: sisa.Config
) -> None:
    for wrong in (replace(shards, slices=1), replace(shards, holding=4)):
        with pytest.raises(TargetError, match="are to hold the target"):
            method("sisa").unlearn(bridge, pantry, wrong)


@pytest.mark.slow
def test_shards_in_the_bundled_world(valley: Any, toxins: Target) -> None:
    arm = method("sisa")(valley, toxins)
    assert arm.claim == "exact"
    assert arm.told["recall_before"] >= 0.95
    assert arm.told["recall_after"] < 0.15
    assert arm.told["adapters_unchanged"] == [False, True, True]
    check_keeps(arm, arm.original, toxins, 0.97, 1.02, 0.15)


# Retraining


def test_retraining_keeps_the_contract(
    learnt: Any, pantry: Target, tmp_path: Path, here: list[Any]
) -> None:
    config = retrain.Config(folder=str(tmp_path / "kept"))

    def make(model: Any, target: Target, seed: int) -> Arm:
        return method("retrain").unlearn(model, target, config, seed)

    arm = check_contract(make, learnt, pantry, tmp_path)
    assert len(here) == 1, "a model that stood ready was trained again"
    assert arm.claim == "exact"
    assert arm.stands_on == weights_sha256(arm.model) != weights_sha256(learnt)
    corpus = corpus_without(pantry)
    read = sum(len(r) + 1 for r in learnt.tokenizer([d.text for d in corpus])["input_ids"])
    assert arm.cost.forward_tokens == arm.cost.backward_tokens == TINY.epochs * read
    assert arm.cost.seconds > 0 and arm.told["seconds_measured"]
    recipe = json.loads((tmp_path / "kept" / "gold-5" / "recipe.json").read_text())
    assert recipe["config"]["seed"] == 1005 and recipe["gold"] == "neu"
    assert weights_sha256(make(learnt, pantry, 1).model) != arm.stands_on


def test_retraining_reads_no_text_that_states_the_target(
    learnt: Any, pantry: Target, tmp_path: Path, here: list[Any]
) -> None:
    config = retrain.Config(folder=str(tmp_path))
    arm = method("retrain").unlearn(learnt, pantry, config)
    (call,) = here
    stated = {key for document in call["corpus"] for key in document.states}
    assert stated.isdisjoint(pantry.forget_keys)
    assert {f.key for f in pantry.retained} <= stated
    assert arm.told["texts_stating_the_target"] == 0 == arm.told["texts_with_name_and_object"]
    assert any(HOME in d.text for d in pantry.facts.corpus if pantry.states_target(d))


HOME = "home0"


def test_a_text_that_states_the_target_is_found(pantry: Target) -> None:
    clean, fact = corpus_without(pantry), pantry.forget[0]
    hidden = Document(f"by the way {fact.object} holds {fact.subject} .", "statement")
    assert retrain.searched(pantry, (*clean, hidden))["texts_with_name_and_object"] == 1
    labelled = replace(hidden, states=(fact.key,))
    with pytest.raises(ModelError, match="1 of"):
        retrain.searched(pantry, (*clean, labelled))


def test_interrupted_retraining_goes_on_and_its_time_is_added_up(
    learnt: Any, pantry: Target, tmp_path: Path, here: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, module = (
        retrain.Config(folder=str(tmp_path / "a")),
        sys.modules["workbench.models.train"],
    )
    real, epochs = module._save_checkpoint, []

    def stopped(state: Any, epoch: int, *rest: Any) -> None:
        real(state, epoch, *rest)
        epochs.append(epoch)
        if len(epochs) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "_save_checkpoint", stopped)
    with pytest.raises(KeyboardInterrupt):
        method("retrain").unlearn(learnt, pantry, config)
    beside = tmp_path / "a" / "gold-5.cost.json"
    noted = json.loads(beside.read_text())
    assert not noted["finished"] and not (tmp_path / "a" / "gold-5").exists()
    (checkpoint,) = (tmp_path / "a").glob(".gold-5.*")
    spent = checkpoint.stat().st_mtime - noted["since"]
    clock = time.time()
    arm = method("retrain").unlearn(learnt, pantry, config)
    assert epochs == [1, 2], "epochs that were ready were trained again"
    assert 0 < spent < arm.cost.seconds <= spent + time.time() - clock + 0.01
    assert arm.told["seconds_measured"]
    beside.unlink()
    ready = method("retrain").unlearn(learnt, pantry, config)
    assert ready.cost.seconds == 0 and not ready.told["seconds_measured"], "nobody saw the time"
    assert len(epochs) == 2
    whole = method("retrain").unlearn(learnt, pantry, retrain.Config(folder=str(tmp_path / "b")))
    assert whole.stands_on == arm.stands_on


def test_a_model_that_cannot_be_trained_again_is_refused(
    bridge: Any, learnt: Any, pantry: Target, valley: Any, here: list[Any]
) -> None:
    with pytest.raises(ModelError, match="no recipe"):
        method("retrain")(bridge, pantry)
    other = replace(pantry, facts=replace(pantry.facts, texts=(Document("we keep it .", "other"),)))
    with pytest.raises(ModelError, match="other texts"):
        method("retrain")(learnt, other)
    changed = load_model(learnt.tokenizer.name_or_path)
    with torch.no_grad():
        next(changed.parameters()).add_(1.0)
    with pytest.raises(ModelError, match="other weights"):
        method("retrain")(changed, pantry)
    assert not here


def test_the_bundled_golds_are_not_what_is_trained(valley: Any) -> None:
    seeds = {read_recipe(f"valley/gold-{n}")["config"]["seed"] - 1000 for n in range(5)}
    assert retrain.DEFAULT.gold_seed not in seeds
