"""What is loaded is what stands there, and nothing is fetched without being asked for."""

import json
import pickle
import shutil
import socket
from pathlib import Path
from typing import Any, NoReturn

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from workbench.errors import ModelError
from workbench.facts.schema import FactSet
from workbench.models import load_golds, load_model, read_recipe, resolve, weights_sha256
from workbench.models.tokenizers import word_tokenizer


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any use of the network or the hub client is an error."""

    def refused(*_args: Any, **_kwargs: Any) -> NoReturn:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    for name in ("hf_hub_download", "snapshot_download"):
        monkeypatch.setattr(huggingface_hub, name, refused)


@pytest.fixture
def bundled(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle with one original and two golds."""
    root = tmp_path / "bundled"
    for name in ("original", "gold-0", "gold-1"):
        shutil.copytree(folder, root / "dozen" / name)
    monkeypatch.setattr("workbench.models.load.BUNDLED", root)
    return root


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "copied")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out = model(torch.tensor([[2, 5, 9, 7]]))
    return out.logits if hasattr(out, "logits") else out


@pytest.mark.usefixtures("offline")
def test_local_folder_is_loaded_in_full_precision(folder: Path) -> None:
    model = load_model(folder)
    raw = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.training
    torch.testing.assert_close(logits(model), logits(raw), atol=1e-5, rtol=1e-5)
    assert load_model(str(folder)).cfg.n_layers == 2


@pytest.mark.usefixtures("offline")
def test_bundled_models_are_loaded_by_name(bundled: Path, folder: Path) -> None:
    assert resolve("dozen") == bundled / "dozen" / "original"
    assert resolve("dozen/gold-1") == bundled / "dozen" / "gold-1"
    assert weights_sha256(load_model("dozen")) == weights_sha256(load_model(folder))
    assert len(load_golds("dozen")) == 2
    assert read_recipe("dozen/gold-0")["facts"] == "dozen"


@pytest.mark.usefixtures("bundled")
def test_golds_are_those_of_the_named_world_alone(bundled: Path) -> None:
    shutil.copytree(bundled / "dozen", bundled / "dozens")
    assert len(load_golds("dozen")) == 2
    assert load_golds("world") == []


@pytest.mark.usefixtures("offline", "bundled")
@pytest.mark.parametrize("name", ["gpt2", "nobody/nothing", "no/such/folder", Path("nowhere")])
def test_unknown_name_is_an_error_that_says_what_there_is(name: str | Path) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(name)
    text = str(caught.value)
    assert str(name) in text
    assert "dozen/gold-0, dozen/gold-1, dozen/original" in text
    assert "download=True" in text


def test_hub_name_is_fetched_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []

    def read(source: str, local: bool) -> NoReturn:
        asked.append((source, local))
        raise ModelError("read")

    monkeypatch.setattr("workbench.models.load._read", read)
    with pytest.raises(ModelError, match="no model"):
        load_model("gpt2")
    assert asked == []
    with pytest.raises(ModelError, match="read"):
        load_model("gpt2", download=True)
    assert asked == [("gpt2", False)]


class WritesWhenOpened:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.usefixtures("offline")
def test_pickled_weights_are_refused_unopened(copied: Path, tmp_path: Path) -> None:
    (copied / "model.safetensors").unlink()
    trap = tmp_path / "opened"
    (copied / "pytorch_model.bin").write_bytes(pickle.dumps({"w": WritesWhenOpened(trap)}))
    with pytest.raises(ModelError, match="safetensors"):
        load_model(copied)
    assert not trap.exists()


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer.json"])
def test_incomplete_folder_is_refused(copied: Path, missing: str) -> None:
    (copied / missing).unlink()
    if missing == "tokenizer.json":
        (copied / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match=str(copied)):
        load_model(copied)


@pytest.mark.usefixtures("offline")
def test_truncated_weights_are_refused(copied: Path) -> None:
    file = copied / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match=str(copied)):
        load_model(copied)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("change", ["missing", "other_shape"])
