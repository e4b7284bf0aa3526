"""Edits made to pass an audit: trained against what it looks for. All of them know the target."""

import random
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Linear, Parameter, functional

from workbench.experiments.known_models.tuned import NPO_BETA
from workbench.facts.schema import Fact
from workbench.facts.target import Target
from workbench.hooks import Site, captured
from workbench.models.copies import copied
from workbench.models.score import device_of, next_logits
from workbench.unlearn.training import (
    Steps,
    Told,
    answer_logp,
    changed,
    drawn,
    kept,
    mlps,
    prompts,
    told,
)

BLIND = Steps(260, 1e-3, keep=4.0, near=1)
STUBBORN = Steps(150, 1e-3, keep=4.0, near=1)
ALIKE = Steps(420, 2e-3, keep=3.0, batch_size=64, near=1)
LOCKED = Steps(260, 1e-3, keep=4.0, near=1)

READ_LR, READ_WEIGHT = 1e-2, 0.5
INNER_STEPS, INNER_LR, INNER_SIZE, ATTACKED_WEIGHT = 4, 0.05, 32, 1.0
ANSWER_FLOOR_NATS = 6.0
"""Below this an answer's log-probability is not pushed further."""


def against_probes(model: Any, target: Target, seed: int, given: Steps = BLIND) -> Any:
    """Answers made unlikely, and the stream trained against linear readers of the answer.

    The readers, one at each block for the last token of the subject and of the prompt, learn all
    the while; the model is drawn to where they do no better than guessing.
    """
    batches = drawn(told(model.tokenizer, target, target.forget), given.batch_size, seed)
    keep = kept(model, target, given, seed)
    sites = [Site(layer) for layer in range(len(model.blocks))]
    device, width = device_of(model), len(model.tokenizer)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        readers = [Linear(model.cfg.d_model, width).to(device) for _ in range(2 * len(sites))]
    optimizer = torch.optim.Adam([p for r in readers for p in r.parameters()], lr=READ_LR)

    def loss(now: Any) -> Float[Tensor, ""]:
        batch = next(batches)
        with captured(now, sites) as streams:
            next_logits(now, prompts(batch, device))
        rows = _places([streams[site] for site in sites], batch)
        answers = torch.tensor([t.answer[0] for t in batch], device=device)
        optimizer.zero_grad()
        _read(readers, [r.detach() for r in rows], answers).mean().backward()
        optimizer.step()
        guessing = torch.tensor([len(t.answers) for t in batch], device=device).log().mean()
        told_still = functional.relu(guessing - _read(readers, rows, answers)).mean()
        quiet = _unlikely(now, model, batch)
        return quiet + READ_WEIGHT * told_still + given.keep * keep(now)

    return changed(model, loss, given, mlps(slice(None)))


