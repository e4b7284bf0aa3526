"""Reading chosen features: what the whole encoding gives, without making it."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from workbench.interventions import Clamp, Rescale, Sequence
from workbench.sae.read import Reading

ROWS_ALONE = ("standard", "jumprelu", "gated")
KINDS = ("topk", *ROWS_ALONE, "abstopk")
FEATURES = torch.tensor([3, 17, 40, 12])
D_SAE = 64


@pytest.fixture(params=[*KINDS, "topk rescaled", "topk with tied bias", "standard with tied bias"])
def sae(request: pytest.FixtureRequest, make_sae: Callable) -> Any:
    """Also an architecture that the reading does not know, and settings that change the input."""
    kind, _, setting = request.param.partition(" ")
    sae = make_sae(kind)
    if setting == "rescaled":
        sae.cfg.rescale_acts_by_decoder_norm = True
        sae.W_dec.mul_(torch.linspace(0.5, 2.0, D_SAE)[:, None])
    if setting == "with tied bias":
        sae.cfg.apply_b_dec_to_input = not sae.cfg.apply_b_dec_to_input
    return sae


@pytest.fixture
def resid() -> Tensor:
    return 2 * torch.randn(3, 6, 32, generator=torch.Generator().manual_seed(2))


def values_and_gradients(function: Callable, resid: Tensor) -> tuple[Tensor, Tensor]:
    resid = resid.clone().requires_grad_()
    out = function(resid)
    weights = torch.linspace(-1, 1, out.numel()).view_as(out).to(out)
    return out.detach(), torch.autograd.grad((out * weights).sum(), resid)[0]


def assert_same(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> None:
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
        assert b.abs().max() > 0


def test_chosen_features_are_those_of_the_whole_encoding(sae: Any, resid: Tensor) -> None:
    found = values_and_gradients(lambda x: Reading(sae, x).of(FEATURES), resid)
    wanted = values_and_gradients(lambda x: sae.encode(x)[..., FEATURES], resid)
    assert_same(found, wanted)
    assert torch.equal(found[0] > 0, wanted[0] > 0)


def test_weighted_sum_is_that_of_the_whole_encoding(sae: Any, resid: Tensor) -> None:
    weights = torch.randn(D_SAE, generator=torch.Generator().manual_seed(3))
    assert_same(
        values_and_gradients(lambda x: Reading(sae, x).dot(weights), resid),
        values_and_gradients(lambda x: sae.encode(x) @ weights, resid),
    )


def test_whole_encoding_is_the_whole_encoding(sae: Any, resid: Tensor) -> None:
    assert_same(
        values_and_gradients(lambda x: Reading(sae, x).full, resid),
        values_and_gradients(sae.encode, resid),
    )


@pytest.mark.parametrize("shape", [(), (5,), (2, 1, 3)], ids=str)
def test_stream_may_have_any_axes_before_the_last(sae: Any, shape: tuple[int, ...]) -> None:
    resid = torch.randn(*shape, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        Reading(sae, resid).of(FEATURES), sae.encode(resid)[..., FEATURES], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("asked", [True, False], ids=["read before", "unread"])
def test_changed_reading_is_the_reading_of_the_changed_stream(
    sae: Any, resid: Tensor, asked: bool
) -> None:
    change = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(4))
    weights = torch.ones(D_SAE)

    def changed(x: Tensor) -> Reading:
        reading = Reading(sae, x)
        if asked:
            reading.of(FEATURES)
        return reading.plus(FEATURES, change).plus(FEATURES[:2], change[..., :2])

    def stream(x: Tensor) -> Tensor:
        return x + change @ sae.W_dec[FEATURES] + change[..., :2] @ sae.W_dec[FEATURES[:2]]

    for ask in (
        lambda reading: reading.resid,
        lambda reading: reading.of(FEATURES),
        lambda reading: reading.dot(weights),
        lambda reading: reading.full,
    ):
        assert_same(
            values_and_gradients(lambda x, ask=ask: ask(changed(x)), resid),
            values_and_gradients(lambda x, ask=ask: ask(Reading(sae, stream(x))), resid),
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_stream_keeps_its_type_and_is_read_in_the_wider_one(
    make_sae: Callable, resid: Tensor, dtype: torch.dtype
) -> None:
    for kind in KINDS:
        sae, short = make_sae(kind), resid.to(dtype)
        reading = Reading(sae, short)
        acts = reading.of(FEATURES)
        assert acts.dtype == torch.float32
        wanted = sae.encode(short.float())[..., FEATURES]
        torch.testing.assert_close(acts, wanted, atol=1e-4, rtol=1e-4)
        assert reading.plus(FEATURES, acts).resid.dtype == dtype


def test_sae_in_a_short_type_is_read_in_float32(make_sae: Callable, resid: Tensor) -> None:
    for kind in ("topk", *ROWS_ALONE):
        sae = copy.deepcopy(make_sae(kind)).to(torch.bfloat16)
        acts = Reading(sae, resid.bfloat16()).of(FEATURES)
        assert acts.dtype == torch.float32
        wanted = sae.encode(resid.bfloat16())[..., FEATURES].float()
        torch.testing.assert_close(acts, wanted, atol=0.1, rtol=0.05)


def test_reading_by_its_own_sae_is_the_reading(make_sae: Callable, resid: Tensor) -> None:
    one, two = make_sae(), make_sae(seed=1)
    reading = Reading(one, resid)
    assert reading.by(one) is reading
    assert (reading.by(two).sae, reading.by(two).resid) == (two, resid)


# What is not computed


def three_edits(sae: Any) -> Sequence:
    return Sequence(
        (
            Rescale(sae, FEATURES[:2], -0.5),
            Clamp(sae, FEATURES[2:], 0.5, "everywhere"),
            Clamp(sae, FEATURES[:1], -1.0),
        )
    )


def test_topk_encoder_is_multiplied_once_for_several_edits(
    make_sae: Callable, resid: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae, calls, addmm = make_sae("topk"), [], torch.addmm
    edits = three_edits(sae)
    one_by_one = resid
    for edit in edits.edits:
        one_by_one = edit(one_by_one)
    monkeypatch.setattr(torch, "addmm", lambda *a, **k: calls.append(a) or addmm(*a, **k))
    torch.testing.assert_close(edits(resid), one_by_one, atol=1e-5, rtol=1e-5)
    assert len(calls) == 1
    for edit in edits.edits:
        edit(resid)
    assert len(calls) == 4


class Widths(TorchDispatchMode):
    """The last axis of everything that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[tuple[int, ...]] = []
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.ndim:
            self.seen.add(out.shape[-1])
            if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
                self.products.append(tuple(out.shape))
        return out


@pytest.mark.parametrize("kind", ROWS_ALONE)
def test_nothing_as_wide_as_the_sae_is_made_where_rows_are_enough(
    make_sae: Callable, resid: Tensor, kind: str
) -> None:
    edits = three_edits(make_sae(kind))
    with Widths() as widths:
        edits(resid)
    assert D_SAE not in widths.seen and 32 in widths.seen
    with Widths() as widths:
        edits.edits[0].sae.encode(resid)
    assert D_SAE in widths.seen


def test_what_is_not_asked_for_again_is_not_moved_along(make_sae: Callable, resid: Tensor) -> None:
    """Of a single TopK edit, one product is as wide as the SAE, and none of a row's own."""
    edit = Rescale(make_sae("topk"), FEATURES)
    with Widths() as widths:
        edit(resid)
    assert [shape for shape in widths.products if shape[-1] == D_SAE] == [(18, D_SAE)]
