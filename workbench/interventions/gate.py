"""Acting only where the concept is present.

Evidence comes from SAE features, with a threshold set on retained text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.errors import EditError
from workbench.hooks import Intervention, Site
from workbench.interventions.features import sae_site
from workbench.sae.load import max_activation


@dataclass(frozen=True)
class Gate:
    """Applies an edit from the token on at which the concept's evidence exceeds a threshold.

    Each token adds weights · its SAE activations to a sum that starts from zero at BOS, and the
    evidence at a token is the highest sum up to it: a gate once open stays open. A token counts
    only for itself and what follows, so that the start of a prompt is treated alike whatever comes
    after. Generating with a key-value cache hides the earlier tokens from the gate: generate
    without one.

    Source: dynamic guardrails, arXiv 2504.08192. Differs: weights are fitted and evidence is
    causal, instead of the share of the whole sequence on which any chosen feature is active.
    """

    edit: Intervention
    sae: Any
    weights: Float[Tensor, " d_sae"]
    threshold: float

    def __post_init__(self) -> None:
        if self.edit.site != sae_site(self.sae):
            raise EditError(
                f"a gate reading {sae_site(self.sae).name} cannot guard an edit at "
                f"{self.edit.site.name}"
            )

    @property
    def site(self) -> Site:
        return self.edit.site

    def evidence(self, resid: Float[Tensor, "*batch pos d_model"]) -> Float[Tensor, "*batch pos"]:
        """The most evidence for the concept up to each token, zero at the first position (BOS)."""
        return gate_evidence(self.sae, self.weights, resid)

    def open_at(self, resid: Float[Tensor, "*batch pos d_model"]) -> Bool[Tensor, "*batch pos"]:
        """Where the gate lets the edit act."""
        return self.evidence(resid) > self.threshold

    def __call__(
        self, resid: Float[Tensor, "*batch pos d_model"]
    ) -> Float[Tensor, "*batch pos d_model"]:
        return torch.where(self.open_at(resid)[..., None], self.edit(resid), resid)


def gate_evidence(
    sae: Any, weights: Float[Tensor, " d_sae"], resid: Float[Tensor, "*batch pos d_model"]
) -> Float[Tensor, "*batch pos"]:
    """The most evidence for the concept at any token so far, which never falls.

    Evidence is weights · activations, summed from the token after BOS; at BOS it is zero.
    """
    acts = sae.encode(resid.to(sae.W_dec.dtype))
    per_token = acts.to(weights.dtype) @ weights.to(acts.device)
    first = torch.arange(resid.shape[-2], device=resid.device) == 0
    return per_token.masked_fill(first, 0.0).cumsum(-1).cummax(-1).values


def fit_gate_weights(
    sae: Any,
    concept: Sequence[Float[Tensor, "_pos d_model"]],
    retained: Sequence[Float[Tensor, "_pos d_model"]],
    unrelated: Sequence[Float[Tensor, "_pos d_model"]] = (),
    penalty: float = 0.1,
    concept_weight: float = 10.0,
    unrelated_weight: float = 0.2,
) -> Float[Tensor, " d_sae"]:
    """Logistic regression of concept prompts against others on their summed activations.

    There is no intercept, since evidence starts from zero at BOS.

    Args:
        concept: the residual stream of each prompt about the concept, BOS first.
        retained: of prompts that ask the same about other entities.
        unrelated: of prompts that ask anything else.
        penalty: scikit-learn's C, smaller is stronger, on activations in units of each feature's
            maximum.
        concept_weight: how many retained prompts one concept prompt weighs. The threshold sets the
            share of false alarms later, so this only has to leave it room.
        unrelated_weight: the same for unrelated prompts, which are easily told apart.
    """
    from sklearn.linear_model import LogisticRegression

    scale = max_activation(sae).clamp_min(1e-6)
    streams = [*concept, *retained, *unrelated]
    x = torch.stack([(sae.encode(s[1:]) / scale).sum(0) for s in streams]).cpu()
    y = [1] * len(concept) + [0] * (len(streams) - len(concept))
    sample_weight = (
        [concept_weight] * len(concept)
        + [1.0] * len(retained)
        + [unrelated_weight] * len(unrelated)
    )
    model = LogisticRegression(C=penalty, max_iter=500, fit_intercept=False)
    fitted = model.fit(x.numpy(), y, sample_weight=sample_weight)
    return torch.from_numpy(fitted.coef_[0]).to(scale) / scale


def calibrated(gate: Gate, peaks: Float[Tensor, " prompt"], false_alarms: float) -> Gate:
    """The same gate, with the threshold that a share `false_alarms` of retained prompts exceeds.

    Args:
        peaks: the highest evidence within each retained prompt.
    """
    return replace(gate, threshold=float(peaks.quantile(1 - false_alarms)))
