"""Compiled models: an edit applies to them, and to nothing after its block.

Run by `test_compiled.py` without the check of shapes, which no compiler can trace.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.hooks.tiny import At, direction, no_hook_left, plain, shift
from workbench.errors import SiteError
from workbench.hooks import Intervention, Site, captured, edited, residuals
from workbench.interventions import Gate, Probe

EDITS: dict[str, Intervention] = {
    "shift": shift(direction(), Site(1)),
    "middle": shift(direction(), Site(1, "resid_mid")),
    "gate": Gate(shift(3 * direction(1), Site(1)), Probe(direction() / 8), 2.0),
}


@pytest.fixture
def llama() -> Iterator[Any]:
    torch.compiler.reset()
    model = plain()
    with no_hook_left(model), torch.no_grad():
        yield model
    torch.compiler.reset()


@pytest.fixture(scope="module")
def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 7), (3, 9)]
    return [torch.randint(5, 50, shape, generator=generator) for shape in shapes]


def ways(model: Any) -> dict[str, Any]:
    model_compiled = torch.compile(model, backend="eager")
    return {
        "module": lambda tokens: model_compiled(tokens).logits,
        "function": torch.compile(lambda tokens: model(tokens).logits, backend="eager"),
    }


@pytest.mark.parametrize(
    ("name", "way", "early"),
    [("shift", "module", False), ("middle", "function", True), ("gate", "module", True)],
)
def test_the_edit_applies_inside_and_nowhere_else(
    llama: Any, batches: list[Tensor], name: str, way: str, early: bool
) -> None:
    bare = [llama(tokens).logits for tokens in batches]
    with edited(llama, [EDITS[name]]):
        wanted = [llama(tokens).logits for tokens in batches]
    compiled = ways(llama)[way]
    if early:
        torch.testing.assert_close(compiled(batches[0]), bare[0])
    with edited(llama, [EDITS[name]]) as log:
        for tokens, logits in zip(batches, wanted, strict=True):
            torch.testing.assert_close(compiled(tokens), logits)
    assert log.calls == [len(batches)]
    assert log.tokens == [sum(tokens.numel() for tokens in batches)]
    torch.testing.assert_close(compiled(batches[0]), bare[0])


def test_a_model_compiled_in_place(llama: Any, batches: list[Tensor]) -> None:
    with edited(llama, [EDITS["shift"]]):
        wanted = llama(batches[0]).logits
    llama.compile(backend="eager")
    bare = llama(batches[0]).logits
    with edited(llama, [EDITS["shift"]]):
        torch.testing.assert_close(llama(batches[0]).logits, wanted)
    torch.testing.assert_close(llama(batches[0]).logits, bare)


def test_compiled_passes_continue_a_cache(llama: Any, batches: list[Tensor]) -> None:
    compiled, tokens = torch.compile(llama, backend="eager"), batches[1]
    with edited(llama, [EDITS["gate"]]) as log:
        whole = llama(tokens).logits
        assert 0 < log.changed[0] < log.tokens[0]
        first = compiled(tokens[:, :4], use_cache=True)
        after = compiled(tokens[:, 4:], past_key_values=first.past_key_values).logits
        torch.testing.assert_close(after, whole[:, 4:])
        foreign = plain()(tokens[:, :4], use_cache=True).past_key_values
        with pytest.raises(SiteError, match="this block did not fill"):
            compiled(tokens[:, 4:], past_key_values=foreign)


def test_gradients_through_a_compiled_pass(llama: Any, batches: list[Tensor]) -> None:
    grads = []
    for model in (llama, torch.compile(llama, backend="eager")):
        vector = direction().requires_grad_()
        edit = At(Site(1, "resid_mid"), lambda resid, vector=vector: resid + vector)
        with edited(llama, [edit]), torch.enable_grad():
            grads += torch.autograd.grad(model(batches[0]).logits.square().sum(), vector)
    torch.testing.assert_close(*grads)


def test_captured_reads_compiled_passes(llama: Any, batches: list[Tensor]) -> None:
    compiled = torch.compile(llama, backend="eager")
    compiled(batches[0])
    with captured(llama, [Site(1)]) as found:
        for tokens in (batches[1], batches[0]):
            compiled(tokens)
            read = found[Site(1)]
            llama(tokens)
            torch.testing.assert_close(read, found[Site(1)])


def test_reading_up_to_a_site_is_never_silent(llama: Any, batches: list[Tensor]) -> None:
    compiled = torch.compile(llama, backend="eager")
    compiled(batches[0])
    with pytest.raises(SiteError, match="never fired"):
        residuals(compiled, batches[0], [Site(1)])
