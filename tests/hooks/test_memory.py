"""Edits that remember see every sequence from its start, or refuse."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from tests.hooks.tiny import direction, no_hook_left, plain, shift
from workbench.errors import SiteError
from workbench.hooks import Site, edited
from workbench.interventions import Gate, Probe

FOREIGN = "key-value cache that this block did not fill"


@pytest.fixture
def llama() -> Iterator[Any]:
    model = plain()
    with no_hook_left(model), torch.no_grad():
        yield model


@pytest.fixture(scope="module")
def prompts() -> Tensor:
    return torch.randint(5, 50, (3, 8), generator=torch.Generator().manual_seed(0))


def latched() -> Gate:
    return Gate(shift(3 * direction(1), Site(1)), Probe(direction() / 8), 2.0)


def test_a_cache_from_before_the_block_is_refused(llama: Any, prompts: Tensor) -> None:
    cache = llama(prompts[:, :4], use_cache=True).past_key_values
    with (
        pytest.raises(SiteError, match=f"after 4 tokens of a {FOREIGN}"),
        edited(llama, [latched()]),
    ):
        llama(prompts[:, 4:], past_key_values=cache)


def test_a_cache_from_before_the_block_is_refused_by_position(prompts: Tensor) -> None:
    """The cache may be given without its name."""
    model = plain("gpt2").transformer
    cache = model(prompts[:, :4], use_cache=True).past_key_values
    with pytest.raises(SiteError, match=FOREIGN), edited(model, [latched()]):
        model(prompts[:, 4:], cache)


def test_a_cache_of_another_block_is_refused(llama: Any, prompts: Tensor) -> None:
    with edited(llama, [latched()]):
        cache = llama(prompts[:, :4], use_cache=True).past_key_values
    with pytest.raises(SiteError, match=FOREIGN), edited(llama, [latched()]):
        llama(prompts[:, 4:], past_key_values=cache)


def test_a_foreign_cache_is_refused_by_a_hooked_transformer(
    kinds: dict[str, Any], prompts: Tensor
) -> None:
    from transformer_lens import TransformerLensKeyValueCache

    model = kinds["hooked"]
    cache = TransformerLensKeyValueCache.init_cache(model.cfg, "cpu", 3)
    model(prompts[:, :4], past_kv_cache=cache)
    with pytest.raises(SiteError, match=FOREIGN), edited(model, [latched()]):
        model(prompts[:, 4:], past_kv_cache=cache)


def test_a_frozen_cache_of_a_hooked_transformer_is_continued_from_where_it_stands(
    kinds: dict[str, Any], prompts: Tensor
) -> None:
    from transformer_lens import TransformerLensKeyValueCache

    model = kinds["hooked"]
    with edited(model, [latched()]), torch.no_grad():
        cache = TransformerLensKeyValueCache.init_cache(model.cfg, "cpu", 3)
        model(prompts[:, :4], past_kv_cache=cache)
        cache.freeze()
        parts = [model(prompts[:, 4:], past_kv_cache=cache) for _ in range(2)]
        whole = model(prompts)[:, 4:]
    for part in parts:
        torch.testing.assert_close(part, whole)


@pytest.mark.parametrize("removed", [1, 3])
def test_a_cropped_cache_is_refused(llama: Any, prompts: Tensor, removed: int) -> None:
    with edited(llama, [latched()]):
        cache = llama(prompts[:, :4], use_cache=True).past_key_values
        cache.crop(-removed)
        with pytest.raises(SiteError, match=f"after {4 - removed} tokens of a {FOREIGN}"):
            llama(prompts[:, 4:], past_key_values=cache)


def test_a_cache_reset_to_nothing_starts_afresh(llama: Any, prompts: Tensor) -> None:
    with edited(llama, [latched()]):
        cache = llama(prompts, use_cache=True).past_key_values
        cache.crop(-prompts.shape[1])
        again = llama(prompts.flip(0), past_key_values=cache).logits
        assert torch.equal(again, llama(prompts.flip(0)).logits)


def test_a_plain_edit_goes_on_after_any_cache(llama: Any, prompts: Tensor) -> None:
    edit = shift(direction(), Site(2))
    cache = llama(prompts[:, :4], use_cache=True).past_key_values
    with edited(llama, [edit]) as log:
        after = llama(prompts[:, 4:], past_key_values=cache).logits
        whole = llama(prompts).logits[:, 4:]
    torch.testing.assert_close(after, whole)
    assert log.tokens == [prompts[:, 4:].numel() + prompts.numel()]


def test_caches_may_take_turns(llama: Any, prompts: Tensor) -> None:
    """Another sequence, with a cache or without, leaves what is remembered of the first."""
    with edited(llama, [latched()]) as log:
        whole, other = llama(prompts).logits, llama(prompts.flip(1)).logits
        assert 0 < log.changed[0] < log.tokens[0]
        first = llama(prompts[:, :4], use_cache=True)
        second = llama(prompts.flip(1)[:, :4], use_cache=True)
        llama(prompts[:1, :3], use_cache=False)
        one = llama(prompts[:, 4:], past_key_values=first.past_key_values).logits
        two = llama(prompts.flip(1)[:, 4:], past_key_values=second.past_key_values).logits
    torch.testing.assert_close(one, whole[:, 4:])
    torch.testing.assert_close(two, other[:, 4:])


def test_a_cache_is_found_in_what_a_tuple_returns(llama: Any, prompts: Tensor) -> None:
    with edited(llama, [latched()]):
        whole = llama(prompts).logits
        _, cache = llama(prompts[:, :4], use_cache=True, return_dict=False)
        after = llama(prompts[:, 4:], past_key_values=cache).logits
    torch.testing.assert_close(after, whole[:, 4:])


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_pass_that_failed_cannot_be_continued(
    llama: Any, prompts: Tensor, error: type[BaseException]
) -> None:
    def fail(*_: Any) -> None:
        raise error

    cache = DynamicCache(config=llama.config)
    with edited(llama, [latched()]):
        llama(prompts[:, :4], past_key_values=cache)
        handle = llama.model.layers[2].register_forward_hook(fail)
        with pytest.raises(error):
            llama(prompts[:, 4:6], past_key_values=cache)
        handle.remove()
        with pytest.raises(SiteError, match=f"after 6 tokens of a {FOREIGN}"):
            llama(prompts[:, 6:], past_key_values=cache)


def test_a_static_cache_is_followed(llama: Any, prompts: Tensor) -> None:
    cache = StaticCache(config=llama.config, max_cache_len=16)
    with edited(llama, [latched()]):
        whole = llama(prompts).logits
        parts = [llama(part, past_key_values=cache).logits for part in prompts.split([3, 1, 4], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole)


def test_a_copied_cache_is_refused_and_reorders_itself_alone(llama: Any, prompts: Tensor) -> None:
    with edited(llama, [latched()]):
        cache = llama(prompts[:, :4], use_cache=True).past_key_values
        copied = copy.deepcopy(cache)
        with pytest.raises(SiteError, match=FOREIGN):
            llama(prompts[:, 4:], past_key_values=copied)
    before = cache.layers[0].keys.clone()
    copied.reorder_cache(torch.tensor([2, 0, 1]))
    assert torch.equal(copied.layers[0].keys, before[[2, 0, 1]])
    assert torch.equal(cache.layers[0].keys, before)


def test_two_blocks_and_two_edits_follow_one_cache(llama: Any, prompts: Tensor) -> None:
    """And a block that is left takes only its own following away."""
    beams = torch.tensor([2, 2, 0])
    outer, inner = edited(llama, [latched(), latched()]), edited(llama, [latched()])
    outer.__enter__()
    inner.__enter__()
    cache = llama(prompts[:, :4], use_cache=True).past_key_values
    inner.__exit__(None, None, None)
    assert "reorder_cache" in vars(cache)
    cache.reorder_cache(beams)
    outer.__exit__(None, None, None)
    assert "reorder_cache" not in vars(cache)


def test_reordered_sequences_go_on_as_themselves(llama: Any, prompts: Tensor) -> None:
    beams = torch.tensor([2, 2, 0])
    with edited(llama, [latched()]):
        whole = llama(prompts[beams]).logits
        cache = llama(prompts[:, :4], use_cache=True).past_key_values
        cache.reorder_cache(beams)
        after = llama(prompts[beams][:, 4:], past_key_values=cache).logits
    torch.testing.assert_close(after, whole[:, 4:])


def test_nothing_keeps_a_cache_alive(llama: Any, prompts: Tensor) -> None:
    import weakref

    with edited(llama, [latched()]):
        alive = weakref.ref(llama(prompts, use_cache=True).past_key_values)
        assert alive() is None
