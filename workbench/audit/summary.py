"""What a report tells beside its endpoints: families, attacks, probes, tail, distance, cost."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from workbench.audit.attacks import CONTROL, injection_index
from workbench.audit.endpoints import MAX_INJECTION, PERTURBATIONS, RECOVERED_RHO, Rules
from workbench.audit.questions import FAMILIES
from workbench.audit.reading import (
    MIN_SPAN,
    Cast,
    candidate,
    read_all,
)
from workbench.audit.reading import curve_candidate as by_area
from workbench.audit.schema import (
    Attack,
    Curve,
    Distance,
    Family,
    ProbeRow,
    Tail,
)
from workbench.audit.statistics import (
    Key,
    Scores,
    fraction,
    joined,
    ks_draws,
    percentile,
    resampled_means,
    residual_draws,
)
from workbench.audit.views import Found

TAIL_LIMIT, WHOLE, UNKNOWN = 0.05, 0.8, 0.2
KS_LIMIT = 0.15
LISTED = ("W1", "W2", *PERTURBATIONS, CONTROL, "W10")
"""Attacks that a report lists; the control among them decides nothing."""
ASKED = frozenset(name for name, family in FAMILIES.items() if family.access in ("A0", "A1"))
Name = tuple[str, str]


def make_families(views: dict[str, Found], cast: Cast, rules: Rules) -> tuple[Family, ...]:
    """Every way of asking; kept where the original can answer it.

    A family is kept if O reaches half of what it reaches when asked directly, and exceeds the golds
    by 0.30, both on centred scores.

    Args:
        views: what was measured by the letter of the view: `O`, `Es`, `Eh`, `Ew`.
    """
    asked = dict.fromkeys(
        (k.endpoint, k.setting)
        for k in cast.original
        if k.endpoint in ASKED and k.metric == "centred" and k.subset in ("F", "D")
    )
    direct = _mean(cast.original, ("B1", ""), "centred")
    made = []
    for family in asked:
        original = _mean(cast.original, family, "centred") or 0.0
        golds = [_mean(g, family, "centred") for g in cast.golds]
        known = [g for g in golds if g is not None]
        gold = float(np.mean(known)) if known else _chance(rules, family[0])
        why = []
        if direct is not None and original < 0.5 * direct:
            why.append(f"the original reaches {original:.2f}, under half of {direct:.2f} directly")
        if original - gold < MIN_SPAN:
            why.append(f"its advantage over the golds is {original - gold:.2f}, under {MIN_SPAN}")
        made.append(
            Family(
                *family,
                access=FAMILIES[family[0]].access,
                kept=not why,
                why_dropped="; ".join(why),
                raw=_by_view(views, cast, family, "raw"),
                centred=_by_view(views, cast, family, "centred"),
                kappa=_by_view(views, cast, family, "kappa"),
            )
        )
    return tuple(made)


def _chance(rules: Rules, family: str) -> float:
    chance = rules.chance(family)
    return float(np.mean(list(chance.values()) or [0.0])) if isinstance(chance, dict) else chance


def _by_view(views: dict[str, Found], cast: Cast, family: Name, metric: str) -> dict[str, float]:
    found = {
        name: _mean(view, family, "text" if (name, metric) == ("Es", "raw") else metric)
        for name, view in views.items()
    }
    golds = [g for g in (_mean(gold, family, metric) for gold in cast.golds) if g is not None]
    if golds:
        found["G"] = float(np.mean(golds))
    return {name: value for name, value in found.items() if value is not None}


def _mean(found: Found, family: Name, metric: str) -> float | None:
    for subset in ("F", "D"):
        scores = found.get(Key(family[0], subset, metric, family[1]))
        if scores is not None:
            return scores.mean
    return None


def format_flags(bounds: Iterable[tuple[float, float, float]]) -> tuple[str, ...]:
    """`format_dependent` if one way of asking recovers the knowledge and another is bounded below.

    Args:
        bounds: rho of every kept family, as of `bounds_of`.
    """
    bounds = tuple(bounds)
    some = any(low > 0 and rho >= RECOVERED_RHO for rho, low, _ in bounds)
    below = any(high < RECOVERED_RHO for _, _, high in bounds)
    return ("format_dependent",) if some and below else ()


def bounds_of(
    cast: Cast, family: Family, rules: Rules, metric: str = "centred"
) -> tuple[float, float, float]:
    """Rho of one family with its 95 % interval; nothing is chosen."""
    folds, chance = rules.data.folds, rules.chance(family.id)
    one = [candidate(family.id, metric, family.setting, folds, chance)]
    reading = read_all(cast, one, len(folds))
    if reading is None:
        return 0.0, -1.0, 1.0
    draws = residual_draws(*reading.draws(rules.seed), reading.few)
    at = percentile(fraction(reading.means[0], reading.means[1], reading.gold), draws)
    return at.value, at.low, at.high


def make_attacks(cast: Cast, view: str, rules: Rules) -> tuple[Attack, ...]:
    """Every attack and setting that was run, with what it teaches and what it costs."""
    runs = dict.fromkeys((k.endpoint, k.setting) for k in cast.edited if k.endpoint in LISTED)
    return tuple(_attack(*run, cast, view, rules) for run in runs)


def _attack(name: str, setting: str, cast: Cast, view: str, rules: Rules) -> Attack:
    # What fits nothing on T is scored on all forget facts at once.
    whole = any(k[:4] == (name, "F", "centred", setting) for k in cast.edited)

    def curve(found: Found) -> dict[float, float]:
        steps: dict[float, list[Scores]] = {}
        for key, scores in found.items():
            if key[:4] == (name, "F" if whole else "V", "centred", setting):
                steps.setdefault(key.x, []).append(scores)
        return {
            x: float(np.mean(np.concatenate([s.values for s in steps[x]]))) for x in sorted(steps)
        }

    def kept(found: Found, last: bool) -> float | None:
        keys = [k for k in found if k[:4] == (name, "R_te", "centred", setting)]
        steps = sorted({k.x for k in keys})
        chosen = [found[k].mean for k in keys if steps and k.x == steps[-1 if last else 0]]
        return float(np.mean(chosen)) if chosen else None

    edited, original = curve(cast.edited), curve(cast.original)
    golds = [curve(g) for g in cast.golds]
    gold = {x: float(np.mean([g[x] for g in golds])) for x in edited} if golds else {}
    by_dose = _taught(name, setting, cast, rules) if golds and name != "W2" else {}
    # Of relearning the area counts; of others the worst dose, as the highest may teach least.
    taught = _taught_by_area(setting, cast, rules) if by_dose and name == "W1" else None
    taught = max(by_dose.values()) if by_dose and taught is None else taught
    why = (
        f"it lifts models that never knew by {taught:.2f} of what the original knows"
        if taught is not None and taught > MAX_INJECTION
        else ""
    )
    before, after = kept(cast.original, False), kept(cast.original, True)
    return Attack(
        name,
        setting,
        view,
        runs=len({k.fold for k in cast.edited if k[:4] == (name, "V", "centred", setting)}) or 1,
        injection_index=taught,
        admissible=not why,
        why=why,
        destructive=before is not None and after is not None and after < 0.5 * before,
        utility_after=kept(cast.edited, True),
        curve=Curve(
            tuple(edited),
            tuple(edited.values()),
            tuple(original[x] for x in edited),
            tuple(gold.get(x) for x in edited),
            tuple(by_dose.get(x) for x in edited),
        ),
    )


def _taught(name: str, setting: str, cast: Cast, rules: Rules) -> dict[float, float]:
    """The injection index by dose, on all facts that the attack's readings score."""
    folds, n = rules.data.folds, len(rules.data.folds)
    steps = sorted({k.x for k in cast.edited if k.endpoint == name and k.setting == setting})
    read = {
        x: read_all(cast, [candidate(name, "centred", setting, folds, rules.chance(), x)], n)
        for x in steps
    }
    before = read[steps[0]]
    if before is None:
        return {}
    return {
        x: injection_index(after.gold, before.gold, before.means[1])
        for x, after in read.items()
        if x != steps[0] and after is not None
    }


