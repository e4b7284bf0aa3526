"""The threshold that a BatchTopK SAE is used with once there is no batch to select from."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.sae.step import encoder_of, largest

BATCH = 8192


@torch.no_grad()
def calibrated_threshold(sae: Any, rows: Float[Tensor, "token d_in"]) -> float:
    """The activation above which k features are active on a token of these rows, on average.

    SAELens follows the lowest kept activation of each batch from zero, by a hundredth of the way:
    after few steps that is far too low (k = 4 gave an L0 of 55 after 60 steps).
    """
    wanted = int(sae.cfg.k * len(rows))
    # Twice a batch's share of the pairs; of shuffled rows, a batch holds about one share.
    found = [largest(encoder_of(sae, b), int(2 * sae.cfg.k * len(b)))[2] for b in rows.split(BATCH)]
    values = torch.cat(found)
    if len(values) <= wanted:
        return 0.0
    return values.topk(wanted + 1).values[-2:].double().mean().item()
