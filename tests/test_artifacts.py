"""Whole or not at all: what stood there before stays until what replaces it is complete."""

import hashlib
import json
from pathlib import Path

import pytest

from workbench.artifacts import (
    MARKER,
    file_sha256,
    mark_replaceable,
    new_folder,
    require_replaceable,
    write_json,
    write_text,
)
from workbench.errors import DataError


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_new_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    with new_folder(tmp_path / "deep" / "out") as building:
        (building / "a").write_text("new")
        assert not (tmp_path / "deep" / "out").exists()
    assert (tmp_path / "deep" / "out" / "a").read_text() == "new"
    assert names(tmp_path / "deep") == ["out"]
    assert (tmp_path / "deep" / "out").stat().st_mode & 0o777 == 0o755


def test_new_folder_takes_the_place_of_the_old_one_whole(tmp_path: Path) -> None:
    for name in ("old", "new"):
        with new_folder(tmp_path / "out") as building:
            (building / name).touch()
    assert names(tmp_path / "out") == [MARKER, "new"]
    assert names(tmp_path) == ["out"]


def test_folder_of_another_is_refused_before_the_block_runs(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    refused = pytest.raises(DataError, match=r"out: holds files .* name a new or empty folder")
    with refused, new_folder(tmp_path / "out"):
        pytest.fail("the block ran")
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "thesis.tex").read_text() == "mine"


def test_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with (
        pytest.raises(DataError, match="out: is a file, wanted a folder"),
        new_folder(tmp_path / "out"),
    ):
        pass
    assert (tmp_path / "out").read_text() == "mine"


def test_empty_folder_and_one_marked_by_hand_are_replaced(tmp_path: Path) -> None:
    for name in ("empty", "marked"):
        (tmp_path / name).mkdir()
    (tmp_path / "marked" / "old").touch()
    mark_replaceable(tmp_path / "marked")
    for name in ("empty", "marked"):
        with new_folder(tmp_path / name) as building:
            (building / "new").touch()
        assert names(tmp_path / name) == [MARKER, "new"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_interrupted_folder_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), new_folder(tmp_path / "out") as building:
        (building / "half").touch()
        raise error
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_interrupted_folder_leaves_the_old_one(tmp_path: Path, error: type[BaseException]) -> None:
    with new_folder(tmp_path / "out") as building:
        (building / "old").touch()
    with pytest.raises(error), new_folder(tmp_path / "out") as building:
        (building / "half").touch()
        raise error
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == [MARKER, "old"]


def test_folder_interrupted_while_it_changes_places_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, replace = tmp_path / "out", Path.replace
    with new_folder(out) as building:
        (building / "old").touch()

    def interrupted(self: Path, target: Path) -> Path:
        if target == out and (self / "new").exists():
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), new_folder(out) as building:
        (building / "new").touch()
    assert names(tmp_path) == ["out"]
    assert names(out) == [MARKER, "old"]


def test_text_is_written_with_its_folder(tmp_path: Path) -> None:
    write_text(tmp_path / "deep" / "a.txt", "é\n")
    assert (tmp_path / "deep" / "a.txt").read_bytes() == "é\n".encode()
    assert names(tmp_path / "deep") == ["a.txt"]
    assert (tmp_path / "deep" / "a.txt").stat().st_mode & 0o777 == 0o644


def test_text_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.txt", "new \ud800")
    assert names(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_json_is_the_same_whatever_the_order_of_its_keys(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1, 2.5], "a": {"d": None, "c": "x"}})
    write_json(tmp_path / "b.json", {"a": {"c": "x", "d": None}, "b": [1, 2.5]})
    assert json.loads((tmp_path / "a.json").read_text())["b"] == [1, 2.5]
    assert file_sha256(tmp_path / "a.json") == file_sha256(tmp_path / "b.json")


def test_value_that_is_no_json_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert names(tmp_path) == []


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


def test_folder_without_a_name_is_refused_before_long_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="name one"):
        require_replaceable(".")
    require_replaceable("named")
