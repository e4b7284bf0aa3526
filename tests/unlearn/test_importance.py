"""Influence functions, selective synaptic dampening and noise on value vectors."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from tests.unlearn.contract import check_contract, check_keeps
from workbench.errors import ModelError
from workbench.facts.target import Target
from workbench.models import load_model
from workbench.models.copies import copied
from workbench.models.score import next_logits
from workbench.unlearn import influence, method, needle, ssd
from workbench.unlearn.ekfac import (
    Factors,
    add_matrix,
    as_matrix,
    fit_factors,
    linears,
    plain_module,
)
from workbench.unlearn.gradients import alike, log_odds, mean_gradient, mean_square
from workbench.unlearn.influence import loss_gradients, padded, preconditioned
from workbench.unlearn.training import HELD_OUT, answer_logp, everything, kept_texts, stays, told

SMALL: dict[str, Any] = {
    "influence": influence.Config(scale=0.1, damping=1.0, samples=12),
    "ssd": ssd.Config(alpha=2.0, forget=6, retained=8),
    "needle": needle.Config(k=5, noise=1.0, forget=6, retained=8),
}


@pytest.fixture(scope="module")
def gpt2(tokenizer: Any) -> Any:
    """A random GPT-2, whose MLPs are Conv1D with biases."""
    config = GPT2Config(
        n_embd=32, n_layer=2, n_head=2, n_positions=64, vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return load_model(GPT2LMHeadModel(config).eval(), tokenizer=tokenizer)


def small(name: str) -> Callable[[Any, Target, int], Any]:
    return lambda model, target, seed: method(name).unlearn(model, target, SMALL[name], seed)


@pytest.mark.parametrize("name", SMALL)
def test_keeps_the_contract(name: str, bridge: Any, pantry: Target, tmp_path: Path) -> None:
    arm = check_contract(small(name), bridge, pantry, tmp_path)
    assert arm.cost.backward_tokens > 0
    other = small(name)(bridge, pantry, 1)
    assert any(
        not torch.equal(a, b)
        for a, b in zip(arm.model.parameters(), other.model.parameters(), strict=True)
    ), "the seed decides nothing"


@pytest.mark.parametrize("name", SMALL)
def test_serves_a_model_with_transposed_matrices(name: str, gpt2: Any, pantry: Target) -> None:
    arm = small(name)(gpt2, pantry, 0)
    pairs = zip(arm.model.parameters(), gpt2.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "recall", "perplexity", "forget"),
    [("influence", 0.95, 1.1, 0.97), ("ssd", 0.95, 1.1, 0.5), ("needle", 0.93, 1.15, 0.985)],
)
def test_what_is_to_stay_stays(
    name: str, recall: float, perplexity: float, forget: float, valley: Any, toxins: Target
) -> None:
    check_keeps(method(name)(valley, toxins), valley, toxins, recall, perplexity, forget)


# --- curvature ------------------------------------------------------------------------------


class Reader(nn.Module):
    """Looks tokens up in a fixed table and says the next by one matrix."""

    def __init__(self, table: Tensor, weight: Tensor) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(table)
        self.linear = nn.Linear(table.shape[1], len(weight), bias=False)
        self.linear.weight = nn.Parameter(weight)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.linear(self.table(tokens))


def exact_fisher(reader: Reader, tokens: Tensor) -> Tensor:
    """Of one row's loss in the matrix's entries, by summing over all that could come next."""
    x = reader.table(tokens[:, 0])
    p = reader.linear(x).detach().softmax(-1)
    spread = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    both = torch.einsum("nab,nc,nd->acbd", spread, x, x) / len(x)
    return both.reshape(p.shape[1] * x.shape[1], -1)


def error_of_ekfac(weight: Tensor) -> tuple[float, float]:
    """Relative error of a gradient divided by EK-FAC's curvature, and by its diagonal alone."""
    generator = torch.Generator().manual_seed(0)
    # What is read is correlated, so that a diagonal is a poor stand-in for the whole.
    table = torch.randn(6, 3, generator=generator) @ torch.tensor(
        [[1.0, 0.9, 0.5], [0.0, 0.4, 0.5], [0.0, 0.0, 0.3]]
    )
    # Only half of the words ever come: squares of training gradients would be another matrix.
    tokens = torch.randint(0, 3, (6000, 2), generator=generator)
    reader = Reader(table, weight)
    gradient, damping = torch.randn(6, 3, generator=generator), 0.1
    fisher = exact_fisher(reader, tokens)
    damped = fisher + damping * fisher.diagonal().mean() * torch.eye(len(fisher))
    exact = torch.linalg.solve(damped, gradient.flatten()).reshape(6, 3)
    diagonal = gradient / damped.diagonal().reshape(6, 3)
    real = torch.ones_like(tokens, dtype=torch.bool)
    factors = fit_factors(reader, ["linear"], tokens, real, 0)["linear"]
    found = factors.divided(gradient, damping)
    return tuple(float((f - exact).norm() / exact.norm()) for f in (found, diagonal))  # pyright: ignore[reportReturnType]


