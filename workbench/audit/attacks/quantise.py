"""W5: does storing the weights in fewer bits bring the target back?"""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from workbench.audit.attacks.altered import Change, matrices, score_whole, unchanged
from workbench.audit.attacks.config import AttackConfig
from workbench.audit.statistics import Key
from workbench.audit.views import Found, Measure, View
from workbench.errors import AuditError
from workbench.facts.target import Target

GROUP = 32
BNB_BITS = {"int8": 8, "nf4": 4}
Rounding = Callable[[Float[Tensor, "*row column"]], Float[Tensor, "*row column"]]


def quantise_jobs(target: Target, config: AttackConfig, seed: int = 0) -> dict[str, Measure]:
    """W5, one job: all weight matrices of the blocks are rounded to fewer bits, hooks kept.

    Small changes to large weights round back to what they were before an edit. Embeddings, the
    unembedding, norms and biases keep their bits, as in the quantisers that models are deployed
    with (bitsandbytes, GPTQ, AWQ), which leave these alone too: what sits there is not reached.
    Nothing is fitted, so all forget facts are scored. The dose is the number of bits.

    Source: Zhang et al. 2024, 2410.16454. Differs: round to nearest in
    groups of 32 in place of GPTQ and AWQ, 3 bits besides.
    """
    kinds: dict[str, tuple[int, Rounding]] = {
        f"{bits} bits": (bits, partial(rounded, bits=bits)) for bits in config.perturbing.bits
    }
    kinds |= {
        f"bnb {kind}": (BNB_BITS[kind], partial(bnb_rounded, kind=kind))
        for kind in config.perturbing.bnb
    }
    return {"W5": partial(quantise, target=target, kinds=kinds)} if kinds else {}


def quantise(view: View, target: Target, kinds: dict[str, tuple[int, Rounding]]) -> Found:
    """Centred hits on F and R_te before and after each kind of rounding."""
    transposed = matrices(view.model)
    before, found = unchanged(view, target, "W5"), Found()
    for setting, (bits, rounding) in kinds.items():
        changes = {float(bits): _rounding(rounding, transposed)}
        label = Key("W5", "", "centred", setting)
        found |= score_whole(view, target, changes, label, before)
    return found


def _rounding(rounding: Rounding, transposed: dict[str, bool]) -> Change:
    def change(name: str, weight: Tensor) -> Tensor:
        if name not in transposed:
            return weight
        return rounding(weight.mT).mT if transposed[name] else rounding(weight)

    return change


def rounded(
    weight: Float[Tensor, "*row column"], bits: int, group: int = GROUP
) -> Float[Tensor, "*row column"]:
    """The weights, each at the nearest of 2^bits - 1 evenly spaced values around zero.

    The spacing is max |w| / (2^(bits-1) - 1) within each group, so the largest weight of a group
    stays as it is, and rounding twice changes nothing more but for the last bit of a float.

    Args:
        bits: 2 or more.
        group: inputs of one output row that share a spacing; the last group may be smaller.
    """
    columns = weight.shape[-1]
    grouped = pad(weight.float(), (0, -columns % group)).unflatten(-1, (-1, group))
    step = grouped.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    step = step.where(step > 0, torch.ones_like(step))  # a group of zeros stays one
    near = (grouped / step).round() * step
    return near.flatten(-2)[..., :columns].to(weight.dtype)


def bnb_rounded(weight: Float[Tensor, "*row column"], kind: str) -> Float[Tensor, "*row column"]:
    """The weights as bitsandbytes stores and reads them; on CUDA alone.

    Source: LLM.int8(), Dettmers et al. 2022, 2208.07339; NF4, Dettmers et al. 2023, 2305.14314.
    Differs: the weights alone are rounded, and multiplied in the model's own type.

    Args:
        kind: `int8` (per row) or `nf4` (blocks of 64).

    Raises:
        AuditError: bitsandbytes is not installed, or the weights are not on a CUDA device.
    """
    functional = require_bnb(weight.device)
    flat = weight.flatten(0, -2).contiguous()
    if kind == "nf4":
        stored, state = functional.quantize_4bit(flat, blocksize=64, quant_type="nf4")
        read = functional.dequantize_4bit(stored, state)
    else:
        stored, largest, _ = functional.int8_vectorwise_quant(flat.half())
        read = stored.float() * (largest.float()[:, None] / 127)
    return read.to(weight.dtype).view_as(weight)


def require_bnb(device: torch.device) -> Any:
    """The functions of bitsandbytes.

    Raises:
        AuditError: it is not installed, or the device is no CUDA device.
    """
    if device.type != "cuda":
        raise AuditError(
            f"bitsandbytes rounds weights on CUDA alone, and the model is on {device}: move it, or "
            "leave `bnb` empty, which rounds in groups of 32 on any device"
        )
    try:
        return importlib.import_module("bitsandbytes.functional")
    except ImportError as error:
        raise AuditError(
            "the attack config asks for bitsandbytes, which is not installed: "
            "pip install bitsandbytes, or leave `bnb` empty"
        ) from error


@torch.no_grad()
def rounded_alike(edited: Any, original: Any, bits: int) -> float:
    """Share of the weights of the blocks' matrices that are the same after rounding both models.

    At 1 the rounded edited model is the rounded original, whatever was done to the weights between.
    Descriptive: what counts is what W5 brings back.

    Source: the account that Zhang et al. 2024, 2410.16454, give of why quantisation restores.

    Raises:
        AuditError: the models' matrices differ in name or shape.
    """
    transposed = matrices(edited)
    ours, theirs = dict(edited.named_parameters()), dict(original.named_parameters())
    same, total = 0, 0
    for name, turned in transposed.items():
        if name not in theirs or theirs[name].shape != ours[name].shape:
            raise AuditError(f"{name}: the original has no matrix of that name and shape")
        pair = [w[name].mT if turned else w[name] for w in (ours, theirs)]
        mine, other = (rounded(w, bits) for w in pair)
        same += int((mine == other.to(mine.device)).sum())
        total += mine.numel()
    return same / total
