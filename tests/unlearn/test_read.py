"""Edits made elsewhere are read as what they are, or refused with the reason."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from workbench.errors import EditError, ModelError
from workbench.facts.target import Target
from workbench.hooks import Site
from workbench.interventions import Steer, save_baked, save_edit
from workbench.models import weights_sha256
from workbench.models.copies import copied
from workbench.models.score import next_logits
from workbench.unlearn import Arm, load_arm, read_edited, save_arm
from workbench.unlearn.plain import bridged, plain_module

TOKENS = torch.arange(3, 23).view(2, 10)


def changed(model: Any) -> Any:
    made = copied(model)
    with torch.no_grad():
        for p in made.blocks[0].mlp.parameters():
            p.add_(0.1)
    return made


def says(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return next_logits(model, TOKENS)


def steer(bridge: Any) -> Steer:
    return Steer(Site(1), torch.ones(bridge.cfg.d_model), 0.5)


def make_adapter(bridge: Any, folder: Path, *, safe: bool = True) -> Any:
    """A random adapter, saved as peft does; returns the plain module with it."""
    config = LoraConfig(r=2, target_modules=["down_proj", "q_proj"], init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        adapted: Any = get_peft_model(plain_module(bridge), config)
    adapted.save_pretrained(str(folder), safe_serialization=safe)
    return adapted.eval()


def test_plain_modules_say_what_their_models_say(bridge: Any) -> None:
    plain = plain_module(bridge)
    with torch.no_grad():
        torch.testing.assert_close(plain(TOKENS).logits, says(bridge), atol=1e-5, rtol=1e-5)
    assert torch.equal(says(bridged(plain, bridge)), says(bridge))


def test_a_checkpoint_in_one_file_or_in_shards_is_the_same_model(
    bridge: Any, tmp_path: Path
) -> None:
    model = changed(bridge)
    save_baked(model, tmp_path / "one")
    plain_module(model).save_pretrained(tmp_path / "many", max_shard_size="20KB")
    model.tokenizer.save_pretrained(tmp_path / "many")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    for name in ("one", "many"):
        (read,) = read_edited([tmp_path / name], bridge)
        assert torch.equal(says(read), says(model)) and not torch.equal(says(read), says(bridge))


def test_an_adapter_is_merged_into_the_original(bridge: Any, tmp_path: Path) -> None:
    adapted = make_adapter(bridge, tmp_path / "adapter")
    (read,) = read_edited([tmp_path / "adapter"], bridge)
    with torch.no_grad():
        wanted = adapted(TOKENS).logits
    torch.testing.assert_close(says(read), wanted, atol=1e-5, rtol=1e-5)
    assert (says(read) - says(bridge)).abs().max() > 1e-2


def test_weights_and_hooks_are_read_together(bridge: Any, tmp_path: Path) -> None:
    model = changed(bridge)
    save_baked(model, tmp_path / "weights")
    save_edit([steer(bridge)], tmp_path / "hooks")
    for order in (["weights", "hooks"], ["hooks", "weights"]):
        read, hook = read_edited([tmp_path / name for name in order], bridge)
        assert weights_sha256(read) == weights_sha256(model) and hook.site == Site(1)


def test_an_arm_comes_back_whole_and_stands_alone(bridge: Any, tmp_path: Path) -> None:
    arm = Arm("mine", changed(bridge), (steer(bridge),), claim="none", saw=("everything",))
    save_arm(arm, bridge, tmp_path / "arm")
    back = read_edited([tmp_path / "arm"], bridge)
    assert isinstance(back, Arm) and back.saw == arm.saw and len(back.edits) == 1
    assert torch.equal(says(back.model), says(arm.model))
    save_edit([steer(bridge)], tmp_path / "hooks")
    with pytest.raises(EditError, match="alone"):
        read_edited([tmp_path / "arm", tmp_path / "hooks"], bridge)


def test_an_arm_of_another_original_is_refused(bridge: Any, tmp_path: Path) -> None:
    save_arm(Arm("mine", changed(bridge)), bridge, tmp_path / "arm")
    with pytest.raises(EditError, match="same original"):
        load_arm(tmp_path / "arm", changed(bridge))


def test_an_arm_whose_weights_were_exchanged_is_refused(bridge: Any, tmp_path: Path) -> None:
    save_arm(Arm("mine", changed(bridge)), bridge, tmp_path / "arm")
    save_baked(changed(changed(bridge)), tmp_path / "other")
    name = "model.safetensors"
    (tmp_path / "arm/model" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(EditError, match="not those that were saved"):
        load_arm(tmp_path / "arm", bridge)


@pytest.mark.parametrize("broken", ["[]", "{", '{"format": "arm/9"}', '{"format": "arm/1"}'])
def test_a_broken_arm_is_an_error_that_names_it(bridge: Any, tmp_path: Path, broken: str) -> None:
    (tmp_path / "arm.json").write_text(broken)
    with pytest.raises(EditError, match=r"arm\.json"):
        load_arm(tmp_path, bridge)


def test_an_interrupted_save_leaves_nothing(
    bridge: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("workbench.unlearn.save.save_edit", stop)
    with pytest.raises(KeyboardInterrupt):
        save_arm(Arm("mine", changed(bridge), (steer(bridge),)), bridge, tmp_path / "arm")
    assert list(tmp_path.iterdir()) == []


def test_a_filter_of_an_unknown_kind_is_not_saved(bridge: Any, tmp_path: Path) -> None:
    with pytest.raises(EditError, match="cannot be saved"):
        save_arm(Arm("mine", bridge, refuses=str.isupper), bridge, tmp_path / "arm")
    assert not (tmp_path / "arm").exists()


def test_adapters_that_could_run_code_or_do_not_fit_are_refused(
    bridge: Any, tmp_path: Path
) -> None:
    make_adapter(bridge, tmp_path / "pickled")
    (tmp_path / "pickled/adapter_model.safetensors").rename(tmp_path / "pickled/adapter_model.bin")
    with pytest.raises(EditError, match="could run code"):
        read_edited([tmp_path / "pickled"], bridge)
    make_adapter(bridge, tmp_path / "strange")
    card = tmp_path / "strange/adapter_config.json"
    config = json.loads(card.read_text()) | {"target_modules": ["no_such_layer"]}
    card.write_text(json.dumps(config))
    with pytest.raises(EditError, match="does not fit"):
        read_edited([tmp_path / "strange"], bridge)


def test_two_folders_of_weights_and_nothing_at_all_are_refused(
    bridge: Any, tmp_path: Path, pantry: Target
) -> None:
    save_baked(changed(bridge), tmp_path / "a")
    with pytest.raises(EditError, match="more than one"):
        read_edited([tmp_path / "a", tmp_path / "a"], bridge)
    (tmp_path / "empty").mkdir()
    with pytest.raises(EditError, match="wanted a Hugging Face folder"):
        read_edited([tmp_path / "empty"], bridge)
    (tmp_path / "hollow").mkdir()
    (tmp_path / "hollow/config.json").write_text("{}")
    with pytest.raises(ModelError):
        read_edited([tmp_path / "hollow"], bridge)
