"""Edits on disk: JSON for what they are, safetensors for their numbers, and the SAEs they read."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from workbench.artifacts import new_folder, write_json
from workbench.errors import EditError
from workbench.hooks import Intervention
from workbench.interventions.features import Clamp, Rescale
from workbench.interventions.gate import Gate
from workbench.sae.load import load_sae, save_sae

KINDS = {"clamp": Clamp, "rescale": Rescale, "gate": Gate}


def save_edit(edits: Intervention | Sequence[Intervention], folder: Path | str) -> Path:
    """Writes one or several interventions, whole or not at all; each SAE is stored once.

    Raises:
        EditError: an intervention of a kind that cannot be saved.
        DataError: `folder` holds what the workbench did not write.
    """
    edits = list(edits) if isinstance(edits, Sequence) else [edits]
    tensors: dict[str, torch.Tensor] = {}
    saes: list[Any] = []
    described = [_describe(edit, f"{i}", tensors, saes) for i, edit in enumerate(edits)]
    with new_folder(folder) as building:
        write_json(building / "edit.json", {"format": "edit/1", "edits": described})
        save_file(tensors, building / "edit.safetensors")
        for i, sae in enumerate(saes):
            save_sae(sae, building / f"sae-{i}")
    return Path(folder)


def load_edit(folder: Path | str) -> list[Intervention]:
    """Reads what `save_edit` wrote.

    Raises:
        EditError: the folder holds no edit, or one of an unknown kind.
    """
    folder = Path(folder)
    try:
        content = json.loads((folder / "edit.json").read_text())
        tensors = load_file(folder / "edit.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise EditError(
            f"{folder}: no readable edit.json and edit.safetensors ({error})"
        ) from error
    if content.get("format") != "edit/1":
        raise EditError(f"{folder}: format {content.get('format')!r}, wanted 'edit/1'")
    saes = {p.name: load_sae(p) for p in sorted(folder.glob("sae-*"))}
    return [_build(d, tensors, saes) for d in content["edits"]]


def _describe(
    edit: Any, name: str, tensors: dict[str, torch.Tensor], saes: list[Any]
) -> dict[str, Any]:
    kind = next((k for k, cls in KINDS.items() if type(edit) is cls), None)
    if kind is None:
        raise EditError(f"a {type(edit).__name__} cannot be saved; wanted one of {sorted(KINDS)}")
    if not any(s is edit.sae for s in saes):
        saes.append(edit.sae)
    described: dict[str, Any] = {
        "kind": kind,
        "sae": f"sae-{[s is edit.sae for s in saes].index(True)}",
    }
    for field in edit.__dataclass_fields__:
        value = getattr(edit, field)
        if isinstance(value, torch.Tensor):
            # A copy, since the file holds no tensor twice and edits may share one.
            tensors[f"{name}.{field}"] = value.detach().cpu().clone().contiguous()
            described[field] = {"tensor": f"{name}.{field}"}
        elif field == "edit":
            described[field] = _describe(value, f"{name}.edit", tensors, saes)
        elif field != "sae":
            described[field] = value
    return described


def _build(
    described: dict[str, Any], tensors: dict[str, torch.Tensor], saes: dict[str, Any]
) -> Intervention:
    if described.get("kind") not in KINDS or described.get("sae") not in saes:
        raise EditError(
            f"an edit of kind {described.get('kind')!r} reading {described.get('sae')!r}; "
            f"wanted a kind of {sorted(KINDS)} and one of {sorted(saes)}"
        )
    fields: dict[str, Any] = {"sae": saes[described["sae"]]}
    for field, value in described.items():
        if field == "edit":
            fields[field] = _build(value, tensors, saes)
        elif isinstance(value, dict):
            fields[field] = tensors[value["tensor"]]
        elif field not in ("kind", "sae"):
            fields[field] = value
    return KINDS[described["kind"]](**fields)
