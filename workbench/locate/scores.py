"""How much a feature belongs to a concept: each score a contrast of rows with and without it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from workbench.errors import EditError
from workbench.hooks import Site
from workbench.locate.concept import Contrast, Prompt, tokenized
from workbench.locate.rows import VALUES, Rows, What, read_rows, streams

Method = Literal[
    "frequency",
    "saebench",
    "mean_difference",
    "auroc",
    "tpp",
    "scr",
    "attribution",
    "integrated",
    "effect",
]
"""Scores that features are ranked by; `measure` says what each one is."""

READS: dict[str, What] = {
    "frequency": "rate",
    "saebench": "rate",
    "mean_difference": "mean",
    "auroc": "peak",
    "tpp": "mean",
    "scr": "mean",
    "attribution": "attribution",
    "integrated": "integrated",
    "effect": "effect",
}
FEATURES_AT_ONCE = 4096


@dataclass(frozen=True)
class Measured:
    """Rows with and without a concept, and how a score is made of them.

    Attributes:
        direction: for `tpp` and `scr`, how far each decoder row points along the probe.
        retain_threshold: for `saebench`, the firing rate on retained passages from which on a
            feature is left out.
    """

    method: Method
    forget: Rows
    retain: Rows
    direction: Float[Tensor, " d_sae"] | None = None
    retain_threshold: float = 0.01

    def scores(self) -> Float[Tensor, " d_sae"]:
        """The score of every feature."""
        return self.of(*self.forget.by_group(), *self.retain.by_group())

    def of(
        self,
        forget: Float[Tensor, "group d_sae"],
        forget_weight: Float[Tensor, " group"],
        retain: Float[Tensor, "other d_sae"],
        retain_weight: Float[Tensor, " other"],
    ) -> Float[Tensor, " d_sae"]:
        """The score from groups' values and weights, which may be resampled."""
        if self.method == "auroc":
            return auroc(forget, retain) - 0.5
        with_ = forget_weight @ forget / forget_weight.sum()
        without = retain_weight @ retain / retain_weight.sum()
        if self.method == "saebench":
            return saebench_filter(with_, without, self.retain_threshold)
        if self.direction is None:
            return with_ - without
        if self.method == "tpp":
            return (with_ - without).clamp_min(0) * self.direction
        return ((with_ - without) * self.direction).abs()

    def p_values(self) -> Float[Tensor, " d_sae"]:
        """Of each feature having higher values on groups with the concept; Mann–Whitney's test.

        For `scr`, of having other values. A feature that is the same everywhere has 1. Where more
        than half of the groups share one value, as with features that mostly stay silent, the
        normal approximation is far too sure with few groups against many: there the larger of its
        p-value and the exact one of how many groups lie above that value counts.
        """
        kind = "two-sided" if self.method == "scr" else "greater"
        forget, retain = self.forget.by_group()[0], self.retain.by_group()[0]
        found = torch.ones(forget.shape[1], dtype=torch.float64)
        varies = (torch.cat([forget, retain]) != forget[:1]).any(0).nonzero().flatten()
        for some in varies.split(FEATURES_AT_ONCE):
            with_, without = forget[:, some].double(), retain[:, some].double()
            test = stats.mannwhitneyu(
                with_.numpy(), without.numpy(), alternative=kind, method="asymptotic"
            )
            p = torch.from_numpy(np.atleast_1d(test.pvalue))
            found[some] = torch.maximum(p, _count_p(with_, without, kind))
        return found

    def only(self, features: Int[Tensor, " k"]) -> "Measured":
        """The same score of some features."""
        direction = None if self.direction is None else self.direction[features]
        forget, retain = self.forget.only(features), self.retain.only(features)
        return replace(self, forget=forget, retain=retain, direction=direction)

    def of_wording(self, wording: int) -> "Measured":
        """The same on the prompts of one wording alone."""
        return replace(
            self, forget=self.forget.of_wording(wording), retain=self.retain.of_wording(wording)
        )