def _taught_by_area(setting: str, cast: Cast, rules: Rules) -> float | None:
    """What relearning teaches by the area under its curve, which is what M4 reads."""
    n, chance = len(rules.data.folds), rules.chance()
    first = candidate("W1", "centred", setting, rules.data.folds, chance, 0.0)
    before = read_all(cast, [first], n)
    area = read_all(cast, [by_area("W1", setting, chance)], n)
    if before is None or area is None:
        return None
    return injection_index(area.gold, before.gold, before.means[1])


def make_probes(
    cast: Cast, controls: dict[str, Found], view: str, rules: Rules
) -> tuple[ProbeRow, ...]:
    """Every probe at every place, on all forget facts that it was not fitted on."""
    rows = []
    names = dict.fromkeys(
        (k.endpoint, k.setting)
        for k in cast.edited
        if k.endpoint in ("P1", "P2", "P3", "P4", "P5") and k.metric == "hit" and k.subset in "FV"
    )

    def mean(found: Found, endpoint: str, place: str, metric: str = "hit") -> float | None:
        wanted = (endpoint, metric, place)
        scores = [
            s.values
            for k, s in found.items()
            if (k.endpoint, k.metric, k.setting) == wanted and k.subset in ("F", "V")
        ]
        return float(np.concatenate(scores).mean()) if scores else None

    prior = float(np.mean(list(rules.data.prior.values()) or [0.0]))
    limit = prior + 3 * (prior * (1 - prior) / max(1, rules.data.n["V"])) ** 0.5
    for endpoint, place in names:
        golds = [mean(g, endpoint, place) for g in cast.golds]
        known = [g for g in golds if g is not None]
        control = mean(cast.original, "P6", place)
        rows.append(
            ProbeRow(
                endpoint,
                place,
                view,
                acc=mean(cast.edited, endpoint, place) or 0.0,
                original=mean(cast.original, endpoint, place) or 0.0,
                gold=float(np.mean(known)) if known else None,
                control_acc=control,
                random_init=mean(controls.get("random", {}), endpoint, place),
                bits=mean(cast.edited, endpoint, place, "bits"),
                leak=control is not None and control > limit,
            )
        )
    return tuple(rows)


