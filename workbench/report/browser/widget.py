"""The notebook's door to the feature browser: gathers what it shows, and opens it."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from workbench.audit.store import cache_folder, source_sha256, value_sha256
from workbench.dashboards import Bench, Dashboards, make_dashboards
from workbench.errors import DataError, EditError, SAEError, WorkbenchError
from workbench.facts.target import Target
from workbench.models.load import tokenizer_sha256, weights_sha256
from workbench.sae.load import load_sae
from workbench.sae.read import require_plain_decoder


def browse(
    sae: Any,
    model: Any,
    target: Target | None = None,
    *,
    texts: Any = None,
    golds: Sequence[Any] = (),
    out: Path | str | None = None,
    dashboards: Dashboards | Path | str | None = None,
) -> Any:
    """A widget of an SAE's features, in which edits of them are tried on the model at once.

    What is shown is gathered first, once: a second call with the same SAE, model, target and texts
    finds it. Nothing that was gathered, bookmarked or saved before is replaced.

    Args:
        target: what is to be forgotten; without it there are no recall and no audit.
        texts: as `harvest` takes them; by default the corpus of the target's facts.
        golds: models that never knew the target; the first is shown beside the edited model.
        out: folder of what is gathered, also of bookmarks and saved edits; by default one in the
            user's cache folder.
        dashboards: what was gathered before, or its folder; then nothing is read.

    Raises:
        WorkbenchError: ipywidgets is not installed.
        SAEError: the SAE fits neither the model's weights nor its width, or there are no texts.
        DataError: what was gathered before is of another SAE; or, in `out`, of another model or
            target; or, without `out`, texts that cannot be told apart from others.
    """
    try:
        from workbench.report.browser.notebook import Browser
    except ModuleNotFoundError as error:
        raise WorkbenchError(
            f"{error.name} is not installed: pip install unlearning-workbench[notebook]"
        ) from error
    if dashboards is None:
        dashboards = _gathered(sae, model, target, texts, out)
    found = dashboards if isinstance(dashboards, Dashboards) else Dashboards(dashboards)
    require_same(found, sae)
    return Browser(found, _bench(sae, model, target, golds, found))


def require_same(dashboards: Dashboards, sae: Any) -> None:
    """Raises DataError if dashboards show another SAE."""
    card, name = dashboards.card, sae.cfg.metadata.hook_name
    if (card["features"], card["site"]) != (sae.cfg.d_sae, name):
        raise DataError(
            f"{dashboards.folder}: shows {card['features']} features at {card['site']}, the SAE "
            f"has {sae.cfg.d_sae} at {name}: gather it into another folder"
        )
    kept = dashboards.folder / "sae"
    if kept.is_dir() and not torch.allclose(load_sae(kept).W_dec, sae.W_dec.float().cpu()):
        raise DataError(
            f"{dashboards.folder}: shows an SAE with other weights: gather it into another folder"
        )


def require_model(dashboards: Dashboards, model: Any) -> None:
    """Raises DataError if dashboards show what features do in another model."""
    if (kept := dashboards.card["model_sha256"]) != (given := weights_sha256(model)):
        raise DataError(
            f"{dashboards.folder}: shows a model of weights {kept[:12]}, this one has "
            f"{given[:12]}: gather it into another folder"
        )


def _bench(
    sae: Any, model: Any, target: Target | None, golds: Sequence[Any], found: Dashboards
) -> Bench | WorkbenchError:
    """Where edits are tried, or why none can be."""
    try:
        require_plain_decoder(sae)
        require_model(found, model)
        return Bench(sae, model, target, golds, found)
    except (DataError, EditError, SAEError) as error:
        return error


def _gathered(
    sae: Any, model: Any, target: Target | None, texts: Any, out: Path | str | None
) -> Path:
    """The folder of what is shown, gathered if it is not there yet."""
    try:
        require_plain_decoder(sae)
    except EditError:
        texts = target.facts if texts is None and target is not None else texts
        target = None
    if out is None:
        folder = cache_folder() / "browser" / content_sha256(sae, model, target, texts)
    else:
        folder = Path(out)
    if not (folder / "card.json").is_file():
        return make_dashboards(sae, model, target, folder, texts)
    before = Dashboards(folder)
    require_model(before, model)
    if before.card["target"] != (target.name if target else None):
        raise DataError(
            f"{folder}: shows target {before.card['target']}: gather another into another folder"
        )
    return folder


def content_sha256(sae: Any, model: Any, target: Target | None, texts: Any) -> str:
    """Hash of all that decides what is gathered, and of the source that gathers it.

    Raises:
        DataError: texts that have no stable content, such as a stream.
    """
    content = Path(texts).read_bytes() if isinstance(texts, Path) else b""
    given = value_sha256([target, str(texts) if isinstance(texts, Path) else texts])
    tensors = value_sha256([repr(sae.cfg), dict(sae.state_dict())])
    if given is None:
        raise DataError(
            f"texts of type {type(texts).__name__} cannot be known again: give a folder, out="
        )
    rooms = ("activations", "dashboards", "facts", "hooks", "locate", "models", "sae")
    whole = [
        weights_sha256(model),
        tokenizer_sha256(model.tokenizer),
        given,
        str(tensors),
        source_sha256(*rooms),
        hashlib.sha256(content).hexdigest(),
    ]
    return hashlib.sha256("".join(whole).encode()).hexdigest()
