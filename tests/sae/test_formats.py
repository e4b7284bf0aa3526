"""Other people's SAE files, against arithmetic done by hand on the arrays that were written."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sae_lens import SAE, GatedSAE, JumpReLUSAE, StandardSAE, TopKSAE
from safetensors.torch import load_file, save_file
from torch import Tensor

from workbench.errors import SAEError
from workbench.sae.formats import DICT_CLASSES, read_sae
from workbench.sae.load import save_sae

D_IN, D_SAE, K = 5, 11, 3
"""Odd and different, so that no array fits in the wrong way round."""


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


ROWS = 2 * drawn(40, D_IN, seed=9)
W_ENC, W_DEC = drawn(D_IN, D_SAE, seed=0), drawn(D_SAE, D_IN, seed=1)
B_ENC, B_DEC = drawn(D_SAE, seed=2), drawn(D_IN, seed=3)
THRESHOLD = drawn(D_SAE, seed=4).abs()
R_MAG = drawn(D_SAE, seed=5) / 2

MATRICES = {"W_enc": W_ENC, "W_dec": W_DEC, "b_enc": B_ENC, "b_dec": B_DEC}
LINEAR = {"encoder.weight": W_ENC.T, "encoder.bias": B_ENC, "decoder.weight": W_DEC.T}
GATED = {
    "encoder.weight": W_ENC.T,
    "decoder.weight": W_DEC.T,
    "decoder_bias": B_DEC,
    "r_mag": R_MAG,
    "gate_bias": B_ENC,
    "mag_bias": B_ENC.flip(0),
}
SPARSIFY = {"encoder.weight": W_ENC.T, "encoder.bias": B_ENC, "W_dec": W_DEC, "b_dec": B_DEC}


# Encoders by hand


def pre(subtracts: bool = True) -> Tensor:
    return (ROWS - subtracts * B_DEC) @ W_ENC + B_ENC


def relu(hidden: Tensor) -> Tensor:
    return hidden.clamp(min=0)


def jump(hidden: Tensor, threshold: Tensor | float) -> Tensor:
    return torch.where(hidden > threshold, relu(hidden), 0.0)


def k_largest(hidden: Tensor) -> Tensor:
    """The k largest of each row, one row at a time."""
    out = torch.zeros_like(hidden)
    for row, values in zip(out, relu(hidden), strict=True):
        for feature in sorted(range(D_SAE), key=lambda f: -values[f].item())[:K]:
            row[feature] = values[feature]
    return out


def gated() -> Tensor:
    base = (ROWS - B_DEC) @ W_ENC
    return torch.where(base + B_ENC > 0, relu(base * R_MAG.exp() + B_ENC.flip(0)), 0.0)


# Writers


def write_npz(folder: Path, **arrays: Tensor) -> Path:
    np.savez(folder / "params.npz", **{name: a.numpy() for name, a in arrays.items()})
    return folder


def write_dictionary(folder: Path, kind: str, arrays: dict[str, Any], **trainer: Any) -> Path:
    torch.save({name: a.clone() for name, a in arrays.items()}, folder / "ae.pt")
    config = {
        "trainer": {
            "dict_class": kind,
            "activation_dim": 999,
            "dict_size": 999,
            "layer": 8,
            "lm_name": "someone/some-lm",
            "submodule_name": "resid_post_layer_8",
            **trainer,
        },
        "buffer": {"ctx_len": 128},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_sparsify(root: Path, arrays: dict[str, Tensor], name: str, **config: Any) -> Path:
    folder = root / name
    folder.mkdir()
    save_file({key: a.contiguous() for key, a in arrays.items()}, folder / "sae.safetensors")
    written = {
        "activation": "topk",
        "expansion_factor": 32,
        "normalize_decoder": True,
        "num_latents": 0,
        "k": K,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": D_IN,
        **config,
    }
    (folder / "cfg.json").write_text(json.dumps(written))
    return folder


def gemma(folder: Path) -> Path:
    return write_npz(folder, **MATRICES, threshold=THRESHOLD)


def dictionary(kind: str, arrays: dict[str, Tensor], **trainer: Any) -> Callable[[Path], Path]:
    return lambda folder: write_dictionary(folder, kind, arrays, **trainer)


def scalar(value: float) -> Tensor:
    return torch.tensor(value)


BATCH_TOPK = {**LINEAR, "b_dec": B_DEC, "k": torch.tensor(K), "threshold": scalar(0.4)}
MATRYOSHKA = {
    **MATRICES,
    "k": torch.tensor(K),
    "threshold": scalar(0.4),
    "group_sizes": torch.tensor([4, 7]),
}
JUMP = {**MATRICES, "threshold": THRESHOLD}

WRITTEN = {
    "gemma-scope": (gemma, JumpReLUSAE, lambda: jump(pre(False), THRESHOLD)),
    "AutoEncoder": (
        dictionary("AutoEncoder", {**LINEAR, "bias": B_DEC}),
        StandardSAE,
        lambda: relu(pre()),
    ),
    "AutoEncoderTopK": (
        dictionary("AutoEncoderTopK", BATCH_TOPK, k=7),
        TopKSAE,
        lambda: k_largest(pre()),
    ),
    "AutoEncoderTopK, k in the config alone": (
        dictionary("AutoEncoderTopK", {**LINEAR, "b_dec": B_DEC}, k=K),
        TopKSAE,
        lambda: k_largest(pre()),
    ),
    "BatchTopKSAE": (
        dictionary("BatchTopKSAE", BATCH_TOPK),
        JumpReLUSAE,
        lambda: jump(pre(), 0.4),
    ),
    "MatryoshkaBatchTopKSAE": (
        dictionary("MatryoshkaBatchTopKSAE", MATRYOSHKA),
        JumpReLUSAE,
        lambda: jump(pre(), 0.4),
    ),
    "JumpReluAutoEncoder": (
        dictionary("JumpReluAutoEncoder", JUMP),
        JumpReLUSAE,
        lambda: jump(pre(False), THRESHOLD),
    ),
    "JumpReluAutoEncoder, b_dec off the input": (
        dictionary("JumpReluAutoEncoder", JUMP, apply_b_dec_to_input=True),
        JumpReLUSAE,
        lambda: jump(pre(), THRESHOLD),
    ),
    "GatedAutoEncoder": (dictionary("GatedAutoEncoder", GATED), GatedSAE, gated),
    "eai-sparsify": (
        lambda folder: write_sparsify(folder, SPARSIFY, "layers.10"),
        TopKSAE,
        lambda: k_largest(pre()),
    ),
}


@pytest.fixture(params=WRITTEN)
def written(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, type, Tensor]:
    write, kind, acts = WRITTEN[request.param]
    return write(tmp_path), kind, acts()


def test_every_dict_class_is_written_here() -> None:
    assert {name.split(",")[0] for name in WRITTEN} >= DICT_CLASSES.keys()


def test_encode_and_decode_are_those_of_the_writer(written: tuple[Path, type, Tensor]) -> None:
    folder, kind, acts = written
    sae = read_sae(folder)
    assert type(sae) is kind
    assert (sae.cfg.d_in, sae.cfg.d_sae) == (D_IN, D_SAE)
    assert 0 < (acts > 0).sum() < acts.numel()
    torch.testing.assert_close(sae.encode(ROWS), acts)
    torch.testing.assert_close(sae.decode(acts), acts @ W_DEC + B_DEC)
    torch.testing.assert_close(sae(ROWS), acts @ W_DEC + B_DEC)


def test_what_was_read_is_kept_by_the_saelens_format(
    written: tuple[Path, type, Tensor], tmp_path: Path
) -> None:
    sae = read_sae(written[0])
    save_sae(sae, tmp_path / "saved")
    again = SAE.load_from_disk(str(tmp_path / "saved"))
    assert torch.equal(again.encode(ROWS), sae.encode(ROWS))
    assert torch.equal(again(ROWS), sae(ROWS))
    assert again.cfg.metadata.hook_name == sae.cfg.metadata.hook_name
    assert torch.equal(read_sae(tmp_path / "saved").encode(ROWS), sae.encode(ROWS))


def test_files_are_read_as_their_folders(written: tuple[Path, type, Tensor]) -> None:
    folder, _, acts = written
    torch.testing.assert_close(read_sae(weights_of(folder)).encode(ROWS), acts)


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    halves = {key: a.bfloat16() for key, a in SPARSIFY.items()}
    sae = read_sae(write_sparsify(tmp_path, halves, "layers.10"))
    assert sae.W_enc.dtype == sae(ROWS).dtype == torch.float32
    assert torch.equal(sae.W_dec, W_DEC.bfloat16().float())


def test_npz_of_any_name_and_with_small_letters_is_read(tmp_path: Path) -> None:
    small = {"w_enc": W_ENC, "w_dec": W_DEC, "b_enc": B_ENC, "b_dec": B_DEC, "threshold": THRESHOLD}
    path = write_npz(tmp_path, **small, scaling_factor=torch.ones(D_SAE)) / "params.npz"
    other = path.rename(tmp_path / "average_l0_71.npz")
    torch.testing.assert_close(read_sae(other).encode(ROWS), jump(pre(False), THRESHOLD))


# Sites


@pytest.mark.parametrize(
    ("trainer", "hook_name"),
    [
        ({}, "blocks.8.hook_resid_post"),
        ({"submodule_name": None}, "blocks.8.hook_resid_post"),
        ({"submodule_name": "unknown"}, "blocks.8.hook_resid_post"),
        ({"submodule_name": "resid_pre_layer_8", "layer": "7"}, "blocks.7.hook_resid_pre"),
        ({"submodule_name": "mlp_out_layer_8"}, ""),
        ({"submodule_name": "attention_out_layer_8"}, ""),
        ({"layer": None}, ""),
    ],
)
def test_site_comes_from_the_trainer(
    tmp_path: Path, trainer: dict[str, Any], hook_name: str
) -> None:
    folder = write_dictionary(tmp_path, "AutoEncoder", {**LINEAR, "bias": B_DEC}, **trainer)
    metadata = read_sae(folder).cfg.metadata
    assert metadata.hook_name == hook_name
    assert (metadata.model_name, metadata.context_size) == ("someone/some-lm", 128)


@pytest.mark.parametrize(
    ("name", "hook_name"),
    [
        ("layers.10", "blocks.10.hook_resid_post"),
        ("gpt_neox.layers.3", "blocks.3.hook_resid_post"),
        ("transformer.h.0", "blocks.0.hook_resid_post"),
        ("layers.10.mlp", ""),
        ("embed_tokens", ""),
    ],
)
def test_site_comes_from_the_folder_of_a_whole_layer(
    tmp_path: Path, name: str, hook_name: str
) -> None:
    assert read_sae(write_sparsify(tmp_path, SPARSIFY, name)).cfg.metadata.hook_name == hook_name


def test_named_site_goes_before_the_file(written: tuple[Path, type, Tensor]) -> None:
    sae = read_sae(written[0], hook_name="blocks.2.hook_resid_pre")
    assert sae.cfg.metadata.hook_name == "blocks.2.hook_resid_pre"


def test_gemma_scope_names_no_site_and_wants_bos(tmp_path: Path) -> None:
    metadata = read_sae(gemma(tmp_path)).cfg.metadata
    assert (metadata.hook_name, metadata.prepend_bos) == ("", True)


# What is refused


def test_unknown_dict_class_is_named_with_the_known_ones(tmp_path: Path) -> None:
    folder = write_dictionary(tmp_path, "AutoEncoderNew", {**LINEAR, "b_dec": B_DEC})
    with pytest.raises(SAEError, match="'AutoEncoderNew' cannot be read; known are") as raised:
        read_sae(folder)
    assert all(kind in str(raised.value) for kind in DICT_CLASSES)


@pytest.mark.parametrize("threshold", [-1.0, 0.0, float("nan")])
@pytest.mark.parametrize("kind", ["BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
def test_batch_topk_without_a_threshold_is_refused(
    tmp_path: Path, kind: str, threshold: float
) -> None:
    folder = write_dictionary(tmp_path, kind, {**BATCH_TOPK, "threshold": scalar(threshold)})
    with pytest.raises(SAEError, match=f"threshold {threshold}; wanted one positive number"):
        read_sae(folder)
    missing = {key: a for key, a in BATCH_TOPK.items() if key != "threshold"}
    with pytest.raises(SAEError, match="threshold missing"):
        read_sae(write_dictionary(tmp_path, kind, missing))


@pytest.mark.parametrize("k", [0, 12, "three", None])
def test_impossible_k_is_refused(tmp_path: Path, k: Any) -> None:
    with pytest.raises(SAEError, match="wanted a whole number from 1 to the 11 features"):
        read_sae(write_sparsify(tmp_path, SPARSIFY, "layers.10", k=k))
    arrays = {**LINEAR, "b_dec": B_DEC}
    with pytest.raises(SAEError, match="wanted a whole number from 1 to the 11 features"):
        read_sae(write_dictionary(tmp_path, "AutoEncoderTopK", arrays, k=k))


@pytest.mark.parametrize(
    ("config", "extra", "reason"),
    [
        ({"activation": "groupmax"}, {}, "activation 'groupmax'"),
        ({"signed": True}, {}, "activation 'signed topk'"),
        ({"transcode": True}, {}, "a transcoder"),
        ({}, {"W_skip": drawn(D_IN, D_IN, seed=6)}, "a transcoder"),
    ],
)
def test_what_sparsify_has_beside_topk_saes_is_refused(
    tmp_path: Path, config: dict[str, Any], extra: dict[str, Tensor], reason: str
) -> None:
    with pytest.raises(SAEError, match=reason):
        read_sae(write_sparsify(tmp_path, {**SPARSIFY, **extra}, "layers.10", **config))


def test_scaling_factor_is_refused(tmp_path: Path) -> None:
    write_npz(tmp_path, **MATRICES, threshold=THRESHOLD, scaling_factor=2 * torch.ones(D_SAE))
    with pytest.raises(SAEError, match="scaling_factor other than 1"):
        read_sae(tmp_path)


class Payload:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('the payload ran')",)


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    folder = write_dictionary(tmp_path, "AutoEncoder", {**LINEAR, "bias": B_DEC})
    torch.save({**LINEAR, "bias": Payload()}, folder / "ae.pt")
    with pytest.raises(SAEError, match="more than tensors"):
        read_sae(folder)
    np.savez(tmp_path / "params.npz", W_enc=np.array([Payload()], dtype=object))
    with pytest.raises(SAEError, match="no npz archive of arrays"):
        read_sae(tmp_path / "params.npz")


def test_state_dict_in_a_wrapping_is_refused(tmp_path: Path) -> None:
    folder = write_dictionary(tmp_path, "AutoEncoder", {**LINEAR, "bias": B_DEC})
    for wrapped in ({"state": LINEAR}, [B_DEC], B_DEC):
        torch.save(wrapped, folder / "ae.pt")
        with pytest.raises(SAEError, match="no state dict"):
            read_sae(folder)


@pytest.mark.parametrize("config", ["[]", "{}", '{"trainer": 3}', '{"trainer": {}}', "{"])
def test_config_that_tells_no_kind_is_refused(tmp_path: Path, config: str) -> None:
    folder = write_dictionary(tmp_path, "AutoEncoder", {**LINEAR, "bias": B_DEC})
    (folder / "config.json").write_text(config)
    with pytest.raises(SAEError, match=r"config\.json"):
        read_sae(folder)


def arrays_of(path: Path) -> dict[str, Any]:
    if path.suffix == ".npz":
        with np.load(path) as file:
            return {key: torch.from_numpy(file[key]) for key in file.files}
    if path.suffix == ".pt":
        return torch.load(path, weights_only=True)
    return load_file(path)


def write_again(path: Path, arrays: dict[str, Any]) -> None:
    if path.suffix == ".npz":
        write_npz(path.parent, **arrays)
    elif path.suffix == ".pt":
        torch.save(arrays, path)
    else:
        save_file(arrays, path)


def weights_of(folder: Path) -> Path:
    return next(p for p in folder.iterdir() if p.suffix in {".npz", ".pt", ".safetensors"})


OPTIONAL = {"k", "threshold", "group_sizes"}
"""Arrays that some kinds can do without; those that cannot have a test of their own."""


def test_missing_arrays_are_named(written: tuple[Path, type, Tensor]) -> None:
    path = weights_of(written[0])
    arrays = arrays_of(path)
    for gone in arrays.keys() - OPTIONAL:
        write_again(path, {key: a for key, a in arrays.items() if key != gone})
        with pytest.raises(SAEError, match=r"lacks|unknown here") as raised:
            read_sae(path)
        assert str(path) in str(raised.value)


def test_unknown_arrays_are_named(written: tuple[Path, type, Tensor]) -> None:
    path = weights_of(written[0])
    write_again(path, {**arrays_of(path), "log_scale": torch.ones(D_SAE)})
    with pytest.raises(SAEError, match="holds log_scale, unknown here"):
        read_sae(path)


def test_wrong_shapes_are_named(written: tuple[Path, type, Tensor]) -> None:
    path = weights_of(written[0])
    arrays = arrays_of(path)
    for wrong in arrays.keys() - OPTIONAL:
        for change in (lambda a: a[:-1].contiguous(), lambda a: a[None]):
            write_again(path, {**arrays, wrong: change(arrays[wrong])})
            with pytest.raises(SAEError, match=r"is \(.*\); wanted \["):
                read_sae(path)


def test_transposed_matrices_are_refused(written: tuple[Path, type, Tensor]) -> None:
    path = weights_of(written[0])
    arrays = arrays_of(path)
    matrices = [key for key, array in arrays.items() if array.ndim == 2]
    assert len(matrices) == 2
    for matrix in matrices:
        write_again(path, {**arrays, matrix: arrays[matrix].T.contiguous()})
        with pytest.raises(SAEError, match=f"{matrix} is "):
            read_sae(path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.95])
def test_truncated_weights_are_an_error(written: tuple[Path, type, Tensor], share: float) -> None:
    path = weights_of(written[0])
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(SAEError, match=r"not an SAE|cut short") as raised:
        read_sae(path)
    assert str(path.parent) in str(raised.value)


def test_damage_inside_an_archive_is_an_error(tmp_path: Path) -> None:
    path = gemma(tmp_path) / "params.npz"
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("W_dec.npy").header_offset
    damaged = bytearray(path.read_bytes())
    damaged[start + 200 : start + 220] = bytes(20)
    path.write_bytes(damaged)
    with pytest.raises(SAEError, match="cut short"):
        read_sae(path)


def test_weights_without_their_config_are_an_error(tmp_path: Path) -> None:
    folder = write_dictionary(tmp_path, "AutoEncoder", {**LINEAR, "bias": B_DEC})
    (folder / "config.json").unlink()
    with pytest.raises(SAEError, match=r"config\.json: missing"):
        read_sae(folder)
    folder = write_sparsify(tmp_path, SPARSIFY, "layers.10")
    (folder / "cfg.json").unlink()
    with pytest.raises(SAEError, match=r"cfg\.json: missing"):
        read_sae(folder)


def test_folder_of_another_kind_is_listed(tmp_path: Path) -> None:
    (tmp_path / "layers.10").mkdir()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(SAEError, match=r"found layers\.10, notes\.txt; wanted .*params\.npz"):
        read_sae(tmp_path)
    with pytest.raises(SAEError, match=r"found notes\.txt; wanted"):
        read_sae(tmp_path / "notes.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SAEError, match="found an empty folder"):
        read_sae(tmp_path / "empty")
    with pytest.raises(SAEError, match="nothing is there"):
        read_sae(tmp_path / "nowhere")
