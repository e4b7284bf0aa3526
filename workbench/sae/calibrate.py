"""The threshold that a BatchTopK SAE is used with once there is no batch to select from."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.sae.step import above, encoder_of

BATCH = 8192


@torch.no_grad()
def calibrated_threshold(sae: Any, rows: Float[Tensor, "token d_in"]) -> float:
    """The activation above which k features are active on a token of these rows, on average.

    SAELens follows the lowest kept activation of each batch from zero, by a hundredth of the way:
    after few steps that is far too low (k = 4 gave an L0 of 55 after 60 steps).
    """
    wanted = int(sae.cfg.k * len(rows))
    guess = torch.zeros(())
    while True:
        values = torch.cat([above(encoder_of(sae, b), guess)[2] for b in rows.split(BATCH)])
        if len(values) > wanted:
            two = values.topk(wanted + 1).values[-2:]
            return two.double().mean().item()
        if guess == 0:
            return 0.0
        guess = guess / 4
