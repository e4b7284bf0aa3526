"""Scores and finished jobs on disk: exact, and under names that change with what made them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.audit.synthetic import Synthetic
from workbench.audit.statistics import Key, Scores
from workbench.audit.store import load_scores, save_scores, value_sha256
from workbench.errors import DataError
from workbench.hooks import Site
from workbench.interventions import Steer

AT = Site(0, "resid_post")


def test_scores_come_back_exactly_and_in_the_same_bytes(tmp_path: Path) -> None:
    world = Synthetic(12)
    measured = world.measured(world.gold(7), 2)
    odd = np.array([0.1 + 0.2, 1e-300, -0.0, np.inf, np.nan])
    measured["edited", "deployed"][Key("H1", "F", "equal", "ünïcode", 2, 0.5)] = Scores(
        odd, tuple("abcde")
    )
    first = save_scores(measured, tmp_path / "a" / "scores.parquet")
    turned = {name: dict(reversed(f.items())) for name, f in reversed(measured.items())}
    assert save_scores(turned, tmp_path / "b.parquet").read_bytes() == first.read_bytes()
    again = load_scores(first)
    assert set(again) == set(measured)
    for name, found in measured.items():
        assert set(again[name]) == set(found)
        for key, scores in found.items():
            assert again[name][key].values.tobytes() == scores.values.tobytes()
            assert again[name][key].entities == scores.entities
            assert again[name][key].relations == scores.relations
    assert [p.name for p in first.parent.iterdir()] == ["scores.parquet"]


@pytest.mark.parametrize("content", [None, b"", b"PAR1 no"])
def test_missing_or_broken_file_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "scores.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"scores\.parquet"):
        load_scores(path)


@dataclass(frozen=True)
class Foreign:
    """An edit of a class that may change while its fields stay."""

    site: Site = AT

    def __call__(self, resid: Any) -> Any:
        return resid


def test_hash_of_an_edit_changes_with_any_field_of_it() -> None:
    edit = Steer(AT, torch.ones(4))
    assert value_sha256(edit) == value_sha256(Steer(AT, torch.ones(4)))
    others = [
        replace(edit, direction=torch.tensor([1.0, 1.0, 1.0, 1.0 + 1e-6])),
        replace(edit, strength=2.0),
        replace(edit, site=Site(1, "resid_post")),
        [edit],
        [edit, edit],
    ]
    hashes = {value_sha256(e) for e in (edit, *others)}
    assert len(hashes) == 6
    assert None not in hashes


def test_edit_of_a_foreign_class_has_no_hash_however_deep() -> None:
    assert value_sha256(Foreign()) is None
    assert value_sha256([{"a": (1, Foreign())}]) is None
    assert value_sha256(lambda resid: resid) is None
