"""How an SAE is trained, and the untrained SAE that follows from it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    GatedTrainingSAE,
    GatedTrainingSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.saes.sae import SAEMetadata
from torch import Tensor, nn

from workbench.errors import SAEError
from workbench.sae.step import encoder_of

Architecture = Literal["standard", "gated", "topk", "batchtopk", "jumprelu", "matryoshka_batchtopk"]
CLASSES: dict[str, tuple[type, type]] = {
    "standard": (StandardTrainingSAE, StandardTrainingSAEConfig),
    "gated": (GatedTrainingSAE, GatedTrainingSAEConfig),
    "topk": (TopKTrainingSAE, TopKTrainingSAEConfig),
    "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig),
    "jumprelu": (JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig),
    "matryoshka_batchtopk": (MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig),
}


@dataclass(frozen=True)
class TrainConfig:
    """How an SAE is trained.

    Attributes:
        k: features active on each token, on average over a batch for the BatchTopK family; the
            other architectures do not use it.
        sparsity: coefficient of the L1 penalty (standard, gated) or the L0 penalty (jumprelu),
            reached over the first tenth of the steps; the TopK family does not use it.
        widths: inner widths of a Matryoshka SAE; none given: an eighth, a quarter and a half.
        samples: activations seen in all, over as many epochs as that takes.
        lr: of Adam, after a warm-up; over the last third of the steps it falls to 0.
        dead_after: steps without firing after which a feature counts as dead, and the auxiliary
            loss of the TopK family revives it.
        held_out: share of the documents kept for the metrics.
        normalize: scale activations to a mean norm of sqrt(d_in) while training; the factor is
            folded into the weights at the end.
        bfloat16: multiply matrices in bfloat16, with float32 weights and statistics.
    """

    architecture: Architecture = "topk"
    d_sae: int = 1024
    k: int = 32
    sparsity: float = 1.0
    widths: tuple[int, ...] = ()
    samples: int = 2_500_000
    batch_size: int = 1024
    lr: float = 1e-3
    dead_after: int = 50
    held_out: float = 0.05
    normalize: bool = False
    bfloat16: bool = False
    seed: int = 0

    @property
    def steps(self) -> int:
        return self.samples // self.batch_size

    def lr_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0: linear warm-up, constant, linear decay."""
        warm_up, decay = max(1, min(100, self.steps // 10)), max(1, self.steps // 3)
        return self.lr * min(1.0, (step + 1) / warm_up, (self.steps - step) / decay)

    def coefficients_at(self, step: int) -> dict[str, float]:
        """Weights of the sparsity losses, by SAELens' names."""
        name = {"standard": "l1", "gated": "l1", "jumprelu": "l0"}.get(self.architecture)
        warm_up = max(1, self.steps // 10)
        return {name: self.sparsity * min(1.0, step / warm_up)} if name else {}


def require_possible(config: TrainConfig) -> None:
    """Raises SAEError for settings that name no training."""
    if config.architecture not in get_args(Architecture):
        raise SAEError(f"architecture {config.architecture!r}: wanted one of {', '.join(CLASSES)}")
    if config.batch_size < 1 or config.steps < 1:
        raise SAEError(
            f"{config.samples} samples in batches of {config.batch_size} are {config.steps} steps; "
            "wanted one or more"
        )
    if not 0 < config.held_out <= 1:
        raise SAEError(f"held_out {config.held_out:g}: wanted a share of the documents above 0")
    if not 1 <= config.k <= config.d_sae:
        raise SAEError(f"k {config.k}: wanted 1 to {config.d_sae}, the number of features")


def held_out(config: TrainConfig) -> Callable[[Int[Tensor, " token"]], Bool[Tensor, " token"]]:
    """Tells which documents are kept for the metrics, by a hash of their index and the seed."""

    def mixed(x: Tensor) -> Tensor:
        for shift, factor in ((16, 0x45D9F3B), (15, 0x2C1B3C6D), (16, 1)):
            x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
        return x

    def kept(documents: Int[Tensor, " token"]) -> Bool[Tensor, " token"]:
        salt = mixed(torch.tensor(config.seed + 1))
        return mixed(mixed(documents.long()) ^ salt) < config.held_out * 2**32

    return kept


def new_sae(config: TrainConfig, metadata: SAEMetadata, sample: Float[Tensor, "token d_in"]) -> Any:
    """An untrained SAE whose decoder bias is the sample's mean.

    Features of the TopK family start at activations of the sample, one each: from random directions
    most of them die (dictionary_learning's README reports 12 to 45 % alive).
    """
    cls, config_cls = CLASSES[config.architecture]
    sae = cls(config_cls(d_in=sample.shape[1], d_sae=config.d_sae, metadata=metadata,
                         **_settings(config)))  # fmt: skip
    with torch.no_grad():
        sae.b_dec.copy_(sample.mean(0))
        if isinstance(sae, TopKTrainingSAE):
            chosen = sample[: config.d_sae] - sae.b_dec
            sae.W_dec.copy_(chosen / chosen.norm(dim=-1, keepdim=True).clamp(min=1e-8))
            sae.W_enc.copy_(sae.W_dec.T)
            # Features that resemble each other overshoot together; one factor makes up for it.
            written, _ = encoder_of(sae, sample).top_k(int(config.k)).decode(sae.W_dec)
            centred = sample - sae.b_dec
            sae.W_enc.mul_((written * centred).sum() / written.square().sum().clamp(min=1e-8))
            # A feature's encoder weights lie together, as the sparse step makes their gradient.
            sae.W_enc = nn.Parameter(sae.W_enc.T.contiguous().T)
    return sae


def _settings(config: TrainConfig) -> dict[str, Any]:
    """What SAELens' config of this architecture has beyond sizes."""
    if config.architecture == "jumprelu":
        return {"l0_coefficient": config.sparsity}
    if config.architecture in ("standard", "gated"):
        return {"l1_coefficient": config.sparsity}
    if config.architecture != "matryoshka_batchtopk":
        return {"k": config.k}
    inner = config.widths or tuple(config.d_sae // n for n in (8, 4, 2))
    if sorted({w for w in inner if 0 < w < config.d_sae}) != list(inner):
        raise SAEError(
            f"widths {inner}: wanted rising numbers between 0 and {config.d_sae}, the number of "
            "features"
        )
    return {"k": config.k, "matryoshka_widths": [*inner, config.d_sae]}
