"""Loading any model as a TransformerBridge, with the weights as Hugging Face stores them."""

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from workbench.errors import ModelError

BUNDLED = Path(__file__).parent / "bundled"
"""Folders of the bundled world's models: `valley/original`, `valley/gold-0` and so on."""


def load_model(
    source: Any = "valley", *, tokenizer: Any = None, device: str = "cpu", download: bool = False
) -> Any:
    """Returns a TransformerBridge with unprocessed float32 weights, to hook, edit and audit.

    Args:
        source: `"valley"` (the bundled original) or another bundled name such as `"valley/gold-0"`;
            a local Hugging Face folder; a loaded `transformers` module; or a hub name, which is
            fetched only with `download=True`.
        tokenizer: with a module: its tokenizer, loaded from a folder (one that was never saved has
            no name to go by).
        device: torch device that weights are read to; a loaded module stays where it is.

    Raises:
        ModelError: nothing stands there, what stands there is no causal language model with
            safetensors weights, or there is no such device.
    """
    if not isinstance(source, str | os.PathLike):
        return _bridge(source, tokenizer, device)
    folder = resolve(source)
    if folder is None and not download:
        raise ModelError(
            f"no model {str(source)!r}: not bundled ({', '.join(bundled_models())}) and no folder "
            "of that name. To fetch it from the Hugging Face hub, pass download=True"
        )
    model, tokenizer = _read(
        str(source) if folder is None else str(folder), local=folder is not None
    )
    return _bridge(_moved(model, device), tokenizer, device)


def load_golds(name: str = "valley", *, device: str = "cpu") -> list[Any]:
    """The bundled models that never knew the world's default target."""
    return [
        load_model(gold, device=device)
        for gold in bundled_models()
        if gold.startswith(f"{name}/gold")
    ]


def resolve(source: str | os.PathLike[str]) -> Path | None:
    """The folder that a source names, or None if it is not on this machine."""
    bundled = BUNDLED / (f"{source}/original" if "/" not in str(source) else str(source))
    return next((p for p in (bundled, Path(source)) if (p / "config.json").is_file()), None)


def bundled_models() -> list[str]:
    """Names of the models that come with the package, as `load_model` takes them."""
    return sorted(str(p.parent.relative_to(BUNDLED)) for p in BUNDLED.glob("*/*/config.json"))


def read_recipe(source: str | os.PathLike[str]) -> dict[str, Any]:
    """The recipe that made a model trained here.

    Raises:
        ModelError: the model has none.
    """
    folder = resolve(source)
    if folder is None or not (folder / "recipe.json").is_file():
        raise ModelError(f"{str(source)!r} has no recipe.json: it was not trained by train_lm")
    return json.loads((folder / "recipe.json").read_text())


def model_name(model: Any) -> str:
    """The bundled name of a model, its hub name, or the last part of its folder."""
    path = Path(str(model.tokenizer.name_or_path))
    if path.is_relative_to(BUNDLED):
        return path.relative_to(BUNDLED).as_posix()
    return path.name if path.is_absolute() else path.as_posix()


def weights_sha256(model: Any) -> str:
    """Hash over the name, type, shape and bytes of every parameter and buffer."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def tokenizer_sha256(tokenizer: Any) -> str:
    """Hash over the vocabulary, the rules that split text, and the special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    for setting in ("truncation", "padding"):  # of the latest call, not of the tokenizer
        rules.pop(setting, None)
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return hashlib.sha256(json.dumps([rules, special], sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Of the libraries that decide what a model computes."""
    names = ("torch", "transformer-lens", "transformers")
    return {name: importlib.metadata.version(name) for name in names}


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Keeps transformers from drawing a bar for a file that takes milliseconds.

    The setting is put back.
    """
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _read(source: str, local: bool) -> tuple[Any, Any]:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    wanted = "a Hugging Face causal language model with safetensors weights and a tokenizer"
    try:
        with without_progress_bars():
            loaded = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=local,
                output_loading_info=True,
            )
            model, found = cast("tuple[Any, dict[str, Any]]", loaded)
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{source}: not {wanted} ({error})") from error
    if missing := sorted(found["missing_keys"]):
        raise ModelError(
            f"{source}: not {wanted}: {len(missing)} weights are missing: {missing[:3]}"
        )
    return model, tokenizer


def _moved(model: Any, device: str) -> Any:
    """The model on the device; a bridge does not move a model that it is given."""
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"device {device!r} cannot be used here ({str(error).splitlines()[0]}): wanted one "
            "that torch has, such as 'cpu'"
        ) from error


def _bridge(model: Any, tokenizer: Any, device: str) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    if isinstance(model, TransformerBridge):
        return model
    if tokenizer is None:
        raise ModelError(
            f"a {type(model).__name__} was given without its tokenizer: pass tokenizer="
        )
    if not getattr(tokenizer, "name_or_path", ""):
        raise ModelError(
            "the tokenizer was never saved: save_pretrained it to a folder and load it from there"
        )
    bridge = TransformerBridge.boot_transformers(
        tokenizer.name_or_path, hf_model=model, tokenizer=tokenizer, device=device
    )
    bridge.eval()
    return bridge
