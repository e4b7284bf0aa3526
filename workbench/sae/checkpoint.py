"""Checkpoints of a training that is under way, and an interrupt that waits for a whole step."""

import contextlib
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from workbench.artifacts import mark_replaceable
from workbench.errors import SAEError
from workbench.sae.fit import Fit, ranks_of

KEPT = 2


class Checkpoints:
    """Numbered files beside the folder that the training will write; the last two are kept.

    A file gets its name when it is whole, so the last good one is never written over.
    """

    def __init__(self, out: Path, made_from: str) -> None:
        self.folder = out.with_name(f"{out.name}.training")
        self.made_from = made_from

    def save(self, fits: Mapping[Path, Fit], step: int) -> None:
        """Writes the state after so many steps, then deletes older checkpoints."""
        if ranks_of()[0] > 0:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        mark_replaceable(self.folder)
        tensors = {
            f"{i}.{name}": tensor
            for i, fit in enumerate(fits.values())
            for name, tensor in fit.state().items()
        }
        path = self.folder / f"step-{step:09d}.safetensors"
        building = path.with_suffix(".building")
        try:
            save_file(tensors, building, {"made_from": self.made_from, "step": str(step)})
            building.replace(path)
        except (OSError, SafetensorError) as error:
            building.unlink(missing_ok=True)
            raise SAEError(
                f"{path}: cannot be written ({error}); earlier checkpoints are kept, so free some "
                "room and run the training again"
            ) from error
        for old in self._files()[:-KEPT]:
            old.unlink()

    def load(self, fits: Mapping[Path, Fit]) -> int:
        """Takes up the newest checkpoint that can be read; gives the number of steps done.

        Raises:
            SAEError: a checkpoint of other data or settings.
        """
        for path in reversed(self._files()):
            try:
                step, tensors = self._read(path)
            except SafetensorError:
                continue  # the one before is whole: it was, before this one was begun
            for i, fit in enumerate(fits.values()):
                own = {n.split(".", 1)[1]: t for n, t in tensors.items() if n.startswith(f"{i}.")}
                fit.load_state(own, step)
            return step
        return 0

    def _read(self, path: Path) -> tuple[int, dict[str, Any]]:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            if metadata.get("made_from") != self.made_from:
                raise SAEError(
                    f"{self.folder}: holds an interrupted training with other settings or other "
                    "activations; give the same to go on with it, or delete it to begin anew"
                )
            return int(metadata["step"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.safetensors"))

    def delete(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def interrupts_noted() -> Iterator[list[int]]:
    """Gives a list that an interrupt (Ctrl-C) is put on in the place of being raised at once.

    A second one is raised. Outside the main thread nothing changes.
    """
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return

    def note(number: int, _frame: Any) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)
