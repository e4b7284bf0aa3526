"""The three kinds of models that edits can be hung on."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.hooks.tiny import hooked, no_hook_left, plain
from workbench.models.load import load_model


@pytest.fixture(scope="session")
def tokens(bridge: Any, texts: list[str]) -> Tensor:
    rows = bridge.tokenizer(texts)["input_ids"]
    return torch.tensor([row for row in rows if len(row) == len(rows[0])][:4])


@pytest.fixture(scope="session")
def warm(bridge: Any, tokens: Tensor) -> Any:
    """The bridge after its first forward pass, in which it hangs hooks on itself."""
    bridge.run_with_cache(tokens)
    return bridge


@pytest.fixture(scope="session")
def kinds(tokenizer: Any, tokens: Tensor) -> dict[str, Any]:
    vocab = len(tokenizer)
    bridge, lens = load_model(plain(vocab=vocab), tokenizer=tokenizer), hooked(vocab)
    bridge.run_with_cache(tokens)
    # Without a tokenizer, the positions in its `generate` with a cache are not those without.
    lens.tokenizer = copy.deepcopy(tokenizer)
    lens.tokenizer.padding_side = "left"
    return {"bridge": bridge, "hooked": lens, "plain": plain(vocab=vocab)}


@pytest.fixture(params=["bridge", "hooked", "plain"])
def model(kinds: dict[str, Any], request: pytest.FixtureRequest) -> Iterator[Any]:
    """A model of each kind, on which the test must leave no hook."""
    model = kinds[request.param]
    with no_hook_left(model):
        yield model


@pytest.fixture(autouse=True)
def no_hook_is_left_on_the_bridge(warm: Any) -> Iterator[None]:
    with no_hook_left(warm):
        yield
