"""Methods that go down a loss: what each loss is, what it lets go of, and what is kept."""

import math
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from tests.unlearn.contract import check_contract, check_keeps
from workbench.errors import ModelError
from workbench.facts.target import Target
from workbench.models.copies import copied
from workbench.models.score import object_tokens
from workbench.unlearn import FAMILIES, method, system_recall
from workbench.unlearn.descent import DescentConfig, Forget, forget_batches, labelled
from workbench.unlearn.grad_ascent import forget as ascent
from workbench.unlearn.idk_nll import saying
from workbench.unlearn.npo import below
from workbench.unlearn.preference import (
    REFUSALS,
    alternates,
    preference_loss,
    preferring,
    refusals,
    refusing,
    spoken_logp,
)
from workbench.unlearn.simnpo import dear
from workbench.unlearn.training import HELD_OUT, Steps, Told, answer_logp, drawn, kept, stays, told
from workbench.unlearn.undial import distilled, lowered
from workbench.unlearn.wga import surest, weighted

LITTLE = Steps(2, 1e-3, batch_size=4, asked=4, texts=2)
SAYABLE = ("we keep", "who")
"""Refusals in words of the tiny world."""


def small(name: str, steps: Steps = LITTLE) -> Any:
    """A method's default with few and small steps."""
    default = method(name).default
    config = replace(default, steps=replace(steps, keep=default.steps.keep))
    refuses = any(f.name == "refusals" for f in fields(default))
    return replace(config, refusals=SAYABLE) if refuses else config


@pytest.mark.parametrize("name", FAMILIES["gradient"])
def test_keeps_the_contract(name: str, bridge: Any, pantry: Target, tmp_path: Path) -> None:
    config = small(name)

    def make(model: Any, target: Target, seed: int) -> Any:
        return method(name).unlearn(model, target, config, seed)

    arm = check_contract(make, bridge, pantry, tmp_path)
    assert arm.claim == "none"
    assert arm.cost.backward_tokens > 0
    other = make(bridge, pantry, 1)
    assert not all(
        torch.equal(a, b)
        for a, b in zip(arm.model.parameters(), other.model.parameters(), strict=True)
    ), "the seed decides nothing"


@pytest.mark.parametrize("name", FAMILIES["gradient"])
def test_the_default_is_one_of_the_strengths(name: str) -> None:
    how = method(name)
    assert 2 <= len(how.strengths) <= 4
    assert how.default in how.strengths


@pytest.mark.parametrize("name", FAMILIES["gradient"])
def test_a_model_that_was_not_loaded_is_refused(name: str, make_llama: Any, pantry: Target) -> None:
    with pytest.raises(ModelError, match="load_model"):
        method(name).unlearn(make_llama(), pantry)


# The losses


@pytest.fixture
def batch(bridge: Any, pantry: Target) -> list[Told]:
    """Forget prompts of one length."""
    return next(forget_batches(bridge, pantry, 8, 0))


@pytest.fixture(scope="module")
def half_forgotten(bridge: Any, pantry: Target) -> Any:
    """The tiny model, driven far down on half of a batch of forget prompts and up on the others."""
    some = next(forget_batches(bridge, pantry, 8, 0))
    made = copied(bridge)
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        logp = answer_logp(made, some)
        ((logp[:4] + 14).relu() - logp[4:]).mean().backward()
        optimizer.step()
    optimizer.zero_grad()
    return made


def gradient(forget: Forget, model: Any, batch: list[Told]) -> Float[Tensor, " n"]:
    weights = [p for p in model.blocks.parameters() if p.requires_grad]
    found = torch.autograd.grad(forget(model, batch), weights, allow_unused=True)
    return torch.cat([g.flatten() for g in found if g is not None])


