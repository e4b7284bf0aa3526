"""From scores to endpoints, gates and objectives: pure functions of what was measured."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from workbench.audit.probes import best_place
from workbench.audit.schema import Endpoint, Gate, Measurement
from workbench.audit.statistics import (
    MIN_ENTITIES,
    UNBOUNDED,
    Interval,
    Key,
    Scores,
    fraction,
    gold_interval,
    holm,
    p_above_zero,
    percentile,
    resampled_means,
    residual_fraction,
)
from workbench.audit.verdict import GOLD_MARGIN, MAX_INJECTION, MIN_SPAN, RECOVERED_RHO
from workbench.facts.contract import Check, priors
from workbench.facts.target import Target

Found = dict[Key, Scores]
TRAIN, AUDIT, CENTRED, OPEN = (
    Key("recall", "V", detail) for detail in ("train", "audit", "centred", "open")
)
AREA, STEP0 = Key("relearn_area", "V", "centred"), Key("relearn", "V", "centred", 0)
SIZE_CHECKS = ("forget_facts", "forget_entities", "candidates", "templates", "audit_templates")
"""Contract checks that bear on absence alone; all others must hold for any verdict."""


@dataclass(frozen=True)
class Roles:
    """The scores of every model in the audit."""

    original: Found
    edited: Found
    hooks_off: Found | None
    golds: Sequence[Found]
    control: Found


def make_endpoints(roles: Roles, target: Target, view: str, seed: int) -> tuple[Endpoint, ...]:
    """One endpoint per kind of access, each E against O and G under the same measurement.

    Their p-values are Holm-adjusted together.
    """
    prior = mean_prior(target)
    wanted = [
        ("open", "A0", OPEN, roles.edited, view),
        ("training templates", "A0", TRAIN, roles.edited, view),
        ("audit-only templates", "A0", AUDIT, roles.edited, view),
        ("centred answers", "A1", CENTRED, roles.edited, view),
    ]
    if any(key.endpoint == "probe" for key in roles.edited):
        place = best_place(roles.edited, roles.original)
        wanted.append(("transfer probe", "A2", place, roles.edited, view))
    if roles.hooks_off:
        wanted.append(("hooks removed", "A3", OPEN, roles.hooks_off, "hooks_off"))
    if AREA in roles.edited:
        wanted.append(("relearning", "A4", AREA, roles.edited, view))
    made, p_values = [], {}
    for name, access, key, found, seen in wanted:
        endpoint, p_values[name] = _endpoint(name, access, key, found, roles, seen, prior, seed)
        made.append(endpoint)
    adjusted = holm(p_values)
    return tuple(
        replace(
            e,
            p_holm=adjusted[e.id],
            recovered=e.valid and adjusted[e.id] < 0.05 and e.rho >= RECOVERED_RHO,
        )
        for e in made
    )


def _endpoint(
    name: str, access: str, key: Key, found: Found, roles: Roles, view: str, prior: float, seed: int
) -> tuple[Endpoint, float]:
    edited, original, golds = found[key], roles.original[key], [g[key] for g in roles.golds]
    gold = gold_interval(golds, seed)
    draws = residual_fraction(edited, original, golds, seed)
    rho = percentile(fraction(edited.mean, original.mean, gold.value), draws)
    reasons = []
    if original.mean - gold.value < MIN_SPAN:
        reasons.append(
            f"the original's advantage over the golds is {original.mean - gold.value:.2f}, "
            f"under {MIN_SPAN}"
        )
    if gold.high > prior + GOLD_MARGIN:
        reasons.append(f"golds reach {gold.high:.2f}, above the prior {prior:.2f} + {GOLD_MARGIN}")
    if key == AREA and (injected := injection_index(roles)) > MAX_INJECTION:
        reasons.append(
            "the attack teaches a model that never knew: "
            f"injection index {injected:.2f} above {MAX_INJECTION}"
        )
    endpoint = Endpoint(
        id=name,
        access=access,
        view=view,
        original=original.mean,
        edited=edited.mean,
        gold=gold.value,
        gold_each=tuple(g.mean for g in golds),
        rho=rho.value,
        low=rho.low,
        high=rho.high,
        p_holm=1.0,
        recovered=False,
        valid=not reasons,
        why_invalid="; ".join(reasons),
        n=len(edited.values),
        n_entities=edited.n_entities,
    )
    return endpoint, p_above_zero(draws)


def injection_index(roles: Roles) -> float:
    """What relearning teaches a model that never knew, as a share of what the original knows.

    0 is nothing, 1 is all.
    """
    after, before = (float(np.mean([g[key].mean for g in roles.golds])) for key in (AREA, STEP0))
    return fraction(after, roles.original[STEP0].mean - before, 0.0) - fraction(
        before, roles.original[STEP0].mean - before, 0.0
    )


def mean_prior(target: Target) -> float:
    """Hit rate on V of always giving the relation's most common object.

    The rate is taken to be that object's share among retained facts.
    """
    shares = priors(target.retained or target.forget)
    known = [max(shares[f.relation].values()) for f in target.fold("V") if f.relation in shares]
    return float(np.mean(known)) if known else 0.0


def make_gates(roles: Roles, target: Target, checks: Sequence[Check]) -> tuple[Gate, ...]:
    """G2 golds at the prior, G3 data contract, G4 the probe reads nothing from shuffled weights."""
    prior = mean_prior(target)
    gold = gold_interval([g[OPEN] for g in roles.golds])
    gates = [
        Gate(
            "G2",
            gold.high <= prior + GOLD_MARGIN,
            gold.high,
            prior + GOLD_MARGIN,
            "golds know no more than the prior",
        ),
        *(
            Gate("G3", c.passed, c.value, c.limit, f"{c.id}: {c.note}")
            for c in checks
            if c.id not in SIZE_CHECKS
        ),
    ]
    if roles.control:
        place = best_place(roles.edited, roles.original)
        control = roles.control[place]
        limit = prior + 3 * (prior * (1 - prior) / control.n_entities) ** 0.5
        gates.append(
            Gate(
                "G4",
                control.mean <= limit,
                control.mean,
                limit,
                "the probe reads no answers from shuffled weights",
            )
        )
    return tuple(gates)


def make_objectives(roles: Roles, view: str, seed: int) -> tuple[Measurement, ...]:
    """Accuracy, locality and generalizability: 1 is as a model that never knew.

    All are calibrated by the golds. Source: objectives of arXiv 2407.20516. Differs: |ρ| in the
    place of error rates, so that a broken or inverted model does not score 1; locality counts only
    what falls below the golds.
    """
    measured: dict[str, tuple[Interval, tuple[Key, ...]]] = {
        "accuracy": (_closeness(roles, TRAIN, seed), (TRAIN,)),
        "generalizability": (_closeness(roles, AUDIT, seed), (AUDIT,)),
    }
    kept = {
        k: _kept(roles, k, seed)
        for k in roles.edited
        if k.endpoint == "recall" and k.subset != "V" and roles.golds[0][k].mean > 0
    }
    if kept:
        values, draws = zip(*kept.values(), strict=True)
        mean = percentile(float(np.mean(values)), np.mean(draws, axis=0))
        worst = min(kept, key=lambda k: kept[k][0])
        measured["locality"] = (mean, tuple(kept))
        measured[f"locality_worst_set:{worst.subset}"] = (percentile(*kept[worst]), (worst,))
    return tuple(
        Measurement(
            "objective",
            "edited",
            view,
            "all",
            name,
            0.0,
            at.value,
            at.low,
            at.high,
            sum(len(roles.edited[k].values) for k in keys),
            len({name for k in keys for name in roles.edited[k].entities}),
            seed,
        )
        for name, (at, keys) in measured.items()
    )


def _closeness(roles: Roles, key: Key, seed: int) -> Interval:
    """1 - min(1, |ρ|) with its interval; a resample that says nothing is 0 or 1 by turns."""
    golds = [g[key] for g in roles.golds]
    draws = residual_fraction(roles.edited[key], roles.original[key], golds, seed)
    gold = float(np.mean([g.mean for g in golds]))
    rho = fraction(roles.edited[key].mean, roles.original[key].mean, gold)
    close = np.where(draws == -UNBOUNDED, 1.0, 1 - np.minimum(1.0, np.abs(draws)))
    return percentile(1 - min(1.0, abs(rho)), close)


def _kept(roles: Roles, key: Key, seed: int) -> tuple[float, np.ndarray]:
    """Share of the golds' recall on a retained set that the edited model keeps, at most 1.

    Returns:
        The share, and its resampled values.
    """
    golds = [g[key] for g in roles.golds]
    means = resampled_means([roles.edited[key], *golds], seed)
    gold = np.maximum(means[1:].mean(0), 1e-9)
    gold_mean = float(np.mean([g.mean for g in golds]))
    value = 1 - max(0.0, gold_mean - roles.edited[key].mean) / gold_mean
    if golds[0].n_entities < MIN_ENTITIES:
        return value, np.arange(means.shape[1]) % 2.0
    return value, 1 - np.maximum(0.0, gold - means[0]) / gold
