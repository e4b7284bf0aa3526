"""Opening SAEs, refusing what is none, and refusing those of another model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from sae_lens import SAE

from workbench.errors import SAEError
from workbench.models.load import load_model, weights_sha256
from workbench.sae.load import load_sae, max_activation, require_fit, save_sae


def test_saved_sae_comes_back_with_its_statistics(sae: Any, tmp_path: Path) -> None:
    save_sae(sae, tmp_path / "sae")
    again, rows = load_sae(tmp_path / "sae"), torch.randn(20, 32)
    assert torch.equal(again.encode(rows), sae.encode(rows))
    assert torch.equal(again(rows), sae(rows))
    assert torch.equal(again.max_activation, sae.max_activation)
    assert torch.equal(again.density, sae.density)
    assert not any(p.requires_grad for p in again.parameters())
    assert "density" not in again.state_dict()


def test_sae_without_statistics_opens_and_says_so_when_asked(
    make_sae: Callable, tmp_path: Path
) -> None:
    save_sae(make_sae(stats=[]), tmp_path / "sae")
    with pytest.raises(SAEError, match=r"no feature_stats\.safetensors"):
        max_activation(load_sae(tmp_path / "sae"))


@pytest.mark.parametrize("source", ["nowhere", "valley/blocks.9.hook_resid_post"])
def test_missing_sae_is_an_error(source: str, tmp_path: Path) -> None:
    for given in (source, tmp_path / source):
        with pytest.raises(SAEError, match=r"not bundled .* and no folder with a cfg\.json"):
            load_sae(given)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def strange(path: Path) -> None:
    path.write_text(json.dumps({"architecture": "unheard-of"}))


def empty(path: Path) -> None:
    path.write_text("{}")


def other_shape(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "d_sae": 7}))


@pytest.mark.filterwarnings("ignore::UserWarning:sae_lens")
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("sae_weights.safetensors", Path.unlink),
        ("sae_weights.safetensors", cut),
        ("feature_stats.safetensors", cut),
        ("cfg.json", cut),
        ("cfg.json", strange),
        ("cfg.json", empty),
        ("cfg.json", other_shape),
    ],
)
def test_damaged_sae_is_named(
    make_sae: Callable, tmp_path: Path, name: str, damage: Callable[[Path], Any]
) -> None:
    save_sae(make_sae(), tmp_path / "sae")
    damage(tmp_path / "sae" / name)
    with pytest.raises(SAEError, match="not an SAE in the SAELens format") as raised:
        load_sae(tmp_path / "sae")
    assert str(tmp_path / "sae") in str(raised.value)


def test_sae_fits_the_weights_it_names_and_no_others(
    make_sae: Callable, make_llama: Callable, tokenizer: Any, bridge: Any
) -> None:
    own, other = weights_sha256(bridge), load_model(make_llama(seed=1), tokenizer=tokenizer)
    sae = make_sae(model_sha256=own)
    require_fit(sae, bridge)
    with pytest.raises(SAEError, match=f"weights {own[:12]}, the model has"):
        require_fit(sae, other)
    require_fit(make_sae(), other)


def test_one_changed_weight_is_another_model(
    make_sae: Callable, make_llama: Callable, tokenizer: Any
) -> None:
    model = load_model(make_llama(), tokenizer=tokenizer)
    sae = make_sae(model_sha256=weights_sha256(model))
    require_fit(sae, model)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-3
    with pytest.raises(SAEError, match="load the model it names"):
        require_fit(sae, model)


def test_sae_of_another_width_is_refused(make_sae: Callable, bridge: Any) -> None:
    sae = make_sae()
    sae.cfg.d_in = 48
    with pytest.raises(SAEError, match="reads 48 dimensions, the model has 32"):
        require_fit(sae, bridge)


def test_named_site_goes_before_the_one_in_the_file(make_sae: Callable, tmp_path: Path) -> None:
    save_sae(make_sae(), tmp_path / "sae")
    assert load_sae(tmp_path / "sae").cfg.metadata.hook_name == "blocks.1.hook_resid_post"
    sae = load_sae(tmp_path / "sae", hook_name="blocks.0.hook_resid_mid")
    assert sae.cfg.metadata.hook_name == "blocks.0.hook_resid_mid"


def test_file_of_another_format_opens_frozen_and_without_statistics(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = {"W_enc": (5, 11), "W_dec": (11, 5), "b_enc": 11, "b_dec": 5, "threshold": 11}
    arrays = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    np.savez(tmp_path / "params.npz", **arrays)
    for source in (tmp_path, tmp_path / "params.npz", str(tmp_path)):
        sae = load_sae(source, hook_name="blocks.20.hook_resid_post")
        assert sae.cfg.metadata.hook_name == "blocks.20.hook_resid_post"
        assert not any(p.requires_grad for p in sae.parameters())
        with pytest.raises(SAEError, match=r"no feature_stats\.safetensors"):
            max_activation(sae)


def test_folder_without_an_sae_is_listed(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(SAEError, match=r"found notes\.txt; wanted cfg\.json with"):
        load_sae(tmp_path)


# The registry

SAE_ID = "layer_20/width_16k/canonical"
RELEASE = "gemma-scope-2b-pt-res-canonical"


def test_release_is_fetched_by_sae_lens(
    make_sae: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}

    def from_pretrained(**given: Any) -> Any:
        asked.update(given)
        return make_sae(stats=[]).requires_grad_(True)

    monkeypatch.setattr(SAE, "from_pretrained", from_pretrained)
    sae = load_sae(SAE_ID, release=RELEASE)
    assert asked == {"release": RELEASE, "sae_id": SAE_ID, "device": "cpu"}
    assert not any(p.requires_grad for p in sae.parameters())
    assert sae.cfg.metadata.hook_name == "blocks.1.hook_resid_post"
    named = load_sae(SAE_ID, release=RELEASE, hook_name="blocks.0.hook_resid_pre")
    assert named.cfg.metadata.hook_name == "blocks.0.hook_resid_pre"


def test_nothing_is_fetched_without_a_release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SAE, "from_pretrained", lambda **_: pytest.fail("fetched"))
    for source in (SAE_ID, f"{RELEASE}/{SAE_ID}"):
        with pytest.raises(SAEError, match="pass release="):
            load_sae(source)


@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("not in the cache"),
        httpx.ConnectError("no route"),
        ValueError("ID x not found in release y"),
        KeyError("b_dec"),
    ],
)
def test_what_goes_wrong_with_a_release_is_told(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def from_pretrained(**_: Any) -> Any:
        raise error

    monkeypatch.setattr(SAE, "from_pretrained", from_pretrained)
    wanted = f"{SAE_ID}.*{RELEASE}.*{type(error).__name__}.*give their folder without release="
    with pytest.raises(SAEError, match=wanted) as raised:
        load_sae(SAE_ID, release=RELEASE)
    assert raised.value.__cause__ is error


def test_unknown_release_is_an_error_before_anything_is_fetched() -> None:
    with pytest.raises(SAEError, match="Release nowhere not found"):
        load_sae(SAE_ID, release="nowhere")
