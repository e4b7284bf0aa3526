"""Changing a model's weights in a few steps, while what it knows of the rest stays."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Parameter, functional
from tqdm.auto import tqdm

from workbench.facts.schema import Fact, FactKey, prompt
from workbench.facts.target import Target
from workbench.models.copies import copied
from workbench.models.score import device_of, next_logits, object_tokens

Loss = Callable[[Any], Float[Tensor, ""]]
"""What a step goes down, of the model as it then is; each call is on the next batch."""

Chosen = Callable[[Any], Iterable[Parameter]]
"""Which of a model's weights may change."""

HELD_OUT = ("R_va", "R_te")
"""Retained folds that no method is shown: strength is chosen on R_va, and R_te is scored."""

TEXT_WEIGHT = 5.0
"""What one nat per token of running text weighs, in nats per retained question."""


@dataclass(frozen=True)
class Steps:
    """How long and how hard weights are changed.

    Attributes:
        keep: weight of what keeps retained knowledge as it is.
        batch_size: forget prompts in a step.
        asked: retained questions in a step.
        texts: retained texts in a step.
        near: how much more often than others the facts most like the target's are asked.
    """

    steps: int = 150
    lr: float = 1e-3
    keep: float = 3.0
    batch_size: int = 32
    asked: int = 32
    texts: int = 8
    near: int = 0


@dataclass(frozen=True)
class Told:
    """A fact in one of its training templates.

    Attributes:
        ids: tokens of the prompt.
        answers: tokens of each candidate of its relation.
        right: index of its object among them.
        subject_end: position of the subject's last token.
    """

    ids: list[int]
    answers: list[list[int]]
    right: int
    subject_end: int

    @property
    def answer(self) -> list[int]:
        return self.answers[self.right]


def told(tokenizer: Any, target: Target, facts: Sequence[Fact]) -> list[Told]:
    """Each fact in each of its training templates; audit-only ones are never shown to an edit."""
    objects = {r.name: object_tokens(tokenizer, r.candidates) for r in target.facts.relations}
    index = {r.name: r.candidates.index for r in target.facts.relations}
    asked = [(f, prompt(f, t)) for f in facts for t in f.templates]
    if not asked:
        return []
    rows = tokenizer([text for _, text in asked])["input_ids"]
    starts = tokenizer([text[: text.rindex(f.subject) + len(f.subject)] for f, text in asked])
    return [
        Told(row, objects[f.relation], index[f.relation](f.object), len(start) - 1)
        for row, start, (f, _) in zip(rows, starts["input_ids"], asked, strict=True)
    ]


def drawn(items: Sequence[Told], size: int, seed: object) -> Iterator[list[Told]]:
    """Without end, random batches of prompts of equal length, with objects of equal length."""
    shape = [(len(t.ids), len(t.answer)) for t in items]
    return ([items[i] for i in batch] for batch in _alike(shape, size, seed))


def prompts(batch: Sequence[Told], device: Any, *, answered: bool = False) -> Int[Tensor, "n pos"]:
    """The prompts as one tensor, with their objects if `answered`."""
    return torch.tensor([t.ids + t.answer * answered for t in batch], device=device)


def answer_logp(model: Any, batch: Sequence[Told]) -> Float[Tensor, " n"]:
    """Log-probability of each prompt's object, summed over its tokens."""
    tokens, length = prompts(batch, device_of(model), answered=True), len(batch[0].answer)
    logprobs = next_logits(model, tokens)[:, -length - 1 : -1].float().log_softmax(-1)
    return logprobs.gather(-1, tokens[:, -length:, None])[..., 0].sum(-1)


def changed(model: Any, loss: Loss, given: Steps, chosen: Chosen) -> Any:
    """A copy of the model after `given.steps` steps down the loss; the model stays as it is.

    Args:
        chosen: the weights that may change. Few forget more precisely than all.
    """
    made = copied(model).eval()
    before = [p.requires_grad for p in made.parameters()]
    made.requires_grad_(False)
    weights = [p.requires_grad_(True) for p in chosen(made)]
    optimizer = torch.optim.AdamW(weights, lr=given.lr, weight_decay=0.0, betas=(0.9, 0.98))
    for step in tqdm(range(given.steps), desc="change weights", unit="step", leave=False):
        for group in optimizer.param_groups:
            group["lr"] = given.lr * _share(step, given.steps)
        optimizer.zero_grad()
        loss(made).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
    optimizer.zero_grad()
    for parameter, required in zip(made.parameters(), before, strict=True):
        parameter.requires_grad_(required)
    return made


