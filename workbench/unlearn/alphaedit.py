"""AlphaEdit: keys get new values by what retained keys do not hold."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.errors import EditError
from workbench.facts.target import Target
from workbench.unlearn.arm import Arm
from workbench.unlearn.spread import spread
from workbench.unlearn.values import Values


@dataclass(frozen=True)
class Config:
    """How far values are moved, and what is left alone.

    Attributes:
        last: the highest layer that is edited; about a third of the depth if None.
        layers: how many are edited, up to the last.
        leak: largest share of retained keys' squared length in the directions that may be used.
        ridge: weight of the change's size, in mean squared lengths of a key's usable part.
        texts: retained texts that the directions are taken from, at most.
    """

    last: int | None = None
    layers: int = 2
    values: Values = field(default_factory=Values)
    leak: float = 0.01
    ridge: float = 2000.0
    texts: int = 2500


DEFAULT = Config()
STRENGTHS = tuple(replace(DEFAULT, ridge=r) for r in (4000.0, 2000.0, 1000.0))


def unlearn(model: Any, target: Target, config: Config = DEFAULT, seed: int = 0) -> Arm:
    """As MEMIT, but by a change that retained keys do not meet, up to a stated share.

    Source: Fang et al. 2025, arXiv 2410.02355, eq. 11 and 14. Differs: the directions left to use
    are those of least retained variance that hold at most `leak` of it together, not those of
    eigenvalues below a number, which means another thing in each model; `ridge` is in the keys'
    own units; all else as in `memit`.
    """
    if not 0 < config.leak <= 1 or config.ridge < 0:
        raise EditError(
            f"alphaedit: leak {config.leak}, ridge {config.ridge}: wanted a share above 0 and at "
            "most 1, and a weight of 0 or more"
        )

    def solve(residual: Tensor, keys: Tensor, moment: Tensor) -> tuple[Tensor, dict[str, Any]]:
        basis = unused(moment, config.leak)
        said = {
            "directions": basis.shape[1],
            "of_keys": ((keys @ basis).norm() / keys.norm()).item() ** 2,
        }
        return projected(residual, keys, basis, config.ridge), said

    return spread("alphaedit", model, target, config, seed, solve)


def unused(moment: Float[Tensor, "k k"], leak: float) -> Float[Tensor, "k n"]:
    """An orthonormal basis of the directions that hold at most a share `leak` of what is retained.

    Raises:
        EditError: every direction holds more.
    """
    values, vectors = torch.linalg.eigh(moment)
    share = values.clamp_min(0).cumsum(0) / values.clamp_min(0).sum()
    free = int((share <= leak).sum())
    if not free:
        raise EditError(
            f"alphaedit: no direction of a key holds as little as {leak:g} of the retained keys' "
            f"squared length, the least one {share[0].item():.2g}: wanted a larger leak"
        )
    return vectors[:, :free]


def projected(
    residual: Float[Tensor, "n d_model"],
    keys: Float[Tensor, "n k"],
    basis: Float[Tensor, "k free"],
    ridge: float,
) -> Float[Tensor, "d_model k"]:
    """The change D of least |D P key - residual|² + ridge · |D P|², P onto the basis."""
    inside = keys @ basis
    weight = ridge * inside.square().sum(-1).mean()
    normal = inside.T @ inside + weight * torch.eye(basis.shape[1]).to(inside)
    return torch.linalg.lstsq(normal, inside.T @ residual).solution.T @ basis.T
