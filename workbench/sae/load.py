"""Opening SAEs saved here or by SAELens, and refusing those of another model or site."""

from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from workbench.errors import SAEError
from workbench.models.load import weights_sha256

STATS_FILE = "feature_stats.safetensors"
_PACKAGED, _CHECKOUT = (
    Path(__file__).parents[1] / "saes_bundled",
    Path(__file__).parents[2] / "saes",
)
BUNDLED = _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT


def load_sae(source: str | Path, device: str = "cpu") -> SAE:
    """Opens an SAE folder in the SAELens format, or a bundled SAE by its name.

    A bundled SAE's name is its world and site, such as `valley/blocks.1.hook_resid_post`.

    An SAE trained here carries `max_activation` and `density`, one value per feature, as buffers;
    doses are in units of the first.

    Raises:
        SAEError: nothing stands there, or it is no SAE.
    """
    folder = next((p for p in (BUNDLED / source, Path(source)) if (p / "cfg.json").is_file()), None)
    if folder is None:
        raise SAEError(
            f"no SAE {str(source)!r}: not bundled ({', '.join(bundled_saes())}) and no folder "
            "with a cfg.json"
        )
    try:
        sae = SAE.load_from_disk(str(folder), device=device)
        stats = folder / STATS_FILE
        found = load_file(stats, device=device) if stats.is_file() else {}
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise SAEError(f"{folder}: not an SAE in the SAELens format ({error})") from error
    for name, values in found.items():
        sae.register_buffer(name, values, persistent=False)
    return sae.requires_grad_(False)


def save_sae(sae: Any, folder: str | Path) -> None:
    """Writes an SAE in the SAELens format, with its feature statistics if it carries them."""
    sae.save_model(str(folder))
    stats = {n: b.cpu() for n, b in sae.named_buffers() if n in ("max_activation", "density")}
    if stats:
        save_file(stats, Path(folder) / STATS_FILE)


def bundled_saes() -> list[str]:
    """Names of the SAEs that come with the package, as `load_sae` takes them."""
    return sorted(str(p.parent.relative_to(BUNDLED)) for p in BUNDLED.glob("*/*/cfg.json"))


def require_fit(sae: Any, model: Any) -> None:
    """Raises SAEError if the SAE was trained on other weights or reads another width."""
    if sae.cfg.d_in != model.cfg.d_model:
        raise SAEError(
            f"the SAE reads {sae.cfg.d_in} dimensions, the model has {model.cfg.d_model}"
        )
    trained_on = sae.cfg.metadata.model_sha256
    if trained_on and trained_on != (given := weights_sha256(model)):
        raise SAEError(
            f"the SAE was trained on weights {trained_on[:12]}, the model has {given[:12]}: "
            "load the model it names"
        )


def max_activation(sae: Any) -> torch.Tensor:
    """Largest activation of each feature over the training activations.

    Raises:
        SAEError: the SAE carries none.
    """
    if not isinstance(getattr(sae, "max_activation", None), torch.Tensor):
        raise SAEError(
            f"this SAE has no {STATS_FILE}: doses are multiples of each feature's maximum, "
            "so train it here"
        )
    return sae.max_activation
