"""A model behind a prompt that its reader does not see."""

import json
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from workbench.errors import ModelError
from workbench.models.score import next_logits


@dataclass(frozen=True)
class SystemPrompt:
    """What stands before every text that a system reads.

    Attributes:
        text: before everything.
        about: by name, what stands before texts in which that name occurs, after `text`.
    """

    text: str = ""
    about: tuple[tuple[str, str], ...] = ()

    @property
    def empty(self) -> bool:
        return not (self.text or self.about)


class Prompted(nn.Module):
    """Says what the model says behind a system prompt; the weights are the model's own.

    It is asked as the model is, and gives logits for the tokens it was asked alone.
    """

    def __init__(self, model: Any, prompt: SystemPrompt) -> None:
        super().__init__()
        self.model, self.tokenizer, self.cfg = model, model.tokenizer, model.cfg
        self.said = prompt
        if prompt.empty:
            raise ModelError("an empty system prompt: wanted a text, or what is said of a name")
        content = json.dumps([prompt.text, prompt.about]).encode()
        self.register_buffer("prompt", torch.tensor(list(content), dtype=torch.uint8))
        self._always = self._ids(prompt.text)
        self._about = [
            (tuple(self._ids(name)), self._ids(text)) for name, text in prompt.about if name
        ]

    @property
    def blocks(self) -> Any:
        """Those of the model, where hooks go."""
        return self.model.blocks

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos vocab"]:
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, row in enumerate(tokens.tolist()):
            groups.setdefault(self.before(row), []).append(i)
        logits = [self._behind(tokens[rows], prefix) for prefix, rows in groups.items()]
        order = torch.tensor([i for rows in groups.values() for i in rows], device=tokens.device)
        return torch.cat(logits)[order.argsort()]

    def before(self, row: list[int]) -> tuple[int, ...]:
        """The tokens that stand before a row of tokens."""
        about = [ids for name, ids in self._about if _occurs(name, row)]
        return (*self._always, *(i for ids in about for i in ids))

    def _behind(
        self, tokens: Int[Tensor, "n pos"], prefix: tuple[int, ...]
    ) -> Float[Tensor, "n pos vocab"]:
        """The prompt goes after the token that texts start with, where there is one."""
        start = int((tokens[:, :1] == self.tokenizer.bos_token_id).all())
        inserted = torch.tensor(prefix, dtype=tokens.dtype, device=tokens.device)
        inserted = inserted.expand(len(tokens), -1)
        told = torch.cat([tokens[:, :start], inserted, tokens[:, start:]], dim=1)
        return next_logits(self.model, told)[:, len(prefix) :]

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer([text], add_special_tokens=False)["input_ids"][0]


def _occurs(part: tuple[int, ...], row: list[int]) -> bool:
    first, width = part[0], len(part)
    return any(token == first and tuple(row[i : i + width]) == part for i, token in enumerate(row))
