"""Edits in the weights: the copy does without hooks what the edits do, and says when it cannot."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from tests.interventions.members import CASES, FEATURES, MEMBERS, member, normal
from workbench.errors import EditError, SiteError
from workbench.hooks import Site, edited, residuals
from workbench.interventions import (
    Project,
    Rescale,
    Sequence,
    Steer,
    bake,
    everywhere,
    save_baked,
)
from workbench.interventions.bake import FIRST, _writer, plain_weights
from workbench.models import load_model
from workbench.models.load import weights_sha256

DIRECTION = 0.5 * normal(32, seed=1)
ROWS, LABELS = normal(300, 32), torch.arange(300) % 3
LEACE = Project.leace(FIRST, ROWS + 0.5 * normal(3, 32, seed=2)[LABELS], LABELS)
ARCHITECTURES = ("llama", "tied llama", "llama with biases", "gpt2")


def steer(layer: int, point: Any = "resid_post", strength: float = 1.0) -> Steer:
    return Steer(Site(layer, point), DIRECTION, strength)


FOLDABLE: dict[str, Callable[[Any], Any]] = {
    "after the MLP": lambda model: steer(1),
    "before a block": lambda model: steer(1, "resid_pre", -0.5),
    "after the attention": lambda model: steer(2, "resid_mid"),
    "before the first block": lambda model: steer(0, "resid_pre"),
    "at several sites": lambda model: [steer(0), steer(0), steer(1, "resid_mid"), steer(2)],
    "projection everywhere": lambda model: everywhere(LEACE, model),
    "projection of the embedding": lambda model: LEACE,
    "sequence in the embedding": lambda model: [
        Sequence((steer(0, "resid_pre"), LEACE, steer(0, "resid_pre", 2.0))),
        steer(1),
    ],
}


@pytest.fixture(scope="module")
def models(tokenizer: Any, make_llama: Callable) -> dict[str, Any]:
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
    llama = {**size, "num_attention_heads": 2, "vocab_size": len(tokenizer)}
    gpt2 = {"n_embd": 32, "n_layer": 3, "n_head": 2, "n_positions": 64}
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = {
            "tied llama": LlamaForCausalLM(
                LlamaConfig(**llama, tie_word_embeddings=True, initializer_range=0.1, **special)
            ),
            "llama with biases": LlamaForCausalLM(
                LlamaConfig(
                    **llama,
                    mlp_bias=True,
                    attention_bias=True,
                    initializer_range=0.1,
                    **special,
                )
            ),
            "gpt2": GPT2LMHeadModel(
                GPT2Config(**gpt2, vocab_size=len(tokenizer), initializer_range=0.1, **special)
            ),
        }
        for module in [m for model in made.values() for m in model.modules()]:
            if getattr(module, "bias", None) is not None and not isinstance(module.bias, bool):
                torch.nn.init.normal_(module.bias, std=0.1)
    made["llama"] = make_llama()
    return {name: load_model(m.eval(), tokenizer=tokenizer) for name, m in made.items()}


@pytest.fixture(params=ARCHITECTURES)
def model(request: pytest.FixtureRequest, models: dict[str, Any]) -> Any:
    return models[request.param]


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(4, 60, (5, 9), generator=torch.Generator().manual_seed(0))


def under(model: Any, edits: Any, tokens: Tensor) -> Tensor:
    with torch.no_grad(), edited(model, edits if isinstance(edits, list) else [edits]):
        return model(tokens)


@pytest.mark.parametrize("name", FOLDABLE)
def test_copy_does_what_the_edits_do(name: str, model: Any, tokens: Tensor) -> None:
    edits, before = FOLDABLE[name](model), weights_sha256(model)
    other_tokens = tokens.flip(0, 1) + 1
    baked = bake(model, edits, tokens, atol=1e-5)
    wanted = under(model, edits, other_tokens)
    torch.testing.assert_close(baked(other_tokens), wanted, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(model(other_tokens), wanted, atol=1e-2)
    assert weights_sha256(model) == before != weights_sha256(baked)


@pytest.mark.parametrize("name", FOLDABLE)
def test_saved_copy_is_any_other_model(
    name: str, model: Any, tokens: Tensor, tmp_path: Path
) -> None:
    edits = FOLDABLE[name](model)
    baked = bake(model, edits, tokens)
    again = load_model(str(save_baked(baked, tmp_path / "model")))
    torch.testing.assert_close(again(tokens), baked(tokens), atol=1e-6, rtol=1e-6)
    plain = type(baked.original_model).from_pretrained(tmp_path / "model").eval()
    torch.testing.assert_close(plain(tokens).logits, baked(tokens), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        again.tokenizer("we keep")["input_ids"], model.tokenizer("we keep")["input_ids"]
    )


def test_copy_is_edited_and_baked_again(model: Any, tokens: Tensor) -> None:
    once = bake(model, steer(1), tokens)
    twice = bake(once, steer(1), tokens)
    wanted = under(model, steer(1, strength=2.0), tokens)
    torch.testing.assert_close(twice(tokens), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(under(once, steer(1), tokens), wanted, atol=1e-5, rtol=1e-5)


def test_tied_embeddings_are_untied_only_in_the_copy(models: dict, tokens: Tensor) -> None:
    model = models["tied llama"]
    baked = bake(model, steer(0, "resid_pre"), tokens)
    assert torch.equal(baked.unembed.weight, model.unembed.weight)
    assert not torch.equal(baked.embed.weight, model.embed.weight)
    assert model.embed.weight.data_ptr() == model.unembed.weight.data_ptr()
    assert model.original_model.config.tie_word_embeddings
    assert not baked.original_model.config.tie_word_embeddings


def test_biases_are_added_only_where_needed_and_only_one_is_not_zero(
    models: dict, tokens: Tensor
) -> None:
    baked = bake(models["llama"], steer(1), tokens)
    added = {n: t for n, t in plain_weights(baked).items() if n.endswith("bias")}
    assert len(added) == 9
    assert [n for n, t in added.items() if t.any()] == ["model.layers.1.mlp.down_proj.bias"]
    assert not baked.original_model.config.attention_bias
    assert not models["llama"].original_model.config.mlp_bias
    projected = bake(models["llama"], everywhere(LEACE, models["llama"]), tokens)
    assert not any(n.endswith("bias") for n in plain_weights(projected))


def test_everywhere_is_after_the_embedding_and_each_writer(model: Any) -> None:
    sites = [edit.site for edit in everywhere(LEACE, model)]
    assert sites == [
        FIRST,
        *(Site(layer, p) for layer in range(3) for p in ("resid_mid", "resid_post")),
    ]


def test_projection_everywhere_leaves_nothing_in_the_stream(model: Any, tokens: Tensor) -> None:
    baked = bake(model, everywhere(LEACE, model), tokens)
    site = Site(2)
    with torch.no_grad():
        before, after = (residuals(m, tokens, [site])[site] for m in (model, baked))

    def spread(resid: Tensor) -> float:
        return float((resid.double() @ LEACE.right.T).flatten(0, 1).std(0).max())

    assert spread(before) > 0.1
    assert spread(after) < 1e-5


# What no weights can say


@pytest.mark.parametrize("name", [n for n in MEMBERS if n != "steer simple"])
def test_what_depends_on_the_token_is_refused(
    name: str, make_sae: Callable, models: dict, tokens: Tensor
) -> None:
    kind = next(kind for n, kind in CASES if n == name)
    edit, model = member(name, make_sae(kind)), models["llama"]
    messages = (
        "acts by what the token holds",
        "steering adds what depends on the token",
        "can be folded only as the same one at every site",
    )
    with pytest.raises(EditError, match="|".join(messages)):
        bake(model, edit, tokens)


@pytest.mark.parametrize(
    "edits",
    [
        lambda m: everywhere(LEACE, m)[:-1],
        lambda m: everywhere(LEACE, m)[1:],
        lambda m: [*everywhere(LEACE, m), steer(1)],
        lambda m: [steer(0, "resid_pre"), *everywhere(LEACE, m)],
        lambda m: [
            *everywhere(LEACE, m)[:-1],
            Project(Site(2), LEACE.left, LEACE.right, LEACE.bias + 1),
        ],
    ],
)
def test_projection_somewhere_else_is_refused(edits: Any, models: dict, tokens: Tensor) -> None:
    with pytest.raises(EditError, match=r"wanted everywhere\(project, model\)"):
        bake(models["llama"], edits(models["llama"]), tokens)


def test_projection_that_does_more_the_second_time_is_refused(models: dict, tokens: Tensor) -> None:
    half = Project(FIRST, LEACE.left / 2, LEACE.right, LEACE.bias)
    with pytest.raises(EditError, match="doing it twice is not doing it once"):
        bake(models["llama"], everywhere(half, models["llama"]), tokens)
    bake(models["llama"], half, tokens)


def test_copy_that_differs_is_refused(
    models: dict, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it would where a block does more than add what it writes."""
    model = models["llama"]
    module = sys.modules["workbench.interventions.bake"]
    monkeypatch.setattr(module, "_add_bias", lambda *args: None)
    with pytest.raises(EditError, match=r"logits differ by [\d.]+ from those of the edited model"):
        bake(model, steer(1), tokens)


