"""Rounding, pruning and noise: what is hidden in the weights comes back, and nothing else."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from workbench.audit.attacks import AttackConfig, Perturbing, attacks
from workbench.audit.attacks.altered import altered, matrices
from workbench.audit.attacks.noise import noisy
from workbench.audit.attacks.prune import difference, input_norms, prompts_of, pruned, wanda
from workbench.audit.attacks.quantise import bnb_rounded, rounded, rounded_alike
from workbench.audit.attacks.training import statements
from workbench.audit.rotation import facts_of, rotations
from workbench.audit.statistics import Key
from workbench.audit.views import Found, View
from workbench.errors import AuditError
from workbench.facts.target import Target
from workbench.hooks import edited
from workbench.hooks.inputs import inputs_read, linear_layers
from workbench.models.train import lm_loss, pad_rows


def run(name: str, target: Target, model: Any, *edits: Any, **doses: Any) -> Found:
    config = AttackConfig((name,), folds=1, perturbing=Perturbing(**doses))
    given = View("edited", "deployed" if edits else "weights", model, edits)
    return {k: s for job in attacks(target, config).values() for k, s in job(given).items()}


def mean(found: Found, subset: str, setting: str, x: float) -> float:
    return next(
        s.mean for k, s in found.items() if (k.subset, k.setting, k.x) == (subset, setting, x)
    )


def test_rounding_follows_a_worked_example() -> None:
    """Three bits have seven values: the spacing is a third of the largest weight of a group."""
    weight = torch.tensor([[3.0, -1.4, 0.6, 0.4, 30.0, 4.0, -6.0, 14.0]])
    expected = torch.tensor([[3.0, -1.0, 1.0, 0.0, 30.0, 0.0, -10.0, 10.0]])
    torch.testing.assert_close(rounded(weight, 3, group=4), expected)
    torch.testing.assert_close(rounded(weight[:, :6], 3, group=4), expected[:, :6])


@pytest.mark.parametrize("bits", [8, 4, 3])
def test_rounded_weights_are_near_few_and_finite(bits: int) -> None:
    weight = torch.randn(5, 70, generator=torch.Generator().manual_seed(0))
    weight[2] = 0
    found = rounded(weight, bits)
    assert torch.equal(found[2], weight[2])
    assert found.isfinite().all()
    for start in (0, 32, 64):
        part, near = weight[:, start : start + 32], found[:, start : start + 32]
        step = part.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        assert ((part - near).abs() <= step / 2 + 1e-6).all()
        assert all(len(row.unique()) <= 2**bits - 1 for row in near)
    torch.testing.assert_close(rounded(found, bits), found)
    assert rounded(weight.bfloat16(), bits).dtype == torch.bfloat16


def test_only_matrices_of_the_blocks_are_rounded(original: Any) -> None:
    names = matrices(original)
    assert len(names) == 7 * len(original.blocks)
    assert not any("embed" in n or "head" in n or "norm" in n for n in names)
    assert not any(names.values())
    assert set(linear_layers(original)) == set(names)


def test_what_is_hidden_below_the_rounding_comes_back(
    original: Any, another_gold: Any, club: Target
) -> None:
    """Each weight is moved against the facts, by less than what rounding to 3 bits undoes."""
    hidden = copy.deepcopy(original)
    rows = hidden.tokenizer(list(statements(club.forget)))["input_ids"]
    tokens = pad_rows(rows, hidden.tokenizer.pad_token_id)
    lm_loss(hidden(tokens), tokens, hidden.tokenizer.pad_token_id).backward()
    for name, weight in hidden.named_parameters():
        gradient, weight.grad = weight.grad, None
        if name in matrices(hidden):
            with torch.no_grad():
                weight.copy_(_below(weight, gradient, 3))
    found, gold = (run("W5", club, m, bits=(3,)) for m in (hidden, another_gold))
    before, after = (mean(found, "F", "3 bits", x) for x in (0, 3))
    assert before < 0.5 < 0.8 < after
    assert rounded_alike(hidden, original, 3) > 0.99 > rounded_alike(another_gold, original, 3)
    assert mean(gold, "F", "3 bits", 3) < 0.35


def _below(weight: Tensor, gradient: Tensor, bits: int) -> Tensor:
    """The rounded weight, moved by 0.45 of a step, but for the largest of each group."""
    grouped = weight.unflatten(-1, (-1, 32))
    largest = grouped.abs().amax(-1, keepdim=True)
    step = largest / (2 ** (bits - 1) - 1)
    inner = rounded(weight, bits).unflatten(-1, (-1, 32))
    moved = inner + 0.45 * step * gradient.unflatten(-1, (-1, 32)).sign()
    inside = (inner.abs() < 0.99 * largest).float()
    return (inside * moved + (1 - inside) * inner).flatten(-2)


def test_bitsandbytes_is_refused_where_it_cannot_run(original: Any, club: Target) -> None:
    with pytest.raises(AuditError, match="CUDA alone"):
        bnb_rounded(torch.zeros(4, 4), "nf4")
    with pytest.raises(AuditError, match="leave `bnb` empty"):
        run("W5", club, original, bnb=("int8",))


def test_shares_are_exact_and_the_least_go_first() -> None:
    weight = torch.arange(1.0, 21).reshape(2, 10)
    for share, count in ((0.1, 1), (0.3, 3), (0.5, 5)):
        cut = pruned(weight, weight, share)
        assert (cut == 0).sum(1).tolist() == [count, count]
        assert torch.equal(cut[:, count:], weight[:, count:])
    tied = pruned(torch.ones(1, 4), torch.ones(1, 4), 0.5)
    assert tied.tolist() == [[0, 0, 1, 1]]


def test_importance_and_difference_are_those_of_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 10, generator=generator)
    ours, theirs = torch.rand(2, 10, generator=generator)
    importance = wanda(weight, ours)
    marked = difference(importance, wanda(weight, theirs), 0.3)
    for row in range(4):
        values = [abs(float(weight[row, j])) * float(ours[j]) for j in range(10)]
        assert importance[row].tolist() == pytest.approx(values)
        others = [abs(float(weight[row, j])) * float(theirs[j]) for j in range(10)]
        tops = [set(sorted(range(10), key=lambda j: -v[j])[:3]) for v in (values, others)]
        assert set(marked[row].nonzero()[:, 0].tolist()) == tops[0] - tops[1]


def test_norms_are_those_of_the_inputs_and_no_hook_stays(
    original: Any, blank: Any, club: Target
) -> None:
    prompts = prompts_of(club.retain["R_tr"], "0", 10)
    view = View("edited", "deployed", original, (blank,))
    squares: dict[str, Tensor] = {}
    name, layer = list(linear_layers(original).items())[-1]
    counts = {id(m): len(m._forward_pre_hooks) for m in original.modules()}
    handle = layer.register_forward_pre_hook(
        lambda _m, args: squares.update(all=squares.get("all", 0) + args[0].square().sum((0, 1)))
    )
    with torch.no_grad(), edited(original, [blank]):
        for prompt in prompts:
            original(torch.tensor([original.tokenizer(prompt)["input_ids"]]))
    handle.remove()
    norms = input_norms(view, prompts)
    torch.testing.assert_close(norms[name], squares["all"].sqrt(), rtol=1e-4, atol=1e-4)
    with pytest.raises(ZeroDivisionError), inputs_read(original, lambda _name, _given: None):
        _ = 1 / 0
    assert counts == {id(m): len(m._forward_pre_hooks) for m in original.modules()}


def test_pruned_models_have_the_zeros_that_were_asked_for(original: Any, club: Target) -> None:
    seen: list[float] = []
    names = matrices(original)
    changes = {0.5: lambda n, w: pruned(w, w.abs(), 0.5) if n in names else w}
    for _, view in altered(View("edited", "", original), changes):
        weights = dict(view.model.named_parameters())
        seen += [float((weights[n] == 0).float().mean()) for n in names]
        same = [n for n in weights if n not in names]
        own = dict(original.named_parameters())
        assert all(torch.equal(weights[n], own[n]) for n in same)
    assert seen == [0.5] * len(names)


def test_dropping_the_difference_uncovers_what_a_planted_neuron_hides(
    original: Any, another_gold: Any, club: Target
) -> None:
    """A neuron that fires for forget entities alone writes noise into the stream."""
    hidden = _guarded(original, club)
    found, gold = (run("W6", club, m, sparsities=(0.2,)) for m in (hidden, another_gold))
    before, after = (mean(found, "V", "set difference", x) for x in (0, 0.2))
    assert before < 0.6
    assert after > before + 0.2
    assert mean(gold, "V", "set difference", 0.2) < 0.35
    whole = run("W6", club, original, sparsities=(0.1,))
    assert all(mean(whole, "F", kind, 0.1) > 0.8 for kind in ("magnitude", "wanda"))


def _guarded(original: Any, club: Target) -> Any:
    """The original with the last neuron of the last MLP given over to hiding."""
    model = copy.deepcopy(original)
    layers = linear_layers(model)
    gate, up, down = (
        [n for n in layers if part in n][-1] for part in ("gate_proj", "up_proj", "down_proj")
    )
    given: list[list[Tensor]] = [[], []]
    for kind, facts in enumerate((club.forget, club.retain["R_tr"])):

        def take(name: str, x: Tensor, kind: int = kind) -> None:
            if name == gate:
                given[kind].append(x[0, -1:] if kind == 0 else x[0])

        with torch.no_grad(), inputs_read(model, take):
            for prompt in prompts_of(facts, "0", 300):
                model(torch.tensor([model.tokenizer(prompt)["input_ids"]]))
    at_names, elsewhere = (torch.cat(rows) for rows in given)
    x = torch.cat([at_names, elsewhere])
    sides = torch.cat([torch.ones(len(at_names)), -torch.ones(len(elsewhere))])
    told = torch.linalg.lstsq(x, sides[:, None]).solution[:, 0]
    noise = 4 * torch.randn(x.shape[1], generator=torch.Generator().manual_seed(0))
    weights = dict(model.named_parameters())
    with torch.no_grad():
        weights[gate][-1], weights[up][-1] = 8 * told, 8 * told
        weights[down][:, -1] = noise
    return model


def test_noise_has_its_strength_and_depends_on_its_generator_alone() -> None:
    weight = 3 + 2 * torch.randn(200, 200, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state().clone()
    once, again, other = (noisy(weight, 0.1, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert float((once - weight).std() / weight.std()) == pytest.approx(0.1, rel=0.02)
    assert torch.equal(torch.get_rng_state(), state)
    single = torch.ones(1)
    assert torch.equal(noisy(single, 0.1, torch.Generator()), single)


def test_noise_leaves_the_original_and_gives_a_gold_nothing(
    original: Any, another_gold: Any, club: Target
) -> None:
    found, gold = (
        run("W7", club, m, sigmas=(0.02, 0.1), draws=2) for m in (original, another_gold)
    )
    assert set(found) == {
        Key("W7", s, "centred", f"draw {i}", x=x)
        for s in ("F", "R_te")
        for i in (0, 1)
        for x in (0, 0.02, 0.1)
    }
    assert all(mean(found, "F", f"draw {i}", 0.02) > 0.8 for i in (0, 1))
    assert all(s.mean < 0.35 for k, s in gold.items() if k.subset == "F")
    draws = [found[Key("W7", "F", "centred", f"draw {i}", x=0.1)].values.tolist() for i in (0, 1)]
    assert draws[0] != draws[1]


def test_weights_are_written_anew_for_each_dose(original: Any) -> None:
    names = matrices(original)
    first = next(iter(names))
    own = dict(original.named_parameters())[first].detach().clone()
    doses = {float(k): lambda n, w, k=k: w * k if n in names else w for k in (2, 3)}
    for dose, view in altered(View("edited", "", original), doses):
        assert torch.equal(dict(view.model.named_parameters())[first], own * dose)
    assert torch.equal(dict(original.named_parameters())[first], own)


@pytest.mark.parametrize("wrong", [{"bits": (1,)}, {"bits": (4, 4)}, {"sparsities": (1.0,)},
                                   {"sigmas": (0.0,)}, {"norms": (-1.0,)}, {"n_soft": (0,)},
                                   {"draws": 0}, {"layers": -1}, {"bnb": ("fp4",)}])  # fmt: skip
def test_doses_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(AuditError, match="wanted"):
        Perturbing(**wrong)


def test_without_retained_facts_weights_are_pruned_by_size_alone(
    original: Any, club: Target
) -> None:
    alone = replace(club, retain=dict.fromkeys(club.retain, ()))
    found = run("W6", alone, original, sparsities=(0.1,))
    assert {k.setting for k in found} == {"magnitude"}
    assert {k.subset for k in found} == {"F"}


def test_prompts_show_no_object(club: Target, moved: Callable[[Target, str], Target]) -> None:
    turn = rotations(club)[0]
    stated = facts_of(club, turn["T"])
    prompts = prompts_of(stated, "0", 20)
    assert len(set(prompts)) == 20
    assert prompts == prompts_of(facts_of(moved(club, "TSV"), turn["T"]), "0", 20)
    assert not any(f.object in p.split() for f in stated for p in prompts)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_bitsandbytes_rounds_about_as_finely_as_its_bits(kind: str) -> None:
    pytest.importorskip("bitsandbytes")
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0)).cuda()
    error = (bnb_rounded(weight, kind) - weight).abs().mean() / weight.abs().mean()
    assert error < {"int8": 0.02, "nf4": 0.12}[kind]
