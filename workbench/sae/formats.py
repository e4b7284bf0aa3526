"""Reading SAEs that others have trained, each format by its own keys and with its own arithmetic.

Sizes come from the arrays, never from the names of files, folders or fields of a config.
"""

import json
import pickle
import re
import zipfile
import zlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sae_lens import SAE
from sae_lens import __version__ as sae_lens_version
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from workbench.errors import SAEError

Arrays = dict[str, Tensor]
Parts = tuple[dict[str, Any], Arrays]
"""What SAELens builds an SAE from: its config, and its parameters by SAELens' names."""

Layout = dict[str, tuple[str, str]]
"""Each array of a file: its name in SAELens, and its axes in the order the file stores them."""

BROKEN = (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError, SafetensorError)
"""What numpy, torch, safetensors and SAELens raise for a file that is cut short or another's."""

AXES = {"W_enc": "d_in d_sae", "W_dec": "d_sae d_in"}
_DECODER = {"decoder.weight": ("W_dec", "d_in d_sae")}
_LINEAR: Layout = {"encoder.weight": ("W_enc", "d_sae d_in"), "encoder.bias": ("b_enc", "d_sae")}
_B_DEC: Layout = {"b_dec": ("b_dec", "d_in")}
_MATRICES: Layout = {
    "W_enc": ("W_enc", "d_in d_sae"),
    "W_dec": ("W_dec", "d_sae d_in"),
    "b_enc": ("b_enc", "d_sae"),
    **_B_DEC,
}
_THRESHOLDS: Layout = {**_MATRICES, "threshold": ("threshold", "d_sae")}
_GATED: Layout = {
    "encoder.weight": ("W_enc", "d_sae d_in"),
    **_DECODER,
    "decoder_bias": ("b_dec", "d_in"),
    "r_mag": ("r_mag", "d_sae"),
    "gate_bias": ("b_gate", "d_sae"),
    "mag_bias": ("b_mag", "d_sae"),
}


def read_sae(source: str | Path, device: str = "cpu", *, hook_name: str | None = None) -> SAE:
    """Opens an SAE in the SAELens, eai-sparsify, dictionary_learning or gemma-scope format.

    The format is told by the files that are there. What `encode` and `decode` do is what the code
    that wrote the file does; decoder rows are left as long as they are stored.

    Args:
        source: the folder, or the file with the weights.
        hook_name: the site the SAE reads, such as `blocks.20.hook_resid_post`; it goes before the
            one in the file. Gemma-scope files name none, and without this the SAE has none.

    Raises:
        SAEError: no known format, or a file that is broken or holds what cannot be read exactly.
    """
    path, found = _recognised(Path(source))
    try:
        if found.read is None:
            sae = SAE.load_from_disk(str(path), device=device)
        else:
            config, state = found.read(path)
            config["device"] = device
            sae = SAE.load_from_disk(str(path), converter=lambda *_, **__: (config, state))
    except BROKEN as error:
        raise SAEError(f"{path}: not an SAE in the {found.name} format ({error})") from error
    if hook_name is not None:
        sae.cfg.metadata.hook_name = hook_name
    return sae