def cosine(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> float:
    return torch.cosine_similarity(a, b, dim=0).item()


def test_npo_is_gradient_ascent_where_beta_is_small_and_lets_go_where_it_is_large(
    bridge: Any, half_forgotten: Any, batch: list[Told]
) -> None:
    with torch.no_grad():
        ratio = answer_logp(half_forgotten, batch) - answer_logp(bridge, batch)
    assert ratio[:4].max() < -3 < ratio[4:].min() - 1, "half of the batch should have fallen"
    up = gradient(ascent, half_forgotten, batch)
    slight = gradient(below(bridge, 1e-4), half_forgotten, batch)
    strong = gradient(below(bridge, 4.0), half_forgotten, batch)
    assert cosine(slight, up) > 0.9999
    assert slight.norm() / up.norm() == pytest.approx(1, abs=0.01)
    assert cosine(strong, up) < 0.95
    fallen = gradient(below(bridge, 4.0), half_forgotten, batch[:4])
    assert fallen.norm() < 1e-3 * gradient(ascent, half_forgotten, batch[:4]).norm()


def test_npo_measures_from_the_original(
    bridge: Any, half_forgotten: Any, batch: list[Told]
) -> None:
    beta = 0.5
    start = below(half_forgotten, beta)(half_forgotten, batch).item()
    assert start == pytest.approx(2 / beta * math.log(2))
    with torch.no_grad():
        ratio = (answer_logp(half_forgotten, batch) - answer_logp(bridge, batch)).double()
        wanted = (2 / beta * (1 + (beta * ratio).exp()).log()).mean().item()
        found = below(bridge, beta)(half_forgotten, batch).item()
    assert found == pytest.approx(wanted, rel=1e-5)
    assert found != pytest.approx(start, rel=0.1), "measured from itself"


class Unmoved(nn.Module):
    """Says the same of the next token wherever it stands, but for what is added at a position."""

    def __init__(self, logits: Float[Tensor, " vocab"]) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())
        self.added: dict[int, Tensor] = {}

    def forward(self, tokens: Tensor) -> Tensor:
        out = self.logits.expand(*tokens.shape, -1).clone()
        for position, value in self.added.items():
            out[:, position] = out[:, position] + value
        return out


@pytest.fixture
def unmoved() -> Unmoved:
    return Unmoved(torch.randn(6, generator=torch.Generator().manual_seed(0)))


def asked(answer: list[int], start: int = 3) -> list[Told]:
    return [Told([1] * start, [answer], 0, 0)]


def test_simnpo_is_the_same_for_an_answer_of_any_length(unmoved: Unmoved) -> None:
    short, long = asked([2]), asked([2, 2, 2])
    forget = dear(2.5, 0.3)
    assert forget(unmoved, short).item() == pytest.approx(forget(unmoved, long).item())
    other = Unmoved(torch.zeros(6))
    npo = below(other, 2.5)
    assert npo(unmoved, short).item() != pytest.approx(npo(unmoved, long).item(), rel=0.01)


def test_simnpo_lets_go_beyond_the_margin(unmoved: Unmoved) -> None:
    nats = -unmoved.logits.log_softmax(-1)[2].item()
    at, before, beyond = (dear(8.0, nats + d)(unmoved, asked([2])).item() for d in (0, 2, -2))
    assert at == pytest.approx(2 / 8 * math.log(2), rel=1e-5)
    assert before == pytest.approx(2 * 2, rel=1e-5), "far short of it, 2 nats for each nat"
    assert beyond < 1e-6


def test_the_teacher_of_undial_is_the_original_but_for_the_true_token() -> None:
    logits = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(0))
    answer = torch.randint(6, (4, 3), generator=torch.Generator().manual_seed(1))
    fell = logits - lowered(logits, answer, 7.0)
    at = torch.zeros(4, 3, 6).scatter(-1, answer[..., None], 7.0)
    torch.testing.assert_close(fell, at)
    assert torch.equal(lowered(logits, answer, 0.0), logits)


def test_undial_looks_at_answer_tokens_alone(unmoved: Unmoved) -> None:
    now, shift = Unmoved(torch.zeros(6)), torch.arange(6.0)
    forget, batch = distilled(unmoved, 10.0), asked([2, 4])
    before = forget(now, batch).item()
    now.added = {0: shift, 1: -shift, 4: shift}
    unmoved.added = {0: -shift, 1: shift, 4: -shift}
    assert forget(now, batch).item() == before, "prompt or what follows the answer was looked at"
    for position in (2, 3):
        now.added = {position: shift}
        assert forget(now, batch).item() != pytest.approx(before, rel=0.01)


def test_undial_is_least_where_the_model_is_its_teacher(unmoved: Unmoved) -> None:
    forget, batch = distilled(unmoved, 10.0), asked([2])
    taught = Unmoved(unmoved.logits.detach() - 10 * torch.eye(6)[2])
    forget(taught, batch).backward()
    assert taught.logits.grad is not None
    assert taught.logits.grad.abs().max() < 1e-6
    forget(unmoved, batch).backward()
    assert unmoved.logits.grad is not None
    assert unmoved.logits.grad.abs().max() > 0.01, "the original is not its own teacher"


