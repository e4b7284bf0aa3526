"""Scores on disk: the matrices that every number of a report is made from, and finished jobs."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workbench.audit.faithfulness import SHIPPED
from workbench.audit.statistics import Key, Scores
from workbench.audit.views import Found
from workbench.errors import DataError

COLUMNS = ("role", "view", *Key._fields, "values", "entities", "relations")


def save_scores(measured: Mapping[tuple[str, str], Found], path: Path | str) -> Path:
    """Writes all scores as one parquet file, one row per key; same scores, same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        (*view, *key[:5], float(key.x), scores.values, scores.entities, scores.relations)
        for view, found in sorted(measured.items())
        for key, scores in sorted(found.items(), key=lambda item: item[0])
    ]
    columns = list(zip(*rows, strict=True)) if rows else [[] for _ in COLUMNS]
    text, names = pa.string(), pa.list_(pa.string())
    types = (*[text] * 6, pa.int64(), pa.float64(), pa.list_(pa.float64()), names, names)
    arrays = [pa.array(list(c), t) for c, t in zip(columns, types, strict=True)]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    building = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(pa.table(dict(zip(COLUMNS, arrays, strict=True))), building, compression="zstd")
    building.replace(path)
    return path


def load_scores(path: Path | str) -> dict[tuple[str, str], Found]:
    """Reads what `save_scores` wrote.

    Raises:
        DataError: the file is missing, broken, or no such file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        columns = [table.column(name).to_pylist() for name in COLUMNS]
    except (OSError, KeyError, pa.ArrowException) as error:
        raise DataError(f"{path}: not a file of audit scores ({error})") from error
    measured: dict[tuple[str, str], Found] = {}
    for role, view, *key, values, entities, relations in zip(*columns, strict=True):
        if len(entities) != len(values) or len(relations) not in (0, len(values)):
            raise DataError(f"{path}: {key}: {len(values)} values for {len(entities)} questions")
        scores = Scores(np.array(values, dtype=float), tuple(entities), tuple(relations))
        measured.setdefault((role, view), {})[Key(*key)] = scores
    return measured


def cache_folder() -> Path:
    """Where finished jobs are kept: `WORKBENCH_CACHE`, or the user's cache folder."""
    import platformdirs

    given = os.environ.get("WORKBENCH_CACHE")
    return Path(given) if given else Path(platformdirs.user_cache_dir("unlearning-workbench"))


def battery_sha256() -> str:
    """Hash of the source of the whole audit, and of all that it measures with."""
    rooms = ("audit", "facts", "hooks", "interventions", "models")
    return source_sha256(*rooms, *(("audit/metacheck.json",) if SHIPPED.is_file() else ()))


def measuring_sha256() -> str:
    """Hash of the source that decides what a job measures: finished jobs are kept under it."""
    rooms = (
        *("attacks", "probes", "questions", "calling.py", "derivation.py", "entailment.py"),
        *("concepts.py", "dual_use.py", "hook_bypass.py", "hook_checks.py", "hook_error.py"),
        *("privacy.py", "rotation.py"),
    )
    return source_sha256(
        *(f"audit/{r}" for r in rooms), "facts", "hooks", "interventions", "models"
    )


def source_sha256(*places: str) -> str:
    """Hash of the source in these rooms and files of the package."""
    root, digest = Path(__file__).parent.parent, hashlib.sha256()
    for place in places:
        files = sorted((root / place).rglob("*.py")) or [root / place]
        for path in files:
            digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


def value_sha256(value: Any) -> str | None:
    """Hash of an edit's fields, however deep; None if it holds what has no stable content.

    What a class outside this package and sae_lens does may change while its fields stay, so that
    its values have no hash.
    """
    digest = hashlib.sha256()
    try:
        for part in _parts(value):
            digest.update(part)
            digest.update(b"\0")
    except TypeError:
        return None
    return digest.hexdigest()


def _parts(value: Any) -> Iterator[bytes]:
    yield type(value).__qualname__.encode()
    known = type(value).__module__.partition(".")[0] in ("workbench", "sae_lens", "torch")
    if isinstance(value, torch.Tensor):
        flat = value.detach().cpu().contiguous()
        yield f"{flat.dtype} {tuple(flat.shape)}".encode()
        yield flat.view(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype} {value.shape}".encode() + value.tobytes()
    elif value is None or isinstance(value, str | int | float | bool):
        yield repr(value).encode()
    else:
        for name, part in _members(value, known):
            yield name.encode()
            yield from _parts(part)


def _members(value: Any, known: bool) -> list[tuple[str, Any]]:
    """The named parts of a container."""
    if isinstance(value, torch.nn.Module) and known:
        tensors = (*value.named_parameters(), *value.named_buffers())
        return [("cfg", repr(getattr(value, "cfg", None))), *((n, t.data) for n, t in tensors)]
    if is_dataclass(value) and not isinstance(value, type) and known:
        return [(f.name, getattr(value, f.name)) for f in fields(value)]
    if isinstance(value, dict):
        return [(repr(key), value[key]) for key in sorted(value, key=repr)]
    if isinstance(value, list | tuple):
        return [(str(i), item) for i, item in enumerate(value)]
    raise TypeError(type(value))
