"""Dual use: how much of what is taken away serves what was to stay."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from workbench.audit.calling import BATCH_TOKENS, batch_of
from workbench.audit.statistics import (
    UNBOUNDED,
    Interval,
    Key,
    Scores,
    percentile,
    resampled_means,
)
from workbench.audit.views import Found, Measure, View
from workbench.errors import AuditError
from workbench.facts.target import Target
from workbench.hooks import Intervention, residuals
from workbench.models.score import Question, ask, batches_by_length

SUBSETS = ("F", "R_te")


def mass_job(target: Target) -> dict[str, Measure]:
    """One job: the activation mass per token of the features that each edit takes away.

    Read in the model below the edits, on audit-only templates of forget (`F`) and retained facts
    (`R_te`), under endpoint `H2` and metric `mass`, with the place as setting. A view without
    edits of SAE features finds nothing.
    """
    return {"H2 mass": lambda view: _measure(view, target)}


def feature_share_retain(found: Found, place: str, seed: int) -> Interval | None:
    """Share of the features' activation mass that falls on prompts which were to stay.

    0 where they are active on the target alone, 0.5 where they are as active on both, 1 where they
    are active on what was to stay alone. Both masses are per token, so that it does not matter of
    which prompts there are more. None where they never fire, or nothing was to stay.

    Args:
        found: what `mass_job` stored.
        place: the setting of its keys.
    """
    keys = [Key("H2", subset, "mass", place) for subset in SUBSETS]
    if any(key not in found for key in keys):
        return None
    gone, kept = (found[key] for key in keys)
    if gone.mean + kept.mean <= 0:
        return None
    drawn_gone, drawn_kept = resampled_means([gone, kept], seed)
    total = np.maximum(drawn_gone + drawn_kept, 1 / UNBOUNDED)
    return percentile(kept.mean / (gone.mean + kept.mean), drawn_kept / total)


def dual_cost(edited: Mapping[str, float], gold: Mapping[str, float]) -> float:
    """Mean over benign task sets of what the edit loses against the golds, gains counted as 0.

    Args:
        edited: recall of the edited model on each set.
        gold: the golds' mean recall on the same sets.

    Raises:
        AuditError: no sets, or other ones.
    """
    if not edited or edited.keys() != gold.keys():
        raise AuditError(
            f"dual cost of sets {sorted(edited)} against {sorted(gold)}: wanted the same ones"
        )
    return sum(max(0.0, gold[name] - edited[name]) for name in edited) / len(edited)


def changed_features(edit: Any) -> Iterator[tuple[Any, Any]]:
    """Each SAE whose features an edit, or one that it is made of, changes, with these features."""
    sae, features = getattr(edit, "sae", None), getattr(edit, "features", None)
    if sae is not None and features is not None:
        yield sae, features
        return
    inside = [*getattr(edit, "edits", ()), getattr(edit, "edit", None)]
    for part in inside:
        if part is not None:
            yield from changed_features(part)


def _measure(view: View, target: Target) -> Found:
    found: Found = {}
    parts = [(edit, *part) for edit in view.edits for part in changed_features(edit)]
    for order, (edit, sae, features) in enumerate(parts, 1):
        for subset, facts in (("F", target.forget), ("R_te", target.retain["R_te"])):
            if questions := ask(facts, "audit"):
                masses = _masses(view.model, edit, sae, features, questions)
                found[Key("H2", subset, "mass", f"edit {order}")] = Scores(
                    masses,
                    tuple(q.fact.subject for q in questions),
                    tuple(q.fact.relation for q in questions),
                )
    return found


@torch.no_grad()
def _masses(
    model: Any, edit: Intervention, sae: Any, features: Any, questions: Sequence[Question]
) -> Float[np.ndarray, " question"]:
    """Mean over the tokens of each prompt of the features' activations together."""
    rows = model.tokenizer([q.prompt for q in questions])["input_ids"]
    masses = np.zeros(len(rows))
    for batch in batches_by_length(rows, BATCH_TOKENS):
        x = residuals(model, batch_of(model, rows, batch), [edit.site])[edit.site]
        acts = sae.encode(x.to(sae.W_dec))[..., features].abs().sum(-1)
        masses[batch] = acts.cpu().double().mean(1).numpy()
    return masses