def test_copy_whose_logits_are_no_numbers_is_refused(make_llama: Callable, tokenizer: Any) -> None:
    model = load_model(make_llama(), tokenizer=tokenizer)
    model.ln_final.original_component.weight.data.fill_(float("nan"))
    with pytest.raises(EditError, match="logits differ by nan"):
        bake(model, steer(1), torch.tensor([[4, 5, 6]]))


@pytest.fixture
def other_model(tokenizer: Any) -> Callable[..., Any]:
    def make(config_class: type, model_class: type) -> Any:
        config = config_class(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=16,
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        with torch.random.fork_rng():
            return load_model(model_class(config).eval(), tokenizer=tokenizer)

    return make


def test_model_without_a_setting_for_biases_is_refused(
    other_model: Callable, tokens: Tensor
) -> None:
    """But a projection needs none."""
    model = other_model(MistralConfig, MistralForCausalLM)
    with pytest.raises(EditError, match="MistralConfig has no mlp_bias: a bias at the end"):
        bake(model, steer(1), tokens)
    with pytest.raises(EditError, match="MistralConfig has no attention_bias"):
        bake(model, steer(1, "resid_mid"), tokens)
    bake(model, everywhere(LEACE, model), tokens, atol=1e-5)


def test_model_with_norms_after_its_writers_is_refused(
    other_model: Callable, tokens: Tensor
) -> None:
    model = other_model(Gemma2Config, Gemma2ForCausalLM)
    with pytest.raises(EditError, match="ln2_post: a norm stands between"):
        bake(model, steer(1), tokens)
    with pytest.raises(EditError, match="ln2_post: a norm stands between"):
        bake(model, everywhere(LEACE, model), tokens)
    # Its embedding is multiplied after it is looked up, as nothing but the comparison tells.
    with pytest.raises(EditError, match="logits differ by"):
        bake(model, steer(0, "resid_pre"), tokens)


def test_writer_that_is_no_matrix_is_refused() -> None:
    block = torch.nn.Module()
    with pytest.raises(EditError, match="attn has no single matrix"):
        _writer(block, "attn")


def test_nothing_and_no_bridge_are_refused(models: dict, tokens: Tensor) -> None:
    with pytest.raises(EditError, match="no edit to fold"):
        bake(models["llama"], [], tokens)
    with pytest.raises(EditError, match="a Linear: wanted a model from load_model"):
        bake(torch.nn.Linear(2, 2), steer(0), tokens)
    with pytest.raises(SiteError, match="layers 0 to 2"):
        bake(models["llama"], steer(3), tokens)


def test_original_is_left_as_it_is_when_refused(models: dict, make_sae: Callable, tokens: Tensor):
    before = weights_sha256(models["llama"])
    with pytest.raises(EditError):
        bake(models["llama"], Rescale(make_sae(), FEATURES), tokens)
    assert weights_sha256(models["llama"]) == before
