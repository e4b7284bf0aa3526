"""Random features for comparison, for SAEs with and without statistics of their training."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from workbench.locate.concept import Concept
from workbench.locate.rows import read_rows
from workbench.sae.matched import matched_features


def control_features(
    model: Any, sae: Any, concept: Concept, features: Int[Tensor, " k"], seed: int
) -> Int[Tensor, " k"]:
    """Random features matched in firing rate and largest push, as `matched_features` gives them.

    For an SAE that carries no densities or no largest activations, both are read on the passages of
    the choice.

    Raises:
        SAEError: too few other features ever fire.
    """
    stats = (getattr(sae, name, None) for name in ("density", "max_activation"))
    if all(isinstance(values, Tensor) for values in stats):
        return matched_features(sae, features, seed).cpu()
    prompts = (*concept.select.forget, *concept.select.retain)
    rate, peak = (read_rows(model, sae, prompts, what) for what in ("rate", "peak"))
    density = rate.weight @ rate.values / rate.weight.sum()
    seen = _Seen(density, peak.values.amax(0), sae.W_dec.float().cpu())
    return matched_features(seen, features, seed)


@dataclass(frozen=True)
class _Seen:
    """What `matched_features` reads of an SAE, from other passages than those of its training."""

    density: Float[Tensor, " d_sae"]
    max_activation: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_model"]
