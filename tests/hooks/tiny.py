"""Tiny models of every kind that can be hooked, and edits to hang on them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
)

from workbench.hooks import Site

D_MODEL, N_LAYERS = 32, 3
POINTS = ("resid_pre", "resid_mid", "resid_post")
EVERY_SITE = [Site(layer, point) for layer in range(N_LAYERS) for point in POINTS]

_SHAPE = {
    "hidden_size": D_MODEL,
    "intermediate_size": 64,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 2,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED = {**_SHAPE, "num_key_value_heads": 2, "head_dim": 16}
_GPT2 = {
    "n_embd": D_MODEL,
    "n_layer": N_LAYERS,
    "n_head": 2,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

ARCHITECTURES: dict[str, tuple[type, type, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, _GROUPED),
    "gpt2": (GPT2LMHeadModel, GPT2Config, _GPT2),
    "neox": (GPTNeoXForCausalLM, GPTNeoXConfig, {**_SHAPE, "use_parallel_residual": False}),
    "neox-parallel": (GPTNeoXForCausalLM, GPTNeoXConfig, _SHAPE),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config, {**_GROUPED, "sliding_window": 4}),
    "olmo2": (Olmo2ForCausalLM, Olmo2Config, _GROUPED),
}
WITHOUT_MID = ("neox-parallel", "olmo2")
WITH_MID = tuple(name for name in ARCHITECTURES if name not in WITHOUT_MID)


def plain(name: str = "llama", vocab: int = 50) -> Any:
    """A random Hugging Face model, the same each time."""
    model, config, shape = ARCHITECTURES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model(config(vocab_size=vocab, architectures=[model.__name__], **shape)).eval()


def hooked(vocab: int = 50, **changes: Any) -> Any:
    """A random HookedTransformer, the same each time."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    shape = {"n_layers": N_LAYERS, "d_model": D_MODEL, "n_ctx": 64, "d_head": 16, "d_mlp": 64}
    kind = {"act_fn": "gelu", "normalization_type": "LN", "initializer_range": 0.2}
    config = HookedTransformerConfig(
        **{**shape, **kind, **changes}, d_vocab=vocab, seed=0, device="cpu"
    )
    with torch.random.fork_rng(), pytest.warns(DeprecationWarning, match="HookedTransformer"):
        return HookedTransformer(config).eval()


def logits_of(model: Any, tokens: Tensor, **given: Any) -> Tensor:
    """Logits, whatever kind of model gives them."""
    out = model(tokens, **given)
    return out if isinstance(out, Tensor) else out.logits


@dataclass(frozen=True)
class At:
    """A function of the residual stream, at a site."""

    site: Site
    function: Callable[[Tensor], Tensor]

    def __call__(self, resid: Tensor) -> Tensor:
        return self.function(resid)


def shift(vector: Tensor | float, site: Site) -> At:
    return At(site, lambda resid: resid + vector)


def direction(seed: int = 0) -> Tensor:
    return torch.randn(D_MODEL, generator=torch.Generator().manual_seed(seed))


def all_hooks(model: nn.Module) -> dict[str, list[Any]]:
    """Every hook of every module, forward and backward, with its number."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        f"{name}.{kind}": list(getattr(module, kind).items())
        for name, module in model.named_modules()
        for kind in kinds
    }


@contextmanager
def no_hook_left(model: nn.Module) -> Iterator[None]:
    before = all_hooks(model)
    try:
        yield
    finally:
        assert all_hooks(model) == before
