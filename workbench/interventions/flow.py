"""Edits made of other edits: what is read of the stream for one is there for the next."""

from abc import ABC, abstractmethod
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from workbench.hooks import Intervention, Remembering
from workbench.interventions.features import FeatureEdit
from workbench.sae.read import Reading


class Flow(ABC):
    """An edit that runs others, and remembers what they have to know of earlier tokens."""

    @abstractmethod
    def follow(
        self, reading: Reading, memory: Any, real: Bool[Tensor, "*batch pos"] | None
    ) -> tuple[Reading, Any]:
        """As `resume`, from a reading of the stream to a reading of the edited one."""

    def resume(
        self,
        resid: Float[Tensor, "*batch pos d_model"],
        memory: Any,
        real: Bool[Tensor, "*batch pos"] | None = None,
    ) -> tuple[Float[Tensor, "*batch pos d_model"], Any]:
        reading, memory = self.follow(Reading(None, resid), memory, real)
        return reading.resid, memory

    def __call__(
        self, resid: Float[Tensor, "*batch pos d_model"]
    ) -> Float[Tensor, "*batch pos d_model"]:
        return self.resume(resid, None)[0]


def follow(
    edit: Intervention, reading: Reading, memory: Any, real: Bool[Tensor, "*batch pos"] | None
) -> tuple[Reading, Any]:
    """Runs any edit on a reading; an edit that remembers nothing leaves an empty memory."""
    if isinstance(edit, FeatureEdit):
        return edit.on(reading.by(edit.sae)), ()
    if isinstance(edit, Flow):
        return edit.follow(reading, memory, real)
    if isinstance(edit, Remembering):
        resid, memory = edit.resume(reading.resid, memory, real)
        return Reading(None, resid), memory
    return Reading(None, edit(reading.resid)), ()
