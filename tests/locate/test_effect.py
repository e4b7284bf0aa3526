"""Exact effects are those of whole edited forward passes, however they are computed."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.hooks.tiny import hooked
from workbench.errors import EditError, SAEError, SiteError, TargetError
from workbench.facts.schema import FactSet
from workbench.hooks import Site, edited, residuals
from workbench.interventions import Clamp, Rescale, but_bos
from workbench.locate import Prompt, effect, exact_effects
from workbench.models.score import next_logits

KINDS = ("topk", "standard", "jumprelu", "gated")
SITES = ("blocks.0.hook_resid_pre", "blocks.1.hook_resid_mid", "blocks.2.hook_resid_post")
FEATURES = torch.arange(0, 64, 3)


@pytest.fixture(scope="module")
def prompts(world: FactSet) -> tuple[Prompt, ...]:
    """Of different lengths, some twice, with answers of one and of three tokens."""
    asked = [(f, t) for f in world.facts[8:15:3] for t in f.templates]
    one = [Prompt(t.format(f.subject), f.subject, answer=f.object) for f, t in asked]
    more = [replace(p, answer=f"{p.answer} at home3") for p in one[::2]]
    return (*one, *more, replace(one[0], text=f"we keep {one[0].text}"), one[0])


def firing(model: Any, sae: Any, prompts: Any, n: int) -> Tensor:
    """The features that fire in most of the prompts, and one that fires in few or none."""
    site = Site.parse(sae.cfg.metadata.hook_name)
    fires = torch.zeros(64)
    for prompt in prompts:
        tokens = torch.tensor([model.tokenizer(prompt.text)["input_ids"]])
        fires += (sae.encode(residuals(model, tokens, [site])[site])[0, 1:] > 0).any(0)
    order = fires.argsort(descending=True)
    return torch.cat([order[:n], order[-1:]])


def without_answers(prompts: tuple[Prompt, ...]) -> tuple[Prompt, ...]:
    return tuple(replace(p, answer=None) for p in prompts)


def labelled(prompts: tuple[Prompt, ...]) -> tuple[Prompt, ...]:
    """The second and the last but one of each prompt's tokens count."""
    sizes = [len(p.text.split()) + 1 for p in prompts]
    return tuple(
        replace(p, answer=None, labels=tuple(i in (2, n - 2) for i in range(n)))
        for p, n in zip(prompts, sizes, strict=True)
    )


@torch.no_grad()
def said(model: Any, prompt: Prompt, edits: list[Any]) -> Tensor:
    """The answer's log-probability by itself, or all next-token log-probabilities."""
    ids = model.tokenizer(prompt.text)["input_ids"]
    answer = model.tokenizer(prompt.answer or "", add_special_tokens=False)["input_ids"]
    with edited(model, edits):
        logprobs = next_logits(model, torch.tensor([ids + answer]))[0].log_softmax(-1)
    if not answer:
        return logprobs
    return sum(logprobs[len(ids) - 1 + i, token] for i, token in enumerate(answer))


def slowly(
    model: Any, sae: Any, prompts: Any, features: Any, dose: float, base: Any, bos: bool
) -> Tensor:
    """One whole forward pass for every prompt and every set of features."""

    def loss(prompt: Prompt, chosen: list[int]) -> float:
        if not chosen:
            return 0.0
        which = torch.tensor(chosen)
        edit = Clamp(sae, which, dose) if dose else Rescale(sae, which, 0.0)
        edit = edit if bos else but_bos(edit)
        before, after = said(model, prompt, []), said(model, prompt, [edit])
        if prompt.answer is not None:
            return (before - after).item()
        apart = (before.exp() * (before - after)).sum(-1)
        if prompt.labels is None:
            return apart[-1].item()
        return apart[torch.tensor(prompt.labels)].mean().item()

    sets = [[*base, f] if f not in base else [*base] for f in features]
    return torch.tensor([[loss(p, s) for s in sets] for p in prompts])


def check(model: Any, sae: Any, prompts: Any, features: Any = FEATURES, **options: Any) -> Tensor:
    given = {"dose": 0.0, "base": torch.zeros(0, dtype=torch.long), "bos": False} | options
    found = exact_effects(model, sae, prompts, features, **given)
    base = given.pop("base").tolist()
    expected = slowly(model, sae, prompts, features.tolist(), base=base, **given)
    torch.testing.assert_close(found.each, expected, atol=1e-5, rtol=1e-4)
    alone = slowly(model, sae, prompts, base[:1], base=base, **given) if base else None
    wanted = torch.zeros(len(prompts)) if alone is None else alone[:, 0]
    torch.testing.assert_close(found.base, wanted, atol=1e-5, rtol=1e-4)
    return found.each


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dose", [0.0, -1.0])
def test_effects_are_those_of_whole_passes(
    bridge: Any, make_sae: Callable, prompts: Any, kind: str, site: str, dose: float
) -> None:
    sae = make_sae(kind, site=site)
    if kind == "jumprelu":
        sae.threshold.mul_(0.2)
    features = firing(bridge, sae, prompts, 6)
    each = check(bridge, sae, prompts[1::3], features, dose=dose)
    assert (each.abs() > 1e-3).sum() > 5


