"""A harvest that was ended goes on where it was, and ends with the same bytes."""

import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workbench.activations import Activations, chunks, harvest
from workbench.artifacts import file_sha256
from workbench.errors import DataError
from workbench.hooks import Site
from workbench.models.load import load_model

SITES = [Site(0), Site(1)]


def contents(folder: Path) -> dict[str, str]:
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {str(p.relative_to(folder)): file_sha256(p) for p in files}


@pytest.fixture
def run(bridge: Any, texts: list[str], tmp_path: Path) -> Callable[..., list[Activations]]:
    def harvested(given: list[str] = texts, out: Path = tmp_path / "out", **options: Any) -> Any:
        settings = {"shard_rows": 20, "progress": False} | options
        return harvest(bridge, given, settings.pop("sites", SITES), out, **settings)

    return harvested


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[Site]]]:
    """Notes the sites of each forward pass, and raises what it is told to before one of them."""

    def counted(end: int | None = None, error: BaseException | None = None) -> list[list[Site]]:
        count: list[list[Site]] = []

        def residuals(*given: Any) -> Any:
            if len(count) == end and error is not None:
                raise error
            count.append(given[2])
            return original(*given)

        monkeypatch.setattr(chunks, "residuals", residuals)
        return count

    original = chunks.residuals
    return counted


def partial(out: Path) -> Path:
    (folder,) = out.glob("*.partial")
    return folder


# Killed before every step


