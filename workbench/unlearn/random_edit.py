"""A random change of the weights, as large as those of other methods: what size alone does."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.errors import EditError, ModelError
from workbench.facts.target import Target
from workbench.models.copies import copied
from workbench.unlearn.arm import Arm, made, metered, require_arm


@dataclass(frozen=True)
class Config:
    """How large the change is.

    Attributes:
        relative: norm of the change of each MLP matrix, as a share of the matrix's own norm. The
            default is near what other methods change in the bundled world at their defaults: .12 on
            average for gradient difference and for NPO.
    """

    relative: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.relative < float("inf"):
            raise EditError(f"relative={self.relative:g}: wanted a finite share of 0 or more")


DEFAULT = Config()
STRENGTHS = (Config(0.05), DEFAULT, Config(0.2))


def unlearn(model: Any, target: Target, config: Config = DEFAULT, seed: int = 0) -> Arm:
    """Adds Gaussian noise of a stated norm to each matrix of the MLPs.

    The target has no part in it: another target gets the same change under the same seed. What an
    attack or a probe finds after it is what any change of this size does.

    Raises:
        ModelError: the blocks have no MLP with matrices.
    """
    require_arm("random_edit", model, target)
    with metered(model) as meter, torch.no_grad():
        changed = copied(model)
        generator, count = torch.Generator().manual_seed(seed), 0
        for matrix in mlp_matrices(changed):
            # Drawn on the CPU, so that the change is the same on every device.
            noise = torch.randn(matrix.shape, generator=generator, dtype=torch.float64)
            size = config.relative * matrix.double().norm().cpu()
            change = (noise * (size / noise.norm())).to(matrix.device)
            matrix.copy_(matrix.double() + change)
            count += 1
    if not count:
        raise ModelError("random_edit: no matrix in any block.mlp of this model: wanted MLPs")
    arm = Arm("random_edit", changed, told={"matrices": count})
    return made(arm, meter, config, seed)


def mlp_matrices(model: Any) -> Iterator[Tensor]:
    """The matrices of all MLPs, block by block."""
    return (p for block in model.blocks for p in block.mlp.parameters() if p.ndim == 2)
