"""Ends a harvest just before each of its steps, takes it up again, and prints what was found.

A step is a forward pass or a change on the disk. Run in a process of its own, which is forked for
each harvest that is to be killed: `python killed.py <model folder> <work folder>`.
"""

import hashlib
import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from workbench.activations import Activations, chunks, harvest
from workbench.errors import DataError
from workbench.hooks import Site
from workbench.models.load import load_model

SITES = [Site(0), Site(1)]
CHANGES = ("posix_fallocate", "replace", "unlink", "rmdir")


class Steps:
    """Counts the steps of a harvest, and calls `end` before one of them."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.last, self.end = -1, lambda: None
        chunks.residuals = self._step("pass", chunks.residuals)
        for name in CHANGES:
            setattr(os, name, self._step(name, getattr(os, name)))

    def _step(self, name: str, do: Callable) -> Callable:
        def step(*given: Any, **options: Any) -> Any:
            if len(self.names) == self.last:
                self.end()
            self.names.append(f"{name} {' '.join(Path(g).name for g in given if is_path(g))}")
            return do(*given, **options)

        return step

    def begin(self, last: int = -1, end: Callable[[], Any] = lambda: None) -> None:
        self.names, self.last, self.end = [], last, end

    @property
    def passes(self) -> int:
        return sum(name.startswith("pass") for name in self.names)


def is_path(given: Any) -> bool:
    return isinstance(given, str | Path)


def contents(folder: Path) -> dict[str, str]:
    files = [p for p in folder.rglob("*") if p.is_file()]
    found = {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    return found | {str(p.relative_to(folder)): "" for p in folder.rglob("*") if p.is_dir()}


def cards(folder: Path) -> list[str | None]:
    """Hash of what stands in the place of each site, if it can be opened."""
    found: list[str | None] = []
    for site in SITES:
        try:
            card = Activations.open(folder / site.name).card
            found.append(
                hashlib.sha256(json.dumps(vars(card), sort_keys=True).encode()).hexdigest()
            )
        except DataError:
            found.append(None)
    return found


def interrupt() -> None:
    raise KeyboardInterrupt


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_a_fork(work: Callable[[], Any]) -> int:
    if not (child := os.fork()):
        work()
        os._exit(0)
    return os.waitpid(child, 0)[1]


def main(model_folder: str, work: Path) -> None:
    torch.set_num_threads(1)
    model, steps = load_model(model_folder), Steps()
    texts = json.loads((Path(model_folder) / "texts.json").read_text())
    before, whole = work / "before", work / "whole"

    def run(out: Path, given: list[str] = texts) -> None:
        harvest(model, given, SITES, out, shard_rows=20, progress=False)

    harvest(model, texts[:2], SITES[0], before, progress=False)
    shutil.copytree(before, whole)
    steps.begin()
    run(whole)
    names, places = steps.names, [cards(before), cards(whole)]
    found = []
    for end, every in ((kill, 1), (interrupt, 2)):
        for last in range(0, len(names), every):
            out = work / "out"
            shutil.copytree(before, out)
            if end is kill:
                status = in_a_fork(lambda n=last, o=out: (steps.begin(n, kill), run(o)))
                assert status == signal.SIGKILL
            else:
                try:
                    steps.begin(last, interrupt)
                    run(out)
                    raise AssertionError(f"not interrupted at {names[last]}")
                except KeyboardInterrupt:
                    pass
            between, log = cards(out), next(out.glob("*.partial/progress.json"), None)
            progress = json.loads(log.read_text()) if log else None
            steps.begin()
            run(out)
            found.append(
                {
                    "by": end.__name__,
                    "before": names[last],
                    "places": between,
                    "complete": bool(progress and progress["complete"]),
                    "passes": sum(n.startswith("pass") for n in names[:last]) + steps.passes,
                    "same": contents(out) == contents(whole),
                    "left": sorted(p.name for p in out.iterdir()),
                }
            )
            shutil.rmtree(out)
    limited = limit(run, steps, texts, work)
    passes = sum(name.startswith("pass") for name in names)
    result = {"names": names, "passes": passes, "places": places, "found": found}
    (work / "found.json").write_text(json.dumps(result | {"limited": limited}))


def limit(run: Callable, steps: Steps, texts: list[str], work: Path) -> dict[str, Any]:
    """A disk on which the last shard does not fit."""
    given, out = [*texts, " ".join(4 * texts)], work / "limited"
    run(work / "unlimited", given)

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            run(out, given)
        except DataError as error:
            (work / "error.txt").write_text(str(error))

    status = in_a_fork(small)
    steps.begin()
    files = contents(out)
    run(out, given)
    return {
        "status": status,
        "error": (work / "error.txt").read_text(),
        "files": sorted(files),
        "passes": steps.passes,
        "same": contents(out) == contents(work / "unlimited"),
    }


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
