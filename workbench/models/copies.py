"""Copies of a model that share nothing with it."""

import copy
from typing import Any


def copied(model: Any) -> Any:
    """A copy that can be trained while the model is in use, and outlives it.

    A TransformerBridge that has run holds hooks which know their block by reference, and a plain
    deep copy keeps them: it writes what passes through it into the model that it was copied from.
    That model can then not be copied while the copy is trained, and the copy fails once the model
    is gone. Here the copy's blocks make hooks of their own when they first run.
    """
    _each_block(model, "_clear_attention_capture")
    twin = copy.deepcopy(model)
    _each_block(twin, "_teardown_capture_hooks")
    return twin


def _each_block(model: Any, method: str) -> None:
    """Calls what TransformerLens' blocks have to that end; other models have no such hooks."""
    for block in getattr(model, "blocks", ()):
        getattr(block, method, lambda: None)()