def test_ekfac_is_exact_where_what_is_read_says_nothing_of_the_gradient() -> None:
    found, diagonal = error_of_ekfac(torch.zeros(6, 3))
    assert found < 0.1, found
    assert diagonal > 0.3, diagonal


def test_ekfac_is_not_exact_where_it_does() -> None:
    weight = 3 * torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    assert error_of_ekfac(weight)[0] > 0.15


def test_padding_has_no_part_in_the_curvature(bridge: Any, pantry: Target) -> None:
    texts = kept_texts(pantry, HELD_OUT)[:6]
    names = list(linears(bridge))
    tokens, real = padded(bridge, texts)
    more = torch.cat([tokens, torch.ones(len(tokens), 3, dtype=torch.long)], dim=1)
    unreal = torch.cat([real, torch.zeros(len(real), 3, dtype=torch.bool)], dim=1)
    found, again = (
        fit_factors(plain_module(bridge), names, *given, 0)
        for given in ((tokens, real), (more, unreal))
    )
    for name in names:
        torch.testing.assert_close(
            found[name].curvature.sum(), again[name].curvature.sum(), rtol=1e-3, atol=0
        )


def test_without_curvature_the_step_is_the_plain_gradient() -> None:
    gradient = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    flat = Factors(torch.eye(3), torch.eye(4), torch.ones(4, 3))
    for damping, share in ((0.0, 1.0), (1.0, 0.5)):
        step = preconditioned({"x": gradient}, {"x": flat}, 0.3, damping)["x"]
        torch.testing.assert_close(step, 0.3 * share * gradient)


@pytest.mark.parametrize("kind", ["bridge", "gpt2"])
def test_the_step_takes_from_forget_answers_what_the_gradient_says(
    kind: str, pantry: Target, request: pytest.FixtureRequest
) -> None:
    model = copied(request.getfixturevalue(kind))
    layers = linears(model)
    forget = told(model.tokenizer, pantry, pantry.forget)
    tokens, real = padded(model, kept_texts(pantry, HELD_OUT)[:20])
    factors = fit_factors(plain_module(model), list(layers), tokens, real, 0)
    gradients = loss_gradients(model, layers, forget)
    steps = preconditioned(gradients, factors, 1e-3, 1.0)
    foretold = sum(float((gradients[n] * steps[n]).sum()) for n in layers)
    before = mean_answer(model, forget)
    for name, change in steps.items():
        add_matrix(layers[name], change)
    lost = before - mean_answer(model, forget)
    assert foretold > 1e-4
    assert lost == pytest.approx(foretold, rel=0.05)


@torch.no_grad()
def mean_answer(model: Any, forget: list[Any]) -> float:
    return float(torch.cat([answer_logp(model, b).double() for b in alike(forget)]).mean())


