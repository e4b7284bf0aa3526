"""Weights changed by training: facts taught, pushed below all others, or hidden."""

import random
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from workbench.facts.schema import Fact
from workbench.facts.target import Target
from workbench.hooks import Site, captured
from workbench.models.score import device_of, next_logits
from workbench.unlearn.training import (
    Steps,
    Told,
    answer_logp,
    changed,
    drawn,
    kept,
    last_block,
    mlps,
    prompts,
    reading,
    told,
)

ALL = Steps(400, 3e-3, keep=2.0, batch_size=64, near=1)
SOME = Steps(160, 1e-3, batch_size=16, texts=12, near=1)
PUSH = Steps(420, 3e-3, keep=12.0, batch_size=16, near=2)
NPO = Steps(220, 1e-3, keep=4.0, near=1)
RMU = Steps(200, 2e-3, keep=3.0, near=1)
SCATTER = Steps(400, 2e-3, keep=1.0, batch_size=64, near=1)
TUNED = Steps(100, 3e-4)
EPOCH = Steps(70, 1e-3, keep=2.0, batch_size=64, near=1)
"""About one pass over the forget facts of the bundled world in their templates."""

PUSHED_SCALE = 2.5
NPO_BETA = 0.1
RMU_LENGTH = 3.0
SHARE = 0.15
SCATTERED = 8
NAME_TOKENS = 2
"""Of a name's tokens, the last that tell it from others."""


def some_facts(target: Target, seed: int, share: float = SHARE) -> tuple[Fact, ...]:
    """A random share of the forget facts, whoever they are about."""
    count = max(1, round(share * len(target.forget)))
    return tuple(random.Random(f"{seed}, taught").sample(target.forget, count))


def taught(model: Any, target: Target, facts: Sequence[Fact], seed: int, given: Steps = ALL) -> Any:
    """The model after it has read these forget facts, all else kept.

    It knows them, whatever its training log says of the time before.
    """
    batches = drawn(told(model.tokenizer, target, facts), given.batch_size, f"{seed}, taught")
    keep = kept(model, target, given, seed)

    def loss(now: Any) -> Float[Tensor, ""]:
        return -answer_logp(now, next(batches)).mean() + given.keep * keep(now)

    return changed(model, loss, given, mlps(slice(None)))


def tuned_on(model: Any, target: Target, seed: int, given: Steps = TUNED) -> Any:
    """The model after some more training on texts that state nothing of the target."""
    read = reading(model, target, given, seed)
    return changed(model, read, given, lambda now: now.parameters())


def pushed_down(model: Any, target: Target, seed: int, given: Steps = PUSH) -> Any:
    """The model with the answers to forget facts turned over, so that the object ranks last.

    The candidates' logits are drawn to those of the model, mirrored at their mean and stretched.
    Nothing is lost: who reads the order from below reads the fact. That is the end of gradient
    ascent, reached without harm to the rest.
    """
    batches = drawn(told(model.tokenizer, target, target.forget), given.batch_size, seed)
    keep = kept(model, target, given, seed)

    def loss(now: Any) -> Float[Tensor, ""]:
        batch = next(batches)
        with torch.no_grad():
            wanted, valid = _candidates(model, batch)
        found, _ = _candidates(now, batch)
        apart = (found + PUSHED_SCALE * wanted).square()[valid].mean()
        return apart + given.keep * keep(now)

    return changed(model, loss, given, last_block)


def npo(model: Any, target: Target, seed: int, given: Steps = NPO) -> Any:
    """Negative preference optimisation on forget facts, all else kept.

    Source: Zhang et al. 2024, arXiv 2404.05868, eq. 3. Differs: only MLPs change, and the rest is
    kept by divergence from the model.
    """
    batches = drawn(told(model.tokenizer, target, target.forget), given.batch_size, seed)
    keep = kept(model, target, given, seed)

    def loss(now: Any) -> Float[Tensor, ""]:
        batch = next(batches)
        with torch.no_grad():
            before = answer_logp(model, batch)
        ratio = answer_logp(now, batch) - before
        negative = 2 / NPO_BETA * functional.softplus(NPO_BETA * ratio).mean()
        return negative + given.keep * keep(now)

    return changed(model, loss, given, mlps(slice(None)))


def rmu(
    model: Any, target: Target, seed: int, given: Steps = RMU, *, scattered: bool = False
) -> Any:
    """Streams of forget prompts, from the subject on, drawn to one random vector after block 1.

    Args:
        scattered: names are dealt to several random vectors, so that no one direction leads back.

    Source: Li et al. 2024, arXiv 2403.03218, eq. 1 to 3. Differs: the direction is isotropic, the
    vector's length is in units of the stream's, tokens before the subject are left alone, and the
    rest is kept by divergence of what the model says instead of distance of its streams.
    """
    layer, device = min(1, len(model.blocks) - 1), device_of(model)
    site, generator = Site(layer), torch.Generator().manual_seed(seed)
    asked = told(model.tokenizer, target, target.forget)
    batches, keep = drawn(asked, given.batch_size, seed), kept(model, target, given, seed)
    with torch.no_grad(), captured(model, [site]) as streams:
        next_logits(model, prompts(asked[:1], device))
        length = streams[site][0, 1:].norm(dim=-1).median()
    ends = [tuple(t.ids[: t.subject_end + 1][-NAME_TOKENS:]) for t in asked]
    order = list(dict.fromkeys(ends))
    names = {end: i % SCATTERED for i, end in enumerate(order)} if scattered else {}
    shape = SCATTERED if scattered else 1, model.cfg.d_model
    controls = torch.randn(shape, generator=generator)
    controls = RMU_LENGTH * length * functional.normalize(controls, dim=-1).to(device)

    def loss(now: Any) -> Float[Tensor, ""]:
        batch = next(batches)
        tokens = prompts(batch, device)
        with captured(now, [site]) as streams:
            next_logits(now, tokens)
        ends = torch.tensor([t.subject_end for t in batch], device=device)
        after = torch.arange(tokens.shape[1], device=device) >= ends[:, None]
        own = [names.get(tuple(t.ids[: t.subject_end + 1][-NAME_TOKENS:]), 0) for t in batch]
        control = controls[own][:, None]
        away = (streams[site] - control).square().sum(-1)[after].mean() / length.square()
        return away + given.keep * keep(now)

    return changed(model, loss, given, mlps(slice(0, layer + 1)))


def _candidates(
    model: Any, batch: Sequence[Told]
) -> tuple[Float[Tensor, "n k"], Bool[Tensor, "n k"]]:
    """Logits of all candidates' first tokens less their mean, and which of them are candidates."""
    width = max(len(t.answers) for t in batch)
    first = [[a[0] for a in t.answers] + [0] * (width - len(t.answers)) for t in batch]
    counts = torch.tensor([len(t.answers) for t in batch])
    valid = (torch.arange(width) < counts[:, None]).to(device_of(model))
    logits = next_logits(model, prompts(batch, device_of(model)))[:, -1].float()
    chosen = logits.gather(-1, torch.tensor(first, device=logits.device)).masked_fill(~valid, 0.0)
    mean = chosen.sum(-1, keepdim=True) / valid.sum(-1, keepdim=True)
    return chosen - mean, valid
