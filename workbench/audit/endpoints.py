"""The endpoints: how much of what the original knows can be had, under each kind of access."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from workbench.audit.faithfulness import LEAST_AUC, faithfulness
from workbench.audit.questions import CHANCE, FAMILIES
from workbench.audit.reading import (
    MIN_SPAN,
    Candidate,
    Cast,
    Reading,
    candidate,
    chance_scores,
    curve_area,
    curve_candidate,
    read_all,
    read_best,
    read_own_best,
)
from workbench.audit.schema import DataInfo, Endpoint, Means, Selection
from workbench.audit.statistics import (
    Key,
    Scores,
    detectable,
    fraction,
    holm,
    joined,
    p_above_zero,
    p_equivalent,
    percentile,
    residual_draws,
    spread,
)
from workbench.audit.views import Found

RECOVERED_RHO, GOLD_MARGIN, DELTA, MAX_DELTA, MAX_INJECTION = 0.10, 0.05, 0.10, 0.20, 0.20
CONFIRMATORY = ("M1", "M2", "M3", "M4", "M5", "M6")
PERTURBATIONS = ("W3", "W4", "W5", "W6", "W7", "W8", "W9")
"""Attacks of which M6 is the best on S."""
NAMES = {
    "open": "asked openly",
    "text": "best question, as text",
    "M1": "best question",
    "M2": "rank profile",
    "lens": "logit lens",
    "M3": "best probe",
    "off": "hooks removed",
    "M4": "relearning other facts",
    "M5": "relearning these facts",
    "M6": "best perturbation",
    "prefix": "best prefix of tokens",
}
ACCESS = {
    "open": "A0", "text": "A0", "M1": "A1", "M2": "A1", "lens": "A2", "M3": "A2",
    "off": "A3", "M4": "A4", "M5": "A4", "M6": "A4", "prefix": "A1",
}  # fmt: skip
METRICS = {
    "open": "answer as text",
    "text": "answer as text",
    "M1": "centred hit",
    "M2": "hit at the most common rank",
    "lens": "centred hit",
    "M3": "hit",
    "off": "answer as text",
    "M4": "area under centred hits",
    "M5": "area, these facts less false ones",
    "M6": "centred hit",
    "prefix": "centred hit",
}
Family = tuple[str, str]


@dataclass(frozen=True)
class Rules:
    """What readings are taken by: the folds, base rates, facts left out and families kept."""

    data: DataInfo
    kept: tuple[Family, ...]
    seed: int

    def chance(self, family: str = "") -> dict[str, float] | float:
        """What guessing gives: base rates, or what the form of the question gives away."""
        return CHANCE.get(family, self.data.prior)


def readings(cast: Cast, rules: Rules) -> dict[str, Reading]:
    """Every endpoint that was measured on all models of the cast."""
    folds, n = rules.data.folds, len(rules.data.folds)

    def ask(families: Sequence[Family], metric: str) -> list[Candidate]:
        return [candidate(f, metric, s, folds, rules.chance(f)) for f, s in families]

    direct = (("B1", ""), ("B2", ""))
    text = [f for f in rules.kept if FAMILIES[f[0]].access == "A0"]
    asked = [f for f in rules.kept if FAMILIES[f[0]].access in ("A0", "A1")]
    perturbed, prefixed = (
        [
            candidate(e, "centred", s, folds, rules.chance(), x)
            for e, s, x in _doses(cast.edited, attacks)
        ]
        for attacks in (PERTURBATIONS, ("W10",))
    )
    found = {
        "open": _first_usable(
            *(read_all(cast, ask(direct, metric), n) for metric in ("text", "raw"))
        ),
        "text": read_best(cast, ask(text, "text"), n),
        "M1": read_best(cast, ask(asked, "centred"), n),
        "M2": _read_ranks(cast, rules),
        "lens": read_best(cast, _settings(cast, ("B15",), "centred", rules), n),
        "M3": read_best(cast, _settings(cast, ("P1", "P2", "P3", "P4"), "hit", rules), n),
        "M4": read_own_best(cast, _curves(cast, "W1", rules), n),
        "M5": _read_savings(cast, rules),
        "M6": read_best(cast, perturbed, n, MAX_INJECTION),
        "prefix": read_best(cast, prefixed, n, MAX_INJECTION),
    }
    return {name: reading for name, reading in found.items() if reading is not None}


def _first_usable(shown: Reading | None, ranked: Reading | None) -> Reading | None:
    """What users read, if the original can be read so; else its choice among the candidates.

    Some models know the answers and begin them otherwise. The edited model has no say in this.
    """
    if shown is None or ranked is None or shown.means[1] - shown.gold >= MIN_SPAN:
        return shown or ranked
    return replace(ranked, metric="raw hit")


def _settings(cast: Cast, ids: Sequence[str], metric: str, rules: Rules) -> list[Candidate]:
    """Every setting measured on facts to be forgotten."""
    keys = (k for k in cast.edited if k.endpoint in ids and k.metric == metric)
    wanted = dict.fromkeys((k.endpoint, k.setting) for k in keys if k.subset in ("F", "S"))
    return [candidate(e, metric, s, rules.data.folds, rules.chance()) for e, s in wanted]


def _curves(cast: Cast, attack: str, rules: Rules) -> list[Candidate]:
    settings = dict.fromkeys(k.setting for k in cast.edited if k[:2] == (attack, "S"))
    return [curve_candidate(attack, s, rules.chance()) for s in settings]


def _doses(found: Found, attacks: Sequence[str]) -> list[tuple[str, str, float]]:
    """Every setting and dose above none of these attacks."""
    keys = (k for k in found if k.endpoint in attacks and k.metric == "centred" and k.x > 0)
    return list(dict.fromkeys((k.endpoint, k.setting, k.x) for k in keys if k.subset in "FS"))


def _read_ranks(cast: Cast, rules: Rules) -> Reading | None:
    """B13: the most common rank of the true object on T; hits of "take that rank" on V.

    Ranks are counted from the nearer end, so that "last" is one rank whatever the number of
    candidates. Every model has its own most common rank.
    """
    parts, chosen = [], []
    for folds in rules.data.folds:
        ranks = [_ranks(found, rules) for found in cast.models]
        if any(r is None for r in ranks):
            return None
        codes = [r for r in ranks if r is not None]
        modes = [_mode(r.about(folds["T"]).values) for r in codes]
        if any(mode is None for mode in modes):
            continue
        scored = [r.about(folds["V"]) for r in codes]
        parts.append(
            tuple(
                Scores((r.values == mode).astype(float), r.entities, r.relations)
                for r, mode in zip(scored, modes, strict=True)
            )
        )
        chosen.append(f"rank {modes[0]:g}")
    if not parts:
        return None
    scores = tuple(joined(*(p[i] for p in parts)) for i in range(len(cast.models)))
    chance = {r: 1 / k for r, k in rules.data.candidates.items()}
    return Reading(scores, chance_scores(scores[0], chance), tuple(chosen), 1, on="T")


def _ranks(found: Found, rules: Rules) -> Scores | None:
    """1 is first, 2 second; -1 is last, -2 last but one."""
    ranks = found.get(Key("B2", "F", "rank"))
    if ranks is None:
        return None
    k = np.array([rules.data.candidates[r] for r in ranks.relations])
    codes = np.where(ranks.values <= k / 2, ranks.values, ranks.values - k - 1)
    return Scores(codes, ranks.entities, ranks.relations)


def _mode(codes: np.ndarray) -> float | None:
    if not len(codes):
        return None
    values, counts = np.unique(codes, return_counts=True)
    return float(values[counts.argmax()])


def _read_savings(cast: Cast, rules: Rules) -> Reading | None:
    """W2: how much sooner these facts are learned than false ones about the same names."""
    plus: list[list[Scores]] = [[] for _ in cast.models]
    minus: list[list[Scores]] = [[] for _ in cast.models]
    for fold in sorted({k.fold for k in cast.edited if k.endpoint == "W2"}):
        pairs = [
            [curve_area(f, "W2", "", fold, subset) for subset in ("V", "Z")] for f in cast.models
        ]
        for i, (known, fresh) in enumerate(pairs):
            if known is not None and fresh is not None:
                plus[i].append(known)
                minus[i].append(fresh)
    if not all(plus):
        return None
    scores = tuple(joined(*parts) for parts in plus)
    return Reading(
        scores,
        chance_scores(scores[0], rules.data.prior),
        (),
        1,
        on="nothing",
        minus=tuple(joined(*parts) for parts in minus),
    )


def make_endpoints(
    cast: Cast, rules: Rules, view: str, deltas: dict[str, float], errors: dict[str, float]
) -> tuple[Endpoint, ...]:
    """One endpoint per reading, still without Holm's adjustment: see `decided`.

    Args:
        deltas: margin of equivalence by endpoint.
        errors: standard error of rho under no knowledge, by endpoint, from the golds.
    """
    return tuple(
        _endpoint(name, reading, rules, view, deltas.get(name, DELTA), errors.get(name))
        for name, reading in readings(cast, rules).items()
    )


def decided(endpoints: Sequence[Endpoint]) -> tuple[Endpoint, ...]:
    """The endpoints with Holm's adjustment over the confirmatory ones, and what follows from it."""
    raw = {f"{e.id} {e.view}": e.p_sup_holm for e in endpoints if e.role == "confirmatory"}
    adjusted = holm(raw)
    return tuple(_decided(e, adjusted.get(f"{e.id} {e.view}", e.p_sup_holm)) for e in endpoints)