def stays(target: Target, held_out: Sequence[str] = (), near: int = 0) -> list[Fact]:
    """Stated facts that are to stay, but for those of retained folds that are held out.

    Args:
        near: how often the retained facts of the target's own relations stand there once more.
    """
    barred = target.forget_keys | _keys(target, held_out)
    stay = [f for f in target.facts.facts if f.stated and f.key not in barred]
    return stay + [f for f in target.retained if f.key not in barred] * near


def kept(
    model: Any, target: Target, given: Steps, seed: object, held_out: Sequence[str] = ()
) -> Loss:
    """How far a model has moved from `model` on what is to stay, in nats.

    The divergence of the next token after retained questions in training templates, and of every
    token of training texts that state nothing of the target.

    Args:
        held_out: retained folds of which nothing is asked or read.
    """
    tokenizer, device = model.tokenizer, device_of(model)
    stay = stays(target, held_out, given.near)
    asked = drawn(told(tokenizer, target, stay), given.asked, f"{seed}, asked")
    read = texts(model, target, given.texts, seed, held_out)

    def loss(now: Any) -> Float[Tensor, ""]:
        questions = prompts(next(asked), device)
        return moved(now, model, questions, 1) + TEXT_WEIGHT * moved(now, model, next(read))

    return loss


def reading(
    model: Any, target: Target, given: Steps, seed: int, held_out: Sequence[str] = ()
) -> Loss:
    """Cross-entropy of training texts that state nothing of the target, in nats per token."""
    read = texts(model, target, given.batch_size, seed, held_out)

    def loss(now: Any) -> Float[Tensor, ""]:
        text = next(read)
        logits = next_logits(now, text)[:, :-1].float().flatten(0, 1)
        return functional.cross_entropy(logits, text[:, 1:].flatten())

    return loss


def mlps(layers: slice) -> Chosen:
    """The MLPs of some blocks, where facts about a name are looked up."""
    return lambda model: [p for block in model.blocks[layers] for p in block.mlp.parameters()]


def everything(model: Any) -> Iterable[Parameter]:
    """All weights, but for a bias of the unembedding that few model classes can keep."""
    return [p for name, p in model.named_parameters() if not _added_bias(name)]


def last_block(model: Any) -> Iterable[Parameter]:
    """The last block, which turns what was looked up into the answer."""
    return model.blocks[-1].parameters()


def _added_bias(name: str) -> bool:
    return name.endswith("bias") and ("unembed" in name or "lm_head" in name)


def _keys(target: Target, folds: Sequence[str]) -> frozenset[FactKey]:
    return frozenset(f.key for fold in folds for f in target.retain.get(fold, ()))


def _share(step: int, steps: int) -> float:
    """Of the learning rate: up within a tenth of the steps, then down to nothing."""
    warmup = max(1, steps // 10)
    return max(0.02, min((step + 1) / warmup, (steps - step) / max(1, steps - warmup)))


def kept_texts(target: Target, held_out: Sequence[str] = ()) -> list[str]:
    """Training texts that state neither the target nor a fact of a fold that is held out."""
    barred = _keys(target, held_out)
    return [
        d.text
        for d in target.facts.corpus
        if not target.states_target(d) and barred.isdisjoint(d.states)
    ]


def texts(
    model: Any, target: Target, size: int, seed: object, held_out: Sequence[str] = ()
) -> Iterator[Int[Tensor, "n pos"]]:
    """Without end, batches of equal length of the texts that stay."""
    tokenizer, device = model.tokenizer, device_of(model)
    read_ids = tokenizer(kept_texts(target, held_out))["input_ids"]
    rows = [[*ids, tokenizer.eos_token_id] for ids in read_ids]
    read = _alike([len(r) for r in rows], size, f"{seed}, read")
    return (torch.tensor([rows[i] for i in batch], device=device) for batch in read)


def _alike(shapes: Sequence[object], size: int, seed: object) -> Iterator[list[int]]:
    """Without end, indices of items of one shape, so that a batch needs no padding."""
    rng, groups = random.Random(str(seed)), {}
    for i, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(i)
    while True:
        group = groups[rng.choice(shapes)]
        yield rng.sample(group, min(size, len(group)))


def moved(
    now: Any, before: Any, tokens: Int[Tensor, "n pos"], last: int | None = None
) -> Float[Tensor, ""]:
    """KL divergence per token, over the last tokens or all."""
    start = 0 if last is None else -last
    with torch.no_grad():
        wanted = next_logits(before, tokens)[:, start:].float().log_softmax(-1).flatten(0, 1)
    found = next_logits(now, tokens)[:, start:].float().log_softmax(-1).flatten(0, 1)
    return functional.kl_div(found, wanted, log_target=True, reduction="batchmean")
