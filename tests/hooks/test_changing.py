"""Changing the residual stream of a TransformerBridge."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from tests.hooks.tiny import EVERY_SITE, POINTS, At, shift
from workbench.hooks import Intervention, Site, captured, edited, residuals
from workbench.models.load import load_model


@pytest.mark.parametrize("site", EVERY_SITE, ids=lambda site: site.name)
def test_edit_changes_all_that_comes_later(bridge: Any, tokens: Tensor, site: Site) -> None:
    """Written out block by block on the modules of Hugging Face, with the edit between them."""
    vector = torch.randn(bridge.cfg.d_model, generator=torch.Generator().manual_seed(0))
    with edited(bridge, [shift(vector, site)]):
        logits = bridge(tokens)
    expected = by_hand(bridge.original_model, tokens, shift(vector, site))
    torch.testing.assert_close(logits, expected)
    assert not torch.allclose(logits, bridge(tokens), atol=1e-3)


def by_hand(llama: LlamaForCausalLM, tokens: Tensor, edit: Intervention) -> Tensor:
    """Logits of a Llama with an edit, from its parts."""

    def at(layer: int, point: str, resid: Tensor) -> Tensor:
        return edit(resid) if (edit.site.layer, edit.site.point) == (layer, point) else resid

    def part(bridged: Any) -> nn.Module:
        return getattr(bridged, "original_component", bridged)

    inner = llama.model
    resid = part(inner.embed_tokens)(tokens)
    position = torch.arange(tokens.shape[1])[None]
    rotary = part(inner.rotary_emb)(resid, position)
    mask = torch.full((tokens.shape[1],) * 2, -torch.inf).triu(1)[None, None]
    for i, bridged in enumerate(inner.layers):
        block = part(bridged)
        resid = at(i, "resid_pre", resid)
        normed = part(block.input_layernorm)(resid)
        attn = part(block.self_attn)(normed, position_embeddings=rotary, attention_mask=mask)
        resid = at(i, "resid_mid", resid + attn[0])
        normed = part(block.post_attention_layernorm)(resid)
        resid = at(i, "resid_post", resid + part(block.mlp)(normed))
    return part(llama.lm_head)(part(inner.norm)(resid))


@pytest.mark.parametrize("point", POINTS)
def test_edits_are_applied_in_the_order_given(bridge: Any, tokens: Tensor, point: Any) -> None:
    site = Site(1, point)
    plain = residuals(bridge, tokens, [site])[site]
    twice, plus = At(site, lambda resid: 2 * resid), shift(1.0, site)
    with edited(bridge, [twice, plus]), captured(bridge, [site]) as found:
        bridge(tokens)
        torch.testing.assert_close(found[site], 2 * plain + 1)
    with edited(bridge, [plus, twice]), captured(bridge, [site]) as found:
        bridge(tokens)
        torch.testing.assert_close(found[site], 2 * plain + 2)


@pytest.mark.parametrize("point", POINTS)
def test_several_edits_at_one_site_are_one_edit(bridge: Any, tokens: Tensor, point: Any) -> None:
    site = Site(1, point)
    first, second = At(site, lambda resid: 2 * resid), shift(1.0, site)
    with edited(bridge, [first, second]):
        logits = bridge(tokens)
    with edited(bridge, [At(site, lambda resid: 2 * resid + 1)]):
        torch.testing.assert_close(logits, bridge(tokens))


def test_edits_within_one_block_meet_whatever_their_order(bridge: Any, tokens: Tensor) -> None:
    """The stream after the block holds what was changed within it before any edit there sees it."""
    mid, post = Site(1, "resid_mid"), Site(1)
    seen = []
    early = At(mid, lambda resid: resid + 3)
    late = At(post, lambda resid: seen.append(resid) or resid.square())
    with captured(bridge, [post]) as outside, edited(bridge, [late, early]):
        bridge(tokens)
    with edited(bridge, [early]), captured(bridge, [post]) as inside:
        bridge(tokens)
    torch.testing.assert_close(seen[0], inside[post])
    torch.testing.assert_close(outside[post], inside[post])


def test_edit_sees_what_edits_at_earlier_sites_left(bridge: Any, tokens: Tensor) -> None:
    seen = []
    late = At(Site(1, "resid_pre"), lambda resid: seen.append(resid) or resid)
    with edited(bridge, [late, shift(3.0, Site(0))]):
        bridge(tokens)
    torch.testing.assert_close(seen[0], residuals(bridge, tokens, [Site(0)])[Site(0)] + 3)


def test_nested_edits_add_up_and_end_one_by_one(bridge: Any, tokens: Tensor) -> None:
    site, plain = Site(1), residuals(bridge, tokens, [Site(1)])[Site(1)]
    with edited(bridge, [shift(1.0, site)]):
        with edited(bridge, [shift(2.0, site)]):
            torch.testing.assert_close(residuals(bridge, tokens, [site])[site], plain + 3)
        torch.testing.assert_close(residuals(bridge, tokens, [site])[site], plain + 1)
    assert torch.equal(residuals(bridge, tokens, [site])[site], plain)


def test_no_edits_change_nothing(bridge: Any, tokens: Tensor) -> None:
    before = bridge(tokens)
    with edited(bridge, []) as log:
        assert torch.equal(bridge(tokens), before)
    assert log.calls == []


@pytest.mark.parametrize("point", POINTS)
def test_gradients_flow_through_an_edit(bridge: Any, tokens: Tensor, point: Any) -> None:
    vector = torch.zeros(bridge.cfg.d_model, requires_grad=True)
    with captured(bridge, [Site(0, "resid_pre")]) as found:  # noqa: SIM117
        with edited(bridge, [shift(vector, Site(1, point))]):
            loss = bridge(tokens)[:, -1, 3].sum()
    by_edit, by_input = torch.autograd.grad(loss, [vector, found[Site(0, "resid_pre")]])
    assert by_input.abs().sum() > 0
    step = 1e-2 * by_edit / by_edit.norm()

    def at(moved: Tensor) -> float:
        with edited(bridge, [shift(moved, Site(1, point))]), torch.no_grad():
            return bridge(tokens)[:, -1, 3].sum().item()

    assert at(step) - at(-step) == pytest.approx(2 * 1e-2 * by_edit.norm().item(), rel=0.02)


def test_bfloat16_model_keeps_its_type(
    make_llama: Callable[..., LlamaForCausalLM], tokenizer: Any, tokens: Tensor
) -> None:
    model = load_model(make_llama().bfloat16(), tokenizer=tokenizer)
    with edited(model, [shift(1.0, Site(1, "resid_mid"))]) as log:
        assert model(tokens).dtype == torch.bfloat16
    assert log.changed == [tokens.numel()]
    assert residuals(model, tokens, [Site(1)])[Site(1)].dtype == torch.bfloat16