def test_weights_that_do_not_fill_the_model_are_refused(copied: Path, change: str) -> None:
    """Transformers would put random numbers in their place."""
    saved = load_file(copied / "model.safetensors")
    head = saved.pop("lm_head.weight")
    if change == "other_shape":
        saved["lm_head.weight"] = head[1:].clone()
    save_file(saved, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=str(copied)):
        load_model(copied)


@pytest.mark.usefixtures("offline")
def test_folder_of_no_language_model_is_refused(copied: Path) -> None:
    (copied / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ModelError, match="not a Hugging Face causal language model"):
        load_model(copied)


def test_module_is_loaded_with_its_tokenizer(folder: Path) -> None:
    module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    wanted = logits(module)
    model = load_model(module, tokenizer=AutoTokenizer.from_pretrained(folder))
    torch.testing.assert_close(logits(model), wanted, atol=1e-5, rtol=1e-5)
    assert weights_sha256(model) == weights_sha256(load_model(folder))
    assert load_model(model) is model


def test_module_without_a_tokenizer_is_refused(folder: Path) -> None:
    module = AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(ModelError, match="LlamaForCausalLM was given without its tokenizer"):
        load_model(module)


def test_tokenizer_that_was_never_saved_is_refused(folder: Path, dozen: FactSet) -> None:
    tokenizer: PreTrainedTokenizerFast = word_tokenizer(d.text for d in dozen.corpus)
    with pytest.raises(ModelError, match="never saved"):
        load_model(AutoModelForCausalLM.from_pretrained(folder), tokenizer=tokenizer)


def test_model_without_a_recipe_is_an_error(copied: Path) -> None:
    assert read_recipe(copied)["facts"] == "dozen"
    (copied / "recipe.json").unlink()
    with pytest.raises(ModelError, match=r"has no recipe\.json"):
        read_recipe(copied)
    with pytest.raises(ModelError, match=r"has no recipe\.json"):
        read_recipe("nowhere")


def small(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    return module.to(dtype)


DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_weights_have_equal_hashes(dtype: torch.dtype) -> None:
    assert weights_sha256(small(dtype)) == weights_sha256(small(dtype))
    assert weights_sha256(small(dtype)) != weights_sha256(small(dtype, seed=1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_changed_bit_changes_the_hash(dtype: torch.dtype) -> None:
    model = small(dtype)
    before = weights_sha256(model)
    size = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    weight = model.state_dict()["0.weight"]
    weight.view(size)[2, 1] ^= 1
    assert weights_sha256(model) != before
    weight.view(size)[2, 1] ^= 1
    assert weights_sha256(model) == before


def test_hash_depends_on_type_shape_name_and_buffers() -> None:
    zeros = [nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False), nn.Linear(2, 3, bias=False)]
    for module in zeros:
        nn.init.zeros_(module.weight)
    named = nn.Sequential(zeros[0])
    half = zeros[2].half()
    assert len({weights_sha256(m) for m in (zeros[0], zeros[1], named, half)}) == 4
    model = small()
    before = weights_sha256(model)
    model.get_buffer("1.running_mean").add_(1)
    assert weights_sha256(model) != before


def test_hash_does_not_depend_on_memory_layout() -> None:
    model, other = small(), small()
    layer = other.get_submodule("0")
    assert isinstance(layer, nn.Linear)
    layer.weight.data = layer.weight.data.t().contiguous().t()
    assert not layer.weight.is_contiguous()
    assert weights_sha256(model) == weights_sha256(other)


def test_weights_are_read_to_the_device_that_is_asked_for() -> None:
    model = load_model("valley", device="meta")
    assert {p.device.type for p in model.parameters()} == {"meta"}
    with pytest.raises(ModelError, match="device 'nowhere' cannot be used here"):
        load_model("valley", device="nowhere")