@pytest.mark.parametrize("kind", ["bridge", "gpt2"])
def test_the_plain_module_says_what_the_model_says(
    kind: str, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(kind)
    plain, tokens = plain_module(model), torch.arange(10)[None]
    # With a graph, GPT-2's bridge would keep its attention pattern, and could not be copied again.
    with torch.no_grad():
        torch.testing.assert_close(next_logits(plain, tokens), next_logits(model, tokens))
    assert all(type(plain.get_submodule(name)) is nn.Linear for name in linears(model))
    for name, layer in linears(model).items():
        other = plain.get_submodule(name)
        mine = as_matrix(layer, layer.weight, layer.bias)  # pyright: ignore[reportArgumentType]
        assert torch.equal(mine, as_matrix(other, other.weight, other.bias))  # pyright: ignore[reportArgumentType]


# --- dampening ------------------------------------------------------------------------------


def published(model: Any, weights: list[Any], asked: list[Any], size: int) -> Tensor:
    """Importance as the published code has it: the square of each batch's mean gradient."""
    batches = [asked[i : i + size] for i in range(0, len(asked), size)]
    squares = [torch.cat([g.flatten() for g in mean_gradient(model, weights, b)]) ** 2
               for b in batches]  # fmt: skip
    return torch.stack(squares).mean(0)


def test_importance_does_not_depend_on_how_prompts_are_batched(bridge: Any, pantry: Target) -> None:
    weights = list(everything(bridge))
    asked = told(bridge.tokenizer, pantry, pantry.forget)[:8]

    def flat(prompts: list[Any]) -> Tensor:
        return torch.cat([g.flatten() for g in mean_square(bridge, weights, prompts)])

    ours = flat(asked)
    torch.testing.assert_close(ours, (flat(asked[:4]) + flat(asked[4:])) / 2)
    torch.testing.assert_close(ours, published(bridge, weights, asked, 1))
    assert published(bridge, weights, asked, 8).sum() < 0.7 * ours.sum()


def test_weights_are_only_dampened_and_infinite_alpha_changes_none(
    bridge: Any, pantry: Target
) -> None:
    for alpha, changes in ((2.0, True), (float("inf"), False)):
        arm = ssd.unlearn(bridge, pantry, replace(SMALL["ssd"], alpha=alpha))
        pairs = list(zip(arm.model.parameters(), bridge.parameters(), strict=True))
        assert all(bool((a.abs() <= b.abs()).all()) for a, b in pairs)
        assert all(bool((a * b >= 0).all()) for a, b in pairs), "a sign was turned"
        assert any(not torch.equal(a, b) for a, b in pairs) is changes


def test_dampening_by_hand() -> None:
    forget, retained = torch.tensor([8.0, 8.0, 8.0, 0.0]), torch.tensor([1.0, 5.0, 0.0, 0.0])
    (found,) = ssd.dampening([forget], [retained], 2.0, 1.0)
    assert found.tolist() == [1 / 8, 1.0, 0.0, 1.0]
    (found,) = ssd.dampening([forget], [retained], 2.0, 100.0)
    assert found.tolist() == [1.0, 1.0, 0.0, 1.0]


# --- value vectors --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bridge", "gpt2"])
def test_only_the_located_vectors_change(
    kind: str, pantry: Target, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(kind)
    for noise in (1.0, 0.0):
        arm = needle.unlearn(model, pantry, replace(SMALL["needle"], noise=noise))
        found = {(layer, i) for layer, i in arm.told["value vectors"]}
        assert len(found) == SMALL["needle"].k
        writers = zip(needle.mlp_writers(arm.model), needle.mlp_writers(model), strict=True)
        changed = {
            (layer, i)
            for layer, pair in enumerate(writers)
            for i, rows in enumerate(zip(*map(needle.value_vectors, pair), strict=True))
            if not torch.equal(*rows)
        }
        assert changed == (found if noise else set())
        values = {id(w.weight) for m in (arm.model, model) for w in needle.mlp_writers(m)}
        for a, b in zip(arm.model.parameters(), model.parameters(), strict=True):
            assert id(a) in values or torch.equal(a, b)


@pytest.mark.parametrize("kind", ["bridge", "gpt2"])
def test_attribution_is_the_slope_of_the_answer_in_a_vectors_size(
    kind: str, pantry: Target, request: pytest.FixtureRequest
) -> None:
    given = request.getfixturevalue(kind)
    model = copied(given)
    one = told(model.tokenizer, pantry, pantry.forget)[:1]
    found = needle.attribution(model, one)
    best = int(found[1].argmax())
    said = []
    for factor in (1.01, 0.99):
        other = copied(given)
        with torch.no_grad():
            needle.value_vectors(needle.mlp_writers(other)[1])[best] *= factor
            said.append(log_odds(other, one).item())
    assert abs(said[0] - said[1]) / 0.02 == pytest.approx(found[1, best].item(), rel=0.05)


def test_vectors_of_the_target_alone_are_located() -> None:
    forget, retained = torch.ones(2, 4), torch.ones(2, 4)
    forget[1, 2], retained[0, 3] = 5.0, 0.01
    forget[0, 0] = retained[0, 0] = 50.0
    assert needle.located(forget, retained, 1).tolist() == [[1, 2]]


# --- what cannot be served ------------------------------------------------------------------


def test_without_kronfluence_influence_says_how_to_install_it(
    bridge: Any, pantry: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "kronfluence", None)
    with pytest.raises(ModelError, match="pip install --no-deps kronfluence"):
        influence.unlearn(bridge, pantry)


def test_more_vectors_than_there_are_are_refused(bridge: Any, pantry: Target) -> None:
    with pytest.raises(ModelError, match="193 value vectors wanted, and the model has 192"):
        needle.unlearn(bridge, pantry, replace(SMALL["needle"], k=193))


@pytest.mark.parametrize("name", SMALL)
def test_a_model_that_was_not_loaded_is_refused(name: str, make_llama: Any, pantry: Target) -> None:
    with pytest.raises(ModelError, match="load_model"):
        method(name).unlearn(make_llama(), pantry)


def test_nothing_held_out_is_ever_drawn(pantry: Target) -> None:
    held = {f.key for fold in HELD_OUT for f in pantry.retain[fold]}
    assert held and held.isdisjoint(f.key for f in stays(pantry, HELD_OUT, ssd.NEAR))
