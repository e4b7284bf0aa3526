"""Strict reading of data files: every field is known, there and of its type, or an error tells."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from workbench.errors import DataError

Fields = Mapping[str, tuple[str, bool]]
"""What a record may hold: for each field its type (a key of `TYPES`) and whether it is required."""


# Lambdas, since a test run that checks calls of named functions would check each field of a file.
TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "text": ("a string that is not empty", lambda v: isinstance(v, str) and v.strip() != ""),
    "texts": (
        "a list of strings that are not empty",
        lambda v: isinstance(v, list) and all(isinstance(t, str) and t.strip() for t in v),
    ),
    "keys": (
        "a list of [subject, relation] pairs",
        lambda v: (
            isinstance(v, list)
            and all(isinstance(k, list) and list(map(type, k)) == [str, str] for k in v)
        ),
    ),
    "flag": ("true or false", lambda v: isinstance(v, bool)),
    "number": ("a whole number", lambda v: isinstance(v, int) and not isinstance(v, bool)),
    "record": ("an object in {}", lambda v: isinstance(v, dict)),
}


def check_fields(record: Any, fields: Fields, where: str, inside: str = "") -> None:
    """Compares one record with the table of its fields.

    Args:
        record: what the file holds at this place.
        fields: what it may and must hold.
        where: the place in the file, named in the error.
        inside: path to the record within that place, such as `requested_rewrite.`.

    Raises:
        DataError: no object, or a field is unknown, missing, or of the wrong type.
    """
    if not isinstance(record, dict):
        what = inside.rstrip(".") or "the record"
        raise DataError(f"{where}: {what} is {shown(record)}, wanted an object in {{}}")
    for name in record:
        if name not in fields:
            known = [inside + field for field in fields]
            raise DataError(f"{where}: unknown field {inside + name!r}, wanted one of {known}")
    for name, (kind, required) in fields.items():
        wanted, fits = TYPES[kind]
        field = f"{where}: field {inside + name!r}"
        if required and name not in record:
            raise DataError(f"{field} is missing, wanted {wanted}; given were {list(record)}")
        if name in record and not fits(record[name]):
            raise DataError(f"{field} is {shown(record[name])}, wanted {wanted}")


def shown(value: Any) -> str:
    """The value as JSON, cut to a length that fits an error message."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def parse_json(text: str, where: str) -> Any:
    """Reads one JSON value; a field given twice is an error, where `json` would keep the last.

    Raises:
        DataError: broken JSON, or a field given twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_each_once)
    except ValueError as error:
        raise DataError(f"{where}: broken JSON ({error}): {shown(text.strip())}") from error


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"field {next(n for n in names if names.count(n) > 1)!r} is given twice")
    return record


def read_text(path: Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        DataError: not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"not a UTF-8 text ({error}): save it as UTF-8") from error


def summary(what: str, cases: list[str], limit: int = 10) -> tuple[str, ...]:
    """One note that counts the cases and shows the first ones; no note if there are none."""
    more = f"; and {len(cases) - limit} more" if len(cases) > limit else ""
    return (f"{len(cases)} {what}: {'; '.join(cases[:limit])}{more}",) if cases else ()