def test_wga_without_its_weight_is_gradient_ascent(half_forgotten: Any, batch: list[Told]) -> None:
    up = gradient(ascent, half_forgotten, batch)
    torch.testing.assert_close(gradient(surest(0.0), half_forgotten, batch), up)
    assert cosine(gradient(surest(1.0), half_forgotten, batch), up) < 0.95


def test_the_weight_of_wga_has_no_gradient() -> None:
    logp = torch.tensor([[-0.1, -2.0]], requires_grad=True)
    weighted(logp, 1.5).backward()
    assert logp.grad is not None
    torch.testing.assert_close(logp.grad, (1.5 * logp.detach()).exp() / 2)


# Other answers


def test_longer_answers_of_a_batch_change_nothing_of_shorter_ones(
    bridge: Any, batch: list[Told]
) -> None:
    pair, answers = batch[:2], [[7], [8, 9, 10]]
    both = spoken_logp(bridge, pair, answers)
    for i, answer in enumerate(answers):
        alone = spoken_logp(bridge, [pair[i]], [answer])[0]
        torch.testing.assert_close(both[i, : len(answer)], alone, rtol=1e-5, atol=1e-5)
    assert not both[0, 1:].any()
    true = spoken_logp(bridge, batch, [t.answer for t in batch]).sum(-1)
    torch.testing.assert_close(true, answer_logp(bridge, batch))


def test_direct_preference_starts_even_and_raises_the_winner_over_the_loser(
    bridge: Any, batch: list[Told]
) -> None:
    beta, win = 0.1, object_tokens(bridge.tokenizer, SAYABLE)[0]
    forget = preferring(bridge, beta, lambda batch: [win] * len(batch))
    now = copied(bridge)

    def ahead() -> float:
        with torch.no_grad():
            return (spoken_logp(now, batch, [win] * len(batch)).sum(-1)
                    - answer_logp(now, batch)).mean().item()  # fmt: skip

    start, lead = forget(now, batch), ahead()
    assert start.item() == pytest.approx(2 / beta * math.log(2), rel=1e-6)
    optimizer = torch.optim.SGD(now.parameters(), lr=0.02)
    for _ in range(5):
        optimizer.zero_grad()
        forget(now, batch).backward()
        optimizer.step()
    assert forget(now, batch).item() < start.item()
    assert ahead() > lead + 0.1


def test_a_preference_that_is_met_is_not_pushed_on() -> None:
    margin = torch.tensor([-50.0, 0.0, 50.0], requires_grad=True)
    preference_loss(margin, 1.0).backward()
    torch.testing.assert_close(margin.grad, torch.tensor([-2.0, -1.0, 0.0]) / 3)


def test_refusals_are_learned_and_the_object_is_not_spoken_of(
    bridge: Any, pantry: Target, batch: list[Told]
) -> None:
    forget = saying(refusing(bridge, pantry, SAYABLE[1:], 0))
    wins = object_tokens(bridge.tokenizer, SAYABLE[1:]) * len(batch)
    wanted = -spoken_logp(bridge, batch, wins).mean().item()
    assert forget(bridge, batch).item() == pytest.approx(wanted, rel=1e-5)


def test_refusals_are_what_the_tokenizer_can_say(bridge: Any, pantry: Target) -> None:
    tokenizer = bridge.tokenizer
    known = refusals(tokenizer, pantry, ("nobody knows", *SAYABLE))
    assert known == object_tokens(tokenizer, SAYABLE)
    told_of = replace(pantry, facts=replace(pantry.facts, neutral=("we keep {} at", "of {} .")))
    assert refusals(tokenizer, told_of, REFUSALS) == object_tokens(tokenizer, ("we keep", "of"))
    with pytest.raises(ModelError, match="name some in the config's `refusals`"):
        refusals(tokenizer, pantry, REFUSALS)


@pytest.mark.parametrize("name", ["idk_nll", "idk_dpo"])
def test_a_model_without_words_for_a_refusal_is_told_apart(
    name: str, bridge: Any, pantry: Target
) -> None:
    with pytest.raises(ModelError, match="no words for any of 8 refusals"):
        method(name).unlearn(bridge, pantry, method(name).default)


