"""Every kind of source gives the rows of the documents that it holds, or says what is wrong."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from workbench.activations import Activations, harvest
from workbench.activations.texts import pieces
from workbench.errors import DataError
from workbench.facts.schema import Document, FactSet
from workbench.hooks import Site

SITE = Site(1)


@pytest.fixture(scope="module")
def some(texts: list[str]) -> list[str]:
    """Documents of each length that there is."""
    assert len({len(text.split()) for text in texts[:6]}) > 2
    return texts[:6]


@pytest.fixture(scope="module")
def ids(bridge: Any, some: list[str]) -> list[list[int]]:
    rows = bridge.tokenizer(some)["input_ids"]
    assert all(row[0] == bridge.tokenizer.bos_token_id for row in rows)
    return rows


@pytest.fixture
def read(bridge: Any, tmp_path: Path) -> Callable[..., Activations]:
    def harvested(source: Any, **options: Any) -> Activations:
        (acts,) = harvest(bridge, source, SITE, tmp_path / "out", progress=False, **options)
        return acts

    return harvested


def padded(rows: list[list[int]], pad: int, side: str = "right") -> np.ndarray:
    width = max(map(len, rows)) + 2
    fill = [[pad] * (width - len(row)) for row in rows]
    pairs = zip(rows, fill, strict=True)
    return np.array([r + f if side == "right" else f + r for r, f in pairs], dtype=np.int32)


def npy(folder: Path, array: np.ndarray) -> Path:
    np.save(folder / "tokens.npy", array)
    return folder / "tokens.npy"


def tensor_file(folder: Path, array: np.ndarray) -> Path:
    save_file({"tokens": torch.from_numpy(array)}, folder / "tokens.safetensors")
    return folder / "tokens.safetensors"


def lines(path: Path, content: list[str]) -> Path:
    path.write_text("".join(line + "\n" for line in content))
    return path


def streamed(column: str, values: list[Any]) -> datasets.IterableDataset:
    rows = datasets.Dataset.from_dict({"other": [0] * len(values), column: values})
    return rows.to_iterable_dataset(num_shards=2)


def masked(ids: list[list[int]], pad: int) -> datasets.Dataset:
    """Rows whose padding is a token that they also begin and end with."""
    array = padded([[*row, pad] for row in ids], pad)
    mask = [[int(i < len(row)) for i in range(array.shape[1])] for row in ids]
    return datasets.Dataset.from_dict({"input_ids": array, "attention_mask": mask})


SOURCES: dict[str, Callable[[list[str], list[list[int]], int, Path], Any]] = {
    "strings": lambda texts, ids, pad, tmp: texts,
    "documents": lambda texts, ids, pad, tmp: [Document(t, "text") for t in texts],
    "generator": lambda texts, ids, pad, tmp: (text for text in texts),
    "facts": lambda texts, ids, pad, tmp: FactSet(
        "x", (), (), (), texts=tuple(Document(t, "text") for t in texts)
    ),
    "txt": lambda texts, ids, pad, tmp: lines(tmp / "a.txt", texts),
    "jsonl strings": lambda texts, ids, pad, tmp: lines(
        tmp / "a.jsonl", list(map(json.dumps, texts))
    ),
    "jsonl texts": lambda texts, ids, pad, tmp: lines(
        tmp / "a.jsonl", [json.dumps({"text": t, "n": 1}) + "\n" for t in texts]
    ),
    "jsonl ids": lambda texts, ids, pad, tmp: lines(
        tmp / "a.jsonl", [json.dumps({"input_ids": row}) for row in ids]
    ),
    "npy": lambda texts, ids, pad, tmp: npy(tmp, padded(ids, pad)),
    "npy padded left": lambda texts, ids, pad, tmp: npy(tmp, padded(ids, pad, "left")),
    "npy uint16": lambda texts, ids, pad, tmp: npy(tmp, padded(ids, pad).astype(np.uint16)),
    "npy by column": lambda texts, ids, pad, tmp: npy(tmp, np.asfortranarray(padded(ids, pad))),
    "safetensors": lambda texts, ids, pad, tmp: tensor_file(tmp, padded(ids, pad)),
    "dataset text": lambda texts, ids, pad, tmp: datasets.Dataset.from_dict({"text": texts}),
    "dataset input_ids": lambda texts, ids, pad, tmp: datasets.Dataset.from_dict(
        {"input_ids": ids}
    ),
    "dataset tokens": lambda texts, ids, pad, tmp: datasets.Dataset.from_dict({"tokens": ids}),
    "dataset of tensors": lambda texts, ids, pad, tmp: datasets.Dataset.from_dict(
        {"input_ids": ids}
    ).with_format("torch"),
    "dataset with a mask": lambda texts, ids, pad, tmp: masked(ids, ids[0][0]),
    "streamed text": lambda texts, ids, pad, tmp: streamed("text", texts),
    "streamed input_ids": lambda texts, ids, pad, tmp: streamed("input_ids", ids),
    "streamed tokens": lambda texts, ids, pad, tmp: streamed("tokens", ids),
    "lists": lambda texts, ids, pad, tmp: ids,
    "tuples of numpy numbers": lambda texts, ids, pad, tmp: [tuple(map(np.int64, i)) for i in ids],
    "arrays": lambda texts, ids, pad, tmp: [np.array(row, dtype=np.uint8) for row in ids],
    "tensors": lambda texts, ids, pad, tmp: [torch.tensor(row) for row in ids],
    "array": lambda texts, ids, pad, tmp: padded(ids, pad),
    "tensor with gaps": lambda texts, ids, pad, tmp: (
        torch.from_numpy(padded(ids, pad)).T.contiguous().T
    ),
    "mixed": lambda texts, ids, pad, tmp: [*texts[:2], *ids[2:4], *texts[4:]],
}


@pytest.mark.parametrize("kind", SOURCES)
def test_rows_are_those_of_direct_passes(
    kind: str,
    some: list[str],
    ids: list[list[int]],
    bridge: Any,
    read: Callable[..., Activations],
    direct: Callable,
    stored: Callable,
    assert_same_rows: Callable,
    tmp_path: Path,
) -> None:
    acts = read(SOURCES[kind](some, ids, bridge.tokenizer.pad_token_id, tmp_path))
    assert acts.card.documents == len(some)
    assert_same_rows(stored(acts), direct(ids, SITE))


def test_world_is_read_as_its_corpus(world: FactSet, read: Callable[..., Activations]) -> None:
    acts = read(world)
    assert acts.card.documents == len(world.corpus)
    assert torch.equal(acts.rows(), read([d.text for d in world.corpus]).rows())


@pytest.mark.parametrize("context", [2, 5])
@pytest.mark.parametrize("kind", ["strings", "lists"])
@pytest.mark.parametrize("special_tokens", ["drop", "keep"])
def test_long_documents_are_cut_and_begin_again_with_bos(
    kind: str,
    context: int,
    special_tokens: str,
    some: list[str],
    ids: list[list[int]],
    read: Callable[..., Activations],
    direct: Callable,
    stored: Callable,
    assert_same_rows: Callable,
) -> None:
    source = {"strings": some, "lists": ids}[kind]
    acts = read(source, context_size=context, special_tokens=special_tokens, shard_rows=4)
    keep = special_tokens == "keep"
    expected = direct(ids, SITE, context, first=0 if keep else 1)
    assert_same_rows(stored(acts), expected)
    for i, row in enumerate(ids):  # none lost, none doubled, in order
        own = [token for (document, _), (token, _) in stored(acts).items() if document == i]
        assert own == (row if keep else row[1:])
    whole = direct(ids, SITE)
    far = [place for place in whole if place[1] > context]
    assert any(not torch.allclose(whole[p][1], expected[p][1]) for p in far)
    assert acts.card.context_size == context


def test_token_ids_without_bos_get_none(
    ids: list[list[int]], bridge: Any, read: Callable[..., Activations], stored: Callable
) -> None:
    acts = read([row[1:] for row in ids], context_size=3)
    found = stored(acts)
    for i, row in enumerate(ids):
        own = row[1:]
        for start in range(0, len(own), 3):
            part = own[start : start + 3]
            resid = bridge.run_with_cache(torch.tensor([part]))[1][SITE.name][0].detach()
            for within, token in enumerate(part):
                assert found[i, start + within][0] == token
                torch.testing.assert_close(found[i, start + within][1], resid[within])
    assert len(found) == sum(len(row) - 1 for row in ids)


@pytest.mark.parametrize("special_tokens", ["drop", "keep"])
def test_special_tokens_are_dropped_or_kept(
    special_tokens: str, ids: list[list[int]], bridge: Any, read: Callable[..., Activations]
) -> None:
    eos, bos = bridge.tokenizer.eos_token_id, bridge.tokenizer.bos_token_id
    assert eos not in (bos, bridge.tokenizer.pad_token_id)
    rows = [[*ids[0], eos, *ids[1][1:], eos], ids[2]]
    acts = read(rows, special_tokens=special_tokens)
    keep = special_tokens == "keep"
    wanted = [t for row in rows for t in row if keep or t not in (bos, eos)]
    assert acts.tokens().tolist() == wanted
    assert acts.card.special_tokens == ("kept" if keep else "dropped")
    assert (0 in acts.where()[1]) == keep
    assert acts.where()[1][acts.tokens() == bos].tolist() == ([0, 0] if keep else [])


def test_tokenizer_that_adds_no_bos_of_its_own(
    bridge: Any,
    some: list[str],
    ids: list[list[int]],
    read: Callable[..., Activations],
    direct: Callable,
    stored: Callable,
    assert_same_rows: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = Tokenizer(models.WordLevel(bridge.tokenizer.get_vocab(), unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<bos>"}
    PreTrainedTokenizerFast(tokenizer_object=plain, **special).save_pretrained(tmp_path / "plain")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "plain")
    assert tokenizer(some)["input_ids"] == [row[1:] for row in ids]
    monkeypatch.setattr(bridge, "_tokenizer", tokenizer)  # its setter would mend this
    assert bridge.tokenizer is tokenizer and bridge.tokenizer(some)["input_ids"][0] == ids[0][1:]
    assert_same_rows(stored(read(some)), direct(ids, SITE))


# Padding that is also another token, as where a tokenizer has no padding of its own


def cut_up(source: Any, *, pad: int | None, bos: int | None, context: int = 100) -> list[list[int]]:
    tokenizer = SimpleNamespace(pad_token_id=pad, bos_token_id=bos)
    return [piece.tokens for piece in pieces(source, tokenizer, context)]


def test_bos_stays_where_it_is_also_padding() -> None:
    rows = [[0, 5, 6, 0, 7], [0, 0, 0, 5, 6], [0, 5, 6, 0, 0], [5, 6, 0, 0, 0], [0, 0, 0, 0, 0]]
    assert cut_up(rows, pad=0, bos=0) == [[0, 5, 6, 0, 7], [0, 5, 6], [0, 5, 6], [5, 6], []]
    assert cut_up(rows, pad=0, bos=9) == [[5, 6, 0, 7], [5, 6], [5, 6], [5, 6], []]
    assert cut_up(rows, pad=None, bos=None) == rows
    assert cut_up(rows, pad=None, bos=0, context=3)[:2] == [[0, 5, 6], [0, 0, 7]]


def test_mask_decides_what_is_padding() -> None:
    row = {"input_ids": [0, 5, 0, 0], "attention_mask": [1, 1, 1, 0]}
    assert cut_up([row], pad=0, bos=0) == [[0, 5, 0]]
    assert cut_up([{**row, "attention_mask": torch.tensor([0, 1, 0, 0])}], pad=0, bos=0) == [[5]]
    assert cut_up([{"input_ids": row["input_ids"]}], pad=0, bos=0) == [[0, 5]]


# Nothing to read


def test_documents_without_a_token_are_counted(
    bridge: Any, some: list[str], ids: list[list[int]], read: Callable[..., Activations]
) -> None:
    bos, pad = bridge.tokenizer.bos_token_id, bridge.tokenizer.pad_token_id
    acts = read(["", some[0], [], [pad, pad], np.array([]), [bos], ""])
    assert acts.card.documents == 7
    assert acts.tokens().tolist() == ids[0][1:]
    assert set(acts.where()[0].tolist()) == {1}


@pytest.mark.parametrize("source", [[""], [[]], [[], "", []]], ids=str)
def test_texts_without_a_word_have_no_rows(source: Any, read: Callable[..., Activations]) -> None:
    acts = read(source)
    assert (acts.card.documents, acts.card.tokens, acts.card.mean_norm) == (len(source), 0, 0.0)
    assert acts.rows().shape == (0, 32) and acts.tokens().shape == (0,)
    with pytest.raises(DataError, match="batch_size 1: wanted 1 to 0"):
        next(acts.batches(1))
    Activations.open(acts.folder)


def test_one_token(read: Callable[..., Activations], ids: list[list[int]]) -> None:
    acts = read([ids[0][1:2]])
    assert acts.tokens().tolist() == ids[0][1:2]
    assert [column.tolist() for column in acts.where()] == [[0], [0]]
    assert next(acts.batches(1)).shape == (1, 32)


# What cannot be read

GOOD = [2, 5, 6]
ITEMS: dict[str, tuple[Any, str]] = {
    "number": (7, "document 1 is int 7"),
    "none": (None, "document 1 is NoneType"),
    "words": (["we", "keep"], "document 1 is list"),
    "nested": ([[2, 5], [2, 6]], "document 1 is list"),
    "ragged": ([[2, 5], [2]], "document 1 is list"),
    "bytes": (b"we keep", "document 1 is bytes"),
    "floats": ([2.0, 5.0], "document 1 is list"),
    "float array": (np.ones(3), r"document 1 is ndarray float64 of shape \(3,\)"),
    "bools": (np.ones(3, dtype=bool), "document 1 is ndarray bool"),
    "bfloat16": (torch.ones(3).bfloat16(), "document 1 is Tensor torch.bfloat16"),
    "two axes": (torch.ones(1, 3).long(), r"document 1 is Tensor torch.int64 of shape \(1, 3\)"),
    "fields": ({"content": "we"}, r"document 1 has \['content'\]: wanted one of text, input_ids"),
    "empty field": ({"text": None}, "document 1 is NoneType"),
    "mask": (
        {"input_ids": GOOD, "attention_mask": [1]},
        "document 1 has 3 token ids and 1 of attention_mask",
    ),
    "below the vocabulary": ([2, -100], "document 1 holds token ids -100 to 2: the model has 0 to"),
    "beyond the vocabulary": ([10**6], "document 1 holds token ids 1000000 to 1000000"),
}


@pytest.mark.parametrize("kind", ITEMS)
def test_document_that_is_none_is_named(kind: str, read: Callable[..., Activations]) -> None:
    item, message = ITEMS[kind]
    with pytest.raises(DataError, match=message):
        read([GOOD, item])
    assert read([GOOD, GOOD]).card.documents == 2


@pytest.mark.parametrize(
    "source",
    ["we keep", b"we keep", 7, None, {"train": ["we keep"]}, datasets.DatasetDict()],
    ids=lambda source: type(source).__name__,
)
def test_source_that_is_none_is_refused(source: Any, read: Callable[..., Activations]) -> None:
    with pytest.raises(DataError, match="cannot harvest from"):
        read(source)


def files(folder: Path) -> Iterator[tuple[Path, str]]:
    """Files that cannot be read, and what is said of them."""
    np.savez(folder / "archive.npz", a=np.ones(3))
    contents: dict[str, tuple[bytes, str]] = {
        "a.csv": (b"we keep", "ends in .txt, .jsonl, .npy, .safetensors"),
        "folder": (b"", "ends in .txt"),
        "a.txt": (b"\xff\xfe\xfa", "cannot be read as .txt"),
        "a.jsonl": (b'"we"\n\n{"text": ', "line 3"),
        "b.jsonl": (b'"we"\n3\n', "document 1 is int"),
        "a.npy": (b"we keep", "cannot be read as .npy"),
        "b.npy": ((folder / "archive.npz").read_bytes(), "archive of several arrays"),
        "a.safetensors": (b"we keep", "cannot be read as .safetensors"),
        "missing.txt": (b"", "No such file"),
    }
    for name, (content, message) in contents.items():
        if content:
            (folder / name).write_bytes(content)
        yield folder / name, message
    for name, array, message in (
        ("one.npy", np.arange(3), r"its shape is \(3,\)"),
        ("none.npy", np.array(3), r"its shape is \(\)"),
        ("float.npy", np.ones((2, 3)), "document 0 is memmap float64"),
        ("objects.npy", np.array([[1], "we"], dtype=object), "cannot be read as .npy"),
    ):
        np.save(folder / name, array)
        yield folder / name, message
    for name, tensors, message in (
        ("one.safetensors", {"a": torch.arange(3)}, r"its shape is \(3,\)"),
        ("zero.safetensors", {"a": torch.tensor(3)}, r"its shape is \(\)"),
        ("float.safetensors", {"a": torch.ones(2, 3)}, "document 0 is Tensor torch.float32"),
        ("two.safetensors", {"a": torch.ones(2, 3), "b": torch.ones(2)}, r"\['a', 'b'\]"),
    ):
        save_file(tensors, folder / name)
        yield folder / name, message


def test_file_that_cannot_be_read_is_named(
    read: Callable[..., Activations], tmp_path: Path
) -> None:
    for path, message in files(tmp_path):
        with pytest.raises(DataError, match=message) as raised:
            read(path)
        assert str(path) in str(raised.value)


def test_documents_are_tokenized_as_they_come(bridge: Any, some: list[str]) -> None:
    taken = []

    def endless() -> Iterator[str]:
        while True:
            taken.append(1)
            yield some[0]

    cut = pieces(endless(), bridge.tokenizer, 100)
    for _ in range(10):
        next(cut)
    assert 10 <= len(taken) < 2000
