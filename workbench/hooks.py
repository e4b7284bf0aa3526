"""Reading and changing the residual stream.

The only file that registers hooks; none outlives its `with` block.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

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
            SiteError: the name has another form.
        """
        parts = name.split(".")
        if len(parts) == 3 and parts[0] == "blocks" and parts[1].isdecimal():
            for point in ("resid_pre", "resid_mid", "resid_post"):
                if parts[2] == f"hook_{point}":
                    return cls(int(parts[1]), point)
        raise SiteError(f"site {name!r}: wanted 'blocks.<layer>.hook_resid_pre', '_mid' or '_post'")


@runtime_checkable
class Intervention(Protocol):
    """A pure function of the residual stream at one site."""

    @property
    def site(self) -> Site: ...

    def __call__(
        self, resid: Float[Tensor, "*batch d_model"]
    ) -> Float[Tensor, "*batch d_model"]: ...


@dataclass
class FireLog:
    """What each edit did while it was attached, in the order the edits were given.

    Attributes:
        calls: forward passes seen.
        tokens: tokens seen.
        changed: tokens whose residual stream the edit changed.
    """

    calls: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    changed_on_device: list[Tensor] = field(default_factory=list)

    @property
    def changed(self) -> list[int]:
        return [int(count) for count in self.changed_on_device]


class _Stop(Exception):
    """Raised by the last capturing hook: nothing after it is needed."""


def hook_point(model: Any, site: Site) -> nn.Module:
    """The module whose output is the residual stream at `site`.

    Raises:
        SiteError: the model has no such layer or point.
    """
    blocks = getattr(model, "blocks", None)
    if blocks is None:
        raise SiteError(f"{type(model).__name__} has no `blocks`: load it with load_model first")
    if not 0 <= site.layer < len(blocks):
        raise SiteError(f"{site.name}: the model has layers 0 to {len(blocks) - 1}")
    module = getattr(blocks[site.layer], f"hook_{site.point}", None)
    if not isinstance(module, nn.Module):
        raise SiteError(f"{site.name}: this model's blocks have no {site.point}")
    return module


def _only_mlp_reads(model: Any, site: Site) -> bool:
    """Whether what a hook returns at `site` misses the skip connection and is to be added later.

    A TransformerBridge reads resid_mid at the input of the block's second norm; what goes around
    the MLP has already left there. Where the block has a resid_mid of its own, both ways read it.
    """
    block = model.blocks[site.layer]
    return site.point == "resid_mid" and "hook_resid_mid" not in dict(block.named_children())


@contextmanager
def captured(
    model: Any, sites: Sequence[Site], *, stop: bool = False
) -> Iterator[dict[Site, Tensor]]:
    """Collects the residual stream at `sites` during the forward pass run inside the block.

    Args:
        stop: end the forward pass once all sites are read, by an exception that `residuals`
            catches.

    Yields:
        A dict filled by the latest forward pass: site to Float[batch pos d_model], on the model's
        device, in its graph.
    """
    found: dict[Site, Tensor] = {}
    modules = {site: hook_point(model, site) for site in sites}

    def reader(site: Site) -> Callable:
        def read(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            found[site] = output
            if stop and len(found) == len(modules):
                raise _Stop

        return read

    handles = []
    try:
        handles = [module.register_forward_hook(reader(site)) for site, module in modules.items()]
        yield found
    finally:
        for handle in handles:
            handle.remove()


def residuals(
    model: Any, tokens: Tensor, sites: Sequence[Site]
) -> dict[Site, Float[Tensor, "batch pos d_model"]]:
    """The residual stream at `sites` for one batch; blocks after the last site are not run."""
    with captured(model, sites, stop=True) as found:
        try:
            model(tokens)
        except _Stop:
            return dict(found)
    missing = [s.name for s in sites if s not in found]
    raise SiteError(f"{', '.join(missing)} never fired in a forward pass")


@contextmanager
def edited(
    model: Any, edits: Sequence[Intervention], *, must_fire: bool = True
) -> Iterator[FireLog]:
    """Applies interventions in every forward pass inside the block, also with gradients.

    Edits are applied in the order given. An edit changes the stream itself: all that comes later in
    the model reads what it returned. Edits at one site see what the earlier ones left, as does
    `captured` if it is entered inside this block. On leaving without an exception, an edit whose
    hook never ran is an error: a silent edit looks like "no effect".

    Args:
        must_fire: False allows leaving without a forward pass.

    Raises:
        SiteError: an unknown site, or an edit that never ran.
    """
    log = FireLog(
        [0] * len(edits), [0] * len(edits), [torch.zeros((), dtype=torch.long) for _ in edits]
    )
    modules = [hook_point(model, edit.site) for edit in edits]
    past_mlp: dict[int, Tensor] = {}

    def changer(i: int, edit: Intervention) -> Callable:
        def change(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            out = edit(output)
            log.calls[i] += 1
            log.tokens[i] += output[..., 0].numel()
            changed = (out.detach() != output.detach()).any(-1).sum()
            log.changed_on_device[i] = log.changed_on_device[i].to(changed.device) + changed
            if _only_mlp_reads(model, edit.site):
                past_mlp[i] = out - output
            return out

        return change

    def adder(i: int) -> Callable:
        return lambda _module, _inputs, output: output + past_mlp.pop(i)

    handles = []
    try:
        for i, (module, edit) in enumerate(zip(modules, edits, strict=True)):
            handles.append(module.register_forward_hook(changer(i, edit)))
            if _only_mlp_reads(model, edit.site):
                after = hook_point(model, Site(edit.site.layer, "resid_post"))
                handles.append(after.register_forward_hook(adder(i), prepend=True))
        yield log
    finally:
        for handle in handles:
            handle.remove()
    silent = [edit.site.name for edit, calls in zip(edits, log.calls, strict=True) if calls == 0]
    if must_fire and silent:
        raise SiteError(
            f"edits at {', '.join(silent)} never fired: no forward pass went through them"
        )
