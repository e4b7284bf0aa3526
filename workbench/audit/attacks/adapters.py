"""Adapters of low rank beside the linear layers of a model's blocks."""

import math
from typing import Any

import torch
from torch import nn

from workbench.errors import AuditError
from workbench.hooks.places import blocks_of

RANK, ALPHA = 4, 8


def add_adapters(model: Any, order: str) -> list[nn.Parameter]:
    """Freezes the model and puts an adapter beside each linear layer of its attention and MLPs.

    The module is changed in place; until the adapters are trained it computes what it did before.
    Source: LoRA, 2106.09685.

    Args:
        order: a text that the adapters' first values depend on; the global random state is neither
            read nor moved.

    Returns:
        The adapters' weights.

    Raises:
        AuditError: the blocks have no linear layer.
    """
    from peft import LoraConfig, inject_adapter_in_model

    blocks = blocks_of(model)
    # Hugging Face's transposed linear layer is told by its name: this room does not import it.
    transposed = {n for n, m in blocks.named_modules() if type(m).__name__ == "Conv1D"}
    names = transposed | {n for n, m in blocks.named_modules() if isinstance(m, nn.Linear)}
    if not names:
        raise AuditError(
            f"{type(model).__name__} has no linear layer in its blocks to put an adapter beside: "
            "leave W4 out of the attacks"
        )
    model.requires_grad_(False)
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=sorted(names), fan_in_fan_out=bool(transposed)
    )
    # What is made on the meta device draws no random numbers, which other threads would notice.
    with torch.device("meta"):
        inject_adapter_in_model(config, blocks)
    return _filled(blocks, _generator(order))


def _filled(blocks: nn.Module, generator: torch.Generator) -> list[nn.Parameter]:
    """Gives the adapters their first values: uniform on the way in, zero on the way out."""
    from peft.tuners.lora import LoraLayer

    weights: list[nn.Parameter] = []
    layers: list[Any] = [m for m in blocks.modules() if isinstance(m, LoraLayer)]
    for layer in layers:
        device = next(layer.get_base_layer().parameters()).device
        into, out = (layer.lora_A["default"], layer.lora_B["default"])
        into, out = into.to_empty(device=device), out.to_empty(device=device)
        bound = 1 / math.sqrt(into.in_features)
        drawn = torch.empty(into.weight.shape).uniform_(-bound, bound, generator=generator)
        with torch.no_grad():
            into.weight.copy_(drawn)
            out.weight.zero_()
        weights += [into.weight, out.weight]
    return weights


def _generator(order: str) -> torch.Generator:
    return torch.Generator().manual_seed(int.from_bytes(order.encode()) % 2**63)
