"""Harvested rows are what the model computes, and a damaged harvest is never opened."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from workbench import activations
from workbench.activations import Activations, harvest
from workbench.artifacts import file_sha256, write_json
from workbench.errors import DataError, SiteError
from workbench.facts.schema import Document
from workbench.hooks import Site, hook_point
from workbench.models.load import load_model, weights_sha256

SITES = [Site(1), Site(0, "resid_mid")]


@pytest.fixture(scope="module")
def harvested(bridge: Any, texts: list[str], tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("harvest") / "acts"
    documents = [Document(text, "text") if i % 2 else text for i, text in enumerate(texts)]
    return harvest(bridge, documents, SITES, out, progress=False)


def rows_by_place(acts: Activations) -> dict[tuple[int, int], Tensor]:
    document, position = acts.where()
    places = zip(document.tolist(), position.tolist(), strict=True)
    return dict(zip(places, acts.rows(), strict=True))


@pytest.mark.parametrize("which", [0, 1], ids=[s.name for s in SITES])
def test_rows_are_those_of_direct_forward_passes(
    bridge: Any, texts: list[str], harvested: list[Activations], which: int
) -> None:
    found = rows_by_place(harvested[which])
    expected = {}
    for i, text in enumerate(texts):
        tokens = torch.tensor(bridge.tokenizer([text])["input_ids"])
        assert tokens[0, 0] == bridge.tokenizer.bos_token_id
        _, cache = bridge.run_with_cache(tokens)
        resid = cache[SITES[which].name][0].detach()
        expected |= {(i, pos): resid[pos] for pos in range(1, len(resid))}
    assert found.keys() == expected.keys()
    for place, row in expected.items():
        torch.testing.assert_close(found[place], row)


def test_handles_come_in_the_order_of_the_sites(harvested: list[Activations]) -> None:
    assert [acts.site for acts in harvested] == SITES
    assert not torch.equal(harvested[0].rows(), harvested[1].rows())


def test_one_site_may_be_given_alone(bridge: Any, texts: list[str], tmp_path: Path) -> None:
    (acts,) = harvest(bridge, texts[:3], Site(2), tmp_path, progress=False)
    assert acts.site == Site(2)


def test_several_sites_take_one_pass(bridge: Any, texts: list[str], tmp_path: Path) -> None:
    calls = []
    handle = hook_point(bridge, Site(0, "resid_pre")).register_forward_hook(
        lambda *_: calls.append(1)
    )
    try:
        for i, sites in enumerate((SITES[0], SITES)):
            harvest(bridge, texts, sites, tmp_path / str(i), progress=False)
    finally:
        handle.remove()
    lengths = {len(row) for row in bridge.tokenizer(texts)["input_ids"]}
    assert len(calls) == 2 * len(lengths)


def test_card_says_what_was_read(
    bridge: Any, texts: list[str], harvested: list[Activations]
) -> None:
    card, rows = harvested[0].card, harvested[0].rows()
    tokens = sum(len(row) - 1 for row in bridge.tokenizer(texts)["input_ids"])
    assert (card.site, card.d_model, card.dtype) == (SITES[0].name, 32, "float32")
    assert (card.documents, card.tokens) == (len(texts), tokens) == (len(texts), len(rows))
    assert card.mean_norm == pytest.approx(rows.norm(dim=-1).mean().item(), rel=1e-5)
    assert card.model_sha256 == weights_sha256(bridge)
    assert card.model_name == Path(bridge.tokenizer.name_or_path).name


def test_card_names_the_weights(
    make_llama: Callable[..., LlamaForCausalLM], tokenizer: Any, harvested: list[Activations]
) -> None:
    hashes = [weights_sha256(load_model(make_llama(s), tokenizer=tokenizer)) for s in (0, 1)]
    assert hashes[0] == harvested[0].card.model_sha256 != hashes[1]


@pytest.mark.parametrize("shard_rows", [1, 20, 10**6])
def test_rows_do_not_depend_on_the_shards(
    bridge: Any,
    texts: list[str],
    harvested: list[Activations],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shard_rows: int,
) -> None:
    monkeypatch.setattr(activations, "SHARD_ROWS", shard_rows)
    acts = harvest(bridge, texts, SITES, tmp_path, progress=False)
    assert (len(acts[0].card.shards) > 1) == (shard_rows < 10**6)
    for found, expected in zip(acts, harvested, strict=True):
        assert torch.equal(found.rows(), expected.rows())
        assert all(map(torch.equal, found.where(), expected.where()))
        assert replace(found.card, shards={}) == replace(expected.card, shards={})


@pytest.mark.parametrize("shard_rows", [1, 10**6])
def test_rows_keep_the_type_of_the_model(
    make_llama: Callable[..., LlamaForCausalLM],
    tokenizer: Any,
    texts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shard_rows: int,
) -> None:
    monkeypatch.setattr(activations, "SHARD_ROWS", shard_rows)
    model = load_model(make_llama().bfloat16(), tokenizer=tokenizer)
    (acts,) = harvest(model, texts[:4], Site(1), tmp_path, progress=False)
    assert acts.card.dtype == "bfloat16" and acts.rows().dtype == torch.bfloat16
    assert next(acts.batches(2)).dtype == torch.float32


def test_text_without_a_word_has_no_rows(bridge: Any, texts: list[str], tmp_path: Path) -> None:
    (acts,) = harvest(bridge, ["", texts[0], ""], Site(0), tmp_path, progress=False)
    assert acts.card.documents == 3
    assert set(acts.where()[0].tolist()) == {1}


def test_no_texts_are_an_error(bridge: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="wants at least one document"):
        harvest(bridge, [], Site(0), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unknown_site_writes_nothing(bridge: Any, texts: list[str], tmp_path: Path) -> None:
    with pytest.raises(SiteError):
        harvest(bridge, texts, [Site(0), Site(9)], tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


# Batches


def test_batches_are_decided_by_the_seed(harvested: list[Activations]) -> None:
    def first(seed: int) -> Tensor:
        return torch.stack(list(itertools.islice(harvested[0].batches(16, seed), 9)))

    assert torch.equal(first(3), first(3))
    assert not torch.equal(first(3), first(4))


def test_batches_of_one_epoch_hold_every_row_once(harvested: list[Activations]) -> None:
    rows = harvested[0].rows()
    size = next(n for n in range(2, len(rows)) if len(rows) % n == 0)
    batches = harvested[0].batches(size)
    epochs = [torch.cat(list(itertools.islice(batches, len(rows) // size))) for _ in range(2)]
    assert not torch.equal(*epochs)
    for epoch in epochs:
        found, expected = (sorted(map(tuple, r.tolist())) for r in (epoch, rows))
        assert found == expected


@pytest.mark.parametrize("size", [0, -1, 10**6])
def test_batch_that_cannot_be_filled_is_an_error(harvested: list[Activations], size: int) -> None:
    with pytest.raises(DataError, match=f"batch_size {size}: wanted 1 to"):
        next(harvested[0].batches(size))


# Damage


@pytest.fixture
def copy(bridge: Any, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A harvest of several shards that may be spoilt."""
    monkeypatch.setattr(activations, "SHARD_ROWS", 20)
    (acts,) = harvest(bridge, texts, Site(1), tmp_path, progress=False)
    assert len(acts.card.shards) > 1
    return acts.folder


