"""How much of what a model knows passes an SAE by: in the error that feature edits leave alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.audit.calling import BATCH_TOKENS, batch_of
from workbench.audit.questions.scorer import put, scored, true_logprobs
from workbench.audit.statistics import Interval, Key, percentile, resampled_means
from workbench.audit.views import Found, Measure, View
from workbench.facts.target import Target
from workbench.hooks import Intervention, Site, residuals
from workbench.models.score import Question, ask, batches_by_length

Part = Literal["whole", "reconstruction", "error", "neither"]
PARTS: tuple[Part, ...] = ("whole", "reconstruction", "error", "neither")


@dataclass(frozen=True)
class Keep:
    """Lets through what varies in one part of the stream; the rest is its mean.

    Attributes:
        means: of the reconstruction and of the error.
        first: the first position that is changed; 1 where texts start with a special token.
    """

    sae: Any
    site: Site
    part: Part
    means: tuple[Float[Tensor, " d_model"], Float[Tensor, " d_model"]]
    first: int = 0

    def __call__(
        self, resid: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        if self.part == "whole":
            return resid
        x = resid[:, self.first :]
        xhat, error = _parts(self.sae, x)
        kept = (
            xhat if self.part == "reconstruction" else self.means[0].to(x),
            error if self.part == "error" else self.means[1].to(x),
        )
        return torch.cat([resid[:, : self.first], (kept[0] + kept[1]).expand_as(x)], dim=1)


def error_job(target: Target) -> dict[str, Measure]:
    """One job: log p(object) of forget facts with each part of the stream at each SAE of the edits.

    Asked of the model below the edits, on audit-only templates: with the stream as it is, with the
    error at its mean, with the reconstruction at its mean, and with both; means are over the
    tokens of retained prompts. A view without edits that carry an SAE finds nothing.

    Source: the error carries what features miss: Engels et al. 2024, arXiv 2410.14670. Differs: the
    answer's log-probability in place of a norm.
    """
    return {"H2 error share": lambda view: _measure(view, target)}


def error_share(found: Found, setting: str, seed: int) -> Interval | None:
    """Share of the log-probability of the target that the SAE's error carries, 0 to 1 as a rule.

    Of the gain of the whole stream over its mean, half of what the error adds to the
    reconstruction and half of what it adds to nothing: the Shapley value of two players, so that
    the shares of error and reconstruction make 1. Below 0 or above 1 where one of them hurts; None
    where the stream may gain nothing over its mean.

    Args:
        setting: the place, as in the keys of `error_job`.

    Source: Shapley 1953; Lundberg and Lee 2017, arXiv 1705.07874.
    """
    keys = [Key("H2", "F", "logp_nats", f"{part}{setting}") for part in PARTS]
    if any(key not in found for key in keys):
        return None
    drawn = resampled_means([found[key] for key in keys], seed)
    if (drawn[0] <= drawn[3]).any():
        return None
    return percentile(_carried(*(found[key].mean for key in keys)), _carried(*drawn))


def _carried(whole: Any, reconstruction: Any, error: Any, neither: Any) -> Any:
    return 0.5 * ((whole - reconstruction) + (error - neither)) / (whole - neither)


def sae_of(edit: Any) -> Any:
    """The SAE that an edit, or the first of those it is made of, reads; None for none."""
    if (sae := getattr(edit, "sae", None)) is not None:
        return sae
    inside = [*getattr(edit, "edits", ()), getattr(edit, "edit", None)]
    return next((sae for e in inside if e is not None and (sae := sae_of(e)) is not None), None)


def places(edits: Sequence[Intervention]) -> Iterator[tuple[str, Intervention, Any]]:
    """Each edit that carries an SAE, with the SAE, and its name in keys: empty for the first."""
    carrying = [(edit, sae) for edit in edits if (sae := sae_of(edit)) is not None]
    for order, (edit, sae) in enumerate(carrying):
        yield f", edit {order + 1}" if order else "", edit, sae


def _measure(view: View, target: Target) -> Found:
    questions, found = ask(target.forget, "audit"), {}
    if not target.retain.get("R_tr"):
        return {}  # means are over what was to stay
    for suffix, edit, sae in places(view.edits):
        means, first = _means(view.model, edit.site, sae, ask(target.retain["R_tr"], "train"))
        for part in PARTS:
            keep = Keep(sae, edit.site, part, means, first)
            answers = put(view.model, [keep], target.facts, questions).answers
            key = Key("H2", "F", "logp_nats", f"{part}{suffix}")
            found[key] = scored(answers, true_logprobs(answers))
    return found


@torch.no_grad()
def _means(
    model: Any, site: Site, sae: Any, questions: Sequence[Question]
) -> tuple[tuple[Float[Tensor, " d_model"], Float[Tensor, " d_model"]], int]:
    """Means of reconstruction and error over all tokens, and where texts begin."""
    rows = model.tokenizer([q.prompt for q in questions])["input_ids"]
    first = int(bool(rows) and {row[0] for row in rows} == {model.tokenizer.bos_token_id})
    total = torch.zeros(2, model.cfg.d_model, dtype=torch.float64)
    count = 0
    for batch in batches_by_length(rows, BATCH_TOKENS):
        x = residuals(model, batch_of(model, rows, batch), [site])[site][:, first:]
        parts = torch.stack([part.cpu().double().sum((0, 1)) for part in _parts(sae, x)])
        total, count = total + parts.cpu(), count + x.shape[0] * x.shape[1]
    xhat, error = (total / max(count, 1)).float()
    return (xhat, error), first


def _parts(
    sae: Any, x: Float[Tensor, "*batch d_model"]
) -> tuple[Float[Tensor, "*batch d_model"], Float[Tensor, "*batch d_model"]]:
    xhat = sae.decode(sae.encode(x.to(sae.W_dec))).to(x)
    return xhat, x - xhat
