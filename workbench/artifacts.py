"""Writing a folder or a file whole or not at all, and hashing what was written."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workbench.errors import DataError

MARKER = ".workbench"


@contextmanager
def new_folder(path: Path | str) -> Iterator[Path]:
    """Gives a temporary folder that takes the place of `path` if the block ends normally.

    It is made beside `path`. An exception or an interrupt leaves what stood at `path` before, or
    nothing. An empty folder is replaced, and so is one that was made here, which a file
    `.workbench` in it tells.

    Raises:
        DataError: anything else stands at `path`.
    """
    path = Path(path)
    require_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield building
        move_folder(building, path)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def move_folder(building: Path, path: Path) -> None:
    """Puts a finished folder in the place of `path`, whose earlier content is then deleted."""
    require_replaceable(path)
    mark_replaceable(building)
    building.chmod(0o755)
    if not path.exists():
        building.replace(path)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}-old-", dir=path.parent))
    path.replace(old / path.name)
    try:
        building.replace(path)
    except BaseException:
        (old / path.name).replace(path)
        raise
    finally:
        shutil.rmtree(old)


def require_replaceable(path: Path | str) -> None:
    """Raises DataError if `new_folder` would refuse `path`: to be asked before long work."""
    path = Path(path)
    if not path.name:
        raise DataError(f"{path}: has no name that a folder could be written under; name one")
    if path.exists() and not path.is_dir():
        raise DataError(f"{path}: is a file, wanted a folder to write; name another")
    if path.is_dir() and any(path.iterdir()) and not (path / MARKER).is_file():
        raise DataError(
            f"{path}: holds files that the workbench did not write (it leaves a {MARKER} in its "
            "folders), so it is not replaced; name a new or empty folder, or move this one away"
        )


def mark_replaceable(folder: Path | str) -> None:
    """Lets `new_folder` replace an existing folder."""
    (Path(folder) / MARKER).write_text("written by workbench, which may replace this folder\n")


def write_text(path: Path | str, content: str) -> None:
    """Writes a text file in one step: a reader sees the old content or the new, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}-", delete=False
    ) as file:
        building = Path(file.name)
    try:
        building.write_text(content, encoding="utf-8")
        building.chmod(0o644)
        building.replace(path)
    finally:
        building.unlink(missing_ok=True)


def write_json(path: Path | str, value: Any) -> None:
    """Writes a value as indented JSON with sorted keys, in one step as `write_text` does."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def file_sha256(path: Path | str) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
