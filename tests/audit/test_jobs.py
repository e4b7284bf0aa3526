"""Jobs are done once, side by side, and kept; an interruption loses only what was not finished."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from workbench.audit import AuditConfig, audit
from workbench.audit.jobs import Jobs, Keys, repeated
from workbench.audit.statistics import Key, Scores
from workbench.audit.views import Found, Measure, View
from workbench.facts.target import Target
from workbench.models.load import weights_sha256

NAMES = ("one", "two", "three", "four")


class Counted:
    """Measures that count how often they were done; `stop` interrupts one of them."""

    def __init__(self, stop: str = "", spoil: str = "") -> None:
        self.done: list[str] = []
        self.stop, self.spoil = stop, spoil

    def measures(self) -> dict[str, Measure]:
        return {name: self.measure(name) for name in NAMES}

    def measure(self, name: str) -> Callable[[View], Found]:
        def work(view: View) -> Found:
            if name == self.stop:
                raise KeyboardInterrupt
            self.done.append(name)
            if name == self.spoil:
                next(view.model.parameters()).data.add_(1)
            value = float(sum(p.detach().double().sum() for p in view.model.parameters()))
            return {Key(name, "F", "raw"): Scores(np.array([value, 1 / 3]), ("a", "b"), ("r", "r"))}

        return work


def jobs(
    model: Any, folder: Path, counted: Counted, *, workers: int = 1, plan: str = "plan", **view: Any
) -> Jobs:
    sha256 = weights_sha256(model)
    seen = View("original", "", model), View("edited", "deployed", model, **view)
    keys = Keys(plan, {(v.role, v.view): sha256 for v in seen}, {"H7": None}, folder)
    made = Jobs(keys, workers, lambda line: None)
    for v in seen:
        made.add(v, counted.measures())
    return made


def values(measured: dict[tuple[str, str], Found]) -> dict[Any, list[float]]:
    return {(*n, *k): s.values.tolist() for n, f in measured.items() for k, s in f.items()}


@pytest.mark.parametrize("workers", [1, 2])
def test_each_job_is_done_once_for_equal_views(original: Any, tmp_path: Path, workers: int) -> None:
    """The edited model without edits is the original."""
    counted = Counted()
    found = jobs(original, tmp_path, counted, workers=workers).run()
    assert sorted(counted.done) == sorted(NAMES)
    assert len(values(found)) == 8
    again = Counted()
    assert values(jobs(original, tmp_path, again).run()) == values(found)
    assert again.done == []


def test_interrupted_run_goes_on_where_it_was(original: Any, tmp_path: Path) -> None:
    whole = values(jobs(original, tmp_path / "whole", Counted()).run())
    first = Counted(stop="three")
    with pytest.raises(KeyboardInterrupt):
        jobs(original, tmp_path / "cut", first).run()
    assert first.done[:2] == ["one", "two"]
    kept = len(list((tmp_path / "cut").rglob("*.parquet")))
    assert kept >= 2
    second = Counted()
    assert values(jobs(original, tmp_path / "cut", second).run()) == whole
    assert len(second.done) == 4 - kept
    assert "three" in second.done


def test_broken_file_is_done_anew(original: Any, tmp_path: Path) -> None:
    whole = values(jobs(original, tmp_path, Counted()).run())
    paths = sorted(tmp_path.rglob("*.parquet"))
    paths[0].write_bytes(b"broken")
    paths[1].write_bytes(paths[1].read_bytes()[:100])
    again = Counted()
    assert values(jobs(original, tmp_path, again).run()) == whole
    assert len(again.done) == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_models_are_left_alone_and_a_job_that_changes_its_own_is_told(
    original: Any, tmp_path: Path, workers: int
) -> None:
    before = weights_sha256(original)
    sound = jobs(original, tmp_path / "sound", Counted(), workers=workers)
    sound.run()
    assert sound.untouched == 1.0
    if workers == 2:
        spoilt = jobs(original, tmp_path / "spoilt", Counted(spoil="two"), workers=workers)
        spoilt.run()
        assert spoilt.untouched == 0.75
    assert weights_sha256(original) == before


def test_names_change_with_weights_edits_plan_and_job(
    original: Any, golds: list[Any], blank: Any, tmp_path: Path
) -> None:
    def path(model: Any, plan: str, job: str, **view: Any) -> Path | None:
        made = jobs(model, tmp_path, Counted(), plan=plan, **view)
        return made.keys.path(made.asked[-1][0], job)

    first = path(original, "plan", "one")
    assert first == path(original, "plan", "one")
    others = [
        path(golds[0], "plan", "one"),
        path(original, "other", "one"),
        path(original, "plan", "two"),
    ]
    assert len({first, *others}) == 4
    assert path(original, "plan", "one", edits=(blank,)) is None
    assert path(original, "plan", "one", filter=lambda text: True) is None


def test_names_change_with_the_libraries_and_the_device(
    original: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = jobs(original, tmp_path, Counted())
    view, found = made.asked[-1][0], set()
    from workbench.audit import jobs as room

    for libraries, device in (("1", "cpu"), ("2", "cpu"), ("1", "cuda"), ("1", "cpu")):
        monkeypatch.setattr(room, "_libraries", lambda version=libraries: {"peft": version})
        monkeypatch.setattr(room, "device_of", lambda _, kind=device: torch.device(kind))
        found.add(made.keys.path(view, "one"))
    assert len(found) == 3


def test_foreign_edits_are_measured_each_time(original: Any, blank: Any, tmp_path: Path) -> None:
    for _ in range(2):
        counted = Counted()
        jobs(original, tmp_path, counted, edits=(blank,)).run()
        assert set(counted.done) == set(NAMES)
    assert len(counted.done) == 4


def test_repeated_is_the_share_of_values_that_come_again(original: Any, tmp_path: Path) -> None:
    made = jobs(original, tmp_path, Counted())
    found = made.run()
    view = made.asked[0][0]
    assert repeated(made, view, "one", found) == 1.0
    key = Key("one", "F", "raw")
    found["original", ""][key].values[0] += 1e-9
    assert repeated(made, view, "one", found) == 0.0


@pytest.mark.parametrize("workers", [1, 2])
def test_frozen_probe_hooks_no_model_that_is_copied_at_the_same_time(
    original: Any, club: Target, workers: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: list[Any] = []

    def stop(target: Target, kinds: Any, seed: int, original: Any = None) -> dict[str, Any]:
        given.append(original.model)
        raise KeyboardInterrupt

    monkeypatch.setattr(import_module("workbench.audit.run"), "probes", stop)
    with pytest.raises(KeyboardInterrupt):
        audit(original, [], club, config=AuditConfig("quick", workers=workers), cache=tmp_path)
    assert (given[0] is original) == (workers == 1)
    assert weights_sha256(given[0]) == weights_sha256(original)


def test_what_a_job_took_is_kept_with_it(original: Any, tmp_path: Path) -> None:
    first, again = (jobs(original, tmp_path, Counted()) for _ in range(2))
    first.run()
    again.run()
    assert {c.job for c in first.costs()} == set(NAMES)
    assert all(c.seconds >= 0 for c in first.costs())
    assert again.costs() == first.costs()
    assert again.fresh == 0