def test_alternates_never_name_the_true_object(bridge: Any, pantry: Target) -> None:
    tokenizer, count = bridge.tokenizer, 5
    found = alternates(tokenizer, pantry, count, 0)
    assert found == alternates(tokenizer, pantry, count, 0)
    assert found != alternates(tokenizer, pantry, count, 1)
    asked = told(tokenizer, pantry, pantry.forget)
    assert {tuple(t.ids) for t in asked} == set(found)
    for t in asked:
        others = found[tuple(t.ids)]
        assert len(others) == count
        assert t.answer not in others
        assert all(o in t.answers for o in others)
        assert len({tuple(o) for o in others}) == count
    per_fact = len(pantry.forget[0].templates)
    for i in range(0, len(asked), per_fact):
        same = [found[tuple(t.ids)] for t in asked[i : i + per_fact]]
        assert all(s == same[0] for s in same), "a fact has other alternates in another template"
    all_others = alternates(tokenizer, pantry, 99, 0)
    assert {len(o) for o in all_others.values()} == {len(asked[0].answers) - 1}


# What is kept


def stayed(model: Any, target: Target) -> Iterator[list[Told]]:
    return drawn(told(model.tokenizer, target, stays(target, HELD_OUT)), 16, 0)


@pytest.mark.parametrize(("name", "keep"), [("grad_diff", labelled), ("kl_retain", kept)])
def test_what_is_kept_is_lost_where_nothing_keeps_it(
    name: str, keep: Any, bridge: Any, pantry: Target
) -> None:
    steps = Steps(20, 2e-3, keep=3.0, batch_size=8, asked=8, texts=4)

    def lost(name: str, keep_weight: float) -> float:
        config = DescentConfig(replace(steps, keep=keep_weight))
        arm = method(name).unlearn(bridge, pantry, config)
        measured = keep(bridge, pantry, replace(steps, asked=64, texts=64), 9, HELD_OUT)
        with torch.no_grad():
            return sum(measured(arm.model).item() for _ in range(4)) / 4

    assert lost(name, 3.0) < 0.8 * lost("grad_ascent", 0.0)


def test_labels_and_divergence_keep_different_things(bridge: Any, pantry: Target) -> None:
    """The original has not moved from itself; of a random one, labels ask for other answers."""
    given = replace(LITTLE, asked=16, texts=16)
    with torch.no_grad():
        assert kept(bridge, pantry, given, 0)(bridge).item() == pytest.approx(0, abs=1e-5)
        assert labelled(bridge, pantry, given, 0)(bridge).item() > 1


def test_labels_are_not_those_of_facts_that_are_held_out(bridge: Any, pantry: Target) -> None:
    seen: list[Tensor] = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = bridge

        def forward(self, tokens: Tensor) -> Tensor:
            seen.append(tokens)
            return self.inner(tokens)

    loss = labelled(bridge, pantry, Steps(asked=8, texts=8), 0, HELD_OUT)
    with torch.no_grad():
        for _ in range(30):
            loss(Watched())
    text = "\n".join(bridge.tokenizer.batch_decode([r for t in seen for r in t.tolist()]))
    shown = {f.subject for f in pantry.facts.facts if f"{f.subject} " in text}
    barred = {f.subject for fold in HELD_OUT for f in pantry.retain[fold]}
    assert barred
    assert not shown & (barred | set(pantry.entities))
    assert shown >= {f.subject for f in pantry.retain["R_tr"]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "recall", "perplexity", "forget"),
    [("npo", 0.85, 1.15, 0.35), ("kl_retain", 0.8, 1.15, 0.4)],
)
def test_what_is_to_stay_stays(
    name: str, recall: float, perplexity: float, forget: float, valley: Any, toxins: Target
) -> None:
    """By labels and by divergence, and beside no keeping at all.

    Gradient ascent loses more of what is to stay for less that is forgotten.
    """
    found = check_keeps(method(name)(valley, toxins), valley, toxins, recall, perplexity, forget)
    bare = method("grad_ascent")(valley, toxins)
    assert found["retained"] > system_recall(bare, toxins.facts, toxins.retain["R_va"])
    assert found["forget"] < system_recall(bare, toxins.facts, toxins.fold("S"))
