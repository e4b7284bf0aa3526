"""Ways around a hook, how much of it would do, and whether weights can do the same."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.audit.questions.scorer import centred, centred_hits, hits, put, ranks, scored
from workbench.audit.statistics import Key, Scores
from workbench.audit.views import Found, Measure, View
from workbench.facts.target import Target
from workbench.hooks import Intervention, Site
from workbench.models.copies import copied
from workbench.models.score import Answers, ask

SCALES = (0.25, 0.5, 2.0, 4.0)
"""Powers of two, so that scaling there and back changes no bit of a stream without edits."""
DTYPES: Mapping[torch.dtype, tuple[torch.dtype, ...]] = {
    torch.float32: (torch.bfloat16, torch.float64),
    torch.bfloat16: (torch.float32,),
    torch.float16: (torch.float32,),
}
"""By the model's own type, those that it is met in besides; no copy takes more than twice."""
DOSES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)


@dataclass(frozen=True)
class Scaled:
    """Multiplies the stream by a factor."""

    site: Site
    factor: float

    def __call__(self, resid: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        return resid * self.factor


@dataclass(frozen=True)
class Partly:
    """Takes a share of the way that an edit goes: 0 leaves the stream, 1 is the edit."""

    edit: Intervention
    dose: float

    @property
    def site(self) -> Site:
        return self.edit.site

    def __call__(self, resid: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        return resid + self.dose * (self.edit(resid) - resid)


def bypass_jobs(target: Target, baked: Any = None) -> dict[str, Measure]:
    """One job for each check of edits; a view without edits finds nothing.

    H5 bypass: centred hits of forget facts with the stream scaled down or up before each edit and
    back behind it, which ducks or trips a threshold; and on a copy of the model with copies of the
    edits, as it is and in other number types. H6 doses: hits of forget and of retained facts, and
    the share of forget facts whose object ranks last, for less and for more of the edits. H8
    baked: the largest difference of a candidate's log-probability from a model that has the edits
    in its weights, per question.

    Args:
        baked: the edited model without hooks, if there is one.

    Source: clamping sweeps go below a model that never knew: Farrell et al. 2024, arXiv 2410.19278.
    Differs: a share of the edit's own change, so that any edit has a dose.
    """

    def only_edited(check: Any, *given: Any) -> Measure:
        return lambda view: check(view, target, *given) if view.edits else {}

    jobs = {"H5 bypass": only_edited(_bypass), "H6 doses": only_edited(_doses)}
    return jobs if baked is None else {**jobs, "H8 baked": only_edited(_baked, baked)}


def _bypass(view: View, target: Target) -> Found:
    return {
        Key("H5", "F", "centred", name): centred_hits(
            way.model, way.edits, target.facts, target.forget, "audit"
        )
        for name, way in _ways(view)
    }


def _ways(view: View) -> Iterator[tuple[str, View]]:
    """The view, met in ways that should make no difference to an edit."""
    for factor in SCALES:
        around = [
            part
            for edit in view.edits
            for part in (Scaled(edit.site, factor), edit, Scaled(edit.site, 1 / factor))
        ]
        yield f"stream times {factor:g}", replace(view, edits=around)
    yield "copy", replace(view, model=copied(view.model), edits=deepcopy(view.edits))
    own = {p.dtype for p in view.model.parameters()}
    for dtype in DTYPES.get(own.pop(), ()) if len(own) == 1 else ():
        name = str(dtype).removeprefix("torch.")
        yield name, replace(view, model=copied(view.model).to(dtype))


def _doses(view: View, target: Target) -> Found:
    questions = {"F": ask(target.forget, "audit"), "R_te": ask(target.retain["R_te"], "audit")}
    found: Found = {}
    for dose in DOSES:
        edits = [Partly(edit, dose) for edit in view.edits]
        for subset, asked in questions.items():
            if not asked:
                continue
            answers = put(view.model, edits, target.facts, asked).answers
            for metric, scores in _read(answers).items():
                found[Key("H6", subset, metric, x=dose)] = scores
    return found


def _read(answers: Answers) -> dict[str, Scores]:
    """Hits as they are and centred, and whether the true object ranks last after centring."""
    level = centred(answers)
    last = ranks(level) >= (~level.logprobs.isneginf()).sum(1)
    values = {"raw": hits(answers), "centred": hits(level), "last": last.double()}
    return {metric: scored(answers, value) for metric, value in values.items()}


def _baked(view: View, target: Target, baked: Any) -> Found:
    questions = ask(target.forget, "audit")
    hooked = put(view.model, view.edits, target.facts, questions).answers
    folded = put(baked, (), target.facts, questions).answers
    # Where both are -inf an object is no candidate; any other difference counts, NaN as well.
    neither = hooked.logprobs.isneginf() & folded.logprobs.isneginf()
    apart = (hooked.logprobs - folded.logprobs).masked_fill(neither, 0.0).abs().amax(1)
    return {Key("H8", "F", "difference"): scored(hooked, apart.double())}
