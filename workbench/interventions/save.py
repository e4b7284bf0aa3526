"""Edits on disk: JSON for what they are, safetensors for their numbers, and the SAEs they read."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from workbench.artifacts import new_folder, write_json
from workbench.errors import EditError, SiteError
from workbench.hooks import Intervention, Site
from workbench.interventions.clamp import Clamp
from workbench.interventions.evidence import Always, Firing, Probe, Weighted
from workbench.interventions.gate import Gate
from workbench.interventions.mean_ablate import MeanAblate
from workbench.interventions.project import Project
from workbench.interventions.replace import Replace
from workbench.interventions.rescale import Rescale
from workbench.interventions.sequence import Sequence as SequenceEdit
from workbench.interventions.steer import Steer
from workbench.interventions.substitute import Substitute
from workbench.sae.load import load_sae, save_sae

EDITS: dict[str, type] = {
    "clamp": Clamp,
    "gate": Gate,
    "mean_ablate": MeanAblate,
    "project": Project,
    "replace": Replace,
    "rescale": Rescale,
    "sequence": SequenceEdit,
    "steer": Steer,
    "substitute": Substitute,
}
EVIDENCE: dict[str, type] = {
    "always": Always,
    "firing": Firing,
    "probe": Probe,
    "weighted": Weighted,
}
FORMAT = "edit/2"


def save_edit(edits: Intervention | Sequence[Intervention], folder: Path | str) -> Path:
    """Writes one or several interventions, whole or not at all; each SAE is stored once.

    Raises:
        EditError: an intervention of a kind that cannot be saved.
        DataError: `folder` holds what the workbench did not write.
    """
    given = list(edits) if isinstance(edits, Sequence) else [edits]
    writer = _Writer()
    described = [writer.edit(edit, f"{i}") for i, edit in enumerate(given)]
    with new_folder(folder) as building:
        write_json(building / "edit.json", {"format": FORMAT, "edits": described})
        save_file(writer.tensors, building / "edit.safetensors")
        for i, sae in enumerate(writer.saes):
            save_sae(sae, building / f"sae-{i}")
    return Path(folder)


def load_edit(folder: Path | str, device: str = "cpu") -> list[Intervention]:
    """Reads what `save_edit` wrote.

    Args:
        device: the model's; an edit whose numbers are elsewhere makes it wait for them.

    Raises:
        EditError: the folder holds no edit, or one of an unknown kind.
    """
    folder = Path(folder)
    try:
        content = json.loads((folder / "edit.json").read_text())
        tensors = load_file(folder / "edit.safetensors", device)
    except (OSError, ValueError, SafetensorError) as error:
        raise EditError(
            f"{folder}: no readable edit.json and edit.safetensors ({error})"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise EditError(f"{folder}: format {content.get('format')!r}, wanted {FORMAT!r}")
    saes = {p.name: load_sae(p, device) for p in sorted(folder.glob("sae-*"))}
    try:
        return [_build(d, tensors, saes) for d in content["edits"]]
    except (AttributeError, KeyError, TypeError, SiteError) as error:
        raise EditError(
            f"{folder}: an edit names what is not there ({error}); wanted a kind of "
            f"{sorted(EDITS)}, its fields, tensors of edit.safetensors and one of {sorted(saes)}"
        ) from error


class _Writer:
    """Describes edits in JSON's values; their tensors and SAEs gather beside."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self.saes: list[Any] = []

    def edit(self, edit: Any, name: str) -> dict[str, Any]:
        known = EVIDENCE if name.endswith(".evidence") else EDITS
        kind = next((k for k, cls in known.items() if type(edit) is cls), None)
        if kind is None:
            raise EditError(
                f"a {type(edit).__name__} cannot be saved; wanted one of {sorted(known)}"
            )
        fields = {f: self.field(f, getattr(edit, f), name) for f in edit.__dataclass_fields__}
        return {"kind": kind, **fields}

    def field(self, field: str, value: Any, of: str) -> Any:
        name = f"{of}.{field}"
        if isinstance(value, torch.Tensor):
            # A copy, since the file holds no tensor twice and edits may share one.
            self.tensors[name] = value.detach().cpu().clone().contiguous()
            return {"tensor": name}
        if isinstance(value, Site):
            return {"site": value.name}
        if isinstance(value, tuple):
            return [self.edit(edit, f"{name}.{i}") for i, edit in enumerate(value)]
        if field in ("edit", "evidence"):
            return self.edit(value, name)
        if field != "sae":
            return value
        if not any(sae is value for sae in self.saes):
            self.saes.append(value)
        return {"sae": f"sae-{[sae is value for sae in self.saes].index(True)}"}


def _build(
    described: Any,
    tensors: dict[str, torch.Tensor],
    saes: dict[str, Any],
    known: dict[str, type] = EDITS,
) -> Any:
    fields = {}
    for field, value in described.items():
        if isinstance(value, list):
            fields[field] = tuple(_build(v, tensors, saes) for v in value)
        elif not isinstance(value, dict):
            fields[field] = value
        elif "kind" in value:
            inside = EVIDENCE if field == "evidence" else EDITS
            fields[field] = _build(value, tensors, saes, inside)
        elif "tensor" in value:
            fields[field] = tensors[value["tensor"]]
        elif "site" in value:
            fields[field] = Site.parse(value["site"])
        else:
            fields[field] = saes[value["sae"]]
    return known[fields.pop("kind")](**fields)
