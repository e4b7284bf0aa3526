"""The same sites on every kind of model, against what the models themselves report."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.hooks.tiny import (
    ARCHITECTURES,
    N_LAYERS,
    WITH_MID,
    At,
    direction,
    hooked,
    no_hook_left,
    plain,
    shift,
)
from workbench.errors import SiteError
from workbench.hooks import Site, captured, edited, hook_point, residuals
from workbench.models.load import load_model

ENDS = [Site(layer, point) for layer in range(N_LAYERS) for point in ("resid_pre", "resid_post")]
MIDS = [Site(layer, "resid_mid") for layer in range(N_LAYERS)]


def sites_of(name: str) -> list[Site]:
    return [*ENDS, *MIDS] if name in WITH_MID else ENDS


def part(block: nn.Module, *names: str) -> Any:
    return next((getattr(block, name) for name in names if hasattr(block, name)), None)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_ends_of_blocks_are_the_hidden_states_of_the_model(name: str, tokens: Tensor) -> None:
    model = plain(name)
    tokens = tokens % 50
    with captured(model, ENDS) as found:
        hidden = model(tokens, output_hidden_states=True).hidden_states
    last = found[Site(N_LAYERS - 1)]
    for layer in range(N_LAYERS):
        assert torch.equal(found[Site(layer, "resid_pre")], hidden[layer])
        if layer < N_LAYERS - 1:
            assert torch.equal(found[Site(layer)], hidden[layer + 1])
    norm = part(model.base_model, "norm", "ln_f", "final_layer_norm")
    assert torch.equal(norm(last), hidden[-1])


@pytest.mark.parametrize("name", WITH_MID)
def test_the_middle_is_the_start_and_what_attention_adds(name: str, tokens: Tensor) -> None:
    model, tokens, added = plain(name), tokens % 50, {}
    blocks = part(model.base_model, "layers", "h")
    for layer, block in enumerate(blocks):
        last = part(block, "self_attn", "attn", "attention")
        if name == "gemma2":
            last = block.post_attention_layernorm

        def keep(_module: Any, _args: Any, output: Any, layer: int = layer) -> None:
            added[layer] = output[0] if isinstance(output, tuple) else output

        last.register_forward_hook(keep)
    found = residuals(model, tokens, [*ENDS, *MIDS])
    for layer in range(N_LAYERS):
        mid = found[Site(layer, "resid_pre")] + added[layer]
        torch.testing.assert_close(found[Site(layer, "resid_mid")], mid)
        assert not torch.allclose(mid, found[Site(layer)], atol=1e-2)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_plain_model_and_its_bridge_agree(name: str, tokens: Tensor, tokenizer: Any) -> None:
    """In what is read, and in what every edit does."""
    vocab = len(tokenizer)
    model, bridge = plain(name, vocab), load_model(plain(name, vocab), tokenizer=tokenizer)
    sites = sites_of(name)
    by_plain, by_bridge = (residuals(m, tokens, sites) for m in (model, bridge))
    for site in sites:
        torch.testing.assert_close(by_plain[site], by_bridge[site], msg=site.name)
    bare = model(tokens).logits
    for site in sites:
        edits = [shift(direction(), site), At(site, lambda resid: 1.5 * resid)]
        with edited(model, edits), no_hook_left(model):
            changed = model(tokens).logits
        with edited(bridge, edits):
            torch.testing.assert_close(changed, bridge(tokens), atol=1e-4, rtol=1e-4, msg=site.name)
        assert not torch.allclose(changed, bare, atol=1e-2)
    if name not in WITH_MID:
        with pytest.raises(SiteError, match="no resid_mid, since"):
            hook_point(bridge, Site(1, "resid_mid"))


@pytest.mark.parametrize("name", WITH_MID)
def test_an_edit_in_the_middle_reaches_the_end_both_ways(name: str, tokens: Tensor) -> None:
    """What is added to the middle is at the block's end, with what the MLP makes of it."""
    model, tokens, mid, post = plain(name), tokens % 50, Site(1, "resid_mid"), Site(1)
    before = residuals(model, tokens, [mid, post])
    with edited(model, [shift(direction(), mid)]), captured(model, [mid, post]) as after:
        model(tokens)
    torch.testing.assert_close(after[mid], before[mid] + direction())
    block = part(model.base_model, "layers", "h")[1]
    norm = part(block, "pre_feedforward_layernorm", "ln_2", "post_attention_layernorm")
    made = block.mlp(norm(after[mid]))
    if name == "gemma2":
        made = block.post_feedforward_layernorm(made)
    torch.testing.assert_close(after[post], after[mid] + made)


def test_a_hooked_transformer_is_read_and_changed_as_it_caches(tokens: Tensor) -> None:
    model, tokens = hooked(), tokens % 50
    _, cache = model.run_with_cache(tokens)
    for site in [*ENDS, *MIDS]:
        assert torch.equal(residuals(model, tokens, [site])[site], cache[site.name])
        with edited(model, [shift(direction(), site)]):
            changed = model(tokens)
        by_hook = model.run_with_hooks(
            tokens, fwd_hooks=[(site.name, lambda resid, hook: resid + direction())]
        )
        assert torch.equal(changed, by_hook)


def test_a_hooked_transformer_and_a_plain_model_of_the_same_weights_agree(tokens: Tensor) -> None:
    model, tokens = plain("gpt2"), tokens % 50
    lens = hooked(n_heads=2, d_mlp=128, act_fn="gelu_new", n_ctx=1024)
    lens.load_state_dict(as_lens_weights(model), strict=False)
    for site in [*ENDS, *MIDS]:
        one, other = (residuals(m, tokens, [site])[site] for m in (model, lens))
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
        with edited(model, [shift(direction(), site)]), edited(lens, [shift(direction(), site)]):
            torch.testing.assert_close(model(tokens).logits, lens(tokens), atol=1e-3, rtol=1e-3)


