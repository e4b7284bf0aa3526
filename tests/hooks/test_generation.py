"""Generation with a key-value cache gives what recomputing the whole sequence gives."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.hooks.tiny import At, direction, logits_of, plain, shift
from workbench.hooks import Intervention, Remembering, Site, edited
from workbench.interventions import Gate, Probe

NEW = 8
THRESHOLDS = {"token": 0.5, "latched": 2.0, "share": 0.1}
SITE = Site(1)


def gate(over: Any, site: Site = SITE) -> Gate:
    """Opens at some tokens and not at others."""
    return Gate(shift(3 * direction(1), site), Probe(direction() / 8), THRESHOLDS[over], over)


EDITS: dict[str, Callable[[], list[Intervention]]] = {
    "shift": lambda: [shift(direction(1), SITE)],
    "token": lambda: [gate("token")],
    "latched": lambda: [gate("latched")],
    "share": lambda: [gate("share")],
    "middle": lambda: [gate("latched", Site(1, "resid_mid"))],
    "many": lambda: [gate("share", Site(0)), gate("latched", Site(2, "resid_pre")), gate("token")],
}
edits_of_each_kind = pytest.mark.parametrize("name", EDITS)


@pytest.fixture(scope="module")
def prompts() -> Tensor:
    return torch.randint(5, 50, (3, 6), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def padded(prompts: Tensor) -> tuple[Tensor, Tensor]:
    mask = torch.ones_like(prompts)
    mask[1, :2] = 0
    mask[2, :1] = 0
    return prompts * mask, mask


def greedy(model: Any, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Every step recomputes the whole sequence."""
    for _ in range(NEW):
        given = {} if mask is None else {"attention_mask": mask}
        new = logits_of(model, tokens, **given)[:, -1].argmax(-1, keepdim=True)
        tokens = torch.cat([tokens, new], 1)
        mask = None if mask is None else torch.cat([mask, torch.ones_like(new)], 1)
    return tokens


def generated(model: Any, tokens: Tensor, mask: Tensor | None = None, **given: Any) -> Tensor:
    """By the model's own `generate`."""
    if not hasattr(model, "cfg"):
        mask = torch.ones_like(tokens) if mask is None else mask
        own = {"attention_mask": mask, "eos_token_id": None, "pad_token_id": 0}
        return model.generate(tokens, max_new_tokens=NEW, do_sample=False, **own, **given)
    own = {"do_sample": False, "stop_at_eos": False, "verbose": False}
    if mask is not None:
        own["attention_mask"] = mask
    return model.generate(tokens, max_new_tokens=NEW, return_type="tokens", **own, **given)


@torch.no_grad()
@edits_of_each_kind
def test_the_cache_changes_nothing(model: Any, prompts: Tensor, name: str) -> None:
    with edited(model, EDITS[name]()) as log:
        cached = generated(model, prompts)
        assert log.calls[0] == NEW, "each pass saw the new tokens alone"
        assert log.tokens[0] == prompts.numel() + prompts.shape[0] * (NEW - 1)
        assert log.changed[0] > 0
        assert (log.changed[0] == log.tokens[0]) == (name == "shift")
        assert torch.equal(generated(model, prompts), cached), "a second one starts afresh"
        assert torch.equal(greedy(model, prompts), cached)
    assert not torch.equal(generated(model, prompts), cached)


@torch.no_grad()
@edits_of_each_kind
def test_the_cache_changes_nothing_with_padding(
    kinds: dict[str, Any], padded: tuple[Tensor, Tensor], name: str
) -> None:
    """And a padded prompt goes on as it does alone."""
    tokens, mask = padded
    for model in (kinds["plain"], kinds["bridge"]):
        with edited(model, EDITS[name]()):
            cached = generated(model, tokens, mask)
            assert torch.equal(greedy_padded(model, tokens, mask), cached)
            alone = generated(model, tokens[1:2, 2:])
        assert torch.equal(cached[1:2, 2:], alone)


def greedy_padded(model: Any, tokens: Tensor, mask: Tensor) -> Tensor:
    """As `greedy`, with positions counted from the first token that is no padding."""
    for _ in range(NEW):
        position = (mask.cumsum(-1) - 1).clamp_min(0)
        logits = logits_of(model, tokens, attention_mask=mask, position_ids=position)
        new = logits[:, -1].argmax(-1, keepdim=True)
        tokens, mask = torch.cat([tokens, new], 1), torch.cat([mask, torch.ones_like(new)], 1)
    return tokens


