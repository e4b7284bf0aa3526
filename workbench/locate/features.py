"""Finding a concept's features, with evidence from templates that had no part in the choice."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.errors import EditError, TargetError
from workbench.facts.target import Target
from workbench.hooks import Site
from workbench.locate.scores import attribution, firing_frequency, prompt_rows
from workbench.models.score import Question, Templates, ask
from workbench.sae.load import require_fit

Method = Literal["frequency", "attribution"]


@dataclass(frozen=True)
class ConceptFeatures:
    """The features chosen for a concept, best first.

    Attributes:
        scores: the score they were chosen by, on the selection templates of the T fold.
        held_out: the same score of the same features on audit-only templates of the S fold, which
            chose nothing.
        held_out_random: mean held-out score over all other features, for comparison.
    """

    site: Site
    method: str
    features: Int[Tensor, " k"]
    scores: Float[Tensor, " k"]
    held_out: Float[Tensor, " k"]
    held_out_random: float
    selected_on: str
    evidence_on: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "site": self.site.name,
            "method": self.method,
            "features": self.features.tolist(),
            "scores": self.scores.tolist(),
            "held_out": self.held_out.tolist(),
            "held_out_random": self.held_out_random,
            "selected_on": self.selected_on,
            "evidence_on": self.evidence_on,
        }


def locate(
    model: Any, sae: Any, target: Target, k: int = 64, method: Method = "frequency"
) -> ConceptFeatures:
    """Ranks an SAE's features by how much they belong to the target.

    `frequency`: share of tokens on which the feature fires, from the subject's last token on,
    forget minus retained. `attribution`: activation × gradient toward the answer on forget minus
    retained facts.

    Chosen on training templates of the T fold (the R_tr fold for retained facts); the evidence
    comes from audit-only templates of the S fold (R_va), so neither the entities nor the templates
    of the choice are in it. The V fold, on which audits are scored, has no part in either, unless
    the target has too few entities for three folds: in the place of an empty fold stand all forget
    facts, and the result says so.

    Raises:
        SAEError: the SAE belongs to other weights. TargetError: no questions on a forget or
            retained fold. EditError: fewer than `k` features score above zero.
    """
    require_fit(sae, model)
    if method not in ("frequency", "attribution"):
        raise EditError(f"method {method!r}: wanted 'frequency' or 'attribution'")
    chosen_by = _score(model, sae, target, method, ("T", "R_tr", "train"))
    evidence = _score(model, sae, target, method, ("S", "R_va", "audit"))
    positive = int((chosen_by > 0).sum())
    if not 1 <= k <= positive:
        raise EditError(
            f"only {positive} features score above zero for {target.name!r}; asked for k={k}"
        )
    scores, features = chosen_by.topk(k)
    others = torch.ones(sae.cfg.d_sae, dtype=torch.bool)
    others[features] = False
    return ConceptFeatures(
        site=Site.parse(sae.cfg.metadata.hook_name),
        method=method,
        features=features,
        scores=scores,
        held_out=evidence[features],
        held_out_random=evidence[others].mean().item(),
        selected_on=f"{_fold_used(target, 'T')} and R_tr, training templates of {target.name}",
        evidence_on=f"{_fold_used(target, 'S')} and R_va, audit-only templates of {target.name}",
    )


def _score(
    model: Any,
    sae: Any,
    target: Target,
    method: str,
    on: tuple[str, str, Templates],
) -> Float[Tensor, " d_sae"]:
    """Mean score on a forget fold minus that on a retained fold, both with the same templates."""
    fold, retain_fold, templates = on

    def one(questions: tuple[Question, ...]) -> Float[Tensor, " d_sae"]:
        if method == "attribution":
            return attribution(model, sae, target.facts, questions)
        site = Site.parse(sae.cfg.metadata.hook_name)
        return firing_frequency(
            sae, prompt_rows(model, questions, [site], from_subject=True)[site][0]
        )

    forget = ask(target.fold(fold) or target.forget, templates)
    retain = ask(target.retain[retain_fold], templates)
    if not forget or not retain:
        missing = f"retained facts in fold {retain_fold}" if forget else "forget facts"
        raise TargetError(
            f"{target.name!r} has no {missing} with {templates} templates to compare features on"
        )
    return one(forget) - one(retain)


def _fold_used(target: Target, fold: str) -> str:
    return fold if target.folds[fold] else "all forget facts"
