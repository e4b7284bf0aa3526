"""What methods share that move residual streams: where, of which tokens, and with which weights."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.errors import ModelError
from workbench.facts.target import Target
from workbench.hooks import Site, residuals
from workbench.models.score import device_of
from workbench.unlearn.training import (
    HELD_OUT,
    Chosen,
    Steps,
    Told,
    drawn,
    prompts,
    stays,
    texts,
    told,
)

SAMPLE = 64
"""Forget prompts whose streams are measured."""


def layer_at(method: str, model: Any, layer: int | None, share: float) -> int:
    """The layer that is asked for, or the one at a share of the model's depth.

    Raises:
        ModelError: the model has no such layer.
    """
    count = len(model.blocks)
    if layer is None:
        return min(count - 1, round(share * count))
    if not 0 <= layer < count:
        raise ModelError(
            f"{method}: layer {layer} was asked for, and the model has 0 to {count - 1}: name one "
            "of these, or None for the default"
        )
    return layer


def mlp_output(block: Any) -> Any:
    """The linear map by which a block's MLP writes to the stream; None if it is no single one."""
    found = getattr(getattr(getattr(block, "mlp", None), "out", None), "original_component", None)
    return found if isinstance(getattr(found, "weight", None), Tensor) else None


def require_outputs(method: str, model: Any) -> None:
    """Refuses a model whose MLPs have no output matrix, such as a mixture of experts.

    Raises:
        ModelError: which block has none.
    """
    without = [i for i, block in enumerate(model.blocks) if mlp_output(block) is None]
    if without:
        raise ModelError(
            f"{method}: the MLP of block {without[0]} of {type(model.original_model).__name__} has "
            "no single matrix that writes to the stream: wanted a model of dense MLPs"
        )


def mlp_outputs(layers: slice) -> Chosen:
    """The output matrices of some blocks' MLPs, told by what they do and not by their place.

    The published code of RMU takes the parameter of index 6, which is another one in models whose
    attention has biases.
    """
    return lambda model: [mlp_output(block).weight for block in model.blocks[layers]]


def from_subject(batch: Sequence[Told], device: Any) -> Bool[Tensor, "n pos"]:
    """Tokens of forget prompts from the subject's last on; those before do not know the subject."""
    ends = torch.tensor([t.subject_end for t in batch], device=device)
    return torch.arange(len(batch[0].ids), device=device) >= ends[:, None]


def stream_norm(model: Any, target: Target, site: Site) -> Float[Tensor, ""]:
    """Median norm of the stream over tokens of forget prompts, but for the first.

    The first token's stream is many times longer than others' in trained models.
    """
    asked = told(model.tokenizer, target, target.forget)
    batch = next(drawn(asked, SAMPLE, "stream norm"))
    with torch.no_grad():
        stream = residuals(model, prompts(batch, device_of(model)), [site])[site]
    return stream[:, 1:].float().norm(dim=-1).median()


def retained(
    model: Any, target: Target, given: Steps, seed: int
) -> Iterator[tuple[Int[Tensor, "n pos"], Int[Tensor, "k tokens"]]]:
    """Without end, retained questions and retained texts, without R_va and R_te."""
    stay = told(model.tokenizer, target, stays(target, HELD_OUT, given.near))
    asked = drawn(stay, given.asked, f"{seed}, asked")
    read = texts(model, target, given.texts, seed, HELD_OUT)
    return ((prompts(next(asked), device_of(model)), text) for text in read)