def read_gemma_scope(path: Path) -> Parts:
    """Reads `params.npz`, or the folder it is in: JumpReLU, with nothing taken off the input.

    Raises:
        SAEError: an array is missing, unknown or of another shape, or the file is no npz archive.
    """
    path = path / "params.npz" if path.is_dir() else path
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {re.sub("^w_", "W_", key): torch.from_numpy(file[key]) for key in file.files}
    except (*BROKEN, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise SAEError(f"{path}: no npz archive of arrays, or cut short ({error})") from error
    if bool((arrays.get("scaling_factor", torch.ones(1)) != 1).any()):
        raise SAEError(f"{path}: has a scaling_factor other than 1, which SAELens 6 cannot apply")
    state = _arranged(arrays, _THRESHOLDS, path, unused={"scaling_factor"})
    return _config("jumprelu", state, prepend_bos=True, apply_b_dec_to_input=False), state


def read_dictionary_learning(folder: Path) -> Parts:
    """Reads `ae.pt` and the `config.json` beside it.

    Raises:
        SAEError: an unknown dict_class, an array that is missing, unknown or of another shape, or a
            file that is broken or holds more than tensors.
    """
    written = _json(folder / "config.json")
    trainer = written.get("trainer")
    if not isinstance(trainer, dict) or not trainer.get("dict_class"):
        raise SAEError(f"{folder / 'config.json'}: has no trainer.dict_class, which tells the kind")
    if (kind := trainer["dict_class"]) not in DICT_CLASSES:
        raise SAEError(
            f"{folder}: dict_class {kind!r} cannot be read; known are {', '.join(DICT_CLASSES)}"
        )
    config, state = DICT_CLASSES[kind](_tensors(folder / "ae.pt"), trainer, folder / "ae.pt")
    config["metadata"]["hook_name"] = _dictionary_learning_hook(trainer)
    config["metadata"]["model_name"] = trainer.get("lm_name")
    config["metadata"]["context_size"] = (written.get("buffer") or {}).get("ctx_len")
    return config, state


def read_sparsify(folder: Path) -> Parts:
    """Reads `cfg.json` and `sae.safetensors` of EleutherAI's sparsify: TopK, b_dec off the input.

    The site comes from the folder's name where that is a whole layer's, such as `layers.10`; one
    below it, such as `layers.10.mlp`, is none of the residual stream.

    Raises:
        SAEError: a transcoder, another activation than TopK, or an array that is missing, unknown
            or of another shape.
    """
    path, written = folder / "sae.safetensors", _json(folder / "cfg.json")
    arrays = load_file(path)
    if written.get("transcode") or written.get("skip_connection") or "W_skip" in arrays:
        raise SAEError(
            f"{folder}: a transcoder (transcode, skip_connection or W_skip): it writes the output "
            "of a layer and not what it reads; wanted an SAE"
        )
    if (activation := written.get("activation", "topk")) != "topk" or written.get("signed"):
        given = "signed topk" if activation == "topk" else activation
        raise SAEError(f"{folder}: activation {given!r}, for which SAELens has no SAE; wanted topk")
    layout = {**_LINEAR, "W_dec": ("W_dec", "d_sae d_in"), **_B_DEC}
    state = _arranged(arrays, layout, path)
    config = _config("topk", state, k=_k(written.get("k"), state, folder / "cfg.json"))
    layer = re.fullmatch(r"(?:.*\.)?(?:layers|h)[._](\d+)", folder.resolve().name)
    config["metadata"]["hook_name"] = f"blocks.{layer[1]}.hook_resid_post" if layer else ""
    return config, state


class Format(NamedTuple):
    """A format, the file that tells it from the others, and its reader (None: SAELens' own)."""

    name: str
    marker: str
    files: str
    read: Callable[[Path], Parts] | None


FORMATS = (
    Format("SAELens", "sae_weights.safetensors", "cfg.json with sae_weights.safetensors", None),
    Format("eai-sparsify", "sae.safetensors", "cfg.json with sae.safetensors", read_sparsify),
    Format("dictionary_learning", "ae.pt", "config.json with ae.pt", read_dictionary_learning),
    Format("gemma-scope", "params.npz", "params.npz", read_gemma_scope),
)
_SAELENS_WITHOUT_WEIGHTS = FORMATS[0]._replace(marker="cfg.json")


def _recognised(path: Path) -> tuple[Path, Format]:
    """The format by the files that are there, and the path its reader takes."""
    wanted = "; ".join(f"{f.files} ({f.name})" for f in FORMATS)
    if not path.exists():
        raise SAEError(f"{path}: nothing is there; wanted a folder or file of {wanted}")
    if path.suffix == ".npz" and path.is_file():
        return path, FORMATS[3]
    for one in (*FORMATS, _SAELENS_WITHOUT_WEIGHTS):
        if path.is_file() and path.name == one.marker:
            return path.parent, one
        if (path / one.marker).is_file():
            return path, one
    there = sorted(p.name for p in path.iterdir()) if path.is_dir() else [path.name]
    found = ", ".join(there[:8]) + (f" and {len(there) - 8} more" if len(there) > 8 else "")
    raise SAEError(f"{path}: no SAE; found {found or 'an empty folder'}; wanted {wanted}")


def _standard(arrays: Arrays, _trainer: dict[str, Any], path: Path) -> Parts:
    state = _arranged(arrays, {**_LINEAR, **_DECODER, "bias": ("b_dec", "d_in")}, path)
    return _config("standard", state), state


def _topk(arrays: Arrays, trainer: dict[str, Any], path: Path) -> Parts:
    # The stored threshold is for another use: by default its `encode` takes the k largest.
    layout = {**_LINEAR, **_DECODER, **_B_DEC}
    state = _arranged(arrays, layout, path, unused={"k", "threshold"})
    return _config("topk", state, k=_k(arrays.get("k", trainer.get("k")), state, path)), state


def _batch_topk(arrays: Arrays, _trainer: dict[str, Any], path: Path) -> Parts:
    layout = _MATRICES if "W_enc" in arrays else {**_LINEAR, **_DECODER, **_B_DEC}
    state = _arranged(arrays, layout, path, unused={"k", "threshold", "group_sizes"})
    threshold = arrays.get("threshold", torch.empty(0)).float()
    if threshold.numel() != 1 or not threshold.item() > 0:
        given = threshold.tolist() if threshold.numel() else "missing"
        raise SAEError(
            f"{path}: threshold {given}; wanted one positive number: "
            "without it, which features fire on a token depends on its batch. Train past "
            "threshold_start_step, or store the mean over batches of the smallest activation kept"
        )
    state["threshold"] = threshold.reshape(1).repeat(len(state["b_enc"]))
    return _config("jumprelu", state), state


def _jumprelu(arrays: Arrays, trainer: dict[str, Any], path: Path) -> Parts:
    state = _arranged(arrays, _THRESHOLDS, path)
    subtracts = bool(trainer.get("apply_b_dec_to_input", False))
    return _config("jumprelu", state, apply_b_dec_to_input=subtracts), state


def _gated(arrays: Arrays, _trainer: dict[str, Any], path: Path) -> Parts:
    state = _arranged(arrays, _GATED, path)
    return _config("gated", state), state


DICT_CLASSES: dict[str, Callable[[Arrays, dict[str, Any], Path], Parts]] = {
    "AutoEncoder": _standard,
    "AutoEncoderTopK": _topk,
    "BatchTopKSAE": _batch_topk,
    "MatryoshkaBatchTopKSAE": _batch_topk,
    "JumpReluAutoEncoder": _jumprelu,
    "GatedAutoEncoder": _gated,
}


def _arranged(arrays: Arrays, layout: Layout, source: Path, unused: Collection[str] = ()) -> Arrays:
    """The arrays of `layout` in float32, under SAELens' names and with its order of axes.

    An array that is neither in the layout nor known to be unused is an error: leaving it out could
    change what the SAE computes.
    """
    missing = sorted(layout.keys() - arrays.keys())
    if unknown := sorted(arrays.keys() - layout.keys() - set(unused)):
        raise SAEError(
            f"{source}: holds {', '.join(unknown)}, unknown here; wanted {_names(layout)}"
        )
    if missing:
        raise SAEError(f"{source}: lacks {', '.join(missing)}; found {_names(arrays)}")
    # Biases have one axis, so they tell the sizes whichever way round the matrices stand.
    sizes = {axes: arrays[key].numel() for key, (_, axes) in layout.items() if " " not in axes}
    for key, (_, axes) in layout.items():
        wanted = tuple(sizes[axis] for axis in axes.split())
        if (given := tuple(arrays[key].shape)) != wanted:
            raise SAEError(
                f"{source}: {key} is {given}; wanted [{axes}] = {wanted} by the sizes of the biases"
            )
    return {
        name: _turned(arrays[key].detach().float(), axes, AXES.get(name, axes))
        for key, (name, axes) in layout.items()
    }


def _turned(array: Tensor, axes: str, wanted: str) -> Tensor:
    return (array if axes == wanted else array.T).contiguous()


def _names(keys: Collection[str]) -> str:
    return ", ".join(sorted(keys)) or "nothing"


def _config(architecture: str, state: Arrays, **more: Any) -> dict[str, Any]:
    d_in, d_sae = state["W_enc"].shape
    metadata = {
        # Without a version SAELens takes a config for one of before its version 6 and rewrites it.
        "sae_lens_version": sae_lens_version,
        "sae_lens_training_version": None,
        "hook_name": "",
    }
    if "prepend_bos" in more:
        metadata["prepend_bos"] = more.pop("prepend_bos")
    return {
        "architecture": architecture,
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": metadata,
        **more,
    }


def _k(given: Any, state: Arrays, source: Path) -> int:
    """Number of features that fire, as a number or a tensor with one."""
    d_sae = state["W_enc"].shape[1]
    k = given.item() if isinstance(given, Tensor) and given.numel() == 1 else given
    if not isinstance(k, int) or not 1 <= k <= d_sae:
        raise SAEError(f"{source}: k {k!r}; wanted a whole number from 1 to the {d_sae} features")
    return k


def _dictionary_learning_hook(trainer: dict[str, Any]) -> str:
    layer, submodule = str(trainer.get("layer")), str(trainer.get("submodule_name") or "")
    elsewhere = re.search("mlp|attn|attention|embed", submodule)
    if not layer.isdecimal() or elsewhere:
        return ""
    point = re.search("resid_(pre|mid|post)", submodule)
    return f"blocks.{layer}.hook_resid_{point[1] if point else 'post'}"


def _json(path: Path) -> dict[str, Any]:
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SAEError(f"{path}: missing; it stands beside the weights in this format") from None
    except (OSError, ValueError) as error:
        raise SAEError(f"{path}: no JSON ({error})") from error
    if not isinstance(written, dict):
        raise SAEError(f"{path}: holds a {type(written).__name__}; wanted an object with fields")
    return written


def _tensors(path: Path) -> Arrays:
    """The tensors of a torch file, without running anything that is pickled in it."""
    try:
        arrays = torch.load(path, map_location="cpu", weights_only=True)
    except (*BROKEN, pickle.UnpicklingError) as error:
        raise SAEError(
            f"{path}: cut short, no torch file, or one that holds more than tensors, which could "
            "run code and is not opened; save it again as a state dict"
        ) from error
    if not isinstance(arrays, dict) or not all(isinstance(a, Tensor) for a in arrays.values()):
        raise SAEError(f"{path}: no state dict; wanted tensors by name")
    return arrays