def change(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [change, cut, Path.unlink], ids=["changed", "cut", "missing"])
def test_damaged_shard_is_named(copy: Path, damage: Callable[[Path], Any]) -> None:
    shard = copy / "shard-00001.safetensors"
    damage(shard)
    with pytest.raises(DataError) as raised:
        Activations.open(copy)
    assert str(shard) in str(raised.value)


def test_missing_card_is_an_error(copy: Path) -> None:
    (copy / "card.json").unlink()
    with pytest.raises(DataError) as raised:
        Activations.open(copy)
    assert str(copy) in str(raised.value) and "card.json" in str(raised.value)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"site": "x"}', "\x00", '{"unknown": 1}']
)
def test_broken_card_is_named(copy: Path, content: str) -> None:
    (copy / "card.json").write_text(content)
    with pytest.raises(DataError) as raised:
        Activations.open(copy)
    assert str(copy / "card.json") in str(raised.value)


def test_card_that_does_not_fit_its_shards_is_an_error(copy: Path) -> None:
    card = json.loads((copy / "card.json").read_text())
    for field, value in (("tokens", card["tokens"] + 1), ("shards", {}), ("site", "nowhere")):
        write_json(copy / "card.json", {**card, field: value})
        with pytest.raises(DataError) as raised:
            Activations.open(copy)
        assert str(copy / "card.json") in str(raised.value)


# Interrupts


def interrupt_after(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    residuals, count = activations.residuals, itertools.count()

    def interrupted(*given: Any) -> Any:
        if next(count) == calls:
            raise KeyboardInterrupt
        return residuals(*given)

    monkeypatch.setattr(activations, "residuals", interrupted)


@pytest.mark.parametrize("calls", [0, 1])
def test_interrupted_harvest_leaves_nothing(
    bridge: Any, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    monkeypatch.setattr(activations, "SHARD_ROWS", 1)
    interrupt_after(monkeypatch, calls)
    with pytest.raises(KeyboardInterrupt):
        harvest(bridge, texts, SITES, tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError):
        Activations.open(tmp_path / SITES[0].name)


def test_interrupted_harvest_leaves_the_earlier_one(
    copy: Path, bridge: Any, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p.name: file_sha256(p) for p in copy.iterdir()}
    interrupt_after(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        harvest(bridge, texts, Site(1), copy.parent, progress=False)
    assert {p.name: file_sha256(p) for p in copy.iterdir()} == before
    assert list(copy.parent.iterdir()) == [copy]


def test_harvest_of_another_site_keeps_what_is_there(
    copy: Path, bridge: Any, texts: list[str]
) -> None:
    (copy.parent / "notes.txt").touch()
    harvest(bridge, texts, Site(0), copy.parent, progress=False)
    assert Activations.open(copy).site == Site(1)
    assert (copy.parent / "notes.txt").is_file()
