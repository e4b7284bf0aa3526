"""Several edits at one site as one."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from workbench.errors import EditError
from workbench.hooks import Intervention, Site
from workbench.interventions.flow import Flow, follow
from workbench.sae.read import Reading


@dataclass(frozen=True)
class Sequence(Flow):
    """Applies edits one after the other; each sees what the one before it left.

    Feature edits of one SAE that stand side by side share what is read of the stream: a TopK SAE's
    pre-activations are computed once.
    """

    edits: tuple[Intervention, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "edits", tuple(self.edits))
        sites = {edit.site for edit in self.edits}
        if len(sites) != 1:
            given = ", ".join(sorted(site.name for site in sites)) or "no edit"
            raise EditError(f"{given}: a sequence wants one or more edits at one site")

    @property
    def site(self) -> Site:
        return self.edits[0].site

    def follow(
        self, reading: Reading, memory: Any, real: Bool[Tensor, "*batch pos"] | None
    ) -> tuple[Reading, Any]:
        memories = [None] * len(self.edits) if memory is None else list(memory)
        for i, edit in enumerate(self.edits):
            reading, memories[i] = follow(edit, reading, memories[i], real)
        return reading, tuple(memories)
