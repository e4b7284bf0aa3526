"""Batches from a model that is run while they are read are those of a stored harvest."""

import itertools
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from workbench.activations import Activations, ActivationStream, chunks, harvest
from workbench.activations import stream as streaming
from workbench.errors import DataError
from workbench.hooks import Site

SITES = [Site(1), Site(0)]
POOL = 40
Batch = dict[Site, Tensor]


@pytest.fixture(scope="module")
def texts(bridge: Any) -> list[str]:
    """Documents that begin with different words, so that no two rows of the model are equal."""
    draw = random.Random(0)
    words = sorted(word for word in bridge.tokenizer.get_vocab() if "<" not in word)
    firsts = draw.sample(words, 40)
    return [" ".join([w, *draw.choices(words, k=draw.randint(2, 9))]) for w in firsts]


@pytest.fixture(scope="module")
def stored_rows(
    bridge: Any, texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> list[Activations]:
    return harvest(bridge, texts, SITES, tmp_path_factory.mktemp("stored"), progress=False)


@pytest.fixture
def stream(bridge: Any, texts: list[str]) -> Callable[..., ActivationStream]:
    def make(source: Any = texts, shard_rows: int | None = POOL, **options: Any) -> Any:
        return harvest(bridge, source, SITES, keep=False, shard_rows=shard_rows, **options)

    return make


@pytest.fixture
def number(stored_rows: list[Activations]) -> Callable[..., list[int]]:
    """Gives the places in the stored harvest of the rows of batches."""

    def numbers(batches: list[Batch], site: int = 0) -> list[int]:
        rows = torch.cat([batch[SITES[site]] for batch in batches])
        exactly = "donot_use_mm_for_euclid_dist"
        apart = torch.cdist(rows, stored_rows[site].rows(), compute_mode=exactly)
        distance, place = apart.topk(2, largest=False)
        assert distance[:, 0].max() < 1e-4 < 1e-2 < distance[:, 1].min()
        return place[:, 0].tolist()

    return numbers


def taken(stream: ActivationStream, n: int, size: int = 8, **options: Any) -> list[Batch]:
    return list(itertools.islice(stream.batches(size, **options), n))


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x[site], y[site]) for x, y in zip(a, b, strict=True) for site in SITES
    )


