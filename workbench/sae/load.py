"""Opening SAEs: bundled, on disk, of a registry; and refusing those of another model."""

from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from safetensors.torch import load_file, save_file

from workbench.errors import SAEError
from workbench.models.load import weights_sha256
from workbench.sae.formats import BROKEN, read_sae

STATS_FILE = "feature_stats.safetensors"
_PACKAGED, _CHECKOUT = (
    Path(__file__).parents[1] / "saes_bundled",
    Path(__file__).parents[2] / "saes",
)
BUNDLED = _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT


def load_sae(
    source: str | Path,
    device: str = "cpu",
    *,
    release: str | None = None,
    hook_name: str | None = None,
) -> SAE:
    """Opens a bundled SAE by its name, an SAE on disk, or one of SAELens' registry.

    A bundled SAE's name is its world and site, such as `valley/blocks.1.hook_resid_post`. On disk
    the formats are SAELens, gemma-scope, dictionary_learning and eai-sparsify (see `read_sae`).

    An SAE trained here carries `max_activation` and `density`, one value per feature, as buffers;
    doses are in units of the first.

    Args:
        source: the name, the folder or file, or with `release` the SAE's id in that release.
        release: name in SAELens' registry, such as `gemma-scope-2b-pt-res-canonical`. Only with it
            is anything fetched.
        hook_name: the site the SAE reads, where its file names none or a wrong one.

    Raises:
        SAEError: nothing stands there, it is no SAE, or it cannot be fetched.
    """
    if release is not None:
        sae = _from_registry(release, str(source), device)
        if hook_name is not None:
            sae.cfg.metadata.hook_name = hook_name
        return sae.requires_grad_(False)
    path = BUNDLED / source if (BUNDLED / source / "cfg.json").is_file() else Path(source)
    if not path.exists():
        raise SAEError(
            f"no SAE {str(source)!r}: not bundled ({', '.join(bundled_saes())}) and no folder "
            "with a cfg.json, ae.pt or params.npz. To fetch it from SAELens' registry, "
            "pass release="
        )
    sae = read_sae(path, device, hook_name=hook_name)
    stats = (path if path.is_dir() else path.parent) / STATS_FILE
    try:
        found = load_file(stats, device=device) if stats.is_file() else {}
    except BROKEN as error:
        raise SAEError(
            f"{path}: not an SAE in the SAELens format ({STATS_FILE}: {error})"
        ) from error
    for name, values in found.items():
        sae.register_buffer(name, values, persistent=False)
    return sae.requires_grad_(False)


def _from_registry(release: str, sae_id: str, device: str) -> SAE:
    try:
        return SAE.from_pretrained(release=release, sae_id=sae_id, device=device)
    # The hub, its transport and SAELens raise dozens of classes with no common one.
    except Exception as error:
        raise SAEError(
            f"no SAE {sae_id!r} of release {release!r} ({type(error).__name__}: {error}). Look "
            "both up in SAELens' list of pretrained SAEs; where the hub cannot be reached, copy "
            "the files here and give their folder without release="
        ) from error


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
    require_width(sae, model)
    trained_on = sae.cfg.metadata.model_sha256
    if trained_on and trained_on != (given := weights_sha256(model)):
        raise SAEError(
            f"the SAE was trained on weights {trained_on[:12]}, the model has {given[:12]}: "
            "load the model it names"
        )


def require_width(sae: Any, model: Any) -> None:
    """Raises SAEError if the SAE reads another width than the model's residual stream has."""
    if sae.cfg.d_in != model.cfg.d_model:
        raise SAEError(
            f"the SAE reads {sae.cfg.d_in} dimensions, the model has {model.cfg.d_model}"
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
