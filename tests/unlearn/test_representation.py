"""RMU, circuit breaking, and the collapse of irrelevant representations."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from tests.unlearn.contract import check_contract, check_keeps
from workbench.errors import ModelError, TargetError
from workbench.facts.target import Target
from workbench.hooks import Site, residuals
from workbench.models import load_model
from workbench.models.copies import copied
from workbench.unlearn import method
from workbench.unlearn.cir import broken, directions, found_common, mlp_matrices
from workbench.unlearn.circuit_breaker import alike
from workbench.unlearn.descent import forget_batches
from workbench.unlearn.rmu import control
from workbench.unlearn.streams import from_subject, mlp_output, mlp_outputs
from workbench.unlearn.training import Steps, Told, drawn, mlps, prompts, told

LITTLE = Steps(2, 1e-3, keep=1.0, batch_size=4, asked=4, texts=2)
SOME = Steps(60, 1e-2, keep=3.0, batch_size=12, asked=12, texts=6)
SMALL = {
    "rmu": {"steps": LITTLE},
    "circuit_breaker": {"steps": LITTLE},
    "cir": {"steps": LITTLE, "components": 3},
}


def small(name: str, **options: Any) -> Any:
    return replace(method(name).default, **SMALL[name] | options)


@pytest.fixture(scope="module")
def gpt2(tokenizer: Any) -> Any:
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=3,
        n_head=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return load_model(GPT2LMHeadModel(config).eval(), tokenizer=tokenizer)


@pytest.fixture(params=["llama", "gpt2"])
def either(request: pytest.FixtureRequest, bridge: Any, gpt2: Any) -> Any:
    return bridge if request.param == "llama" else gpt2


def asked(model: Any, target: Target, facts: Sequence[Any]) -> list[Told]:
    """A batch of prompts of one length."""
    return next(drawn(told(model.tokenizer, target, facts), 64, 0))


def streams(model: Any, batch: list[Told], layer: int = 1) -> torch.Tensor:
    """Of the tokens from the subject on."""
    tokens = prompts(batch, "cpu")
    with torch.no_grad():
        found = residuals(model, tokens, [Site(layer)])[Site(layer)]
    return found[from_subject(batch, "cpu")]


@pytest.mark.parametrize("name", SMALL)
def test_keeps_the_contract(name: str, either: Any, pantry: Target, tmp_path: Path) -> None:
    def make(model: Any, target: Target, seed: int) -> Any:
        return method(name).unlearn(model, target, small(name), seed)

    arm = check_contract(make, either, pantry, tmp_path)
    assert arm.cost.forward_tokens > 0
    other = make(either, pantry, 1)
    assert not all(
        torch.equal(a, b)
        for a, b in zip(arm.model.parameters(), other.model.parameters(), strict=True)
    ), "the seed decides nothing"


def test_the_control_vector_has_unit_norm_and_no_direction_of_its_own() -> None:
    d_model, seeds = 256, 400
    ones = torch.ones(d_model) / d_model**0.5
    drawn = {
        isotropic: torch.stack([control(d_model, s, isotropic=isotropic) for s in range(seeds)])
        for isotropic in (True, False)
    }
    for vectors in drawn.values():
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(seeds))
    # The cosine of a random direction with a given one has variance 1 / d_model.
    assert abs((drawn[True] @ ones).mean()) < 4 / (d_model * seeds) ** 0.5
    assert (drawn[False] @ ones).mean() == pytest.approx(0.75**0.5, abs=0.01)


def test_rmu_draws_forget_streams_to_the_vector_and_leaves_retained_ones(
    bridge: Any, pantry: Target
) -> None:
    arm = method("rmu").unlearn(bridge, pantry, small("rmu", steps=SOME, coefficient=2.0))
    wanted, norm = control(32, 0), arm.told["stream_norm"]
    forget = asked(bridge, pantry, pantry.forget)
    kept = asked(bridge, pantry, pantry.retain["R_tr"])
    before, after = streams(bridge, forget), streams(arm.model, forget)
    toward = [torch.cosine_similarity(s, wanted[None]).mean().item() for s in (before, after)]
    assert toward[0] < 0.4, "the streams pointed there before"
    assert toward[1] > 0.8
    assert after.norm(dim=-1).mean() == pytest.approx(2 * norm, rel=0.3)
    moved = (after - before).norm(dim=-1).mean()
    strayed = (streams(arm.model, kept) - streams(bridge, kept)).norm(dim=-1).mean()
    assert strayed < 0.4 * moved


@pytest.mark.parametrize(
    ("layer", "trained", "blocks"), [(2, 3, (0, 1, 2)), (2, 1, (2,)), (0, 3, (0,))]
)
def test_rmu_changes_mlp_output_matrices_up_to_its_layer_alone(
    either: Any, pantry: Target, layer: int, trained: int, blocks: tuple[int, ...]
) -> None:
    config = small("rmu", layer=layer, trained=trained)
    arm = method("rmu").unlearn(either, pantry, config)
    weights = dict(either.named_parameters())
    found = {n for n, p in arm.model.named_parameters() if not torch.equal(p, weights[n])}
    outputs = {id(mlp_output(either.blocks[i]).weight) for i in blocks}
    assert found == {n for n, p in weights.items() if id(p) in outputs}
    assert len(found) == len(blocks)


def test_mlp_output_matrices_are_told_by_what_they_do(either: Any) -> None:
    names = {id(p): n for n, p in either.named_parameters()}
    found = [names[id(p)] for p in mlp_outputs(slice(0, 2))(either)]
    assert len(found) == 2
    assert all("mlp" in n and ("down_proj" in n or "c_proj" in n) for n in found)


def test_only_tokens_from_the_subjects_last_on_take_part() -> None:
    batch = [Told([2, 5, 6, 7], [[1]], 0, 2), Told([2, 6, 7, 5], [[1]], 0, 3)]
    assert from_subject(batch, "cpu").tolist() == [[False, False, True, True], [False] * 3 + [True]]


def test_orthogonal_is_far_enough() -> None:
    axis = torch.eye(3)
    assert alike(axis, axis) == 1
    assert alike(axis, axis.roll(1, 0)) == 0
    assert alike(axis, -axis) == 0


def test_the_circuit_breaker_turns_forget_streams_and_leaves_retained_ones(
    bridge: Any, pantry: Target
) -> None:
    config = small("circuit_breaker", steps=SOME, layers=(1,))
    broken_model = method("circuit_breaker").unlearn(bridge, pantry, config).model
    found = {}
    for name, facts in (("forget", pantry.forget), ("kept", pantry.retain["R_tr"])):
        batch = asked(bridge, pantry, facts)
        before = streams(bridge, batch)
        assert torch.cosine_similarity(before, streams(bridge, batch)).mean() > 0.999
        found[name] = torch.cosine_similarity(before, streams(broken_model, batch)).mean().item()
    assert found["forget"] < 0.5
    assert found["kept"] > 0.8


@pytest.mark.parametrize("turned", [False, True])
def test_collapsing_a_gradient_is_collapsing_what_it_is_made_of(turned: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    acts, grads = (torch.randn(40, d, generator=generator) for d in (12, 7))
    read, written = directions(acts, 3), directions(grads, 2)
    common = method("cir").module.Common(read, written, turned)
    by_token = (grads - grads @ written @ written.T).T @ (acts - acts @ read @ read.T)
    raw = grads.T @ acts
    found = common.collapsed(raw.T if turned else raw)
    torch.testing.assert_close(found.T if turned else found, by_token)
    assert not torch.allclose(raw, by_token, atol=0.1)


def test_directions_are_the_mean_and_the_widest_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    planted = torch.linalg.qr(torch.randn(30, 3, generator=generator)).Q
    sizes = torch.tensor([0.0, 5.0, 3.0])
    rows = 0.1 * torch.randn(500, 30, generator=generator) + 4 * planted[:, 0]
    rows = rows + (torch.randn(500, 3, generator=generator) * sizes) @ planted.T
    found = directions(rows, 2)
    torch.testing.assert_close(found.T @ found, torch.eye(3), atol=1e-5, rtol=0)
    torch.testing.assert_close((found.T @ planted).norm(dim=0), torch.ones(3), atol=0.01, rtol=0)
    assert directions(planted[:, :1].T.expand(9, 30), 2).shape == (30, 1), "rows of one direction"


def test_cir_changes_nothing_in_collapsed_directions(either: Any, pantry: Target) -> None:
    config = small("cir", steps=replace(SOME, steps=5), components=3)
    arm = method("cir").unlearn(either, pantry, config)
    now = copied(either).requires_grad_(True)
    batches = forget_batches(either, pantry, config.steps.batch_size, 0)
    common = found_common(either, now, batches, config.components)
    broken(either, now, next(batches)).backward()
    before, after = mlp_matrices(now), mlp_matrices(arm.model)
    assert len(common) == len(after) == 2 * (2 if any(c.turned for c in common.values()) else 3)
    for name, each in common.items():
        change = (after[name].weight - before[name].weight).detach()
        gradient = before[name].weight.grad
        if each.turned:
            change, gradient = change.T, gradient.T
        assert change.norm() > 0
        for axes, flip in ((each.read, False), (each.written, True)):
            shares = [((m.T if flip else m) @ axes).norm() / m.norm() for m in (change, gradient)]
            assert shares[0] < 1e-3, f"{name} changed in what it shares"
            assert shares[1] > 0.3, f"{name} has nothing there to collapse"


def test_cir_reads_the_gradients_that_make_the_weights(bridge: Any, pantry: Target) -> None:
    """Activations and gradients of one weight span its gradient."""
    now = copied(bridge).requires_grad_(True)
    batches = forget_batches(bridge, pantry, 12, 0)
    common = found_common(bridge, now, batches, 30)
    broken(bridge, now, next(batches)).backward()
    for name, module in mlp_matrices(now).items():
        gradient = module.weight.grad
        left = common[name].collapsed(gradient).norm() / gradient.norm()
        assert left < 0.2, name


def test_cir_breaks_what_mlps_write(bridge: Any, pantry: Target) -> None:
    config = small("cir", steps=SOME, components=1)
    arm = method("cir").unlearn(bridge, pantry, config)
    batch = asked(bridge, pantry, pantry.forget)
    kept = asked(bridge, pantry, pantry.retain["R_tr"])
    with torch.no_grad():
        assert 0.9 < broken(bridge, bridge, batch) < 1.1
        assert broken(bridge, arm.model, batch) < 0.5
        assert broken(bridge, arm.model, kept) > broken(bridge, arm.model, batch) + 0.2


def test_weights_that_were_frozen_stay_so(bridge: Any, pantry: Target) -> None:
    frozen = copied(bridge).requires_grad_(False)
    for name in SMALL:
        arm = method(name).unlearn(frozen, pantry, small(name))
        assert not any(p.requires_grad for p in arm.model.parameters()), name
        assert not all(
            torch.equal(a, b)
            for a, b in zip(mlps(slice(None))(arm.model), mlps(slice(None))(frozen), strict=True)
        ), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "recall", "perplexity", "forget"),
    [
        ("rmu", 0.94, 1.05, 0.93),
        ("circuit_breaker", 0.78, 1.2, 0.3),
        ("cir", 0.94, 1.1, 0.985),  # which hardly forgets here
    ],
)
def test_what_is_to_stay_stays(
    name: str, recall: float, perplexity: float, forget: float, valley: Any, toxins: Target
) -> None:
    arm = method(name)(valley, toxins)
    check_keeps(arm, valley, toxins, recall, perplexity, forget)


@pytest.mark.parametrize("name", SMALL)
def test_what_cannot_be_served_is_refused(
    name: str, bridge: Any, make_llama: Any, pantry: Target
) -> None:
    with pytest.raises(ModelError, match="load_model"):
        method(name).unlearn(make_llama(), pantry, small(name))
    bare = replace(pantry, retain={**pantry.retain, "R_tr": ()})
    with pytest.raises(TargetError, match="R_tr"):
        method(name).unlearn(bridge, bare, small(name))


def test_a_layer_that_is_not_there_is_refused(bridge: Any, pantry: Target) -> None:
    with pytest.raises(ModelError, match=r"layer 3 .* 0 to 2"):
        method("rmu").unlearn(bridge, pantry, small("rmu", layer=3))
    with pytest.raises(ModelError, match=r"layer -1 .* 0 to 2"):
        method("circuit_breaker").unlearn(bridge, pantry, small("circuit_breaker", layers=(-1,)))
    with pytest.raises(ModelError, match="no layer was named"):
        method("circuit_breaker").unlearn(bridge, pantry, small("circuit_breaker", layers=()))


def test_an_mlp_without_an_output_matrix_is_refused(bridge: Any, pantry: Target) -> None:
    experts = SimpleNamespace(mlp=SimpleNamespace(gate=None))
    mixed = SimpleNamespace(
        blocks=[bridge.blocks[0], experts],
        original_model=bridge.original_model,
        tokenizer=bridge.tokenizer,
    )
    for name in ("rmu", "cir"):
        with pytest.raises(ModelError, match=r"block 1 .* no single matrix"):
            method(name).unlearn(mixed, pantry, small(name))


def test_too_many_components_are_refused(bridge: Any, pantry: Target) -> None:
    with pytest.raises(ModelError, match="fewer components"):
        method("cir").unlearn(bridge, pantry, small("cir", components=31))