def as_lens_weights(model: Any) -> dict[str, Tensor]:
    """GPT-2's weights in TransformerLens' layout."""
    trunk = model.transformer
    weights = {"embed.W_E": trunk.wte.weight, "pos_embed.W_pos": trunk.wpe.weight}
    weights |= {"unembed.W_U": model.lm_head.weight.T, "unembed.b_U": torch.zeros(50)}
    weights |= {"ln_final.w": trunk.ln_f.weight, "ln_final.b": trunk.ln_f.bias}
    for i, block in enumerate(trunk.h):
        own = {"ln1.w": block.ln_1.weight, "ln1.b": block.ln_1.bias}
        own |= {"ln2.w": block.ln_2.weight, "ln2.b": block.ln_2.bias}
        per_head = block.attn.c_attn.weight.view(32, 3, 2, 16).permute(1, 2, 0, 3)
        for letter, w, b in zip(
            "QKV", per_head, block.attn.c_attn.bias.view(3, 2, 16), strict=True
        ):
            own |= {f"attn.W_{letter}": w, f"attn.b_{letter}": b}
        own |= {"attn.W_O": block.attn.c_proj.weight.view(2, 16, 32)}
        own |= {"attn.b_O": block.attn.c_proj.bias}
        own |= {"mlp.W_in": block.mlp.c_fc.weight, "mlp.b_in": block.mlp.c_fc.bias}
        own |= {"mlp.W_out": block.mlp.c_proj.weight, "mlp.b_out": block.mlp.c_proj.bias}
        weights |= {f"blocks.{i}.{name}": value for name, value in own.items()}
    return weights


class Tupled(nn.Module):
    """A block as older versions of transformers have them."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.post_attention_layernorm = block.post_attention_layernorm

    def forward(self, hidden_states: Tensor, **given: Any) -> tuple[Tensor, str]:
        return self.block(hidden_states, **given), "more"


class Old(nn.Module):
    """A Llama whose blocks return tuples."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.config, self.trunk, self.head = model.config, model.model, model.lm_head
        self.trunk.layers = nn.ModuleList([Tupled(block) for block in model.model.layers])

    def forward(self, tokens: Tensor) -> Tensor:
        resid = self.trunk.embed_tokens(tokens)
        rotary = self.trunk.rotary_emb(resid, torch.arange(tokens.shape[1])[None])
        for block in self.trunk.layers:
            resid, more = block(
                hidden_states=resid, position_embeddings=rotary, attention_mask=None
            )
            assert more == "more"
        return self.head(self.trunk.norm(resid))


@pytest.mark.parametrize("site", [*ENDS, *MIDS], ids=lambda site: site.name)
def test_blocks_that_return_tuples_and_take_the_stream_by_name(tokens: Tensor, site: Site) -> None:
    model, old, tokens = plain(), Old(plain()), tokens % 50
    one, same = (residuals(m, tokens, [site])[site] for m in (model, old))
    torch.testing.assert_close(one, same)
    edit = shift(direction(), site)
    with edited(model, [edit]), edited(old, [edit]):
        torch.testing.assert_close(model(tokens).logits, old(tokens))


class Wrapped(nn.Module):
    """Keeps a model as adapters do."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.base_model = model

    def forward(self, *args: Any, **given: Any) -> Any:
        return self.base_model(*args, **given)


@pytest.mark.parametrize("wrap", [Wrapped, lambda model: torch.compile(model, backend="eager")])
def test_blocks_are_found_in_a_wrapped_model(tokens: Tensor, wrap: Any) -> None:
    model, tokens = plain(), tokens % 50
    wrapped = wrap(model)
    for site in (Site(1), Site(1, "resid_mid")):
        assert hook_point(wrapped, site) == hook_point(model, site)
        with edited(wrapped, [shift(direction(), site)]):
            changed = model(tokens).logits
        with edited(model, [shift(direction(), site)]):
            assert torch.equal(changed, model(tokens).logits)


def test_blocks_are_found_in_a_model_with_adapters(tokens: Tensor) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model, tokens = peft.get_peft_model(plain(), config).eval(), tokens % 50
    blocks = model.base_model.model.model.layers
    assert hook_point(model, Site(1)).module is blocks[1]
    hidden = model(tokens, output_hidden_states=True).hidden_states
    assert torch.equal(residuals(model, tokens, [Site(0)])[Site(0)], hidden[1])


def test_blocks_for_text_are_told_from_those_for_images() -> None:
    """With as many of each, and those for images first."""
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    vision = CLIPVisionConfig(num_hidden_layers=N_LAYERS, image_size=8, patch_size=4, **shape)
    config = LlavaConfig(vision_config=vision, text_config=plain().config, image_token_index=3)
    model = LlavaForConditionalGeneration(config)
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == N_LAYERS]
    assert len(lists) == 2
    assert hook_point(model, Site(1)).module is model.model.language_model.layers[1]


def test_a_module_whose_blocks_are_called_blocks_is_not_taken_for_another() -> None:
    model = plain()
    model.blocks = model.model.layers
    assert hook_point(model, Site(1)).module is model.model.layers[1]
    with pytest.raises(SiteError, match="layers 0 to 2"):
        hook_point(model, Site(3))