def _decided(e: Endpoint, p: float) -> Endpoint:
    recovered = e.valid and p < 0.05 and e.rho >= RECOVERED_RHO
    bottom = e.id == "M2" and any(c != "rank 1" for c in e.selection.chosen)
    return replace(e, p_sup_holm=p, recovered=recovered, anti=e.anti or (recovered and bottom))


def _endpoint(
    name: str, reading: Reading, rules: Rules, view: str, delta: float, error: float | None
) -> Endpoint:
    edited, original, *golds = reading.means
    e, o, g = reading.draws(rules.seed)
    draws = residual_draws(e, o, g, reading.few)
    rho = fraction(edited, original, reading.gold)
    reasons = why_invalid(name, reading, o, g)
    error = spread(draws) if error is None else error
    pushed_down = name in ("open", "M1", "M3") and float(np.quantile(draws, 0.975)) < -delta
    wide, narrow = percentile(rho, draws), percentile(rho, draws, 0.90)
    return Endpoint(
        id=name,
        name=NAMES[name],
        role="confirmatory" if name in CONFIRMATORY else "secondary",
        access=ACCESS[name],
        view=view,
        metric=reading.metric or METRICS[name],
        n_facts=len(reading.scores[0].values),
        n_entities=reading.scores[0].n_entities,
        m=Means(
            original,
            edited,
            reading.gold,
            tuple(golds),
            reading.random.mean if reading.random is not None else None,
        ),
        rho=rho,
        ci90=(narrow.low, narrow.high),
        ci95=(wide.low, wide.high),
        p_sup_holm=p_above_zero(draws),
        p_tost=p_equivalent(draws, delta),
        delta=delta,
        mde=detectable(error, len(CONFIRMATORY)),
        recovered=False,
        equivalent=not reasons and -delta < narrow.low and narrow.high < delta,
        anti=pushed_down and not reasons,
        valid=not reasons,
        why_invalid="; ".join(reasons),
        selection=Selection(reading.on, reading.grid, reading.chosen),  # pyright: ignore[reportArgumentType]
        faithfulness=faithfulness().get(name),
    )


