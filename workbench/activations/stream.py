"""Activations that are computed while they are read, for those who cannot store them."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.activations.chunks import Chunk, Reading, chunks, read_chunk
from workbench.activations.reader import Documents, generator
from workbench.errors import DataError
from workbench.hooks import Site


class ActivationStream:
    """Shuffled minibatches of several sites from one forward pass, with nothing on disk.

    Rows wait in a pool. When it holds as many as a shard, it is given out in random order down to
    half of that, and filled again. A source that is smaller than the pool is mixed whole, and each
    of its rows given once in every pass over it. Order depends on the seed and the batch size
    alone.
    """

    def __init__(self, model: Any, source: Any, reading: Reading) -> None:
        self.model, self.source, self.reading = model, source, reading

    @property
    def sites(self) -> tuple[Site, ...]:
        return self.reading.sites

    def batches(
        self,
        batch_size: int,
        seed: int = 0,
        *,
        documents: Documents | None = None,
        start: int = 0,
    ) -> Iterator[dict[Site, Float[Tensor, "batch d_model"]]]:
        """Endless minibatches of each site; row i is the same token in all.

        A source that can be read only once is given out to its last full batch before the error.

        Args:
            documents: tells from document indices which rows are wanted; None wants all.
            start: number of batches to pass over; the model is run for them all the same.

        Raises:
            DataError: an empty batch; the source gives fewer rows than one, or is an iterator that
            has run out.
        """
        if batch_size < 1 or start < 0:
            raise DataError(f"batch_size {batch_size}, start {start}: wanted 1 and 0 or more")
        yield from islice(self._batches(batch_size, seed, documents), start, None)

    def _batches(
        self, batch_size: int, seed: int, documents: Documents | None
    ) -> Iterator[dict[Site, Float[Tensor, "batch d_model"]]]:
        full, mixing = self.reading.shard_rows, generator(seed)
        portion = replace(self.reading, shard_rows=max(1, full // 2))
        pool = _Pool(self.model, portion, max(full, full // 2 + batch_size))
        while True:
            given, was_full = 0, False
            for chunk in chunks(self.model, self.source, portion):
                given += pool.add(chunk, documents)
                if pool.held >= full:
                    was_full = True
                    yield from pool.give(batch_size, full // 2, mixing)
            if not was_full:
                yield from pool.give(batch_size, 0, mixing)
            if given < batch_size:
                raise DataError(
                    f"the texts gave {given} rows, wanted {batch_size} for a batch: give more "
                    "texts, or a source that can be read again (a list, not an iterator)"
                )


class _Pool:
    """Rows that wait to be given out, at the front of a buffer for each site.

    Args:
        wait: most rows that are held when a chunk is added.
    """

    def __init__(self, model: Any, reading: Reading, wait: int) -> None:
        size = wait + reading.shard_rows + reading.context_size
        dtype = getattr(torch, reading.dtype)
        self.model, self.held = model, 0
        self.rows = {
            site: torch.empty(size, model.cfg.d_model, dtype=dtype) for site in reading.sites
        }

    def add(self, chunk: Chunk, documents: Documents | None) -> int:
        """Runs the model over a chunk; gives the number of its rows that are wanted."""
        wanted = None if documents is None else documents(chunk.where()["document"])
        count = chunk.rows if wanted is None else int(wanted.sum())
        if not count:
            return 0
        begin, end = self.held, self.held + chunk.rows
        read_chunk(self.model, chunk, {site: rows[begin:end] for site, rows in self.rows.items()})
        self.held += count
        if wanted is not None:
            for rows in self.rows.values():
                rows[begin : self.held] = rows[begin:end][wanted]
        return count

    def give(
        self, batch_size: int, keep: int, mixing: torch.Generator
    ) -> Iterator[dict[Site, Float[Tensor, "batch d_model"]]]:
        """Takes out full batches in random order as long as `keep` rows are left."""
        out = max(0, self.held - keep) // batch_size * batch_size
        order = torch.randperm(self.held, generator=mixing)
        for first in range(0, out, batch_size):
            chosen = order[first : first + batch_size]
            yield {site: rows[chosen] for site, rows in self.rows.items()}
        self.held -= out
        for rows in self.rows.values():
            rows[: self.held] = rows[order[out:]]
