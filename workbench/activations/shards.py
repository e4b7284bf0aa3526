"""A shard: a safetensors file of rows, written and read in place."""

import json
import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from workbench.errors import DataError

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
COLUMNS = ("document", "position", "token", "acts")
"""The whole numbers come first, so that every column is aligned whatever the type of the rows."""
ZEROS = 2**20


@dataclass(frozen=True)
class Shard:
    """Rows in a safetensors file, and the document, position and token of each.

    The file is its header and the columns, one after the other; all follows from what stands here.
    """

    path: Path
    rows: int
    d_model: int
    dtype: str

    @cached_property
    def header(self) -> bytes:
        header, offset = {}, 0
        for name in COLUMNS:
            shape = [self.rows, self.d_model] if name == "acts" else [self.rows]
            size = self.rows * self.row_bytes(name)
            header[name] = {
                "dtype": DTYPES[self.dtype] if name == "acts" else "I32",
                "shape": shape,
                "data_offsets": [offset, offset + size],
            }
            offset += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    @cached_property
    def begins(self) -> dict[str, int]:
        """First byte of each column in the file."""
        begins, offset = {}, len(self.header)
        for name in COLUMNS:
            begins[name] = offset
            offset += self.rows * self.row_bytes(name)
        return begins

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.begins["acts"] + self.rows * self.row_bytes("acts")

    def named(self, suffix: str) -> "Shard":
        """The same shard in a file beside it."""
        return replace(self, path=self.path.with_suffix(suffix))

    def row_bytes(self, column: str) -> int:
        return self.d_model * getattr(torch, self.dtype).itemsize if column == "acts" else 4

    def reserve(self) -> None:
        """Writes the header to a file of the right size, whose room on the disk is taken at once.

        Writing through a mapping into a file without room would end the process, not raise.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, self.size)
            else:  # macOS
                for begin in range(0, self.size, ZEROS):
                    file.write(bytes(min(ZEROS, self.size - begin)))
                file.seek(0)
            file.write(self.header)

    def mapped(self, column: str, *, write: bool = False) -> Tensor:
        """A column in memory only where it is looked at; with `write`, changes go to the file."""
        acts = column == "acts"
        shape = (self.rows, self.d_model) if acts else (self.rows,)
        dtype = getattr(torch, self.dtype) if acts else torch.int32
        if not self.rows:
            return torch.empty(shape, dtype=dtype)
        content = torch.from_file(str(self.path), shared=write, size=self.size, dtype=torch.uint8)
        begin = self.begins[column]
        end = begin + self.rows * self.row_bytes(column)
        return content[begin:end].view(dtype).view(shape)

    def read(self, column: str, first: int, into: Tensor) -> None:
        """Fills a contiguous tensor with the rows of a column from `first` on.

        Raises:
            DataError: the file has become shorter since it was opened.
        """
        content = memoryview(into.view(torch.uint8).numpy()).cast("B")  # pyright: ignore[reportArgumentType]
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.begins[column] + first * self.row_bytes(column))
            done = 0
            while done < len(content):
                if not (n := file.readinto(content[done:])):
                    raise DataError(f"{self.path}: cut short while it was read; harvest again")
                done += n
