"""The Hugging Face module inside a model from `load_model`, for libraries that want it plain."""

import copy
from typing import Any

import torch

from workbench.interventions.bake import plain_weights
from workbench.models import load_model


def plain_module(model: Any) -> Any:
    """A copy of the Hugging Face module, without what TransformerLens wrapped around its parts.

    Raises:
        EditError: the module holds weights that its class has no name for.
    """
    original = model.original_model
    device = next(original.parameters()).device
    with torch.random.fork_rng(devices=[]):
        plain = type(original)(copy.deepcopy(original.config)).to(original.dtype)
    plain.load_state_dict(plain_weights(model))
    plain.generation_config = copy.deepcopy(original.generation_config)
    return plain.to(device).eval()


def bridged(plain: Any, like: Any) -> Any:
    """A plain module as `load_model` gives it, with the tokenizer of the model it came from."""
    device = str(next(plain.parameters()).device)
    return load_model(plain.eval(), tokenizer=like.tokenizer, device=device)