def test_rows_are_those_of_the_model(
    stream: Callable[..., ActivationStream],
    stored_rows: list[Activations],
    number: Callable[..., list[int]],
) -> None:
    total = stored_rows[0].card.tokens
    assert total > 5 * POOL
    batches = taken(stream(), 3 * total // 8)
    given = Counter(number(batches))
    assert set(given) == set(range(total))
    assert max(given.values()) <= 4  # as often as the texts were begun
    before_the_second_pass = number(batches[: (total - POOL) // 8])
    assert len(set(before_the_second_pass)) == len(before_the_second_pass)
    strangers = [{site: rows + 1 for site, rows in batches[0].items()}]
    with pytest.raises(AssertionError):
        number(strangers)


def test_every_site_has_the_same_token_in_a_row(
    stream: Callable[..., ActivationStream], number: Callable[..., list[int]]
) -> None:
    batches = taken(stream(), 60)
    assert number(batches, 0) == number(batches, 1) != number(batches[::-1], 1)


def test_rows_of_far_documents_are_mixed(
    stream: Callable[..., ActivationStream], number: Callable[..., list[int]]
) -> None:
    for batch in taken(stream(), 60):
        places = number([batch])
        assert places != sorted(places)
        assert max(places) - min(places) > POOL / 3


@pytest.mark.parametrize("size", [1, 7, 8])
def test_source_that_fits_the_pool_is_given_once_in_every_pass(
    stream: Callable[..., ActivationStream],
    texts: list[str],
    number: Callable[..., list[int]],
    size: int,
) -> None:
    count = sum(len(text.split()) for text in texts[:6])
    per_pass, left = divmod(count, size)
    assert (left > 0) == (size > 1)
    batches = taken(stream(texts[:6], shard_rows=None), size * count // size, size)
    first = number(batches[:per_pass])
    assert len(set(first)) == len(first) == count - left
    assert first != sorted(first)
    given = Counter(number(batches))  # as many passes as a batch has rows: nothing is left over
    assert given == Counter(dict.fromkeys(range(count), size))


def test_order_is_decided_by_the_seed(stream: Callable[..., ActivationStream]) -> None:
    first = taken(stream(), 40, seed=3)
    assert same(taken(stream(), 40, seed=3), first)
    assert not same(taken(stream(), 40, seed=4), first)
    one = stream()
    assert same(taken(one, 5, seed=3), first[:5]) and same(taken(one, 5, seed=3), first[:5])


@pytest.mark.parametrize("start", [1, 13, 39])
def test_start_passes_over_batches(stream: Callable[..., ActivationStream], start: int) -> None:
    assert same(
        taken(stream(), 20, seed=1, start=start), taken(stream(), start + 20, seed=1)[start:]
    )


def wanted(document: Tensor) -> Tensor:
    return document % 3 == 1


def test_only_wanted_documents_are_given(
    stream: Callable[..., ActivationStream],
    stored_rows: list[Activations],
    number: Callable[..., list[int]],
) -> None:
    rows = wanted(stored_rows[0].where()[0]).nonzero().flatten().tolist()
    n = 4 * len(rows) // 8
    given = Counter(number(taken(stream(), n, documents=wanted)))
    assert sorted(given) == rows
    assert max(given.values()) <= 5
    assert not set(number(taken(stream(), n))) <= set(rows)


def test_model_is_not_run_for_texts_that_are_not_wanted(
    stream: Callable[..., ActivationStream], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens: list[int] = []
    residuals = chunks.residuals

    def counted(model: Any, given: Tensor, sites: list[Site]) -> Any:
        tokens.append(given.numel())
        return residuals(model, given, sites)

    monkeypatch.setattr(chunks, "residuals", counted)
    with pytest.raises(DataError, match="gave 0 rows"):
        next(stream().batches(8, documents=lambda document: document < 0))
    assert tokens == []
    taken(stream(), 1)
    assert tokens


# A source that can be read once


@pytest.mark.parametrize("pool", [POOL, None])
def test_iterator_is_given_out_to_its_last_batch(
    stream: Callable[..., ActivationStream],
    texts: list[str],
    number: Callable[..., list[int]],
    pool: int | None,
) -> None:
    count = sum(len(text.split()) for text in texts)
    batches = stream(iter(texts), pool).batches(7)
    given = list(itertools.islice(batches, count // 7))
    assert len(set(number(given))) == count // 7 * 7 and count % 7
    with pytest.raises(DataError, match="a source that can be read again"):
        next(batches)


def test_iterator_that_has_run_out_is_an_error(
    stream: Callable[..., ActivationStream], texts: list[str]
) -> None:
    once = stream(iter(texts))
    taken(once, 1)
    list(once.source)
    with pytest.raises(DataError, match="a source that can be read again"):
        next(once.batches(8))


# Errors, and nothing on disk


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (["we keep"], {"size": 100}, "gave 2 rows, wanted 100 for a batch"),
        ([], {}, "gave 0 rows, wanted 8"),
        ([""], {}, "gave 0 rows, wanted 8"),
        (["we keep"], {"size": 0}, "batch_size 0"),
        (["we keep"], {"start": -1}, "start -1"),
        ("we keep", {}, "cannot harvest from str"),
        ([3], {}, "document 0 is int"),
    ],
)
def test_batch_that_cannot_be_filled_is_an_error(
    stream: Callable[..., ActivationStream], source: Any, options: dict[str, int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        taken(stream(source), 1, **options)


def test_nothing_is_written(
    stream: Callable[..., ActivationStream],
    bridge: Any,
    texts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    taken(stream(), 30)
    made = harvest(bridge, texts, SITES, tmp_path / "out", keep=False)
    assert isinstance(made, ActivationStream) and made.sites == tuple(SITES)
    taken(made, 2)
    assert list(tmp_path.iterdir()) == []


# The pool


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rows_are_in_the_type_that_was_asked_for(
    stream: Callable[..., ActivationStream],
    dtype: torch.dtype,
) -> None:
    exact, rounded = taken(stream(), 3), taken(stream(dtype=dtype), 3)
    for a, b in zip(exact, rounded, strict=True):
        for site in SITES:
            assert b[site].dtype == dtype
            torch.testing.assert_close(a[site].to(dtype), b[site])


@pytest.mark.parametrize(
    ("pool", "size", "documents"),
    [
        (POOL, 8, None),
        (POOL, 1, None),
        (POOL, 100, None),
        (7, 3, None),
        (1, 1, None),
        (POOL, 5, wanted),
    ],
)
def test_pool_is_bounded_full_when_mixed_and_never_given_twice(
    stream: Callable[..., ActivationStream],
    monkeypatch: pytest.MonkeyPatch,
    pool: int,
    size: int,
    documents: Any,
) -> None:
    held, added, kept = [], [], []
    add, give = streaming._Pool.add, streaming._Pool.give

    def noted_add(self: Any, *given: Any) -> int:
        added.append(add(self, *given))
        held.append(self.held)
        return added[-1]

    def noted_give(self: Any, batch_size: int, keep: int, mixing: Any) -> Any:
        before, out = self.held, 0
        assert keep == pool // 2 and before >= pool
        for batch in give(self, batch_size, keep, mixing):
            out += len(batch[SITES[0]])
            yield batch
        assert self.held == before - out
        kept.append(self.held)

    monkeypatch.setattr(streaming._Pool, "add", noted_add)
    monkeypatch.setattr(streaming._Pool, "give", noted_give)
    batches = taken(stream(shard_rows=pool), 600 // size, size, documents=documents)
    longest = 11
    assert max(held) <= max(pool, pool // 2 + size) + pool // 2 + longest
    assert max(kept) < pool // 2 + size
    assert sum(len(b[SITES[0]]) for b in batches) <= sum(added)
    assert len(held) > 15
