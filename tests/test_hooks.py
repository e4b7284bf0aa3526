"""Reading and changing the residual stream, and leaving no trace of having done so."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from workbench.errors import SiteError
from workbench.hooks import Intervention, Site, captured, edited, hook_point, residuals
from workbench.models.load import load_model

POINTS = ("resid_pre", "resid_mid", "resid_post")
EVERY_SITE = [Site(layer, point) for layer in range(3) for point in POINTS]


@dataclass(frozen=True)
class At:
    """A function of the residual stream, at a site."""

    site: Site
    function: Callable[[Tensor], Tensor]

    def __call__(self, resid: Tensor) -> Tensor:
        return self.function(resid)


@pytest.fixture(scope="module")
def tokens(bridge: Any, texts: list[str]) -> Tensor:
    rows = bridge.tokenizer(texts)["input_ids"]
    return torch.tensor([row for row in rows if len(row) == len(rows[0])][:4])


@pytest.fixture(autouse=True)
def no_hook_is_left(bridge: Any):
    def hooks() -> dict[str, list[int]]:
        return {
            name: [*module._forward_hooks, *module._forward_pre_hooks, *module._backward_hooks]
            for name, module in bridge.named_modules()
            if name.rpartition(".")[2].startswith("hook_")
        }

    before = hooks()
    assert len(before) > len(EVERY_SITE)
    yield
    assert hooks() == before


def shift(vector: Tensor | float, site: Site) -> At:
    return At(site, lambda resid: resid + vector)


# Site


@pytest.mark.parametrize("site", EVERY_SITE, ids=lambda site: site.name)
def test_site_is_read_back_from_its_name(site: Site) -> None:
    assert Site.parse(site.name) == site


def test_site_is_after_the_block_unless_told() -> None:
    assert Site(1).name == "blocks.1.hook_resid_post"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "blocks.1",
        "blocks.1.resid_post",
        "blocks.-1.hook_resid_post",
        "blocks.x.hook_resid_post",
        "blocks.².hook_resid_post",
        "blocks.1.hook_resid_end",
        "blocks.1.attn.hook_z",
        "layers.1.hook_resid_post",
    ],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(SiteError, match=r"wanted 'blocks\.<layer>\.hook_resid_pre'"):
        Site.parse(name)


@pytest.mark.parametrize("layer", [-1, 3, 99])
def test_unknown_layer_is_an_error_that_names_the_layers(bridge: Any, layer: int) -> None:
    with pytest.raises(SiteError, match="the model has layers 0 to 2"):
        hook_point(bridge, Site(layer))


def test_unknown_point_is_an_error(bridge: Any) -> None:
    with pytest.raises(SiteError, match="blocks have no resid_end"):
        hook_point(bridge, object_with(layer=0, point="resid_end"))


def object_with(layer: int, point: str) -> Site:
    """A site past the check of its type."""
    site = object.__new__(Site)
    object.__setattr__(site, "layer", layer)
    object.__setattr__(site, "point", point)
    return site


def test_module_without_blocks_is_an_error(make_llama: Callable[..., LlamaForCausalLM]) -> None:
    with pytest.raises(SiteError, match="LlamaForCausalLM has no `blocks`"):
        hook_point(make_llama(), Site(0))


@pytest.mark.parametrize("attach", [captured, edited])
def test_unknown_site_is_found_out_before_the_block(bridge: Any, attach: Callable) -> None:
    given = [Site(0), Site(7)] if attach is captured else [shift(1.0, Site(0)), shift(1.0, Site(7))]
    with pytest.raises(SiteError, match=r"blocks\.7"), attach(bridge, given):
        pytest.fail("the block was entered")


# Reading


@pytest.mark.parametrize("site", EVERY_SITE, ids=lambda site: site.name)
def test_captured_is_what_the_model_itself_caches(bridge: Any, tokens: Tensor, site: Site) -> None:
    _, cache = bridge.run_with_cache(tokens)
    with captured(bridge, [site]) as found:
        bridge(tokens)
    assert found.keys() == {site}
    assert torch.equal(found[site], cache[site.name])
    assert torch.equal(residuals(bridge, tokens, [site])[site], cache[site.name])


def test_several_sites_are_read_in_one_pass(bridge: Any, tokens: Tensor) -> None:
    _, cache = bridge.run_with_cache(tokens)
    for given in (EVERY_SITE, EVERY_SITE[::-1], [*EVERY_SITE, *EVERY_SITE]):
        found = residuals(bridge, tokens, given)
        assert set(found) == set(EVERY_SITE)
        assert all(torch.equal(found[site], cache[site.name]) for site in EVERY_SITE)


def test_captured_holds_the_latest_pass(bridge: Any, tokens: Tensor) -> None:
    with captured(bridge, [Site(0)]) as found:
        bridge(tokens)
        bridge(tokens[:1, :3])
    assert found[Site(0)].shape == (1, 3, bridge.cfg.d_model)


def test_stop_runs_nothing_after_the_last_site(bridge: Any, tokens: Tensor) -> None:
    calls = dict.fromkeys(EVERY_SITE, 0)

    def count(site: Site) -> Callable:
        def counted(*_: Any) -> None:
            calls[site] += 1

        return counted

    handles = [hook_point(bridge, s).register_forward_hook(count(s)) for s in EVERY_SITE]
    try:
        residuals(bridge, tokens, [Site(1, "resid_mid"), Site(0)])
    finally:
        for handle in handles:
            handle.remove()
    read = EVERY_SITE[: EVERY_SITE.index(Site(1, "resid_mid")) + 1]
    assert calls == {site: int(site in read) for site in EVERY_SITE}


def test_model_works_on_after_a_stop(bridge: Any, tokens: Tensor) -> None:
    before = bridge(tokens)
    residuals(bridge, tokens, [Site(0)])
    assert torch.equal(bridge(tokens), before)


def test_captured_is_in_the_graph(bridge: Any, tokens: Tensor) -> None:
    with captured(bridge, [Site(0), Site(2)]) as found:
        loss = bridge(tokens).square().sum()
    early, late = torch.autograd.grad(loss, [found[Site(0)], found[Site(2)]])
    assert early.abs().sum() > 0 and late.abs().sum() > 0


# Changing


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


def test_log_counts_calls_tokens_and_changed_tokens(bridge: Any, tokens: Tensor) -> None:
    def first_token(resid: Tensor) -> Tensor:
        """One coordinate of one token."""
        change = torch.zeros_like(resid)
        change[:, 0, 5] = 1.0
        return resid + change

    batch, pos = tokens.shape
    edits = [At(Site(0), first_token), At(Site(1), lambda resid: resid), shift(1.0, Site(2))]
    with edited(bridge, edits) as log:
        bridge(tokens)
        bridge(tokens[:1])
        bridge(tokens[:, :2])
    seen = batch * pos + pos + batch * 2
    assert log.calls == [3, 3, 3]
    assert log.tokens == [seen] * 3
    assert log.changed == [batch + 1 + batch, 0, seen]


def test_edit_that_never_fires_is_an_error(bridge: Any) -> None:
    with (
        pytest.raises(SiteError, match=r"edits at blocks\.2\.hook_resid_pre never fired"),
        edited(bridge, [shift(1.0, Site(2, "resid_pre"))]),
    ):
        pass


def test_one_silent_edit_among_others_is_an_error(bridge: Any, tokens: Tensor) -> None:
    given = [shift(1.0, Site(0)), shift(1.0, Site(2))]
    with pytest.raises(SiteError, match=r"edits at blocks\.2\.hook_resid_post never"):  # noqa: SIM117
        with edited(bridge, given):
            residuals(bridge, tokens, [Site(1)])


def test_must_fire_false_allows_silence(bridge: Any) -> None:
    with edited(bridge, [shift(1.0, Site(0))], must_fire=False) as log:
        pass
    assert log.calls == [0] and log.changed == [0]


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


# Leaving (that no hook is left is checked after every test)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("inside", [True, False], ids=["in an edit", "in the block"])
def test_an_exception_passes_and_the_model_is_as_before(
    bridge: Any, tokens: Tensor, error: type[BaseException], inside: bool
) -> None:
    before = bridge(tokens)

    def fail(_: Tensor) -> Tensor:
        raise error

    edits = [shift(1.0, Site(0, "resid_mid")), At(Site(1), fail)]
    with pytest.raises(error):  # noqa: SIM117
        with captured(bridge, [Site(0)]), edited(bridge, edits[: 1 + inside]):
            bridge(tokens)
            raise error
    assert torch.equal(bridge(tokens), before)


def test_blocks_may_be_left_in_any_order(bridge: Any, tokens: Tensor) -> None:
    before = bridge(tokens)
    outer, inner = edited(bridge, [shift(1.0, Site(0))]), edited(bridge, [shift(2.0, Site(0))])
    outer.__enter__()
    inner.__enter__()
    bridge(tokens)
    outer.__exit__(None, None, None)
    bridge(tokens)
    inner.__exit__(None, None, None)
    assert torch.equal(bridge(tokens), before)


def test_hooks_of_the_user_stay(bridge: Any, tokens: Tensor) -> None:
    """Both ways of hanging them on, and both before and within the block."""
    seen = []
    point = hook_point(bridge, Site(1))
    own = point.register_forward_hook(lambda *_: seen.append("torch"))
    bridge.add_hook(Site(1).name, lambda resid, hook: seen.append("lens"))
    try:
        with edited(bridge, [shift(1.0, Site(1))]), captured(bridge, [Site(1)]):
            later = point.register_forward_hook(lambda *_: seen.append("later"))
            bridge(tokens)
        assert sorted(seen) == ["later", "lens", "torch"]
        seen.clear()
        bridge(tokens)
        assert sorted(seen) == ["later", "lens", "torch"]
    finally:
        own.remove()
        later.remove()
        bridge.reset_hooks()


def test_bfloat16_model_keeps_its_type(
    make_llama: Callable[..., LlamaForCausalLM], tokenizer: Any, tokens: Tensor
) -> None:
    model = load_model(make_llama().bfloat16(), tokenizer=tokenizer)
    with edited(model, [shift(1.0, Site(1, "resid_mid"))]) as log:
        assert model(tokens).dtype == torch.bfloat16
    assert log.changed == [tokens.numel()]
    assert residuals(model, tokens, [Site(1)])[Site(1)].dtype == torch.bfloat16
