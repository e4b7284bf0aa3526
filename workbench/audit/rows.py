"""Every number as a tidy row."""

from collections.abc import Mapping, Sequence

import numpy as np

from workbench.audit.schema import Collateral, Endpoint, KeptSet, Measurement
from workbench.audit.statistics import entity_interval
from workbench.audit.views import Found


def make_rows(
    measured: Mapping[tuple[str, str], Found],
    endpoints: Sequence[Endpoint],
    collateral: Collateral,
    bounds: Sequence[tuple[float, float, float]],
    seed: int,
) -> tuple[Measurement, ...]:
    """One row per measurement and view, with its interval, and the objectives.

    Args:
        bounds: rho of every kept way of asking, with its interval.
    """
    rows = []
    for (role, view), found in measured.items():
        for key, scores in found.items():
            if key[0] == "damage" and key.metric == "logp_nats":
                continue  # one per candidate: divergence is made of them
            if not len(scores.values):
                continue  # a fold without facts
            at = entity_interval(scores, seed)
            rows.append(
                Measurement(
                    key.endpoint, role, view, *key[1:5], float(key.x),
                    at.value, at.low, at.high, len(scores.values), scores.n_entities, seed,
                )
            )  # fmt: skip
    return (*rows, *_objectives(endpoints, collateral, bounds, seed))


def _objectives(
    endpoints: Sequence[Endpoint],
    collateral: Collateral,
    bounds: Sequence[tuple[float, float, float]],
    seed: int,
) -> list[Measurement]:
    """Accuracy, locality, generalizability and robustness: 1 is as a model that never knew.

    Source: objectives of arXiv 2407.20516. Differs: |rho| in the place of error rates, so that a
    broken or inverted model does not score 1; locality counts only what falls below the reference.
    """
    by_id = {e.id: e for e in endpoints if e.valid and e.view == "deployed"}
    found: dict[str, tuple[float, float, float, int, int]] = {}
    if "M1" in by_id:
        found["accuracy"] = _closeness(by_id["M1"])
    if bounds and "M1" in by_id:
        worst = max(bounds, key=lambda r: abs(r[0]))
        low, high = _folded(worst[1], worst[2])
        e = by_id["M1"]
        found["generalizability"] = (
            1 - min(1.0, abs(worst[0])), 1 - high, 1 - low, e.n_facts, e.n_entities,
        )  # fmt: skip
    # Whoever has the weights may take the hooks off.
    hard = ("M3", "M4", "M5", "M6", "off")
    strong = [e for e in endpoints if e.valid and e.id in hard]
    if strong:
        e = max(strong, key=lambda e: e.rho)
        low, high = (1 - min(1.0, max(0.0, v)) for v in (e.high, e.low))
        found["robustness"] = 1 - min(1.0, max(0.0, e.rho)), low, high, e.n_facts, e.n_entities
    kept = [(s, _share(s.E, s.G if s.G is not None else s.O)) for s in collateral.sets]
    if kept:
        n, n_entities = (sum(getattr(s, name) for s, _ in kept) for name in ("n", "n_entities"))
        low, high = (
            float(np.mean(ends)) for ends in zip(*(_bound(s) for s, _ in kept), strict=True)
        )
        found["locality"] = float(np.mean([v for _, v in kept])), low, high, n, n_entities
        worst_set, least = min(kept, key=lambda item: item[1])
        found[f"locality_worst_set:{worst_set.id}"] = (
            least, *_bound(worst_set), worst_set.n, worst_set.n_entities,
        )  # fmt: skip
    return [
        Measurement(
            "objective", "edited", "deployed", "all", name, "", -1, 0.0,
            value, min(low, value), max(high, value), n, n_entities, seed,
        )
        for name, (value, low, high, n, n_entities) in found.items()
    ]  # fmt: skip


def _closeness(e: Endpoint) -> tuple[float, float, float, int, int]:
    low, high = _folded(e.low, e.high)
    return 1 - min(1.0, abs(e.rho)), 1 - high, 1 - low, e.n_facts, e.n_entities


def _folded(low: float, high: float) -> tuple[float, float]:
    """The interval of |rho|, at most 1."""
    least = 0.0 if low <= 0 <= high else min(abs(low), abs(high))
    return min(1.0, least), min(1.0, max(abs(low), abs(high)))


def _share(edited: float, reference: float) -> float:
    return 1.0 if reference <= 0 else 1 - max(0.0, reference - edited) / reference


def _bound(kept: KeptSet) -> tuple[float, float]:
    reference = kept.G if kept.G is not None else kept.O
    low = _share(reference + kept.lcb_vs_gold, reference)
    return low, _share(min(kept.ucb, reference), reference)
