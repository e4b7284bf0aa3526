"""The nouns: a place in the residual stream, and what may change it there."""

import difflib
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from workbench.errors import SiteError

Point = Literal["resid_pre", "resid_mid", "resid_post"]


@dataclass(frozen=True)
class Site:
    """A place in the residual stream: before, within or after block `layer` (counted from 0)."""

    layer: int
    point: Point = "resid_post"

    @property
    def name(self) -> str:
        """The hook name in TransformerLens' form, as SAELens files carry it."""
        return f"blocks.{self.layer}.hook_{self.point}"

    @classmethod
    def parse(cls, name: str) -> "Site":
        """Reads `blocks.1.hook_resid_post`.

        Raises:
            SiteError: the name has another form; near ones are named.
        """
        parts = name.split(".")
        layer = int(parts[1]) if len(parts) > 1 and parts[1].isdecimal() else 0
        known = {cls(layer, point).name: cls(layer, point) for point in get_args(Point)}
        if name in known:
            return known[name]
        near = difflib.get_close_matches(name, known, n=2)
        hint = f"; near: {', '.join(near)}" if near else ""
        raise SiteError(
            f"site {name!r}: wanted 'blocks.<layer>.hook_resid_pre', '_mid' or '_post'{hint}"
        )


@runtime_checkable
class Intervention(Protocol):
    """A pure function of the residual stream at one site."""

    @property
    def site(self) -> Site: ...

    def __call__(
        self, resid: Float[Tensor, "*batch d_model"]
    ) -> Float[Tensor, "*batch d_model"]: ...


@runtime_checkable
class Remembering(Intervention, Protocol):
    """An intervention that acts by what stood earlier in a sequence.

    With a key-value cache, a forward pass shows the new tokens alone; what an edit has to know of
    the earlier ones it returns as its memory, and is given again.
    """

    def resume(
        self,
        resid: Float[Tensor, "*batch pos d_model"],
        memory: Any,
        real: Bool[Tensor, "*batch pos"] | None = None,
    ) -> tuple[Float[Tensor, "*batch pos d_model"], Any]:
        """The edited stream, and the memory for the tokens that follow.

        Args:
            memory: None at the start of a sequence, else what the previous call returned.
            real: False on padding.
        """
        ...
