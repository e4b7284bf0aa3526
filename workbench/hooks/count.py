"""How many tokens are read, forwards and backwards, whatever model reads them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook


@dataclass
class Tokens:
    """Tokens that passed through language models.

    Attributes:
        forward: tokens that were embedded.
        backward: tokens whose logits were made in a graph that can be gone back through.
    """

    forward: int = 0
    backward: int = 0


@contextmanager
def counted(vocab: int) -> Iterator[Tokens]:
    """Counts the tokens of every forward pass in this process inside the block.

    Copies made inside the block are counted too, and so is what other threads run.

    Args:
        vocab: rows of the models' embedding, by which embeddings and unembeddings are told from
            other layers.
    """
    tokens = Tokens()

    def count(module: nn.Module, args: Any, out: Any) -> None:
        if isinstance(module, nn.Embedding) and module.num_embeddings == vocab:
            tokens.forward += args[0].numel()
        elif (
            isinstance(module, nn.Linear)
            and module.out_features == vocab
            and isinstance(out, torch.Tensor)
            and out.requires_grad
        ):
            tokens.backward += out.numel() // vocab

    handle = register_module_forward_hook(count)
    try:
        yield tokens
    finally:
        handle.remove()