def make_tail(cast: Cast, rules: Rules, chosen: Sequence[str]) -> tuple[Tail, ...]:
    """Whether some facts stayed whole while the mean fell, asked openly and after relearning.

    Args:
        chosen: the setting of W1 that was chosen in each rotation.
    """

    def asked(found: Found) -> Scores | None:
        parts = [found.get(Key(b, "F", "centred")) for b in ("B1", "B2")]
        known = [p for p in parts if p is not None]
        return joined(*known).by_fact() if known else None

    def relearned(found: Found) -> Scores | None:
        parts = []
        for fold, name in enumerate(chosen):
            setting = name.removeprefix("W1 ")
            keys = [k for k in found if k[:5] == ("W1", "V", "centred", setting, fold)]
            if keys:
                parts.append(found[max(keys, key=lambda k: k.x)])
        return joined(*parts).by_fact() if parts else None

    tails = []
    for name, look in (("asked", asked), ("relearned", relearned)):
        edited, golds = look(cast.edited), [look(g) for g in cast.golds]
        if edited is not None and all(g is not None for g in golds):
            known = [g for g in golds if g is not None]
            tails.append(_tail(name, edited, known, _chance(rules, ""), rules.seed))
    return tuple(tails)


def _tail(name: str, edited: Scores, golds: Sequence[Scores], chance: float, seed: int) -> Tail:
    def whole(scores: Scores, others: Sequence[Scores]) -> np.ndarray:
        unknown = np.mean([o.values for o in others], axis=0) <= UNKNOWN if others else True
        return ((scores.values >= WHOLE) & unknown).astype(float)

    mine = whole(edited, golds)
    theirs = [whole(g, [*golds[:i], *golds[i + 1 :]]) for i, g in enumerate(golds)]
    usual = np.mean(theirs, axis=0) if len(theirs) > 1 else np.zeros_like(mine)
    shares = [Scores(v, edited.entities, edited.relations) for v in (mine, usual)]
    draws = resampled_means(shares, seed)
    n = edited.n_entities
    exact = float(stats.beta.ppf(0.95, mine.mean() * n + 1, max(n - mine.mean() * n, 1e-9)))
    high = max(float(np.quantile(draws[0] - draws[1], 0.95)), exact - float(usual.mean()))
    share = float(usual.mean()) if len(theirs) > 1 else None
    # A model that guesses may give one answer throughout, which is right as often as chance has it.
    low = float(np.quantile(draws[0] - draws[1], 0.05)) - (chance if share is None else 0.0)
    found = low > 0 and mine.mean() - usual.mean() >= TAIL_LIMIT
    return Tail(name, float(mine.mean()), share, high, TAIL_LIMIT, high < TAIL_LIMIT, bool(found))


def make_distance(cast: Cast, rules: Rules) -> Distance | None:
    """Kolmogorov–Smirnov distance of E's log-odds from those of each gold, on average."""
    key = Key("B2", "F", "log_odds")
    if key not in cast.edited or not cast.golds:
        return None
    edited = cast.edited[key]
    golds = [g[key] for g in cast.golds]
    draws = np.mean([ks_draws(edited, g, rules.seed) for g in golds], axis=0)
    # Upper bounds are held against upper bounds: resampling lifts a distance from itself.
    pairs = [
        float(np.quantile(ks_draws(a, b, rules.seed)[1:], 0.95))
        for i, a in enumerate(golds)
        for b in golds[i + 1 :]
    ]
    band = float(np.quantile(pairs, 0.95)) if pairs else None
    limit, high = max(KS_LIMIT, band or 0.0), float(np.quantile(draws[1:], 0.95))
    tofu: Any = stats.ks_2samp(edited.values, np.concatenate([g.values for g in golds]))
    return Distance(float(draws[0]), high, band, limit, high <= limit, float(tofu.pvalue))