@pytest.mark.parametrize("dose", [0.0, -2.0])
@pytest.mark.parametrize("change", [tuple, without_answers, labelled])
@pytest.mark.parametrize("base", [[], [1, 5, 6]])
@pytest.mark.parametrize("bos", [False, True])
def test_effects_with_a_base_with_bos_and_without_answers(
    bridge: Any, sae: Any, prompts: Any, change: Any, base: list, bos: bool, dose: float
) -> None:
    chosen, features = torch.tensor(base, dtype=torch.long), firing(bridge, sae, prompts, 3)
    each = check(bridge, sae, change(prompts[::4]), features, dose=dose, base=chosen, bos=bos)
    assert (each.abs() > 1e-4).any()


def test_bos_makes_a_difference(bridge: Any, sae: Any, prompts: Any) -> None:
    with_, without = (
        exact_effects(bridge, sae, prompts, FEATURES, bos=b).each for b in (True, False)
    )
    assert (with_ - without).abs().max() > 1e-2


def test_a_feature_of_the_base_adds_nothing(bridge: Any, sae: Any, prompts: Any) -> None:
    one, two, three = firing(bridge, sae, prompts, 3)[:3, None]
    both = torch.cat([one, two])
    found = exact_effects(bridge, sae, prompts, torch.cat([two, three]), dose=-1.0, base=both)
    assert torch.equal(found.each[:, 0], found.base) and found.base.abs().max() > 1e-3
    assert not torch.allclose(found.each[:, 1], found.base)


@pytest.mark.parametrize("dose", [0.0, -1.0])
def test_a_feature_that_never_fires_has_no_effect_at_all(
    bridge: Any, make_sae: Callable, prompts: Any, dose: float
) -> None:
    sae = make_sae("standard")
    sae.b_enc[::2] = -1e3
    found = exact_effects(bridge, sae, prompts, torch.arange(64), dose=dose)
    assert not found.each[:, ::2].any()
    assert found.each[:, 1::2].any(0).all()
    assert not exact_effects(bridge, sae, prompts, torch.arange(0, 64, 2)).runs


def test_only_prompts_in_which_a_feature_fires_are_run(
    bridge: Any, make_sae: Callable, prompts: Any
) -> None:
    sae = make_sae("topk")
    found = exact_effects(bridge, sae, prompts, torch.arange(64))
    assert found.runs == (found.each != 0).sum() < found.each.numel()


