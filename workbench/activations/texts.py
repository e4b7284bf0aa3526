"""Turning whatever holds text into rows of token ids, without holding it all."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from torch import Tensor

from workbench.errors import DataError
from workbench.facts.schema import Document, FactSet

TOKENIZED_AT_ONCE = 128
FIELDS = ("text", "input_ids", "tokens")
"""Fields that hold a row's text or token ids; the first that a row has is read."""


@dataclass(frozen=True)
class Piece:
    """A run of tokens that is one row of a forward pass.

    Attributes:
        document: index of the document in its source.
        tokens: what the model reads; none for an empty document.
        start: position in the document of the first token.
        again: the first token is a BOS that repeats the document's; it stands where the last token
            of the piece before did.
    """

    document: int
    tokens: list[int]
    start: int
    again: bool


def pieces(source: Any, tokenizer: Any, context_size: int) -> Iterator[Piece]:
    """Cuts every document of a source into rows of at most `context_size` tokens.

    A document that begins with BOS has it in front of each of its pieces.

    Args:
        source: a FactSet (its corpus); strings, Documents, lists or arrays of token ids, or rows
            with a field `text`, `input_ids` or `tokens` as Hugging Face datasets give them, also
            streamed; or a Path to `.txt` (a document per line), `.jsonl` (strings or such rows),
            `.npy` or `.safetensors` with one integer array (a document per row). Text gets the
            tokenizer's BOS in front if it has one. Token ids get none; their padding is what the
            row's `attention_mask` leaves out, or else the padding tokens at both ends (of those in
            front, one stays where BOS and padding are the same token).

    Raises:
        DataError: the source holds something else.
    """
    name = f"{source}: " if isinstance(source, Path) else ""
    for document, ids in _token_ids(_items(source), tokenizer, name):
        bos = ids[:1] if ids[:1] == [tokenizer.bos_token_id] else []
        own, room = ids[len(bos) :], context_size - len(bos)
        for start in range(0, max(1, len(own)), room):
            tokens = bos + own[start : start + room]
            yield Piece(document, tokens, start, again=bool(bos) and start > 0)


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of the tokens that frame a text: BOS, EOS, padding, CLS and SEP."""
    names = ("bos", "eos", "pad", "cls", "sep")
    found = (getattr(tokenizer, f"{name}_token_id", None) for name in names)
    return frozenset(i for i in found if i is not None)


# Documents of a source


def _items(source: Any) -> Iterable[Any]:
    if isinstance(source, FactSet):
        return source.corpus
    if isinstance(source, Path):
        return _file_items(source)
    if isinstance(source, Mapping):
        raise DataError(f"cannot harvest from all of {sorted(source)}: give one of them")
    if isinstance(source, str | bytes) or not isinstance(source, Iterable):
        raise DataError(
            f"cannot harvest from {type(source).__name__} {str(source)[:60]!r}: wanted a FactSet, "
            "a list of texts or token ids, a dataset, or a pathlib.Path to a file"
        )
    return source


def _file_items(path: Path) -> Iterator[Any]:
    if path.suffix not in READERS:
        raise DataError(f"{path}: wanted a file that ends in {', '.join(READERS)}")
    try:
        yield from READERS[path.suffix](path)
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read as {path.suffix} ({error})") from error


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield line.rstrip("\n")


def _json_lines(path: Path) -> Iterator[Any]:
    for number, line in enumerate(_lines(path), 1):
        try:
            if line.strip():
                yield json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error


def _array_rows(path: Path) -> Iterator[np.ndarray]:
    rows = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(rows, np.ndarray):
        raise ValueError("an archive of several arrays")
    _require_two_axes(rows.shape)
    yield from rows


def _tensor_rows(path: Path) -> Iterator[Tensor]:
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        if len(names) != 1:
            raise ValueError(f"it holds {names}, wanted one array of token ids")
        rows = file.get_slice(names[0])
        _require_two_axes(rows.get_shape())
        for i in range(rows.get_shape()[0]):
            yield rows[i]


def _require_two_axes(shape: Iterable[int]) -> None:
    if len(shape := tuple(shape)) != 2:
        raise ValueError(f"its shape is {shape}, wanted a document per row")


READERS = {
    ".txt": _lines,
    ".jsonl": _json_lines,
    ".npy": _array_rows,
    ".safetensors": _tensor_rows,
}


# Token ids of a document


def _token_ids(items: Iterable[Any], tokenizer: Any, name: str) -> Iterator[tuple[int, list[int]]]:
    """Document index and ids; texts are tokenized many at a time."""
    numbered = enumerate(items)
    while some := list(islice(numbered, TOKENIZED_AT_ONCE)):
        contents = [_content(item, tokenizer, f"{name}document {i}") for i, item in some]
        texts = [c for c in contents if isinstance(c, str)]
        rows = iter(tokenizer(texts)["input_ids"] if texts else [])
        for (i, _), content in zip(some, contents, strict=True):
            is_text = isinstance(content, str)
            yield i, _with_bos(next(rows), tokenizer.bos_token_id) if is_text else content


def _content(item: Any, tokenizer: Any, name: str) -> str | list[int]:
    """The text or the ids of one item."""
    mask = None
    if isinstance(item, Mapping):
        field = next((f for f in FIELDS if f in item), None)
        if field is None:
            raise DataError(f"{name} has {sorted(item)}: wanted one of {', '.join(FIELDS)}")
        item, mask = item[field], item.get("attention_mask")
    if isinstance(item, Document):
        return item.text
    if isinstance(item, str):
        return item
    ids = _whole_numbers(item, name)
    if mask is None:
        return _unpadded(ids.tolist(), tokenizer)
    read = _whole_numbers(mask, f"{name}, its attention_mask,")
    if len(read) != len(ids):
        raise DataError(f"{name} has {len(ids)} token ids and {len(read)} of attention_mask")
    return ids[read == 1].tolist()


def _whole_numbers(item: Any, name: str) -> np.ndarray:
    try:
        array = item.cpu().numpy() if isinstance(item, Tensor) else np.asarray(item)
    except (TypeError, ValueError):
        array = np.empty((0, 0))
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        kind = f"{item.dtype} of shape {tuple(item.shape)}" if hasattr(item, "dtype") else str(item)
        raise DataError(
            f"{name} is {type(item).__name__} {kind[:60]}: wanted text or one row of token ids"
        )
    return array.astype(np.int64)


def _with_bos(ids: list[int], bos: int | None) -> list[int]:
    return list(ids) if bos is None or ids[:1] == [bos] else [bos, *ids]


def _unpadded(ids: list[int], tokenizer: Any) -> list[int]:
    pad, begin, end = tokenizer.pad_token_id, 0, len(ids)
    while end and ids[end - 1] == pad:
        end -= 1
    while begin < end and ids[begin] == pad:
        begin += 1
    if pad == tokenizer.bos_token_id and 0 < begin < end:
        begin -= 1
    return ids[begin:end]
