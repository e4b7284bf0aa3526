"""Who is measured: one model, as one kind of reader meets it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from workbench.audit.statistics import Key, Scores
from workbench.hooks import Intervention
from workbench.models.copies import copied
from workbench.models.prompted import SystemPrompt

Filter = Callable[[str], bool]
"""Whether a deployed system refuses a text; asked of each prompt, and of prompt and answer."""

Found = dict[Key, Scores]
"""What was measured on one view: per question or fact, never only a mean."""


@runtime_checkable
class System(Protocol):
    """What a method of unlearning hands over: weights, hooks, and what stands around both.

    Attributes:
        model: with changed weights, or the original.
        edits: interventions on it.
        refuses: refuses text in the deployed system.
        prompt: stands before every text that the deployed system reads.
        original: the model to hold it against, where it is another than the one that was given.
        stands_on: hash of the weights of a model that it was made from and that never knew: as a
            gold it would be no stranger.
    """

    @property
    def model(self) -> Any: ...
    @property
    def edits(self) -> Sequence[Intervention]: ...
    @property
    def refuses(self) -> Filter | None: ...
    @property
    def prompt(self) -> SystemPrompt: ...
    @property
    def original(self) -> Any: ...
    @property
    def stands_on(self) -> str: ...


@dataclass(frozen=True)
class View:
    """A model with the hooks and the filter that stand between it and its reader.

    Attributes:
        role: `original`, `edited`, `gold-0` and so on, `random`, `permuted`.
        view: of the edited model `text` (Es, with hooks, prompt and filter), `deployed` (Eh, hooks
            on) or `weights` (Ew, hooks off); else empty.
    """

    role: str
    view: str
    model: Any
    edits: Sequence[Intervention] = ()
    filter: Filter | None = None


def own_copy(view: View) -> View:
    """The view with a copy of its model, for a job that hooks a model which other jobs copy.

    Copying takes hooks along, so that a model that several threads see is copied and never hooked.
    """
    return replace(view, model=copied(view.model))


Measure = Callable[[View], Found]
"""One job of the audit: what it finds on one view. It changes neither model nor edits."""