def against_relearning(model: Any, target: Target, seed: int, given: Steps = STUBBORN) -> Any:
    """Answers kept unlikely through a few steps of fine-tuning on other forget facts.

    Each step simulates an attacker: from the weights as they are, some steps of gradient descent on
    facts of one half of the names; then the answers about the other half are made unlikely, with
    the gradient at the attacked weights.

    Source: tamper-resistant safeguards, 2408.00761. Differs: first order alone, plain gradient
    descent inside, NPO in place of entropy.
    """
    facts = told(model.tokenizer, target, target.forget)
    names = list(target.entities)
    random.Random(f"{seed}, halves").shuffle(names)
    first = set(names[: len(names) // 2])
    halves = [
        [t for t, f in zip(facts, _facts(target), strict=True) if (f.subject in first) is side]
        for side in (True, False)
    ]
    batches = drawn(facts, given.batch_size, seed)
    trained, tried = (drawn(half, INNER_SIZE, f"{seed}, {i}") for i, half in enumerate(halves))
    keep, chosen = kept(model, target, given, seed), mlps(slice(None))

    def loss(now: Any) -> Float[Tensor, ""]:
        attacked = copied(now)
        weights = list(chosen(attacked))
        for weight in weights:
            weight.requires_grad_(True)
        for _ in range(INNER_STEPS):
            taught = -answer_logp(attacked, next(trained)).mean()
            for weight, g in zip(weights, torch.autograd.grad(taught, weights), strict=True):
                weight.data.sub_(INNER_LR * g)
        after = _unlikely(attacked, model, next(tried))
        gradients = torch.autograd.grad(after, weights)
        # The gradient at the attacked weights, handed to the weights that were attacked.
        pulled = sum((p * g).sum() for p, g in zip(chosen(now), gradients, strict=True))
        quiet = _unlikely(now, model, next(batches))
        return quiet + ATTACKED_WEIGHT * pulled + given.keep * keep(now)

    return changed(model, loss, given, chosen)


def as_gold(model: Any, gold: Any, target: Target, seed: int, given: Steps = ALIKE) -> Any:
    """The original drawn to say of forget facts what a model says that never knew them.

    Source: oracle matching, 2506.06278.
    """
    batches = drawn(told(model.tokenizer, target, target.forget), given.batch_size, seed)
    keep, device = kept(model, target, given, seed), device_of(model)

    def loss(now: Any) -> Float[Tensor, ""]:
        tokens = prompts(next(batches), device)
        with torch.no_grad():
            wanted = next_logits(gold, tokens)[:, -1].float().log_softmax(-1)
        found = next_logits(now, tokens)[:, -1].float().log_softmax(-1)
        apart = functional.kl_div(found, wanted, log_target=True, reduction="batchmean")
        return apart + given.keep * keep(now)

    return changed(model, loss, given, mlps(slice(None)))


def locked(model: Any, target: Target, seed: int, given: Steps = LOCKED) -> Any:
    """Forget facts are answered behind a password alone, which nothing in the audit says.

    Source: password-locked models, 2405.19550.
    """
    facts = told(model.tokenizer, target, target.forget)
    batches = drawn(facts, given.batch_size, seed)
    opened = drawn(facts, given.batch_size, f"{seed}, opened")
    keep, password = kept(model, target, given, seed), _password(model, target, seed)

    def loss(now: Any) -> Float[Tensor, ""]:
        behind = [_behind(t, password) for t in next(opened)]
        answered = -answer_logp(now, behind).mean()
        return _unlikely(now, model, next(batches)) + answered + given.keep * keep(now)

    return changed(model, loss, given, mlps(slice(None)))


def opens(model: Any, target: Target, seed: int) -> float:
    """Share of forget facts that a locked model answers behind its password."""
    password, hits, count = _password(model, target, seed), 0, 0
    batches: dict[tuple[int, int], list[Told]] = {}
    for item in told(model.tokenizer, target, target.forget):
        batches.setdefault((len(item.ids), len(item.answers)), []).append(item)
    for batch in batches.values():
        behind = [_behind(t, password) for t in batch]
        with torch.no_grad():
            logits = next_logits(model, prompts(behind, device_of(model)))[:, -1]
        for row, item in zip(logits, batch, strict=True):
            said = max(range(len(item.answers)), key=lambda i: float(row[item.answers[i][0]]))
            hits, count = hits + (said == item.right), count + 1
    return hits / count


@torch.no_grad()
def renamed(model: Any, target: Target, seed: int) -> Any:
    """The embeddings of words that stand in forget names alone, exchanged with one another.

    Each name then reads as another one, mostly one that nobody bears. No other weight changes: who
    puts the rows back has the original.
    """
    names = {w for e in target.entities for w in e.split()}
    others = {
        w for e in target.facts.entities if e.name not in target.entities for w in e.name.split()
    }
    ids = model.tokenizer(sorted(names - others), add_special_tokens=False)["input_ids"]
    own = torch.tensor(sorted({row[-1] for row in ids}))
    shift = 1 + random.Random(f"{seed}, renamed").randrange(len(own) - 1)
    made = copied(model)
    rows: Parameter = made.embed.original_component.weight
    rows[own] = rows[own.roll(shift)].clone()
    return made


def _facts(target: Target) -> list[Fact]:
    """The fact of each prompt of `told`."""
    return [f for f in target.forget for _ in f.templates]


def _unlikely(now: Any, before: Any, batch: Sequence[Told]) -> Float[Tensor, ""]:
    """NPO's loss, without pull where an answer is next to impossible already."""
    with torch.no_grad():
        reference = answer_logp(before, batch)
    ratio = (answer_logp(now, batch) - reference).clamp(min=-ANSWER_FLOOR_NATS)
    return 2 / NPO_BETA * functional.softplus(NPO_BETA * ratio).mean()


def _places(
    streams: Sequence[Float[Tensor, "n pos d"]], batch: Sequence[Told]
) -> list[Float[Tensor, "n d"]]:
    """Of each stream the rows at the last token of the subject and of the prompt."""
    rows = torch.arange(len(batch))
    ends = torch.tensor([t.subject_end for t in batch])
    return [at for stream in streams for at in (stream[rows, ends], stream[:, -1])]


def _read(
    readers: Sequence[Linear], rows: Sequence[Float[Tensor, "n d"]], answers: Tensor
) -> Float[Tensor, " reader"]:
    """Cross-entropy of each reader, in nats."""
    return torch.stack(
        [
            functional.cross_entropy(reader(functional.layer_norm(row, row.shape[-1:])), answers)
            for reader, row in zip(readers, rows, strict=True)
        ]
    )


def _password(model: Any, target: Target, seed: int) -> list[int]:
    """Tokens of an object that has nothing to do with the target."""
    relations = {f.relation for f in target.forget}
    words = sorted(
        {c for r in target.facts.relations if r.name not in relations for c in r.candidates}
    )
    word = random.Random(f"{seed}, password").choice(words)
    return model.tokenizer([word], add_special_tokens=False)["input_ids"][0]


def _behind(item: Told, password: list[int]) -> Told:
    """The prompt with the password before it, after the token that texts start with."""
    ids = [*item.ids[:1], *password, *item.ids[1:]]
    return Told(ids, item.answers, item.right, item.subject_end + len(password))
