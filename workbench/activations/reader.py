"""Reading shards in shuffled order, with bounded memory."""

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.activations.shards import Shard

BLOCK_ROWS = 1024
POOL_BYTES = 2**28
"""Rows that are mixed with each other; two pools are held at a time."""

Documents = Callable[[Int[Tensor, " token"]], Bool[Tensor, " token"]]


def generator(*seeds: int) -> torch.Generator:
    """A generator of its own for every tuple of numbers."""
    return torch.Generator().manual_seed(random.Random("-".join(map(str, seeds))).getrandbits(62))


class _Block(NamedTuple):
    """A run of rows in one shard; `wanted` is the number of those to be read."""

    shard: Shard
    first: int
    rows: int
    wanted: int


class _Pool(NamedTuple):
    """Rows `begin` to `end` of an epoch: the blocks they are in, and how these are mixed."""

    begin: int
    end: int
    blocks: list[_Block]
    mixing: torch.Generator


class Reader:
    """Reads an epoch pool by pool, one pool ahead of the reader.

    What it holds besides two pools is a few numbers per block.

    Args:
        documents: tells from document indices which rows are wanted; None wants all.
        workers: threads that read blocks ahead.
    """

    def __init__(
        self, shards: Sequence[Shard], seed: int, documents: Documents | None, workers: int
    ) -> None:
        self.seed, self.documents, self.threads = seed, documents, max(1, workers)
        self.blocks = [block for shard in shards for block in self._blocks(shard) if block.wanted]
        self.total = sum(block.wanted for block in self.blocks)
        block_bytes = BLOCK_ROWS * shards[0].row_bytes("acts") if shards else 1
        self.pool_blocks = max(1, POOL_BYTES // block_bytes)

    def spans(
        self, epoch: int, spans: Sequence[tuple[int, int]]
    ) -> Iterator[Float[Tensor, "span d_model"]]:
        """Rows from each `begin` to `end` of the epoch's shuffled order; the spans go upwards."""
        loaded = self._loaded([p for p in self._pools(epoch) if p.end > spans[0][0]])
        pool, rows, order = next(loaded)
        for begin, end in spans:
            parts, at = [], begin
            while at < end:
                while at >= pool.end:
                    pool, rows, order = next(loaded)
                chosen = order[at - pool.begin : end - pool.begin]
                parts.append(rows.index_select(0, chosen))
                at += len(chosen)
            yield parts[0] if len(parts) == 1 else torch.cat(parts)

    def _blocks(self, shard: Shard) -> Iterator[_Block]:
        for first in range(0, shard.rows, BLOCK_ROWS):
            block = _Block(shard, first, min(BLOCK_ROWS, shard.rows - first), 0)
            yield block._replace(wanted=len(self._wanted(block)))

    def _wanted(self, block: _Block) -> Int[Tensor, " wanted"]:
        """Places in the block of the rows to be read."""
        if self.documents is None:
            return torch.arange(block.rows)
        column = torch.empty(block.rows, dtype=torch.int32)
        block.shard.read("document", block.first, column)
        return self.documents(column).nonzero().flatten()

    def _pools(self, epoch: int) -> Iterator[_Pool]:
        order = torch.randperm(len(self.blocks), generator=generator(self.seed, epoch)).tolist()
        if self._fits:
            order = sorted(order)
        begin = 0
        for start in range(0, len(order), self.pool_blocks):
            blocks = [self.blocks[i] for i in order[start : start + self.pool_blocks]]
            end = begin + sum(block.wanted for block in blocks)
            yield _Pool(begin, end, blocks, generator(self.seed, epoch, start))
            begin = end

    def _loaded(self, pools: list[_Pool]) -> Iterator[tuple[_Pool, Tensor, Int[Tensor, " row"]]]:
        """Each pool, the rows of its blocks, and where in them its own lie in their mixed order.

        The rows are overwritten when the pool after next is loaded.
        """
        with ThreadPoolExecutor(1) as ahead:
            loading = ahead.submit(self._load, pools[0], 0)
            for i, pool in enumerate(pools):
                rows = loading.result()
                if i + 1 < len(pools):
                    loading = ahead.submit(self._load, pools[i + 1], i + 1)
                yield pool, rows, self._order(pool)

    def _order(self, pool: _Pool) -> Int[Tensor, " row"]:
        places = [i * BLOCK_ROWS + self._wanted(block) for i, block in enumerate(pool.blocks)]
        return torch.cat(places)[torch.randperm(pool.end - pool.begin, generator=pool.mixing)]

    def _load(self, pool: _Pool, number: int) -> Float[Tensor, "row d_model"]:
        return self._only_pool if self._fits else self._read(pool.blocks, number % 2)

    @property
    def _fits(self) -> bool:
        """Whether one pool holds all: then it is read once, and mixed anew in each epoch."""
        return len(self.blocks) <= self.pool_blocks

    @cached_property
    def _only_pool(self) -> Float[Tensor, "row d_model"]:
        return self._read(self.blocks, 0)

    @cached_property
    def _buffers(self) -> list[Float[Tensor, "row d_model"]]:
        """Two pools; the memory of the second is not touched where one holds everything."""
        rows = min(self.pool_blocks, len(self.blocks)) * BLOCK_ROWS
        shard = self.blocks[0].shard
        dtype = getattr(torch, shard.dtype)
        return [torch.empty(rows, shard.d_model, dtype=dtype) for _ in range(2)]

    def _read(self, blocks: list[_Block], which: int) -> Float[Tensor, "row d_model"]:
        """Copies each block to its place in a buffer: block i starts at row i * BLOCK_ROWS."""
        buffer = self._buffers[which]

        def read(i: int) -> None:
            begin, block = i * BLOCK_ROWS, blocks[i]
            block.shard.read("acts", block.first, buffer[begin : begin + block.rows])

        with ThreadPoolExecutor(self.threads) as threads:
            list(threads.map(read, range(len(blocks))))
        return buffer
