"""Edits made elsewhere: checkpoints, LoRA adapters, arms, hooks, and weights with hooks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.errors import EditError
from workbench.interventions import load_edit
from workbench.models import load_model, resolve
from workbench.unlearn.adapters import read_adapter
from workbench.unlearn.plain import bridged, plain_module
from workbench.unlearn.save import load_arm

WANTED = (
    "wanted a Hugging Face folder with safetensors weights (in one file or several), a LoRA "
    "adapter as peft saves it, a folder of save_arm or one of save_edit"
)


def read_edited(sources: Sequence[Path | str], original: Any, device: str = "cpu") -> Any:
    """What stands in one or several folders, as `audit` takes it for its `edit`.

    Args:
        sources: a checkpoint, a LoRA adapter, an arm, or hooks; or weights and hooks together.
        original: the model that was edited.

    Returns:
        An `Arm`, if the only folder holds one; else a list of at most one model and of hooks.

    Raises:
        EditError: nothing that can be read, or more than one folder of weights.
        ModelError: a checkpoint that is none.
    """
    kinds = [_kind(Path(source), str(source)) for source in sources]
    if "arm" in kinds:
        if len(kinds) > 1:
            raise EditError(f"an arm beside {len(kinds) - 1} others: wanted it alone")
        return load_arm(sources[0], original, device)
    if sum(kind in ("checkpoint", "adapter") for kind in kinds) > 1:
        raise EditError(
            f"{len(kinds)} folders, of which more than one holds weights: wanted one model, and "
            "hooks"
        )
    parts: list[Any] = []
    for kind, source in sorted(zip(kinds, sources, strict=True), key=lambda pair: pair[0]):
        if kind == "adapter":
            parts.append(with_adapter(original, source))
        elif kind == "checkpoint":
            parts.append(load_model(source, device=device))
        else:
            parts += load_edit(source, device)
    return parts


def with_adapter(original: Any, folder: Path | str) -> Any:
    """The original with a LoRA adapter merged into its weights.

    Nothing is fetched: the adapter's own word on its base is not followed.

    Raises:
        EditError: the adapter has no safetensors weights, or does not fit the model.
    """
    plain = plain_module(original)
    adapted = read_adapter(plain, folder)
    try:
        merged = adapted.merge_and_unload(safe_merge=True)
    except ValueError as error:  # weights that are not numbers
        raise EditError(f"{folder}: an adapter that cannot be merged ({error})") from error
    return bridged(merged, original)


def _kind(folder: Path, name: str) -> str:
    """What a folder holds: `adapter`, `arm`, `checkpoint` or `hooks`."""
    for kind, file in (
        ("arm", "arm.json"),
        ("adapter", "adapter_config.json"),
        ("hooks", "edit.json"),
        ("checkpoint", "config.json"),
    ):
        if (folder / file).is_file():
            return kind
    if resolve(name) is not None:
        return "checkpoint"
    raise EditError(f"{folder}: nothing that is known here; {WANTED}")