def test_limits_change_nothing(
    bridge: Any, sae: Any, prompts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"dose": -1.0, "base": torch.tensor([2])}
    kinds = [prompts[5:8], without_answers(prompts[:2]), labelled(prompts[:2])]
    wanted = [exact_effects(bridge, sae, p, FEATURES, **options) for p in kinds]
    limits = [(1, 1, 1, 1), (30, 40, 4000, 1), (30, 40, 4000, 10**6), (4096, 40, 2**25, 2)]
    for first, rerun, values, same in limits:
        monkeypatch.setattr(effect, "FIRST_TOKENS", first)
        monkeypatch.setattr(effect, "RERUN_TOKENS", rerun)
        monkeypatch.setattr(effect, "VALUES", values)
        monkeypatch.setattr(effect, "SAME_START", same)
        for p, expected in zip(kinds, wanted, strict=True):
            found = exact_effects(bridge, sae, p, FEATURES, **options)
            torch.testing.assert_close(found.each, expected.each, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(found.base, expected.base, atol=1e-5, rtol=1e-4)


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for part in out if isinstance(out, tuple | list) else (out,):
            # A view, or a number that is repeated, holds nothing of its own.
            if isinstance(part, Tensor) and part.untyped_storage().nbytes():
                held = part.untyped_storage().nbytes() // part.element_size()
                self.numel = max(self.numel, min(held, part.numel()))
        return out


def largest(values: int, monkeypatch: pytest.MonkeyPatch, call: Callable[[], Any]) -> int:
    monkeypatch.setattr(effect, "VALUES", values)
    with Largest() as seen:
        call()
    return seen.numel


@pytest.mark.parametrize("change", [tuple, without_answers, labelled])
def test_no_tensor_is_larger_than_the_limit(
    bridge: Any, make_sae: Callable, prompts: Any, change: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the effects themselves, and the weights."""
    sae = make_sae("topk", d_sae=512)
    few, every = change(prompts[:4]), torch.arange(512)
    weights = max(p.numel() for p in (*bridge.parameters(), *sae.parameters()))
    assert weights == 512 * 32

    def call() -> Any:
        return exact_effects(bridge, sae, few, every, dose=-1.0, base=torch.tensor([3]))

    bound = 20_000
    assert largest(bound, monkeypatch, call) <= bound
    assert largest(2**25, monkeypatch, call) > bound


def test_hooked_transformer_gives_the_effects_of_whole_passes(
    make_sae: Callable, tokenizer: Any, prompts: Any
) -> None:
    lens = hooked(len(tokenizer))
    lens.tokenizer = tokenizer
    check(lens, make_sae("topk"), prompts[::3], FEATURES[::5], dose=-1.0)


def test_inside_an_edit_effects_are_beside_it(bridge: Any, sae: Any, prompts: Any) -> None:
    few, features = prompts[:2], firing(bridge, sae, prompts[:2], 3)[:3]
    edit = Rescale(sae, features[:2], 0.5)
    bare = exact_effects(bridge, sae, few, features[2:]).each
    with edited(bridge, [edit]):
        inside = exact_effects(bridge, sae, few, features[2:]).each
    both = [edit, but_bos(Rescale(sae, features[2:], 0.0))]
    expected = said(bridge, few[0], [edit]) - said(bridge, few[0], both)
    assert inside[0, 0].item() == pytest.approx(expected.item(), abs=1e-5)
    assert not torch.allclose(inside, bare, atol=1e-4)


def test_inside_an_edit_that_remembers_there_are_no_effects(
    bridge: Any, sae: Any, prompts: Any
) -> None:
    """It must see every sequence from its start."""
    with (
        pytest.raises(SiteError, match="an edit that remembers"),
        edited(bridge, [but_bos(Rescale(sae, FEATURES))]),
    ):
        exact_effects(bridge, sae, prompts[:2], FEATURES)


def test_no_features_and_no_gradients(bridge: Any, sae: Any, prompts: Any) -> None:
    none = torch.zeros(0, dtype=torch.long)
    found = exact_effects(bridge, sae, prompts, none, base=torch.tensor([3, 6]))
    assert found.each.shape == (len(prompts), 0) and found.base.abs().max() > 1e-3
    assert not found.base.requires_grad
    assert all(p.grad is None for p in bridge.parameters())


# Errors


def test_some_prompts_with_answers_are_an_error(bridge: Any, sae: Any, prompts: Any) -> None:
    mixed = (prompts[0], *without_answers(prompts[1:2]))
    with pytest.raises(EditError, match="some prompts have an answer and some do not"):
        exact_effects(bridge, sae, mixed, FEATURES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": (True,)}, "but 1 labels"),
        ({"labels": (True, False, False, False, False, False)}, "no token after BOS that counts"),
        ({"subject": "item toxin7"}, "does not hold its subject 'item toxin7'"),
    ],
)
def test_prompts_that_do_not_fit_are_an_error(
    bridge: Any, sae: Any, changes: dict, message: str
) -> None:
    prompt = replace(Prompt("we keep item food3 at", "food"), **changes)
    with pytest.raises(TargetError, match=message):
        exact_effects(bridge, sae, [prompt], FEATURES)


@pytest.mark.parametrize("dose", [0.0, -1.0])
def test_only_doses_want_largest_activations(
    bridge: Any, make_sae: Callable, prompts: Any, dose: float
) -> None:
    sae = make_sae(stats=())
    if not dose:
        assert exact_effects(bridge, sae, prompts[:1], FEATURES).each.any()
        return
    with pytest.raises(SAEError, match="doses are multiples"):
        exact_effects(bridge, sae, prompts[:1], FEATURES, dose=dose)


def test_sae_that_normalizes_its_input_is_refused(
    bridge: Any, make_sae: Callable, prompts: Any
) -> None:
    sae = make_sae("standard")
    sae.cfg.normalize_activations = "layer_norm"
    with pytest.raises(EditError, match="normalizes its input"):
        exact_effects(bridge, sae, prompts[:1], FEATURES)
    sae = make_sae("topk")
    sae.cfg.rescale_acts_by_decoder_norm = True
    assert exact_effects(bridge, sae, prompts[:1], FEATURES).each.any()
    sae.W_dec.mul_(2)
    with pytest.raises(EditError, match="fold_W_dec_norm"):
        exact_effects(bridge, sae, prompts[:1], FEATURES)


@pytest.fixture(autouse=True)
def nothing_is_left_on_the_bridge(bridge: Any) -> Iterator[None]:
    yield
    assert all(block._compiled_call_impl is None for block in bridge.blocks)
