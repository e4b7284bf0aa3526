"""Context managers that read and change the residual stream."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.errors import SiteError
from workbench.hooks.firelog import FireLog
from workbench.hooks.memory import Memory
from workbench.hooks.places import Place, blocks_of, hook_point, watched_at
from workbench.hooks.sites import Intervention, Remembering, Site


class _Stop(Exception):
    """Raised by the last capturing hook: nothing after it is needed."""


@contextmanager
def captured(
    model: Any, sites: Sequence[Site], *, stop: bool = False
) -> Iterator[dict[Site, Tensor]]:
    """Collects the residual stream at `sites` during the forward pass run inside the block.

    Args:
        model: TransformerBridge, HookedTransformer or Hugging Face module.
        stop: end the forward pass once all sites are read, by an exception that `residuals`
            catches.

    Yields:
        A dict filled by the latest forward pass: site to Float[batch pos d_model], on the model's
        device, in its graph.
    """
    found: dict[Site, Tensor] = {}
    places = {site: hook_point(model, site) for site in sites}

    def reader(site: Site) -> Callable[[Tensor], None]:
        def read(resid: Tensor) -> None:
            found[site] = resid
            if stop and len(found) == len(places):
                raise _Stop

        return read

    with ExitStack() as leaving:
        for site, place in places.items():
            leaving.callback(place.attach(reader(site)).remove)
        if not stop:
            leaving.callback(_forget_compiled)
            _forget_compiled()
        yield found


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
    """Applies interventions in every forward pass inside the block: calls, `generate`, backward.

    Edits are applied in the order given. An edit changes the stream itself: all that comes later in
    the model reads what it returned. Edits at one site see what the earlier ones left, as does
    `captured` if it is entered inside this block. Edits that remember (`Remembering`) are followed
    along the key-value cache of a generation. What `torch.compile` has compiled is compiled anew
    inside and after the block, since it keeps the hooks of its time. On leaving without an
    exception, an edit whose hook never ran is an error: a silent edit looks like "no effect".

    Args:
        model: TransformerBridge, HookedTransformer or Hugging Face module.
        must_fire: False allows leaving without a forward pass.

    Yields:
        What the edits did so far: passes, tokens changed, size of the change. `print` it.

    Raises:
        SiteError: an unknown site, or an edit that never ran.
    """
    places = [hook_point(model, edit.site) for edit in edits]
    log = FireLog(edits, [_device(model, edit.site) for edit in edits])
    with ExitStack() as leaving:
        leaving.callback(_forget_compiled)
        for i, (place, edit) in enumerate(zip(places, edits, strict=True)):
            apply = edit
            if isinstance(edit, Remembering):
                apply = _remembered(model, edit, leaving)
            _attach(place, apply, lambda before, after, i=i: log.add(i, before, after), leaving)
        _forget_compiled()
        yield log
    silent = [edit.site.name for edit, calls in zip(edits, log.calls, strict=True) if calls == 0]
    if must_fire and silent:
        raise SiteError(
            f"edits at {', '.join(silent)} never fired: no forward pass went through them"
        )


def _attach(
    place: Place,
    edit: Callable[[Tensor], Tensor],
    count: Callable[[Tensor, Tensor], None],
    leaving: ExitStack,
) -> None:
    past_mlp: list[Tensor] = []

    def change(resid: Tensor) -> Tensor:
        out = edit(resid)
        count(resid, out)
        if place.rejoins is not None:
            past_mlp[:] = [out - resid]
        return out

    leaving.callback(place.attach(change).remove)
    if place.rejoins is not None:
        rejoin = place.rejoins.attach(lambda resid: resid + past_mlp.pop(), prepend=True)
        leaving.callback(rejoin.remove)


def _remembered(model: Any, edit: Remembering, leaving: ExitStack) -> Callable[[Tensor], Tensor]:
    """The edit, given in each forward pass its memory of the tokens before."""
    watched = watched_at(model, edit.site)
    memory = Memory(watched)
    leaving.callback(memory.close)
    leaving.callback(watched.register_forward_pre_hook(memory.before, with_kwargs=True).remove)
    leaving.callback(watched.register_forward_hook(memory.after, with_kwargs=True).remove)

    def resume(resid: Tensor) -> Tensor:
        out, memory.kept = edit.resume(resid, memory.given, memory.on_padding(resid))
        return out

    return resume


def _forget_compiled() -> None:
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def _device(model: Any, site: Site) -> torch.device:
    """Where the block of a site is, as far as its first parameter tells."""
    block = blocks_of(model)[site.layer]
    return next((p.device for p in block.parameters()), torch.device("cpu"))