@torch.no_grad()
@edits_of_each_kind
def test_a_hooked_transformer_pads_as_its_tokenizer_says(
    kinds: dict[str, Any], padded: tuple[Tensor, Tensor], name: str
) -> None:
    """It takes no mask in `generate`, and gives its blocks alone the one it makes."""
    model, (tokens, mask) = kinds["hooked"], padded
    tokens = torch.where(mask.bool(), tokens, model.tokenizer.pad_token_id)
    with edited(model, EDITS[name]()):
        cached = generated(model, tokens, prepend_bos=False)
        assert torch.equal(greedy(model, tokens), cached)
        alone = generated(model, tokens[1:2, 2:], prepend_bos=False)
    assert torch.equal(cached[1:2, 2:], alone)


@torch.no_grad()
@edits_of_each_kind
def test_beams_take_their_memories_with_them(
    kinds: dict[str, Any], padded: tuple[Tensor, Tensor], name: str
) -> None:
    model, (tokens, mask) = kinds["plain"], padded
    options = {"num_beams": 3, "num_return_sequences": 3, "return_dict_in_generate": True}
    options |= {"output_scores": True}
    with edited(model, EDITS[name]()):
        cached = generated(model, tokens, mask, **options)
        whole = generated(model, tokens, mask, use_cache=False, **options)
    assert torch.equal(cached.sequences, whole.sequences)
    torch.testing.assert_close(cached.sequences_scores, whole.sequences_scores)
    assert "reorder_cache" not in vars(cached.past_key_values)


@torch.no_grad()
def test_beams_without_their_memories_would_go_wrong(
    kinds: dict[str, Any], padded: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above can fail."""
    from workbench.hooks.memory import Memory

    monkeypatch.setattr(Memory, "reorder", lambda *_: None)
    model, (tokens, mask) = kinds["plain"], padded
    options = {"num_beams": 3, "num_return_sequences": 3}
    different = []
    for name in ("latched", "share"):
        with edited(model, EDITS[name]()):
            cached = generated(model, tokens, mask, **options)
            different.append(
                not torch.equal(cached, generated(model, tokens, mask, use_cache=False, **options))
            )
    assert any(different)


@torch.no_grad()
@edits_of_each_kind
def test_a_static_cache_works_or_is_refused(
    kinds: dict[str, Any], padded: tuple[Tensor, Tensor], name: str
) -> None:
    from workbench.errors import SiteError

    model, (tokens, mask) = kinds["plain"], padded
    edits = EDITS[name]()
    with edited(model, edits, must_fire=False):
        if isinstance(edits[0], Remembering):
            with pytest.raises(SiteError, match=r"attention mask of \(3, 1, 6, .*static cache"):
                generated(model, tokens, mask, cache_implementation="static")
        else:
            static = generated(model, tokens, mask, cache_implementation="static")
            assert torch.equal(static, generated(model, tokens, mask))


@edits_of_each_kind
def test_logits_and_gradients_of_a_continued_pass_are_those_of_a_whole_one(
    kinds: dict[str, Any], prompts: Tensor, name: str
) -> None:
    model = kinds["plain"]
    weight = model.model.layers[0].mlp.up_proj.weight
    with edited(model, EDITS[name]()):
        whole = model(prompts).logits
        first = model(prompts[:, :2], use_cache=True)
        second = model(prompts[:, 2:5], past_key_values=first.past_key_values)
        third = model(prompts[:, 5:], past_key_values=second.past_key_values)
    parts = torch.cat([first.logits, second.logits, third.logits], 1)
    torch.testing.assert_close(parts, whole)
    of_parts, of_whole = (
        torch.autograd.grad(logits.square().sum(), weight)[0] for logits in (parts, whole)
    )
    torch.testing.assert_close(of_parts, of_whole, atol=1e-3, rtol=1e-3)


@edits_of_each_kind
def test_gradient_checkpointing_recomputes_the_same(prompts: Tensor, name: str) -> None:
    grads = []
    for recomputed in (False, True):
        model = plain().train()
        if recomputed:
            model.activation_checkpointing_enable()
        with edited(model, EDITS[name]()) as log:
            loss = model(prompts, use_cache=False).logits.square().sum()
            grads += torch.autograd.grad(loss, model.model.layers[0].mlp.up_proj.weight)
        if name == "middle":  # at a block's end, nothing has to be computed again
            assert log.calls == [1 + recomputed]
    torch.testing.assert_close(*grads)


def test_an_edit_may_be_any_function_that_remembers(prompts: Tensor, model: Any) -> None:
    class Counting(At):
        """Adds how many tokens there have been."""

        def resume(self, resid: Tensor, memory: Any, real: Any = None) -> tuple[Tensor, Any]:
            before = 0 if memory is None else memory
            count = before + torch.arange(1, resid.shape[1] + 1)
            return resid + 0.1 * count[None, :, None], before + resid.shape[1]

    with edited(model, [Counting(SITE, lambda resid: resid)]), torch.no_grad():
        assert torch.equal(generated(model, prompts), greedy(model, prompts))