@pytest.fixture(scope="module")
def killed(
    make_llama: Callable,
    tokenizer: Any,
    texts: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    work = tmp_path_factory.mktemp("killed")
    make_llama().save_pretrained(work / "model")
    tokenizer.save_pretrained(work / "model")
    (work / "model" / "texts.json").write_text(json.dumps(texts[:12]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    script = Path(__file__).with_name("killed.py")
    subprocess.run([sys.executable, script, work / "model", work], check=True, env=environment)
    return json.loads((work / "found.json").read_text())


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")


@needs_fork
def test_every_kind_of_step_is_ended(killed: dict[str, Any]) -> None:
    kinds = [name.split()[0] for name in killed["names"]]
    assert set(kinds) == {"pass", "posix_fallocate", "replace", "unlink", "rmdir"}
    assert kinds.count("posix_fallocate") == 2 * 3  # two sites, three shards
    ended = [found["before"] for found in killed["found"]]
    assert ended == [*killed["names"], *killed["names"][::2]]
    moves = [name for name in killed["names"] if name.startswith("replace blocks")]
    assert [name.split()[1] for name in moves] == [
        SITES[0].name,  # the earlier harvest, out of the way
        SITES[0].name,
        SITES[1].name,
    ]


@needs_fork
@pytest.mark.parametrize("by", ["kill", "interrupt"])
def test_harvest_that_was_ended_ends_with_the_same_bytes(killed: dict[str, Any], by: str) -> None:
    for found in killed["found"]:
        if found["by"] == by:
            assert found["same"], found
            assert found["left"] == [site.name for site in SITES], found


@needs_fork
@pytest.mark.parametrize("by", ["kill", "interrupt"])
def test_no_shard_but_the_one_it_was_in_is_read_again(killed: dict[str, Any], by: str) -> None:
    in_a_shard, repeated = killed["passes"] / 3, set()
    for found in killed["found"]:  # without the list, nothing tells a new run from a first one
        if found["by"] == by and not found["before"].startswith("rmdir harvest"):
            repeated.add(found["passes"] - killed["passes"])
    assert min(repeated) == 0 < max(repeated) <= in_a_shard


@needs_fork
@pytest.mark.parametrize("by", ["kill", "interrupt"])
def test_earlier_harvest_stays_until_the_new_one_is_complete(
    killed: dict[str, Any], by: str
) -> None:
    earlier, new = killed["places"]
    assert earlier[1] is None and None not in new and earlier[0] != new[0]
    seen = set()
    for found in killed["found"]:
        if found["by"] == by:
            at = found["places"]
            assert at[0] in (earlier[0], new[0]) or (at[0] is None and found["complete"]), found
            assert at[1] in (None, new[1]), found
            seen.add((at[0] == new[0], at[1] == new[1]))
    assert seen == {(False, False), (True, False), (True, True)}


@needs_fork
def test_shard_that_does_not_fit_the_disk_is_named(killed: dict[str, Any]) -> None:
    limited = killed["limited"]
    assert limited["status"] == 0
    assert "shard-00003.building: cannot be written (File too large)" in limited["error"]
    for site in SITES:
        shards = [f.split("/")[-1] for f in limited["files"] if f"{site.name}/" in f]
        assert shards == [f"shard-0000{i}.safetensors" for i in range(3)]
    assert limited["same"] and limited["passes"] == 1


# A full disk


@pytest.mark.parametrize("at", [0, 1, 2, 5])
def test_full_disk_is_named_and_the_run_goes_on_later(
    run: Callable, passes: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    run(out=tmp_path / "whole")
    calls, reserve = itertools.count(), os.posix_fallocate

    def full(*given: Any) -> None:
        if next(calls) == at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        reserve(*given)

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DataError, match="No space left on device") as raised:
        run()
    monkeypatch.undo()
    site, shard = SITES[at % 2], at // 2
    folder = partial(tmp_path / "out")
    assert str(folder / site.name / f"shard-{shard:05d}.building") in str(raised.value)
    for other in SITES:
        kept = sorted(p.name for p in (folder / other.name).glob("*"))
        assert kept == [f"shard-{i:05d}.safetensors" for i in range(shard)]
    whole = passes()
    run(out=tmp_path / "again")
    total = len(whole)
    later = passes()
    run()
    assert (len(later) == total) if shard == 0 else (0 < len(later) < total)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_full_disk_at_the_list_and_at_the_end_is_named(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(out=tmp_path / "whole")
    replace = os.replace
    for name in ("progress.json", "card.json"):

        def full(a: Any, b: Any, name: str = name) -> None:
            if Path(b).name == name:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            replace(a, b)

        monkeypatch.setattr(os, "replace", full)
        with pytest.raises(DataError, match="No space left on device") as raised:
            run()
        assert str(partial(tmp_path / "out")) in str(raised.value)
        monkeypatch.undo()
    run()
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_shards_are_written_where_room_cannot_be_reserved(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(out=tmp_path / "whole")
    monkeypatch.delattr(os, "posix_fallocate")
    run()
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_folder_that_cannot_be_made_is_named(run: Callable, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(DataError, match="cannot be written") as raised:
        run()
    assert str(tmp_path / "out") in str(raised.value)


# Taken up with something else


@pytest.fixture
def begun(run: Callable, passes: Callable, tmp_path: Path) -> Path:
    """The folder of a harvest that was interrupted after two shards or more."""
    count = passes()
    run(out=tmp_path / "whole")
    passes(len(count) - 1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run()
    passes()
    folder = partial(tmp_path / "out")
    assert len(json.loads((folder / "progress.json").read_text())["chunks"]) >= 2
    return folder


@pytest.mark.parametrize("change", ["other", "fewer", "none", "order"])
def test_other_texts_are_refused_and_nothing_is_deleted(
    run: Callable, begun: Path, texts: list[str], tmp_path: Path, change: str
) -> None:
    before = contents(begun)
    given = {
        "other": [texts[1], *texts[1:]],
        "fewer": texts[:3],
        "none": [],
        "order": texts[::-1],
    }[change]
    with pytest.raises(DataError, match="began with other texts") as raised:
        run(given)
    assert str(begun) in str(raised.value)
    assert contents(begun) == before
    run()
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("options", [{"special_tokens": "keep"}, {"context_size": 3}], ids=str)
def test_other_settings_are_another_harvest(
    run: Callable, begun: Path, texts: list[str], tmp_path: Path, options: dict[str, Any]
) -> None:
    before = contents(begun)
    acts = run(texts[::-1], **options)
    assert contents(begun) == before
    assert acts[0].card.tokens >= sum(len(t.split()) for t in texts)
    assert list((tmp_path / "out").glob("*.partial")) == [begun]


def test_other_weights_are_another_harvest(
    begun: Path, make_llama: Callable, tokenizer: Any, texts: list[str], passes: Callable
) -> None:
    before, count = contents(begun), passes()
    other = load_model(make_llama(1), tokenizer=tokenizer)
    acts = harvest(other, texts, SITES, begun.parent, shard_rows=20, progress=False)
    assert contents(begun) == before and len(count) > 3
    assert all(Activations.open(a.folder, model=other) for a in acts)


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"x")


@pytest.mark.parametrize("damage", [spoil, Path.unlink], ids=["changed", "missing"])
def test_damaged_shard_is_done_again_alone(
    run: Callable, passes: Callable, begun: Path, tmp_path: Path, damage: Callable[[Path], Any]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(begun.parent, copy)
    undamaged = passes()
    run(out=copy)
    damage(begun / SITES[0].name / "shard-00001.safetensors")
    others = begun / SITES[1].name
    times = {p.name: p.stat().st_mtime_ns for p in others.glob("*.safetensors")}
    count = passes()
    acts = run()
    assert count[-len(undamaged) :] == undamaged == [SITES] * len(undamaged)
    assert count[: -len(undamaged)] == [[SITES[0]]] * (len(count) - len(undamaged))
    assert len(undamaged) < len(count) <= len(undamaged) + 4  # one pass for each length in it
    for name, time in times.items():
        assert (acts[1].folder / name).stat().st_mtime_ns == time
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"chunks": 3, "complete": false}'])
def test_broken_list_is_named(run: Callable, begun: Path, content: str) -> None:
    (begun / "progress.json").write_text(content)
    with pytest.raises(DataError, match="not the progress of a harvest") as raised:
        run()
    assert str(begun / "progress.json") in str(raised.value)
    shutil.rmtree(begun)
    run()


@pytest.fixture
def end_before(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Path], bool]], None]:
    """Interrupts before a file or folder is moved to a place."""

    def end(is_place: Callable[[Path], bool]) -> None:
        def replace(a: Any, b: Any) -> None:
            if is_place(Path(b)):
                raise KeyboardInterrupt
            original(a, b)

        monkeypatch.setattr(os, "replace", replace)

    original = os.replace
    return end


def test_texts_that_came_to_an_end_may_not_go_on(
    run: Callable,
    end_before: Callable,
    texts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    end_before(lambda place: place.name == "card.json")
    with pytest.raises(KeyboardInterrupt):
        run(shard_rows=1)
    monkeypatch.undo()
    folder = partial(tmp_path / "out")
    with pytest.raises(
        DataError, match=f"began with other texts .there were {len(texts)} parts"
    ) as raised:
        run([*texts, *texts], shard_rows=1)
    assert str(folder) in str(raised.value)
    run(shard_rows=1)


def test_harvest_put_in_the_place_meanwhile_is_replaced(
    run: Callable, end_before: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(out=tmp_path / "whole")
    run(context_size=3)
    end_before(lambda place: place == tmp_path / "out" / SITES[0].name)
    with pytest.raises(KeyboardInterrupt):
        run()
    monkeypatch.undo()
    assert not (tmp_path / "out" / SITES[0].name).exists()
    run(context_size=4)
    assert Activations.open(tmp_path / "out" / SITES[0].name).card.context_size == 4
    run()
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_site_changed_after_it_was_moved_is_done_again(
    run: Callable,
    passes: Callable,
    end_before: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(out=tmp_path / "whole")
    end_before(lambda place: place == tmp_path / "out" / SITES[1].name)
    with pytest.raises(KeyboardInterrupt):
        run()
    monkeypatch.undo()
    moved = tmp_path / "out" / SITES[0].name
    Activations.open(moved)
    spoil(moved / "shard-00001.safetensors")
    count = passes()
    run()
    assert len(count) > 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
