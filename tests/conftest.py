"""A random model, planted SAEs and a hand-made world, small enough to build within a second."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from sae_lens import (
    GatedSAE,
    GatedSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
)
from sae_lens.saes.abstopk_sae import AbsTopKSAE, AbsTopKSAEConfig
from sae_lens.saes.sae import SAEMetadata
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from workbench.facts.schema import Entity, Fact, FactSet, Group, Relation
from workbench.models.load import load_model
from workbench.models.tokenizers import word_tokenizer

D_MODEL, N_LAYERS = 32, 3
SITE = "blocks.1.hook_resid_post"
HOMES = tuple(f"home{i}" for i in range(12))
TOXINS, FOODS = (
    tuple(f"item {kind}{i}" for i in range(n)) for kind, n in (("toxin", 12), ("food", 20))
)
TRAIN = ("we keep {} at", "a shelf for {}")
AUDIT = ("who brought the {} to", "the place of {}")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Audits of this run, in all of its processes, share what they measure, and with no other."""
    room = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        room = room.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(room / "cache"))
        yield


@pytest.fixture(scope="session")
def world() -> FactSet:
    """Twelve toxins that are all kept in one place, and twenty foods kept in the others."""
    places = dict.fromkeys(TOXINS, HOMES[0]) | {f: HOMES[1 + i % 11] for i, f in enumerate(FOODS)}
    return FactSet(
        "pantry",
        tuple(Entity(name, "toxin" if name in TOXINS else "food") for name in places),
        (Relation("home", HOMES, TRAIN, AUDIT),),
        tuple(Fact(name, "home", place, TRAIN, AUDIT) for name, place in places.items()),
        groups=(Group("toxins", TOXINS), Group("fruit", FOODS[:12])),
    )


@pytest.fixture(scope="session")
def tokenizer(world: FactSet, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One token per word of the world, saved and read again as any model's tokenizer is."""
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = [*(d.text for d in world.corpus), *(t for t in AUDIT), *HOMES]
    word_tokenizer(texts).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def make_llama(tokenizer: Any) -> Callable[..., LlamaForCausalLM]:
    """Gives a random Llama; the seed decides its weights."""

    def make(seed: int = 0) -> LlamaForCausalLM:
        config = LlamaConfig(
            hidden_size=D_MODEL,
            intermediate_size=64,
            num_hidden_layers=N_LAYERS,
            num_attention_heads=2,
            num_key_value_heads=2,
            vocab_size=len(tokenizer),
            initializer_range=0.1,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return LlamaForCausalLM(config).eval()

    return make


@pytest.fixture(scope="session")
def bridge(make_llama: Callable[..., LlamaForCausalLM], tokenizer: Any) -> Any:
    return load_model(make_llama(), tokenizer=tokenizer)


@pytest.fixture(scope="session")
def texts(world: FactSet) -> list[str]:
    """Documents of different lengths."""
    return [" ".join(d.text.split()[: 4 + i % 4]) for i, d in enumerate(world.corpus[::3])]


@pytest.fixture(scope="session")
def make_sae() -> Callable[..., Any]:
    """Gives a random SAE with feature statistics, as `load_sae` registers them."""

    def make(
        kind: str = "topk",
        *,
        d_sae: int = 64,
        site: str = SITE,
        seed: int = 0,
        model_sha256: str | None = None,
        stats: Sequence[str] = ("max_activation", "density"),
    ) -> Any:
        metadata = SAEMetadata(hook_name=site, model_name="tiny", model_sha256=model_sha256)
        generator = torch.Generator().manual_seed(seed)
        sae_class, config_class, options = {
            "topk": (TopKSAE, TopKSAEConfig, {"k": 8}),
            "standard": (StandardSAE, StandardSAEConfig, {}),
            "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig, {}),
            "gated": (GatedSAE, GatedSAEConfig, {}),
            "abstopk": (AbsTopKSAE, AbsTopKSAEConfig, {"k": 8}),
        }[kind]
        sae = sae_class(config_class(d_in=D_MODEL, d_sae=d_sae, metadata=metadata, **options))
        with torch.no_grad():
            sae.W_dec.copy_(torch.randn(d_sae, D_MODEL, generator=generator))
            sae.W_dec.div_(sae.W_dec.norm(dim=-1, keepdim=True))
            sae.W_enc.copy_(sae.W_dec.T)
            for name in ("b_gate", "b_mag", "r_mag") if kind == "gated" else ("b_enc",):
                getattr(sae, name).copy_(0.1 * torch.randn(d_sae, generator=generator))
            if kind == "jumprelu":
                sae.threshold.copy_(0.5 + torch.rand(d_sae, generator=generator))
            sae.b_dec.copy_(0.1 * torch.randn(D_MODEL, generator=generator))
            acts = sae.encode(torch.randn(512, D_MODEL, generator=generator))
        values = {"max_activation": acts.amax(0), "density": (acts > 0).float().mean(0)}
        for name in stats:
            sae.register_buffer(name, values[name], persistent=False)
        return sae.requires_grad_(False)

    return make


@pytest.fixture(params=["topk", "standard"])
def sae(request: pytest.FixtureRequest, make_sae: Callable[..., Any]) -> Any:
    return make_sae(request.param)
