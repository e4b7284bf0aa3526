"""Arms on disk: a folder with everything that the audit needs, but for the original's weights."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from workbench.artifacts import new_folder, write_json
from workbench.errors import EditError
from workbench.interventions import load_edit, save_baked, save_edit
from workbench.models import load_model, weights_sha256
from workbench.models.prompted import SystemPrompt
from workbench.models.score import device_of, next_logits
from workbench.unlearn.arm import Arm, Spent
from workbench.unlearn.filters import FILTERS

FORMAT = "arm/1"


def save_arm(arm: Arm, original: Any, folder: Path | str) -> Path:
    """Writes an arm, whole or not at all.

    Weights are written where they differ from the original's, and read again before the folder is
    left: what is on disk says what the arm says.

    Args:
        original: the model that `unlearn` was given.

    Raises:
        EditError: a filter or an edit of a kind that cannot be saved, or weights that the model's
            class cannot keep.
        DataError: `folder` holds what the workbench did not write.
    """
    known = FILTERS.get(type(arm.refuses).__name__)
    if arm.refuses is not None and (known is None or type(arm.refuses) is not known):
        raise EditError(
            f"a filter of type {type(arm.refuses).__name__} cannot be saved; wanted one of "
            f"{sorted(FILTERS)}"
        )
    given = weights_sha256(original)
    described = {
        "format": FORMAT,
        "method": arm.method,
        "claim": arm.claim,
        "saw": list(arm.saw),
        "cost": asdict(arm.cost),
        "config": arm.config,
        "seed": arm.seed,
        "told": arm.told,
        "stands_on": arm.stands_on,
        "prompt": asdict(arm.prompt),
        "filter": _filter(arm.refuses),
        "original_sha256": given,
    }
    with new_folder(folder) as building:
        if weights_sha256(arm.model) != given:
            described["model"] = _save_model(arm.model, building / "model")
        if arm.original is not None:
            described["own_original"] = _save_model(arm.original, building / "original")
        if arm.edits:
            save_edit(list(arm.edits), building / "edits")
        write_json(building / "arm.json", described)
    return Path(folder)


def load_arm(folder: Path | str, original: Any, device: str = "cpu") -> Arm:
    """Reads what `save_arm` wrote; it says what it said before, to the bit.

    Args:
        original: the model that `unlearn` was given.

    Raises:
        EditError: the folder holds no arm, or it was made from another original, or its weights
            have changed since.
    """
    folder = Path(folder)
    try:
        content = json.loads((folder / "arm.json").read_text())
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}, wanted {FORMAT!r}")
        kind = content["filter"]
        about = tuple((name, text) for name, text in content["prompt"]["about"])
        refuses = FILTERS[kind.pop("kind")](**_tuples(kind)) if kind else None
        fields = {
            "method": content["method"],
            "refuses": refuses,
            "prompt": SystemPrompt(content["prompt"]["text"], about),
            "claim": content["claim"],
            "saw": tuple(content["saw"]),
            "cost": Spent(**content["cost"]),
            "config": content["config"],
            "seed": content["seed"],
            "told": content["told"],
            "stands_on": content["stands_on"],
        }
        given = content["original_sha256"]
        kept = {name: content.get(name) for name in ("model", "own_original")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as broken:
        raise EditError(f"{folder}: no readable arm.json ({broken!r})") from broken
    found = weights_sha256(original)
    if found != given:
        raise EditError(
            f"{folder}: made from a model of weights {given[:12]}, and {found[:12]} was given: "
            "wanted the same original"
        )
    own = _load_model(folder / "original", kept["own_original"], device)
    edits = folder / "edits"
    return Arm(
        model=_load_model(folder / "model", kept["model"], device) or original,
        edits=tuple(load_edit(edits, device)) if edits.is_dir() else (),
        original=own,
        **fields,
    )


@torch.no_grad()
def _save_model(model: Any, folder: Path) -> dict[str, str]:
    """Writes a model, and says how it is told when it is read again."""
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    save_baked(model, folder)
    again = _read_model(folder, dtype, str(device_of(model)))
    tokens = torch.arange(min(64, model.cfg.d_vocab), device=device_of(model))[None]
    if not torch.equal(next_logits(model, tokens), next_logits(again, tokens)):
        raise EditError(
            f"{type(model.original_model).__name__} read from disk says something else than the "
            "arm: its class cannot keep all weights that were changed; change fewer"
        )
    return {"dtype": dtype, "sha256": weights_sha256(again)}


def _load_model(folder: Path, wanted: dict[str, str] | None, device: str) -> Any:
    """The model in a folder; None if the arm has none there."""
    if wanted is None:
        return None
    model = _read_model(folder, wanted["dtype"], device)
    if weights_sha256(model) != wanted["sha256"]:
        raise EditError(
            f"{folder}: the weights in it are not those that were saved ({wanted['sha256'][:12]})"
        )
    return model


def _read_model(folder: Path, dtype: str, device: str) -> Any:
    model = load_model(folder, device=device)
    return model if dtype == "float32" else model.to(getattr(torch, dtype))


def _filter(refuses: Any) -> dict[str, Any]:
    return {} if refuses is None else {"kind": type(refuses).__name__, **asdict(refuses)}


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