def measure(
    model: Any,
    sae: Any,
    contrast: Contrast,
    method: Method,
    *,
    like: Measured | None = None,
    retain_threshold: float = 0.01,
) -> Measured:
    """Reads what a score needs on both sides of a contrast.

    - `frequency`: share of tokens on which a feature fires, with minus without the concept.
    - `saebench`: that share on the concept alone, 0 for features that fire on as many retained
      tokens as the threshold says (arXiv 2410.19278; SAEBench's `get_top_features`).
    - `mean_difference`: mean activation, with minus without.
    - `auroc`: how well a feature's highest activation in a passage tells the two apart, minus ½
      (AxBench).
    - `tpp`: difference of mean activations, where positive, times how far the decoder row points
      along a probe that tells the passages apart; `scr`: the size of this product, either sign
      (SAEBench).
    - `attribution`: activation × gradient of the answer's log-probability, summed over tokens: to
      first order, how much the answer loses if the feature is ablated (arXiv 2403.19647).
      `integrated`: the same with the mean gradient along the path from no feature to all.
    - `effect`: how much the answer loses if the feature is ablated.

    Args:
        like: what was measured on the passages of the choice; its probe is used again.

    Raises:
        EditError: an unknown method, or one that wants answers where prompts have none.
    """
    if method not in get_args(Method):
        raise EditError(f"method {method!r}: wanted one of {', '.join(get_args(Method))}")
    direction = None
    if method in ("tpp", "scr"):
        direction = (
            (sae.W_dec.float().cpu() @ _probe(model, sae, contrast))
            if like is None
            else like.direction
        )
    forget, retain = (
        read_rows(model, sae, side, READS[method]) for side in (contrast.forget, contrast.retain)
    )
    return Measured(method, forget, retain, direction, retain_threshold)


def saebench_filter(
    forget: Float[Tensor, " d_sae"], retain: Float[Tensor, " d_sae"], threshold: float
) -> Float[Tensor, " d_sae"]:
    """Firing rates on the concept, 0 where the rate on retained text is the threshold or more.

    Rates have six decimals, as SAEBench stores them before it compares.
    """
    kept, limits = (
        torch.tensor([float(f"{x:f}") for x in rates.tolist()], dtype=torch.float64)
        for rates in (forget, retain)
    )
    return torch.where(limits >= threshold, 0.0, kept).float()


def auroc(
    forget: Float[Tensor, "group d_sae"], retain: Float[Tensor, "other d_sae"]
) -> Float[Tensor, " d_sae"]:
    """Share of pairs in which the group with the concept has the higher value; ties count half."""
    ranks = stats.rankdata(torch.cat([forget, retain]).numpy(), axis=0)[: len(forget)].sum(0)
    lowest = len(forget) * (len(forget) + 1) / 2
    return torch.from_numpy((ranks - lowest) / (len(forget) * len(retain))).float()


def _count_p(
    forget: Float[Tensor, "group some"], retain: Float[Tensor, "other some"], kind: str
) -> Float[Tensor, " some"]:
    """Fisher's exact p-value of how many groups lie above the commonest value; 0 without one."""
    both = torch.cat([forget, retain])
    middle = both.median(0).values
    above, hits = ((values > middle).sum(0).numpy() for values in (both, forget))
    more = stats.hypergeom.sf(hits - 1, len(both), above, len(forget))
    fewer = stats.hypergeom.cdf(hits, len(both), above, len(forget))
    p = np.minimum(1.0, 2 * np.minimum(more, fewer)) if kind == "two-sided" else more
    tied = (both == middle).double().mean(0) > 0.5
    return torch.from_numpy(np.atleast_1d(p)).where(tied, 0.0)


def adjusted(p: Float[Tensor, " d_sae"]) -> Float[Tensor, " d_sae"]:
    """False-discovery rates over the whole dictionary (Benjamini and Hochberg 1995)."""
    return torch.from_numpy(stats.false_discovery_control(p.numpy()))


def _probe(model: Any, sae: Any, contrast: Contrast) -> Float[Tensor, " d_model"]:
    """Direction of a logistic regression on passages' mean residual streams."""
    from sklearn.linear_model import LogisticRegression

    x = torch.cat([_means(model, sae, side) for side in (contrast.forget, contrast.retain)])
    y = [1] * len(contrast.forget) + [0] * len(contrast.retain)
    fitted = LogisticRegression(max_iter=1000).fit(x.numpy(), y)
    return torch.from_numpy(fitted.coef_[0]).float()


@torch.no_grad()
def _means(model: Any, sae: Any, prompts: Sequence[Prompt]) -> Float[Tensor, "prompt d_model"]:
    means = torch.zeros(len(prompts), sae.cfg.d_in)
    given = tokenized(model.tokenizer, prompts)
    for batch, stream, counted in streams(
        model, Site.parse(sae.cfg.metadata.hook_name), given, VALUES // sae.cfg.d_in
    ):
        total = (stream.float() * counted[..., None]).sum(1)
        means[batch] = (total / counted.sum(-1, keepdim=True)).cpu()
    return means
