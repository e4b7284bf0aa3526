"""Running the jobs of an audit: side by side, each once, kept when finished."""

import copy
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from workbench.artifacts import write_text
from workbench.audit.schema import Cost
from workbench.audit.store import load_scores, save_scores, value_sha256
from workbench.audit.views import Found, Measure, View
from workbench.errors import DataError
from workbench.models.copies import copied
from workbench.models.load import versions, weights_sha256
from workbench.models.score import device_of

Name = tuple[str, str]


ON_ORIGINAL = ("probes", "P10", "P11", "P12", "P13")
"""Jobs that read the original beside the model they measure."""


@cache
def _libraries() -> dict[str, str]:
    """Versions of those that decide what a job measures."""
    return {**versions(), **{name: version(name) for name in ("peft", "sae-lens")}}


@dataclass(frozen=True)
class Keys:
    """Where the result of a job is kept: a name that changes with anything it depends on.

    Attributes:
        weights: hash of each model by role and view.
        others: by the beginning of a job's name, the hash of what it reads beside the models; None
            if that has no stable content.
        edits: hash of the edits of each view, made when it is first asked for.
    """

    plan_sha256: str
    weights: Mapping[Name, str]
    others: Mapping[str, str | None]
    folder: Path
    edits: dict[Name, str | None] = field(default_factory=dict)

    def path(self, view: View, job: str) -> Path | None:
        """None where the view has a filter, or edits without a stable content: nothing is kept."""
        if (view.role, view.view) not in self.edits:
            self.edits[view.role, view.view] = value_sha256(list(view.edits))
        edits = self.edits[view.role, view.view]
        beside = next((h for name, h in self.others.items() if job.startswith(name)), "")
        if view.filter is not None or edits is None or beside is None:
            return None
        weights, original = self.weights[view.role, view.view], self.weights["original", ""]
        rest = [beside, original if job.startswith(ON_ORIGINAL) else ""]
        parts = [weights, edits, job, _libraries(), device_of(view.model).type, *rest]
        content = json.dumps([self.plan_sha256, *parts])
        name = hashlib.sha256(content.encode()).hexdigest()
        return self.folder / weights[:16] / f"{name[:32]}.parquet"


@dataclass
class Jobs:
    """Jobs to be done; `run` does them and may be called once."""

    keys: Keys
    workers: int
    say: Callable[[str], None]
    asked: list[tuple[View, str, Measure]] = field(default_factory=list)
    fresh: int = 0
    clean: int = 0
    seconds: dict[int, float] = field(default_factory=dict)

    def add(self, view: View, measures: Mapping[str, Measure]) -> None:
        """Lines up the jobs of one view."""
        self.asked += [(view, name, measure) for name, measure in measures.items()]

    @property
    def untouched(self) -> float:
        """Share of the jobs done now that left their model bitwise as it was."""
        return self.clean / self.fresh if self.fresh else 1.0

    def run(self) -> dict[Name, Found]:
        """Does all jobs that are not kept from before; every role and view to what was found."""
        paths = [self.keys.path(view, name) for view, name, _ in self.asked]
        owner: dict[Path, int] = {}
        results: dict[int, Found] = {}
        for i, path in enumerate(paths):
            if path is None or path not in owner:
                kept = _kept(path)
                if kept is not None:
                    results[i] = kept
                    self.seconds[i] = _seconds(path)
            if path is not None:
                owner.setdefault(path, i)
        first = [i for i, p in enumerate(paths) if p is None or owner[p] == i]
        todo = [i for i in first if i not in results]
        self.say(f"measure: {len(todo)} jobs, {len(first) - len(todo)} kept from before")
        results |= self._done(todo, paths)
        measured: dict[Name, Found] = {}
        for i, (view, _, _) in enumerate(self.asked):
            path = paths[i]
            found = results[i if path is None else owner[path]]
            measured.setdefault((view.role, view.view), {}).update(found)
        return measured

    def _done(self, todo: list[int], paths: list[Path | None]) -> dict[int, Found]:
        """The results of the jobs, each kept by the thread that finished it.

        So an interrupt, which waits for the jobs that are running, loses none of them.
        """

        def finish(i: int) -> tuple[Found, bool]:
            started = time.monotonic()
            found, clean = self.measure(i)
            self.seconds[i], path = time.monotonic() - started, paths[i]
            if path is not None:
                save_scores({("", ""): found}, path)
                write_text(path.with_suffix(".seconds"), f"{self.seconds[i]:.3f}")
            return found, clean

        results: dict[int, Found] = {}
        bar = tqdm(total=len(todo), desc="audit", unit="job", leave=False)
        threads = torch.get_num_threads()
        pool = ThreadPoolExecutor(self.workers, "audit", torch.set_num_threads, (1,))
        try:
            futures: dict[Future[tuple[Found, bool]], int] = {
                pool.submit(finish, i): i for i in todo
            }
            for future in as_completed(futures):
                view, name, _ = self.asked[futures[future]]
                bar.set_postfix_str(f"{view.role} {view.view}: {name}".replace(" :", ":"))
                bar.update()
                results[futures[future]], clean = future.result()
                self.fresh, self.clean = self.fresh + 1, self.clean + clean
            return results
        except KeyboardInterrupt as stopped:
            raise KeyboardInterrupt(
                "finished jobs are kept, and the same call goes on where it was"
            ) from stopped
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            torch.set_num_threads(threads)
            bar.close()

    def costs(self) -> list[Cost]:
        """How long each job took when it was done, by view, in the order asked for."""
        return [
            Cost(view.role, view.view, name, round(self.seconds[i], 3))
            for i, (view, name, _) in enumerate(self.asked)
            if i in self.seconds
        ]

    def measure(self, i: int) -> tuple[Found, bool]:
        """One job on a copy of its model and edits, since hooks are attached to models.

        Returns:
            What was found, and whether the weights are bitwise what they were.
        """
        view, _, measure = self.asked[i]
        alone = self.workers == 1
        model, edits = view.model, view.edits
        if not alone:
            model, edits = copied(model), copy.deepcopy(edits)
        found = measure(replace(view, model=model, edits=edits))
        return found, weights_sha256(model) == self.keys.weights[view.role, view.view]


def repeated(jobs: Jobs, view: View, name: str, measured: Mapping[Name, Found]) -> float:
    """Share of the values of one job on one view that doing it again gives bit for bit."""
    index = next((i for i, (v, n, _) in enumerate(jobs.asked) if v is view and n == name), None)
    assert index is not None, f"there is no job {name!r}"
    (again, _), before = jobs.measure(index), measured[view.role, view.view]
    same = [
        np.array_equal(s.values, before[key].values, equal_nan=True) for key, s in again.items()
    ]
    return float(np.mean(same))


def _seconds(path: Path | None) -> float:
    """What a kept job took; 0 where nobody noted it."""
    noted = path.with_suffix(".seconds") if path is not None else None
    return float(noted.read_text()) if noted is not None and noted.is_file() else 0.0


def _kept(path: Path | None) -> Found | None:
    """What an earlier run left; a broken file counts as nothing."""
    if path is None or not path.is_file():
        return None
    try:
        return load_scores(path).get(("", ""), {})
    except DataError:
        path.unlink()
        return None
