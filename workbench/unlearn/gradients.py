"""Gradients of answers in some weights, for methods that need them as numbers, not for a step."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Parameter

from workbench.unlearn.training import Told, answer_logp

Read = Callable[[Any, list[Told]], Float[Tensor, " n"]]
"""Of a model and prompts of one length: a number each."""
MAX_TOKENS = 4096
"""Tokens in one pass that is gone back through."""


def alike(asked: Sequence[Told], max_tokens: int = MAX_TOKENS) -> Iterator[list[Told]]:
    """All prompts in batches that need no padding: of equal length, with answers of equal length.

    Args:
        max_tokens: of a batch, or it is one prompt.
    """
    groups: dict[tuple[int, int], list[Told]] = {}
    for t in asked:
        groups.setdefault((len(t.ids), len(t.answer)), []).append(t)
    for shape, group in sorted(groups.items()):
        size = max(1, max_tokens // sum(shape))
        yield from (group[i : i + size] for i in range(0, len(group), size))


def mean_gradient(model: Any, weights: Sequence[Parameter], asked: Sequence[Told]) -> list[Tensor]:
    """Gradient of the prompts' mean log-probability of their answers, weight by weight."""
    total = [torch.zeros_like(p) for p in weights]
    for batch in alike(asked):
        parts = gradient(model, weights, batch)
        total = [so_far + g / len(asked) for so_far, g in zip(total, parts, strict=True)]
    return total


def mean_square(model: Any, weights: Sequence[Parameter], asked: Sequence[Told]) -> list[Tensor]:
    """Mean over prompts of the squared gradient of each one's answer, weight by weight."""
    total = [torch.zeros_like(p) for p in weights]
    for parts in each_gradient(model, weights, asked):
        total = [so_far + g.square() / len(asked) for so_far, g in zip(total, parts, strict=True)]
    return total


def each_gradient(
    model: Any, weights: Sequence[Parameter], asked: Sequence[Told], of: Read = answer_logp
) -> Iterator[tuple[Tensor, ...]]:
    """The gradient of each prompt by itself: what is done to a sum cannot be undone."""
    return (gradient(model, weights, [one], of) for one in asked)


def gradient(
    model: Any, weights: Sequence[Parameter], batch: list[Told], of: Read = answer_logp
) -> tuple[Tensor, ...]:
    """Gradient of what is read of prompts of one length, summed; no weight keeps it.

    A weight that the model does not compute with, such as a joint matrix that a bridge has split,
    has none: zero.
    """
    before = [p.requires_grad for p in weights]
    try:
        for p in weights:
            p.requires_grad_(True)
        return torch.autograd.grad(
            of(model, batch).sum(), weights, allow_unused=True, materialize_grads=True
        )
    finally:
        for p, required in zip(weights, before, strict=True):
            p.requires_grad_(required)


def log_odds(model: Any, batch: list[Told]) -> Float[Tensor, " n"]:
    """Log of how much likelier each prompt's object is than all else."""
    logp = answer_logp(model, batch)
    return logp - torch.log1p(-logp.exp().clamp(max=1 - 1e-6))
