"""Harvested rows are what the model computes, in files that anyone can read."""

import importlib.metadata
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import LlamaForCausalLM

from workbench.activations import Activations, harvest
from workbench.errors import DataError, SiteError
from workbench.hooks import Site, hook_point
from workbench.models.load import load_model, tokenizer_sha256, weights_sha256

SITES = [Site(1), Site(0, "resid_mid"), Site(1, "resid_pre"), Site(0)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def harvested(
    bridge: Any, texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> list[Activations]:
    return harvest(bridge, texts, SITES, tmp_path_factory.mktemp("harvest"), progress=False)


# Sites


@pytest.mark.parametrize("which", range(len(SITES)), ids=[s.name for s in SITES])
def test_rows_are_those_of_direct_passes(
    bridge: Any,
    texts: list[str],
    harvested: list[Activations],
    which: int,
    direct: Callable,
    stored: Callable,
    assert_same_rows: Callable,
) -> None:
    ids = bridge.tokenizer(texts)["input_ids"]
    assert harvested[which].site == SITES[which]
    assert_same_rows(stored(harvested[which]), direct(ids, SITES[which]))


def test_sites_are_not_the_same(harvested: list[Activations]) -> None:
    rows = [acts.rows() for acts in harvested]
    assert torch.equal(rows[2], rows[3])  # what leaves one block enters the next
    for a, b in itertools.combinations(rows[:3], 2):
        assert not torch.allclose(a, b)


def test_one_site_may_be_given_alone(bridge: Any, texts: list[str], tmp_path: Path) -> None:
    (acts,) = harvest(bridge, texts[:3], Site(2), tmp_path, progress=False)
    assert acts.site == Site(2) and acts.folder == tmp_path / Site(2).name


def test_one_pass_for_all_sites_and_nothing_after_the_last(
    bridge: Any, texts: list[str], tmp_path: Path
) -> None:
    calls: list[int] = []
    handles = [
        hook_point(bridge, Site(layer)).module.register_forward_hook(
            lambda *_, n=layer: calls.append(n)
        )
        for layer in range(3)
    ]
    try:
        harvest(bridge, texts, [Site(0), Site(0, "resid_mid"), Site(1)], tmp_path, progress=False)
    finally:
        for handle in handles:
            handle.remove()
    lengths = len({len(row) for row in bridge.tokenizer(texts)["input_ids"]})
    assert [calls.count(layer) for layer in range(3)] == [lengths, lengths, 0]


@pytest.mark.parametrize("keep", [True, False])
def test_unknown_site_writes_nothing(
    bridge: Any, texts: list[str], tmp_path: Path, keep: bool
) -> None:
    with pytest.raises(SiteError, match=r"blocks\.9\.hook_resid_post"):
        harvest(bridge, texts, [Site(0), Site(9)], tmp_path, keep=keep, progress=False)
    assert list(tmp_path.iterdir()) == []


# The card and the files


def test_card_says_what_was_read(
    bridge: Any, texts: list[str], harvested: list[Activations]
) -> None:
    card, rows = harvested[0].card, harvested[0].rows()
    tokens = sum(len(row) - 1 for row in bridge.tokenizer(texts)["input_ids"])
    assert (card.site, card.d_model, card.dtype) == (SITES[0].name, 32, "float32")
    assert (card.documents, card.tokens) == (len(texts), tokens) == (len(texts), len(rows))
    assert card.mean_norm == pytest.approx(rows.norm(dim=-1).mean().item(), rel=1e-5)
    assert card.model_sha256 == weights_sha256(bridge)
    assert card.tokenizer_sha256 == tokenizer_sha256(bridge.tokenizer)
    assert card.model_name == Path(bridge.tokenizer.name_or_path).name
    assert card.versions["torch"] == importlib.metadata.version("torch")
    assert card.processing == "TransformerBridge, RMS"
    assert (card.special_tokens, card.context_size) == ("dropped", 1024)


@pytest.mark.parametrize("shard_rows", [1, 20, 10**6])
def test_rows_do_not_depend_on_the_shards(
    bridge: Any,
    texts: list[str],
    harvested: list[Activations],
    tmp_path: Path,
    shard_rows: int,
) -> None:
    acts = harvest(bridge, texts, SITES, tmp_path, shard_rows=shard_rows, progress=False)
    assert (len(acts[0].card.shards) > 1) == (shard_rows < 10**6)
    for found, expected in zip(acts, harvested, strict=True):
        torch.testing.assert_close(found.rows(), expected.rows())
        assert all(map(torch.equal, found.where(), expected.where()))
        assert torch.equal(found.tokens(), expected.tokens())
        cards = [replace(a.card, shards={}, mean_norm=0.0) for a in (found, expected)]
        assert cards[0] == cards[1]
        assert found.card.mean_norm == pytest.approx(expected.card.mean_norm)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type_is_kept_on_disk_and_in_memory(
    bridge: Any, texts: list[str], harvested: list[Activations], tmp_path: Path, dtype: torch.dtype
) -> None:
    (acts,) = harvest(bridge, texts, SITES[0], tmp_path, dtype=dtype, shard_rows=70, progress=False)
    parts = []
    assert len(acts.card.shards) > 1
    for name, shard in acts.card.shards.items():
        with safe_open(acts.folder / name, framework="pt") as file:
            assert sorted(file.keys()) == ["acts", "document", "position", "token"]
            parts.append({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
        assert {len(column) for column in parts[-1].values()} == {shard["rows"]}
    columns = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    assert columns["acts"].dtype == dtype == acts.rows().dtype == acts.dtype
    assert torch.equal(columns["acts"], acts.rows())
    assert torch.equal(columns["token"], acts.tokens())
    assert torch.equal(
        torch.stack([columns["document"], columns["position"]]), torch.stack(acts.where())
    )
    torch.testing.assert_close(acts.rows(), harvested[0].rows().to(dtype))
    batch = next(acts.batches(acts.card.tokens))
    assert batch.dtype == dtype
    assert sorted(batch.tolist()) == sorted(acts.rows().tolist())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_odd_number_of_odd_rows(
    tmp_path: Path, dtype: torch.dtype, write_by_hand: Callable[..., Activations]
) -> None:
    rows = torch.randn(21, 5).to(dtype)
    acts = write_by_hand(tmp_path, rows, 7, str(dtype).removeprefix("torch."))
    assert torch.equal(acts.rows(), rows)
    assert acts.tokens().tolist() == list(range(21))
    with safe_open(tmp_path / "shard-00001.safetensors", framework="pt") as file:
        assert torch.equal(file.get_tensor("acts"), rows[7:14])
    assert sorted(next(acts.batches(21)).tolist()) == sorted(rows.tolist())


def test_type_is_that_of_the_model(
    make_llama: Callable[..., LlamaForCausalLM], tokenizer: Any, texts: list[str], tmp_path: Path
) -> None:
    model = load_model(make_llama().bfloat16(), tokenizer=tokenizer)
    (acts,) = harvest(model, texts[:4], Site(1), tmp_path, progress=False)
    assert acts.card.dtype == "bfloat16" and acts.rows().dtype == torch.bfloat16


def test_rows_that_a_type_cannot_hold_are_an_error(
    make_llama: Callable[..., LlamaForCausalLM], tokenizer: Any, texts: list[str], tmp_path: Path
) -> None:
    llama = make_llama()
    with torch.no_grad():
        llama.model.embed_tokens.weight.mul_(1e7)
    model = load_model(llama, tokenizer=tokenizer)
    with pytest.raises(DataError, match=r"blocks\.0\.hook_resid_post: a row is infinite"):
        harvest(model, texts[:3], Site(0), tmp_path, dtype=torch.float16, progress=False)
    (acts,) = harvest(model, texts[:3], Site(0), tmp_path, dtype=torch.bfloat16, progress=False)
    assert acts.rows().abs().max() > torch.finfo(torch.float16).max


def test_changing_rows_in_memory_leaves_the_file(
    bridge: Any, texts: list[str], tmp_path: Path
) -> None:
    (acts,) = harvest(bridge, texts[:3], Site(0), tmp_path, progress=False)
    rows = acts.rows()
    before = rows.clone()
    rows.zero_()
    assert torch.equal(Activations.open(acts.folder).rows(), before) and before.any()


# What cannot be done

IMPOSSIBLE: dict[str, tuple[dict[str, Any], str]] = {
    "dtype": ({"dtype": torch.int8}, "dtype int8: wanted one of float32, bfloat16, float16"),
    "context": ({"context_size": 1}, "context_size 1: wanted 2 to 2048"),
    "long context": ({"context_size": 2049}, "context_size 2049: wanted 2 to 2048"),
    "shard_rows": ({"shard_rows": 0}, "shard_rows 0: wanted"),
    "no sites": ({"sites": []}, "wanted one site or more"),
    "site twice": ({"sites": [Site(0), Site(0)]}, "each once"),
    "no out": ({"out": None}, "give `out`, or keep=False"),
}


@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_setting_that_cannot_be_used_writes_nothing(
    kind: str, bridge: Any, texts: list[str], tmp_path: Path
) -> None:
    settings, message = IMPOSSIBLE[kind]
    given = {"sites": Site(0), "out": tmp_path, "progress": False} | settings
    with pytest.raises(DataError, match=message):
        harvest(bridge, texts, **given)
    assert list(tmp_path.iterdir()) == []


def test_no_texts_are_an_error(bridge: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="wants at least one document"):
        harvest(bridge, [], Site(0), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folder_of_someone_else_is_not_replaced(
    bridge: Any, texts: list[str], tmp_path: Path
) -> None:
    (tmp_path / Site(0).name).mkdir()
    (tmp_path / Site(0).name / "thesis.tex").touch()
    with pytest.raises(DataError, match="holds files that the workbench did not write"):
        harvest(bridge, texts, [Site(1), Site(0)], tmp_path, progress=False)
    assert [p.name for p in tmp_path.rglob("*")] == [Site(0).name, "thesis.tex"]


def test_harvest_of_another_site_keeps_what_is_there(
    bridge: Any, texts: list[str], tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").touch()
    for site in (Site(1), Site(0)):
        harvest(bridge, texts, site, tmp_path, progress=False)
    assert Activations.open(tmp_path / Site(1).name).site == Site(1)
    assert sorted(p.name for p in tmp_path.iterdir()) == [Site(0).name, Site(1).name, "notes.txt"]


# Opening


@pytest.fixture
def copy(bridge: Any, texts: list[str], tmp_path: Path) -> Path:
    """A harvest of several shards that may be spoilt."""
    (acts,) = harvest(bridge, texts, Site(1), tmp_path, shard_rows=20, progress=False)
    assert len(acts.card.shards) > 2
    return acts.folder


def test_other_weights_tokenizer_and_site_are_refused(
    make_llama: Callable[..., LlamaForCausalLM],
    bridge: Any,
    tokenizer: Any,
    copy: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = Activations.open(copy, model=bridge, site=Site(1))
    same = load_model(make_llama(), tokenizer=tokenizer)
    opened.require_fit(same)
    other = load_model(make_llama(1), tokenizer=tokenizer)
    card = str(copy / "card.json")
    with pytest.raises(DataError, match="was harvested with weights") as raised:
        Activations.open(copy, model=other)
    assert card in str(raised.value) and opened.card.model_name in str(raised.value)
    with pytest.raises(DataError, match=r"is of blocks\.1\.hook_resid_post, wanted") as raised:
        Activations.open(copy, site=Site(1, "resid_pre"))
    assert card in str(raised.value)
    vocabulary = json.loads(same.tokenizer.backend_tokenizer.to_str())
    vocabulary["pre_tokenizer"] = {"type": "Whitespace"}
    tokens = type(same.tokenizer.backend_tokenizer).from_str(json.dumps(vocabulary))
    monkeypatch.setattr(same.tokenizer, "_tokenizer", tokens)
    with pytest.raises(DataError, match="was harvested with tokenizer") as raised:
        Activations.open(copy, model=same)
    assert card in str(raised.value)


def change(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [change, cut, Path.unlink], ids=["changed", "cut", "missing"])
@pytest.mark.parametrize("verify", [True, False])
def test_damaged_shard_is_named(copy: Path, damage: Callable[[Path], Any], verify: bool) -> None:
    Activations.open(copy, verify=verify)
    shard = copy / "shard-00001.safetensors"
    damage(shard)
    if damage is change and not verify:
        Activations.open(copy, verify=False)
        return
    with pytest.raises(DataError) as raised:
        Activations.open(copy, verify=verify)
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


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tokens", 1),
        ("tokens", "1"),
        ("shards", {}),
        ("shards", {"shard-00000.safetensors": {}}),
        ("shards", ["shard-00000.safetensors"]),
        ("site", "nowhere"),
        ("dtype", "int8"),
    ],
)
def test_card_that_does_not_fit_its_shards_is_named(copy: Path, field: str, value: Any) -> None:
    card = json.loads((copy / "card.json").read_text())
    (copy / "card.json").write_text(json.dumps({**card, field: value}))
    with pytest.raises(DataError) as raised:
        Activations.open(copy)
    assert str(copy / "card.json") in str(raised.value)
