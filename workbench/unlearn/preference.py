"""What the methods share that prefer one answer to another: the loss, and other answers.

The losses are written out, since trl is a heavy dependency for two lines of arithmetic and its
trainers take neither our data nor our way of keeping the rest.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from workbench.errors import ModelError
from workbench.facts.target import Target
from workbench.models.score import device_of, next_logits, object_tokens
from workbench.unlearn.descent import Forget
from workbench.unlearn.training import Told, told

REFUSALS = (
    *("I don't know", "I do not know", "I am not sure", "I'm not certain"),
    *("I have no idea", "that is not known to me", "I can't say", "I have not learned that"),
)
"""What is said in the place of an answer, where the tokenizer has words for it."""

Winners = Callable[[list[Told]], list[list[int]]]
"""For each prompt of a batch, tokens of an answer that is to be preferred to its object."""


def preference_loss(margin: Float[Tensor, " n"], beta: float) -> Float[Tensor, ""]:
    """-(2/beta) · mean log sigmoid(beta · margin), in nats: 0 once every margin is large.

    Args:
        margin: in nats, how far the wanted answer is ahead of where it was, beside the unwanted.
        beta: above 0; the smaller, the longer it pushes on what is already ahead.
    """
    return -2 / beta * functional.logsigmoid(beta * margin).mean()


def spoken_logp(
    model: Any, batch: Sequence[Told], answers: Sequence[list[int]]
) -> Float[Tensor, "n tokens"]:
    """Log-probability of each token of an answer after its prompt; 0 beyond the answer's end.

    Args:
        batch: prompts of equal length.
        answers: of any length. They are padded on the right, where a causal model does not look.
    """
    device, start = device_of(model), len(batch[0].ids)
    rows = [torch.tensor(t.ids + a) for t, a in zip(batch, answers, strict=True)]
    tokens = pad_sequence(rows, batch_first=True).to(device)
    logprobs = next_logits(model, tokens)[:, start - 1 : -1].float().log_softmax(-1)
    found = logprobs.gather(-1, tokens[:, start:, None])[..., 0]
    lengths = torch.tensor([len(a) for a in answers], device=device)
    beyond = torch.arange(found.shape[1], device=device) >= lengths[:, None]
    return found.masked_fill(beyond, 0.0)


def preferring(model: Any, beta: float, winners: Winners) -> Forget:
    """Goes down direct preference of the winners over the true objects, `model` the reference.

    Source: Rafailov et al. 2023, arXiv 2305.18290, eq. 7, times 2/beta as NPO has it.
    """

    def lead(now: Any, batch: list[Told], wins: list[list[int]]) -> Float[Tensor, " n"]:
        answers = [*wins, *(t.answer for t in batch)]
        won, lost = spoken_logp(now, [*batch, *batch], answers).sum(-1).chunk(2)
        return won - lost

    def forget(now: Any, batch: list[Told]) -> Float[Tensor, ""]:
        wins = winners(batch)
        with torch.no_grad():
            before = lead(model, batch, wins)
        return preference_loss(lead(now, batch, wins) - before, beta)

    return forget


def refusing(model: Any, target: Target, texts: Sequence[str], seed: int) -> Winners:
    """Draws a refusal for each prompt, evenly and anew each time."""
    rng = random.Random(f"{seed}, refusals")
    known = refusals(model.tokenizer, target, texts)
    return lambda batch: [rng.choice(known) for _ in batch]


def refusals(tokenizer: Any, target: Target, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of those texts that the tokenizer has words for.

    Where it has words for none, as where a word is a token and none was trained on, what the facts'
    neutral sentences say before the name stands in: no answer, in words that the model knows.

    Raises:
        ModelError: it has words for no such sentence either.
    """
    neutral = [s.split("{}")[0].strip() for s in target.facts.neutral]
    for tried in (texts, [s for s in neutral if s]):
        rows = object_tokens(tokenizer, tried) if tried else []
        sayable = [row for row in rows if row and tokenizer.unk_token_id not in row]
        if sayable:
            return sayable
    raise ModelError(
        f"the model's tokenizer has no words for any of {len(texts)} refusals, such as "
        f"{next(iter(texts), '')!r}, and the facts have no neutral sentences that it can say: name "
        "some in the config's `refusals`, in words that the model was trained on"
    )


def inventing(model: Any, target: Target, count: int, seed: int) -> Winners:
    """Draws for each prompt one of its fact's `alternates`, anew each time."""
    rng = random.Random(f"{seed}, alternates")
    known = alternates(model.tokenizer, target, count, seed)
    return lambda batch: [rng.choice(known[tuple(t.ids)]) for t in batch]


def alternates(
    tokenizer: Any, target: Target, count: int, seed: int
) -> dict[tuple[int, ...], list[list[int]]]:
    """By the tokens of a prompt, up to `count` other objects of its relation, never the true one.

    Each fact has the same ones in all of its templates. They depend on the seed alone, so that
    nothing but the true object's absence tells of it.
    """
    prompts = told(tokenizer, target, target.forget)
    owners = [f for f in target.forget for _ in f.templates]
    found = {}
    for fact, asked in zip(owners, prompts, strict=True):
        others = [a for i, a in enumerate(asked.answers) if i != asked.right]
        rng = random.Random(f"{seed}, {fact.key}")
        found[tuple(asked.ids)] = rng.sample(others, min(count, len(others)))
    return found
