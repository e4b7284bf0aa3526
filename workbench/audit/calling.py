"""Ways of calling a model that should give the same next token."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from workbench.models.score import batches_by_length, device_of, next_logits

BATCH_TOKENS = 2048


@torch.no_grad()
def in_batches(model: Any, rows: list[list[int]], max_tokens: int = BATCH_TOKENS) -> list[int]:
    """The likeliest next token of each row."""
    said = [0] * len(rows)
    for batch in batches_by_length(rows, max_tokens):
        tops = next_logits(model, batch_of(model, rows, batch))[:, -1].argmax(-1)
        for i, top in zip(batch, tops.tolist(), strict=True):
            said[i] = top
    return said


def _alone(model: Any, rows: list[list[int]]) -> list[int]:
    return in_batches(model, rows, 1)


@torch.no_grad()
def _padded(model: Any, rows: list[list[int]]) -> list[int] | None:
    """All rows in one batch, padded on the right; None where the model takes no mask."""
    if "attention_mask" not in inspect.signature(model.forward).parameters:
        return None
    pad = model.tokenizer.pad_token_id or 0
    width = max(len(row) for row in rows)
    tokens = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    mask = (torch.arange(width) < lengths[:, None]).long()
    device = device_of(model)
    out = model(tokens.to(device), attention_mask=mask.to(device))
    logits = out.logits if hasattr(out, "logits") else out
    return logits[torch.arange(len(rows)), lengths - 1].argmax(-1).tolist()


@torch.no_grad()
def _with_cache(model: Any, rows: list[list[int]]) -> list[int] | None:
    """The last token after all others are in a key-value cache; None where there is no cache."""
    inner = getattr(model, "original_model", model)
    if not hasattr(inner, "prepare_inputs_for_generation") or min(map(len, rows)) < 2:
        return None
    said = [0] * len(rows)
    for batch in batches_by_length(rows, BATCH_TOKENS):
        tokens = batch_of(model, rows, batch)
        cache = inner(tokens[:, :-1], use_cache=True).past_key_values
        tops = inner(tokens[:, -1:], past_key_values=cache, use_cache=True).logits[:, -1]
        for i, top in zip(batch, tops.argmax(-1).tolist(), strict=True):
            said[i] = top
    return said


WAYS: dict[str, Callable[[Any, list[list[int]]], list[int] | None]] = {
    "batch of 1": _alone,
    "right padding": _padded,
    "cache": _with_cache,
}
"""Each gives the likeliest next token of each row, or None where a model cannot be called so."""


def batch_of(model: Any, rows: list[list[int]], batch: list[int]) -> Int[Tensor, "batch pos"]:
    """The rows of a batch, all of one length, on the model's device."""
    return torch.tensor([rows[i] for i in batch], device=device_of(model))
