"""Shuffled minibatches: every wanted row once, in an order that the seed decides."""

import itertools
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from workbench.activations import Activations, reader
from workbench.activations.shards import Shard
from workbench.errors import DataError

ROWS, BATCH, SHARD, BLOCK = 330, 10, 53, 7
PER_EPOCH = ROWS // BATCH
RANGE = torch.arange(ROWS)
DIGITS = torch.stack([RANGE // 64, RANGE % 64, torch.ones(ROWS)], 1)
"""Rows that can be told apart in every type."""


def numbers(batch: Tensor) -> list[int]:
    return (batch.float() @ torch.tensor([64.0, 1, 0])).long().tolist()


@pytest.fixture(scope="module")
def acts(
    write_by_hand: Callable[..., Activations], tmp_path_factory: pytest.TempPathFactory
) -> Activations:
    return write_by_hand(tmp_path_factory.mktemp("acts"), DIGITS, SHARD)


@pytest.fixture(autouse=True, params=["pools of three blocks", "one pool"])
def pools(
    request: pytest.FixtureRequest, acts: Activations, monkeypatch: pytest.MonkeyPatch
) -> str:
    monkeypatch.setattr(reader, "BLOCK_ROWS", BLOCK)
    if request.param != "one pool":
        monkeypatch.setattr(reader, "POOL_BYTES", 3 * BLOCK * 3 * acts.dtype.itemsize)
    return request.param


def taken(acts: Activations, n: int, batch_size: int = BATCH, **options: Any) -> list[list[int]]:
    return [numbers(b) for b in itertools.islice(acts.batches(batch_size, **options), n)]


def test_rows_lie_in_several_shards_and_pools(acts: Activations, pools: str) -> None:
    assert len(acts.card.shards) == 7
    used = list(reader.Reader(acts._shards, 0, None, 1)._pools(0))
    assert [p.begin for p in used[1:]] == [p.end for p in used[:-1]] and used[-1].end == ROWS
    assert len(used) == (1 if pools == "one pool" else 17)
    borders = {p.end for p in used[:-1]}
    assert not borders or any(border % BATCH for border in borders)


def test_every_row_comes_once_in_each_epoch(acts: Activations) -> None:
    batches = taken(acts, 3 * PER_EPOCH)
    epochs = [
        [n for batch in batches[i * PER_EPOCH : (i + 1) * PER_EPOCH] for n in batch]
        for i in range(3)
    ]
    for epoch in epochs:
        assert sorted(epoch) == list(range(ROWS))
    for a, b in itertools.pairwise([list(range(ROWS)), *epochs]):
        assert sum(x == y for x, y in zip(a, b, strict=True)) < ROWS / 5
    for a, b in itertools.pairwise(epochs):  # other blocks are mixed with each other
        assert len(set(a[:BATCH]) & set(b[: 2 * BATCH])) < BATCH / 2
    assert all(max(batch) - min(batch) > BATCH for batch in batches)


def test_incomplete_batch_is_left_out(acts: Activations) -> None:
    batches = taken(acts, 2 * (ROWS // 64), 64)
    for epoch in (batches[: ROWS // 64], batches[ROWS // 64 :]):
        given = [n for batch in epoch for n in batch]
        assert len(set(given)) == len(given) == 64 * (ROWS // 64)
    assert set(batches[0]) != set(batches[ROWS // 64])


@pytest.mark.parametrize("size", [1, ROWS])
def test_smallest_and_largest_batch(acts: Activations, size: int) -> None:
    batches = taken(acts, ROWS // size, size)
    assert sorted(n for batch in batches for n in batch) == list(range(ROWS))


def test_order_is_decided_by_the_seed(acts: Activations) -> None:
    first = taken(acts, PER_EPOCH + 3, seed=3)
    assert taken(acts, PER_EPOCH + 3, seed=3) == first != taken(acts, PER_EPOCH + 3, seed=4)
    assert taken(acts, PER_EPOCH + 3, seed=3, workers=3) == first


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_row_comes_once_in_every_type(
    dtype: str, write_by_hand: Callable[..., Activations], tmp_path: Path
) -> None:
    acts = write_by_hand(tmp_path, DIGITS, SHARD, dtype)
    batches = list(itertools.islice(acts.batches(BATCH), PER_EPOCH))
    assert {batch.dtype for batch in batches} == {acts.dtype} == {getattr(torch, dtype)}
    assert sorted(numbers(torch.cat(batches))) == list(range(ROWS))


def test_order_is_the_same_at_every_site(
    acts: Activations, write_by_hand: Callable[..., Activations], tmp_path: Path
) -> None:
    other = write_by_hand(tmp_path, DIGITS + 1, SHARD)
    for a, b in itertools.islice(zip(acts.batches(BATCH), other.batches(BATCH), strict=True), 40):
        assert torch.equal(a + 1, b)


@pytest.mark.parametrize("start", [1, PER_EPOCH - 1, PER_EPOCH, PER_EPOCH + 5, 3 * PER_EPOCH + 1])
def test_start_passes_over_batches(acts: Activations, start: int) -> None:
    whole = taken(acts, start + PER_EPOCH + 2, seed=1)
    assert taken(acts, PER_EPOCH + 2, seed=1, start=start) == whole[start:]


def test_batches_passed_over_are_not_read(
    acts: Activations, pools: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks, read = [], Shard.read

    def counted(shard: Shard, column: str, first: int, into: Tensor) -> None:
        blocks.append((shard.path, first))
        read(shard, column, first, into)

    monkeypatch.setattr(Shard, "read", counted)
    taken(acts, PER_EPOCH)
    every = len(set(blocks))
    assert every >= ROWS / BLOCK
    blocks.clear()
    taken(acts, 1, start=PER_EPOCH - 1)
    assert len(blocks) == every if pools == "one pool" else 0 < len(blocks) <= 6


@pytest.mark.parametrize("ranks", [1, 2, 3, BATCH])
def test_parts_of_the_ranks_are_the_whole_batch(acts: Activations, ranks: int) -> None:
    n = PER_EPOCH + 2
    parts = [taken(acts, n, seed=2, rank=rank, ranks=ranks) for rank in range(ranks)]
    together = [[i for part in batch for i in part] for batch in zip(*parts, strict=True)]
    assert together == taken(acts, n, seed=2)
    assert {len(part[0]) for part in parts} <= {BATCH // ranks, BATCH // ranks + 1}


def wanted(document: Tensor) -> Tensor:
    return (document % 5 == 2) | (document > 25)


def test_only_wanted_documents_are_given(acts: Activations) -> None:
    rows = [n for n in range(ROWS) if (n // 10) % 5 == 2 or n // 10 > 25]
    assert acts.count(wanted) == len(rows) < acts.count() == ROWS
    size = next(n for n in range(6, 20) if len(rows) % n == 0)
    per_epoch = len(rows) // size
    batches = taken(acts, 2 * per_epoch, size, documents=wanted)
    for epoch in (batches[:per_epoch], batches[per_epoch:]):
        assert sorted(n for batch in epoch for n in batch) == rows
    later = taken(acts, per_epoch, size, documents=wanted, start=per_epoch - 1)
    assert later == batches[per_epoch - 1 : 2 * per_epoch - 1]


def test_blocks_without_a_wanted_row_are_not_read(
    acts: Activations, monkeypatch: pytest.MonkeyPatch
) -> None:
    acts_read, read = [], Shard.read

    def counted(shard: Shard, column: str, first: int, into: Tensor) -> None:
        if column == "acts":
            acts_read.append((shard.path, first))
        read(shard, column, first, into)

    monkeypatch.setattr(Shard, "read", counted)
    taken(acts, 1, 10, documents=lambda document: document == 3)
    assert 2 <= len(acts_read) <= 3


# Errors


@pytest.mark.parametrize("size", [0, -1, ROWS + 1])
def test_batch_that_cannot_be_filled_is_an_error(acts: Activations, size: int) -> None:
    with pytest.raises(DataError, match=f"batch_size {size}: wanted 1 to {ROWS}"):
        next(acts.batches(size))


def test_no_wanted_documents_are_an_error(acts: Activations) -> None:
    assert acts.count(lambda document: document < 0) == 0
    with pytest.raises(DataError, match="wanted 1 to 0"):
        next(acts.batches(1, documents=lambda document: document < 0))


@pytest.mark.parametrize(
    "options",
    [
        {"rank": 1},
        {"rank": -1},
        {"rank": 2, "ranks": 2},
        {"ranks": 0},
        {"ranks": 11},
        {"start": -1},
    ],
    ids=str,
)
def test_rank_and_start_that_do_not_exist_are_errors(
    acts: Activations, options: dict[str, int]
) -> None:
    with pytest.raises(DataError, match="wanted a rank from 0"):
        next(acts.batches(BATCH, **options))


def test_shard_cut_while_it_is_read_is_named(
    write_by_hand: Callable[..., Activations], tmp_path: Path
) -> None:
    acts = write_by_hand(tmp_path, DIGITS, SHARD)
    shard = tmp_path / "shard-00003.safetensors"
    os.truncate(shard, shard.stat().st_size - 1)
    with pytest.raises(DataError, match="cut short while it was read") as raised:
        taken(acts, PER_EPOCH, workers=3)
    assert str(shard) in str(raised.value)


# What is left behind


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc")
def test_reader_that_is_let_go_leaves_no_thread_and_no_file(acts: Activations, pools: str) -> None:
    before = threading.active_count(), open_files()
    batches = acts.batches(BATCH, workers=3)
    next(batches)
    assert threading.active_count() > before[0]
    batches.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert (threading.active_count(), open_files()) == before
    taken(acts, 3 * PER_EPOCH, workers=3)
    assert (threading.active_count(), open_files()) == before
