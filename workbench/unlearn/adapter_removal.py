"""Adapter removal: what an adapter added to a base that never knew goes with the adapter."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from workbench.errors import ModelError
from workbench.facts.target import Target
from workbench.models import recall, weights_sha256
from workbench.unlearn.adapters import (
    adapted,
    adapter_layers,
    base_of,
    promised,
    read_adapter,
    reference,
    well_read,
)
from workbench.unlearn.arm import RETAINED, TEXTS, Arm, made, metered, require_arm
from workbench.unlearn.plain import bridged, plain_module
from workbench.unlearn.training import Steps

STATING = "training texts that state forget facts"
TRAINING = Steps(600, 4e-3, keep=1.5, batch_size=64, asked=32, texts=4, near=2)


@dataclass(frozen=True)
class Config:
    """Which base and adapter, and how an adapter is made where none is given.

    Attributes:
        base: a model that never knew the target, as `load_model` takes it; if empty, the bundled
            gold of the model's world.
        adapter: folder of a LoRA adapter that peft saved for that base; if empty, one is trained.
        rank: of an adapter that is trained.
        steps: of its training.
    """

    base: str = ""
    adapter: str = ""
    rank: int = 16
    steps: Steps = TRAINING


DEFAULT = Config()
STRENGTHS = (DEFAULT,)


def unlearn(model: Any, target: Target, config: Config = DEFAULT, seed: int = 0) -> Arm:
    """Takes the adapter that holds the target off the base that never knew it.

    The knowledge of the given model is not undone: it is put into an adapter, and the base with the
    adapter is the arm's own original, which the arm is to be held against. The adapter reads texts
    that state the target and stands in all blocks but the last, so that answers are looked up
    before it, as in the original: otherwise probes find too little to show by it that nothing is
    left. After removal the base's tensors are those of before, to the bit. The claim is exact if
    the base's recipe says that its texts did not state the target, else none. An adapter that was
    merged into the weights and subtracted again leaves rounding errors; how large they are is told.

    Source: Hu et al. 2021, arXiv 2106.09685 (LoRA); its removal by peft's `unload`.

    Raises:
        ModelError: no base, or one that knows.
        EditError: an adapter that does not fit the base.
    """
    require_arm("adapter_removal", model, target, ("R_tr",))
    with metered(model) as meter:
        base = base_of("adapter_removal", model, target, config.base)
        plain = plain_module(base)
        before = weights_sha256(plain)
        if config.adapter:
            with_adapter = read_adapter(plain, config.adapter)
        else:
            empty = adapted(plain, config.rank, f"{seed}, adapter", but_last=True)
            with_adapter = well_read(empty, reference(base), target, config.steps, seed)
        knows = bridged(copy.deepcopy(with_adapter).merge_and_unload(safe_merge=True), base)
        off = _merged_and_subtracted(with_adapter)
        left = with_adapter.unload()
        after = weights_sha256(left)
        if after != before:
            raise ModelError(
                f"adapter_removal: {config.adapter} replaces weights of the base, and taking it "
                "off does not give them back: wanted a LoRA adapter without modules_to_save or "
                "biases of its own"
            )
        removed = bridged(left, base)
        asked = (base.tokenizer, target.facts, target.forget, "train")
        told = {
            "base_sha256_before": before,
            "base_sha256_after": after,
            "merged_then_subtracted_largest_difference": off,
            "recall_with_adapter": recall(knows, *asked),
            "recall_after_removal": recall(removed, *asked),
        }
    arm = Arm(
        "adapter_removal",
        removed,
        claim=promised(base, target),
        saw=("adapter of the user's",) if config.adapter else (STATING, RETAINED, TEXTS),
        told=told,
        original=knows,
        stands_on=weights_sha256(base),
    )
    return made(arm, meter, config, seed)


@torch.no_grad()
def _merged_and_subtracted(with_adapter: nn.Module) -> float:
    """Largest |difference| that merging an adapter and subtracting it again leaves in a weight."""
    twin = copy.deepcopy(with_adapter)
    off = 0.0
    for layer in adapter_layers(twin):
        before = layer.get_base_layer().weight.clone()
        layer.merge()
        layer.unmerge()
        off = max(off, float((layer.get_base_layer().weight - before).abs().max()))
    return off
