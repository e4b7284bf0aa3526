"""Edited forward passes against the bare one and against SAELens with its error term."""

import warnings

import pytest
import torch
from sae_lens import HookedSAETransformer, JumpReLUSAE, JumpReLUSAEConfig, TopKSAE, TopKSAEConfig
from sae_lens.saes.sae import SAEMetadata
from transformer_lens import HookedTransformerConfig
from transformers import LlamaConfig, LlamaForCausalLM

from workbench.hooks import edited
from workbench.interventions import Clamp

from .timing import speed

WIDTH, FEATURES, CHOSEN, ACTIVE = 512, 16_384, 64, 64
SITE = "blocks.3.hook_resid_post"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = {"layers": 6, "heads": 8, "d_mlp": 2048, "vocab": 8192}
TOKENS = torch.randint(SIZES["vocab"], (8, 128), generator=torch.Generator().manual_seed(0))


def random_sae(kind):
    """Unit decoder rows; about `ACTIVE` features fire on a random token."""
    made = torch.Generator().manual_seed(0)
    metadata = SAEMetadata(hook_name=SITE, model_name="random")
    if kind == "topk":
        config = TopKSAEConfig(d_in=WIDTH, d_sae=FEATURES, k=ACTIVE, metadata=metadata)
        sae = TopKSAE(config)
    else:
        sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=WIDTH, d_sae=FEATURES, metadata=metadata))
    with torch.no_grad():
        sae.W_dec.copy_(torch.randn(FEATURES, WIDTH, generator=made))
        sae.W_dec.div_(sae.W_dec.norm(dim=-1, keepdim=True))
        sae.W_enc.copy_(sae.W_dec.T)
        if kind != "topk":
            sae.threshold.fill_(2.6)  # of a standard normal, 0.5 % lies above
    sae.register_buffer("max_activation", torch.full((FEATURES,), 5.0), persistent=False)
    return sae.to(DEVICE).requires_grad_(False)


def plain():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=SIZES["vocab"],
        hidden_size=WIDTH,
        intermediate_size=SIZES["d_mlp"],
        num_hidden_layers=SIZES["layers"],
        num_attention_heads=SIZES["heads"],
    )
    return LlamaForCausalLM(config).to(DEVICE).eval()


def lens():
    torch.manual_seed(0)
    config = HookedTransformerConfig(
        n_layers=SIZES["layers"],
        d_model=WIDTH,
        n_ctx=128,
        d_head=WIDTH // SIZES["heads"],
        n_heads=SIZES["heads"],
        d_mlp=SIZES["d_mlp"],
        d_vocab=SIZES["vocab"],
        act_fn="gelu",
        normalization_type="LN",
        device=DEVICE,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return HookedSAETransformer(config)


@torch.no_grad()
def run(model, edits):
    if not edits:
        model(TOKENS.to(DEVICE))
    else:
        with edited(model, edits):
            model(TOKENS.to(DEVICE))
    if DEVICE == "cuda":
        torch.cuda.synchronize()


@pytest.mark.parametrize(("kind", "aim"), [("jumprelu", "≥ 0.95"), ("topk", "—")])
def test_edited_forward_against_the_bare_one(kind, aim):
    model = plain()
    clamp = Clamp(random_sae(kind), torch.arange(CHOSEN), -1.0)
    speed(
        f"forward pass with {CHOSEN} features of a {kind} SAE clamped, d {WIDTH}, F {FEATURES:,}",
        "the bare forward pass",
        aim,
        lambda: run(model, [clamp]),
        lambda: run(model, []),
        "the bare forward pass itself; for TopK, the encoder's whole product",
        repeats=15,
        unit=(TOKENS.numel(), "tokens"),
    )


@pytest.mark.parametrize(("kind", "aim"), [("jumprelu", "≥ 3"), ("topk", "≥ 1.5")])
def test_edited_forward_against_sae_lens(kind, aim):
    """The same model object, SAE and change of activations on both sides."""
    model, sae = lens(), random_sae(kind)
    clamp = Clamp(sae, torch.arange(CHOSEN), -1.0)
    wanted = -sae.max_activation[:CHOSEN]

    def change(acts, hook):
        acts[..., :CHOSEN] = torch.where(acts[..., :CHOSEN] > 0, wanted, acts[..., :CHOSEN])
        return acts

    @torch.no_grad()
    def theirs():
        hooks = [(f"{SITE}.hook_sae_acts_post", change)]
        with model.saes([sae], use_error_term=True):
            out = model.run_with_hooks(TOKENS.to(DEVICE), fwd_hooks=hooks)
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return out

    with torch.no_grad(), edited(model, [clamp]):
        torch.testing.assert_close(model(TOKENS.to(DEVICE)), theirs(), atol=1e-3, rtol=1e-3)
    speed(
        f"forward pass with {CHOSEN} features of a {kind} SAE clamped, d {WIDTH}, F {FEATURES:,}",
        "HookedSAETransformer with its error term",
        aim,
        lambda: run(model, [clamp]),
        theirs,
        "the bare forward pass itself; for TopK, the encoder's whole product",
        unit=(TOKENS.numel(), "tokens"),
    )
