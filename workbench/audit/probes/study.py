"""What the probes of one view share: each row of the stream is read once."""

import threading
from functools import cached_property

from workbench.audit.probes.labels import Labels
from workbench.audit.probes.linear import Frame, Lesson, Readers, Rows, tuned
from workbench.audit.probes.rows import mean_rows, places
from workbench.audit.views import View, own_copy
from workbench.facts.schema import Fact
from workbench.facts.target import Target
from workbench.models.score import Templates


class Study:
    """What the probes of one view share: its rows, each read once, and P1's readers.

    Args:
        within: whether forget facts will be fitted too.
    """

    def __init__(self, view: View, target: Target, within: bool = False) -> None:
        self.view, self.target, self.labels = view, target, Labels.of(target)
        self._within = within
        self.places = places(view.model)
        self._rows: dict[tuple[str, Templates], Rows] = {}

    def facts(self, name: str) -> tuple[Fact, ...]:
        return self.target.forget if name == "F" else self.target.retain[name]

    def rows(self, name: str, templates: Templates) -> Rows:
        """Of all forget facts (`F`) or of a retained fold."""
        key = name, templates
        if key not in self._rows:
            self._rows[key] = mean_rows(self.view, self.facts(name), templates)
        return self._rows[key]

    def lesson(self, frame: Frame, name: str, templates: Templates) -> Lesson:
        return Lesson.of(self.labels, frame(self.rows(name, templates)), self.facts(name))

    @cached_property
    def frame(self) -> Frame:
        fitted_too = [self.rows("F", "train")] if self._within else []
        return Frame.of(self.rows("R_tr", "train"), *fitted_too)

    @cached_property
    def transfer(self) -> Readers:
        """P1's readers."""
        return tuned(
            self.labels,
            self.lesson(self.frame, "R_tr", "train"),
            self.lesson(self.frame, "R_va", "audit"),
        )


class Frozen:
    """P1 of the original, fitted when it is first asked for, by whichever thread comes first."""

    def __init__(self, target: Target, original: View) -> None:
        self._target, self._original = target, original
        self._lock = threading.Lock()
        self._fitted: tuple[Frame, Readers] | None = None

    def __call__(self) -> tuple[Frame, Readers]:
        with self._lock:
            if self._fitted is None:
                study = Study(own_copy(self._original), self._target)
                self._fitted = study.frame, study.transfer
            return self._fitted
