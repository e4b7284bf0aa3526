"""What an edit cost: facts that were to stay, text, and the form of answers."""

from collections.abc import Sequence

import numpy as np

from workbench.audit.dual_use import dual_cost
from workbench.audit.endpoints import Rules
from workbench.audit.questions.damage import divergence_nats, flipped
from workbench.audit.reading import Cast
from workbench.audit.schema import Collateral, KeptSet
from workbench.audit.sections import make_fluency
from workbench.audit.statistics import Key, gold_mean_draws, percentile, resampled_means

MAX_LOSS, MAX_PPL, DEGRADED_SHARE, DEGRADED_PPL, MIN_VALID = 0.03, 1.05, 0.90, 1.25, 0.9
NEAR = ("N1", "N2", "N3", "N5")
"""Sets that share entity, relation, object or premises with the target."""


def make_collateral(cast: Cast, rules: Rules) -> Collateral:
    """What the edit cost in facts that were to stay, in text and in the form of its answers."""
    subsets = [k.subset for k in cast.edited if k.endpoint == "kept" and k.metric == "text"]
    sets = tuple(_kept_set(s, cast, rules.seed) for s in subsets)
    by_id = {s.id: s for s in sets}
    ppl = _perplexity(cast, rules.seed)
    valid = cast.edited.get(Key("text", "R_te", "valid"))
    why = [
        f"recall of {name} may be {-by_id[name].lcb_vs_gold:.3f} below the reference, "
        f"limit {MAX_LOSS}"
        for name in ("R_te", "U")
        if name in by_id and by_id[name].lcb_vs_gold <= -MAX_LOSS
    ]
    if "R_te" not in by_id:
        why.append("no retained facts of the same relations were asked")
    if ppl is not None and ppl[2] >= MAX_PPL:
        why.append(f"perplexity ratio may be {ppl[2]:.3f}, limit {MAX_PPL}")
    broken = _broken(by_id.get("R_te"), ppl, valid.mean if valid is not None else None)
    return Collateral(
        "gold" if cast.golds else "original",
        sets,
        ppl,
        valid.mean if valid is not None else None,
        make_fluency(cast),
        _dual_cost(sets),
        non_inferior=not why,
        degraded=bool(broken),
        why=tuple(broken or why),
    )


def _broken(
    kept: KeptSet | None, ppl: tuple[float, float, float] | None, valid: float | None
) -> list[str]:
    why = []
    if kept is not None:
        reference = kept.G if kept.G is not None else kept.O
        if kept.ucb < DEGRADED_SHARE * reference:
            why.append(
                f"recall of retained facts is at most {kept.ucb:.2f}, under {DEGRADED_SHARE} of "
                f"{reference:.2f}"
            )
    if ppl is not None and ppl[0] > DEGRADED_PPL:
        why.append(f"perplexity is {ppl[0]:.2f} times the reference's, limit {DEGRADED_PPL}")
    if valid is not None and valid < MIN_VALID:
        why.append(f"only {valid:.2f} of the answers are answers at all, limit {MIN_VALID}")
    return why


def _kept_set(subset: str, cast: Cast, seed: int) -> KeptSet:
    raw, text = (Key("kept", subset, metric) for metric in ("raw", "text"))
    # As users read it, where the original can be read so: a filter that refuses them is a loss.
    key = text if cast.original[text].mean >= 0.5 * cast.original[raw].mean else raw
    scores = [found[key] for found in cast.models]
    draws, golds = resampled_means(scores, seed), [s.mean for s in scores[2:]]
    reference = gold_mean_draws(draws[2:], golds, seed) if golds else draws[1]
    shifted = Key("damage", subset, "logp_nats", "0") in cast.edited
    kl = [divergence_nats(cast.original, found, subset).mean for found in cast.models if shifted]
    return KeptSet(
        subset,
        len(scores[0].values),
        scores[0].n_entities,
        scores[1].mean,
        scores[0].mean,
        float(np.mean(golds)) if golds else None,
        float(np.quantile(draws[0] - reference, 0.05)),
        float(np.quantile(draws[0], 0.95)),
        kl[0] if kl else None,
        float(np.mean(kl[2:])) if len(kl) > 2 else None,
        flipped(cast.original, cast.edited, subset).mean if shifted else None,
    )


def _dual_cost(sets: Sequence[KeptSet]) -> float | None:
    """Of the sets that share the target's relations, entities or premises: what was held back."""
    near = [s for s in sets if s.id in NEAR and s.G is not None]
    if not near:
        return None
    return dual_cost({s.id: s.E for s in near}, {s.id: s.G or 0.0 for s in near})


def _perplexity(cast: Cast, seed: int) -> tuple[float, float, float] | None:
    key = Key("text", "kept", "nll_nats")
    if any(key not in found for found in cast.models):
        return None
    scores = [found[key] for found in cast.models]
    draws, golds = resampled_means(scores, seed), [s.mean for s in scores[2:]]
    reference = gold_mean_draws(draws[2:], golds, seed) if golds else draws[1]
    value = scores[0].mean - (float(np.mean(golds)) if golds else scores[1].mean)
    at = percentile(value, draws[0] - reference, 0.90)
    return tuple(float(np.exp(min(50.0, v))) for v in (at.value, at.low, at.high))  # pyright: ignore[reportReturnType]
