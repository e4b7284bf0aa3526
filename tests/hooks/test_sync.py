"""Edits and their counting never wait for the device."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.hooks.tiny import At, direction, plain, shift
from workbench.hooks import Intervention, Site, edited
from workbench.interventions import Gate, Probe

WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique", "equal")


class Waited(Exception):
    pass


class NoWaiting(TorchDispatchMode):
    """Refuses operations whose result the host must read, as a boolean index is one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        if masks or any(name == word or name.startswith(f"{word}_") for word in WAITING):
            raise Waited(name)
        return func(*args, **(kwargs or {}))


def edits() -> list[Intervention]:
    gates = [
        Gate(shift(direction(), Site(1)), Probe(direction()), 0.0, over)
        for over in ("token", "latched", "share")
    ]
    return [shift(direction(), Site(0)), shift(direction(), Site(1, "resid_mid")), *gates]


@pytest.mark.parametrize(
    "wait",
    [
        lambda resid: resid * resid.sum().item(),
        lambda resid: resid if (resid > 0).any() else -resid,
        lambda resid: resid[resid > 0].sum() + resid,
        lambda resid: (resid > 0).nonzero().sum() + resid,
    ],
)
def test_the_check_sees_waiting(wait: Any) -> None:
    model, tokens = plain(), torch.arange(12).reshape(2, 6)
    with pytest.raises(Waited), edited(model, [At(Site(0), wait)]), NoWaiting():
        model(tokens)


def test_nothing_waits_in_a_forward_pass() -> None:
    model, tokens = plain(), torch.arange(12).reshape(2, 6)
    with NoWaiting():
        model(tokens)
    with edited(model, edits()) as log, NoWaiting():
        model(tokens)
        first = model(tokens[:, :3], use_cache=True)
        model(tokens[:, 3:], past_key_values=first.past_key_values)
        model(tokens).logits.sum().backward()
    assert log.calls == [4] * 5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_nothing_waits_on_cuda() -> None:
    model = plain().cuda()
    tokens: Tensor = torch.arange(12, device="cuda").reshape(2, 6)
    on_cuda = [
        shift(direction().cuda(), Site(0)),
        Gate(shift(direction().cuda(), Site(1)), Probe(direction().cuda()), 0.0),
    ]
    model(tokens)
    with edited(model, on_cuda) as log:
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(tokens)
            first = model(tokens[:, :3], use_cache=True)
            model(tokens[:, 3:], past_key_values=first.past_key_values)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert log.calls == [3, 3]