def why_invalid(name: str, reading: Reading, o: np.ndarray, g: np.ndarray) -> list[str]:
    """Why this measurement cannot be used.

    It misses what O knows, finds it in the golds, or was found unfaithful on known models.

    Args:
        o, g: resampled values of O and of the golds' mean.
    """
    original, gold = reading.means[1], reading.gold
    reasons, told = [], faithfulness().get(name)
    if name in CONFIRMATORY and told is not None and told < LEAST_AUC:
        reasons.append(
            f"in the calibration it told models that know from models that never did with an AUC "
            f"of {told:.2f}, under {LEAST_AUC}"
        )
    if original - gold < MIN_SPAN:
        reasons.append(
            f"the original's advantage over the golds is {original - gold:.2f}, under {MIN_SPAN}"
        )
    if not reading.few and float(np.quantile(o - g, 0.05)) <= 0:
        reasons.append("the original's advantage over the golds may be none")
    if len(reading.means) > 2 and not reading.minus:
        limit = reading.chance.mean + GOLD_MARGIN
        high = percentile(gold, g).high
        if high > limit:
            reasons.append(f"golds reach {high:.2f}, above guessing + {GOLD_MARGIN} = {limit:.2f}")
    if name == "M5" and len(reading.means) > 2:
        error = spread(g)
        if abs(gold) > 2 * error:
            reasons.append(
                f"golds learn these facts otherwise than false ones: difference {gold:.3f}, "
                f"beyond two standard errors of {error:.3f}"
            )
    return reasons


def leave_one_out(cast: Cast) -> tuple[Cast, ...]:
    """Each gold judged as if it were the edited model, against the others."""
    return tuple(
        Cast(gold, cast.original, cast.golds[:i] + cast.golds[i + 1 :])
        for i, gold in enumerate(cast.golds)
        if len(cast.golds) > 1
    )


def margins(casts: Sequence[Cast], rules: Rules) -> tuple[dict[str, float], dict[str, float]]:
    """Margins of equivalence and standard errors under no knowledge, from golds left out in turn.

    The margin is 0.10, raised to twice the standard deviation of the golds' own rho, never above
    0.20. The error is the mean of the standard errors of the resampled rho.
    """
    values: dict[str, list[tuple[float, float]]] = {}
    for cast in casts:
        for name, reading in readings(cast, rules).items():
            draws = residual_draws(*reading.draws(rules.seed), reading.few)
            rho = fraction(reading.means[0], reading.means[1], reading.gold)
            values.setdefault(name, []).append((rho, spread(draws)))
    deltas = {
        name: min(MAX_DELTA, max(DELTA, 2 * float(np.std([r for r, _ in rows], ddof=1))))
        for name, rows in values.items()
        if len(rows) > 1
    }
    return deltas, {name: float(np.mean([s for _, s in rows])) for name, rows in values.items()}
