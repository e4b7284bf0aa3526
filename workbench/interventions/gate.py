"""Acting only where the concept is present, with a threshold set on retained text."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.errors import EditError
from workbench.hooks import Intervention, Site
from workbench.interventions.evidence import Always, Evidence
from workbench.interventions.flow import Flow, follow
from workbench.sae.load import max_activation
from workbench.sae.read import Reading

Over = Literal["token", "latched", "share"]


@dataclass(frozen=True)
class Gate(Flow):
    """Applies an edit where the evidence for a concept exceeds a threshold.

    A token counts only for itself and what follows, so that the start of a prompt is treated alike
    whatever comes after. The first token (BOS) is no evidence and is never changed, nor is padding.

    Attributes:
        evidence: what each token says: weighted features, features that fire, or a probe.
        over: `token`: each token for itself. `latched`: the highest sum so far, which starts from
            zero: a gate once open stays open. `share`: the mean over the tokens so far.

    Source: `share` over firing features is the statistic of dynamic guardrails, arXiv 2504.08192,
    and `token` conditional clamping, arXiv 2503.11127. Differs: the share is of the tokens so far,
    instead of the whole sequence.
    """

    edit: Intervention
    evidence: Evidence
    threshold: float
    over: Over = "latched"

    def __post_init__(self) -> None:
        reads = self.evidence.site
        if reads is not None and reads != self.edit.site:
            raise EditError(
                f"a gate reading {reads.name} cannot guard an edit at {self.edit.site.name}"
            )
        if self.over not in ("token", "latched", "share"):
            raise EditError(f"over={self.over!r}: wanted 'token', 'latched' or 'share'")

    @property
    def site(self) -> Site:
        return self.edit.site

    def gathered(self, resid: Float[Tensor, "*batch pos d_model"]) -> Float[Tensor, "*batch pos"]:
        """The evidence that the threshold is compared with, at each token."""
        return self._gather(self._read(Reading(None, resid)), None, None)[0]

    def open_at(self, resid: Float[Tensor, "*batch pos d_model"]) -> Bool[Tensor, "*batch pos"]:
        """Where the gate lets the edit act."""
        gathered, counts, _ = self._gather(self._read(Reading(None, resid)), None, None)
        return counts & (gathered > self.threshold)

    def follow(
        self, reading: Reading, memory: Any, real: Bool[Tensor, "*batch pos"] | None
    ) -> tuple[Reading, Any]:
        mine, inner = (None, None) if memory is None else memory
        reading = self._read(reading)
        gathered, counts, mine = self._gather(reading, mine, real)
        changed, inner = follow(self.edit, reading, inner, real)
        is_open = (counts & (gathered > self.threshold))[..., None]
        out = torch.where(is_open, changed.resid, reading.resid)
        return Reading(None, out), (mine, inner)

    def _read(self, reading: Reading) -> Reading:
        sae = getattr(self.evidence, "sae", None)
        return reading if sae is None else reading.by(sae)

    def _gather(
        self, reading: Reading, memory: Any, real: Bool[Tensor, "*batch pos"] | None
    ) -> tuple[Float[Tensor, "*batch pos"], Bool[Tensor, "*batch pos"], Any]:
        """Evidence at each token, and whether the token counts: it is neither BOS nor padding.

        Memory is tokens seen, their sum, and the highest sum.
        """
        scores = self.evidence(reading)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        real = torch.ones_like(scores, dtype=torch.bool) if real is None else real
        if memory is None:
            zero = torch.zeros_like(scores[..., :1])
            memory = zero, zero, zero
        seen, summed, highest = memory
        counted = seen + real.to(scores).cumsum(-1)
        counts = real & (counted > 1)
        scores = scores.masked_fill(~counts, 0.0)
        sums = summed + scores.cumsum(-1)
        peaks = torch.maximum(highest, sums.cummax(-1).values)
        share = sums / (counted - 1).clamp_min(1)
        gathered = {"token": scores, "latched": peaks, "share": share}[self.over]
        return gathered, counts, (counted[..., -1:], sums[..., -1:], peaks[..., -1:])


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


@torch.no_grad()
def gate_peaks(
    gate: Gate, streams: Sequence[Float[Tensor, "_pos d_model"]]
) -> Float[Tensor, " prompt"]:
    """The highest evidence within each prompt, BOS first."""
    return torch.stack([gate.gathered(stream).amax(-1) for stream in streams]).cpu()


def calibrated(gate: Gate, peaks: Float[Tensor, " prompt"], false_alarms: float) -> Gate:
    """The same gate, with the threshold that a share `false_alarms` of retained prompts exceeds.

    Args:
        peaks: the highest evidence within each retained prompt, by `gate_peaks`.
    """
    return replace(gate, threshold=float(peaks.quantile(1 - false_alarms)))


def but_bos(edit: Intervention) -> Gate:
    """The same edit, which leaves the first token of every sequence as it is."""
    return Gate(edit, Always(), 0.5, "token")
