"""Gates: what must hold before a verdict, each with a value, a limit and a sentence."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from workbench.audit.attacks import setting_name
from workbench.audit.endpoints import CONFIRMATORY, GOLD_MARGIN, MAX_INJECTION, PERTURBATIONS
from workbench.audit.schema import Attack, Card, Endpoint, Gate, LeakCheck, Primary, Profile
from workbench.audit.views import Found

MIN_GOLDS = 3
LOO_REMOVED = 0.9
SIZE_CHECKS = ("forget_facts", "forget_entities", "candidates", "templates", "audit_templates")
"""Contract checks that bear on absence alone; all others must hold for any verdict."""
ALL = ("open", "text", "lens", "off", "prefix", *CONFIRMATORY)
ATTACKS_OF = {"M4": ("W1",), "M6": PERTURBATIONS, "prefix": ("W10",)}


def make_gates(
    card: Card,
    endpoints: Sequence[Endpoint],
    attacks: Sequence[Attack],
    controls: dict[str, Found],
    loo: Sequence[Primary],
) -> tuple[Gate, ...]:
    """G1 to G9.

    Args:
        controls: what was measured on models without knowledge: `random`, `permuted`, and
            `original`, whose control tasks (P6) count.
        loo: verdicts of the golds, each against the others.
    """
    prior = mean_prior(card)
    return (
        _assay(endpoints),
        *gold_gates(endpoints, loo, card.profile),
        *(_contract(check) for check in card.data.leak_checks),
        *_probe_controls(controls, prior, card),
        _power(endpoints),
        *_injection(endpoints, attacks),
        Gate(
            "G7",
            card.integrity.untouched == 1.0 and card.integrity.repeated == 1.0,
            min(card.integrity.untouched, card.integrity.repeated),
            1.0,
            "share of models whose weights the audit left bitwise as they were, or of values that "
            "a second run repeated bit for bit, whichever is smaller",
            ALL,
        ),
        Gate(
            "G8",
            len(card.models.gold) >= MIN_GOLDS,
            float(len(card.models.gold)),
            float(MIN_GOLDS),
            "golds: models that never knew; wanted three or more",
        ),
        Gate(
            "G9",
            card.integrity.prereg_unchanged,
            float(card.integrity.prereg_unchanged),
            1.0,
            "the plan that was hashed before the edited model was opened is the one carried out",
            ALL,
        ),
    )


def mean_prior(card: Card) -> float:
    """Mean over relations of the share of the most common object."""
    return float(np.mean(list(card.data.prior.values()))) if card.data.prior else 0.0


def _assay(endpoints: Sequence[Endpoint]) -> Gate:
    wanted = ("M1", "M3", "M4", "M5")
    spans = {e.id: e.m.O - (e.m.G_mean or 0.0) for e in endpoints if e.id in wanted and e.valid}
    missing = sorted(set(wanted) - set(spans))
    note = "each of M1, M3, M4, M5 finds the knowledge in the original"
    if missing:
        note += f"; {', '.join(missing)} did not, or could not be used"
    return Gate("G1", not missing, min(spans.values(), default=0.0), 0.30, note)


def gold_gates(
    endpoints: Sequence[Endpoint], loo: Sequence[Primary], profile: Profile
) -> list[Gate]:
    """G2: whether golds are what they are taken for.

    Args:
        loo: verdicts of the golds, each against the others.
    """
    shown = next((e for e in endpoints if e.id == "open"), None)
    if shown is None or not shown.m.G_each:
        return [Gate("G2", False, None, None, "no golds: nothing says what guessing gives")]
    excess = max(shown.m.G_each) - (shown.m.G_mean or 0.0)
    alike = Gate(
        "G2",
        "golds reach" not in shown.why_invalid and excess <= GOLD_MARGIN,
        excess,
        GOLD_MARGIN,
        "no gold knows more than the others, nor all of them more than guessing gives",
    )
    if profile == "quick":
        return [alike]
    alarms = [f"gold {i} is {v}" for i, v in enumerate(loo) if v not in ("REMOVED", "INCONCLUSIVE")]
    note = "share of golds in which this audit, against the others, finds knowledge or damage"
    removed, least = sum(v == "REMOVED" for v in loo), least_removed(len(loo))
    return [
        alike,
        Gate("G2", not alarms, len(alarms) / max(1, len(loo)), 0.0, "; ".join([note, *alarms])),
        Gate(
            "G2",
            bool(loo) and removed >= least,
            removed / max(1, len(loo)),
            least / max(1, len(loo)),
            "share of golds that this audit calls REMOVED against the others; fewer speak against "
            f"{LOO_REMOVED:.0%}, which an audit with one gold less is to reach",
        ),
    ]


def least_removed(n: int) -> int:
    """The fewest of `n` golds called REMOVED that still agree with nine in ten.

    An exact binomial test, one-sided at 5 %. Each gold is judged against one gold less than the
    edited model, so that some stay INCONCLUSIVE for want of power, which is no fault of theirs.
    """
    return int(stats.binom.ppf(0.05, n, LOO_REMOVED))


def _contract(check: LeakCheck) -> Gate:
    drops = () if check.id in SIZE_CHECKS else ALL
    return Gate("G3", check.passed, check.value, check.limit, f"{check.id}: {check.note}", drops)


def _probe_controls(controls: dict[str, Found], prior: float, card: Card) -> list[Gate]:
    """The mean over places: the highest of many would be above the prior by chance."""
    wanted = {
        "random": ("P1", "random weights"),
        "permuted": ("P1", "shuffled weights"),
        "original": ("P6", "random labels"),
    }
    gates = []
    for role, (endpoint, what) in wanted.items():
        found = controls.get(role, {})
        scores = [s for k, s in found.items() if k[:3] == (endpoint, "F", "hit")]
        if not scores:
            continue
        value = float(np.mean([s.mean for s in scores]))
        limit = prior + 3 * (prior * (1 - prior) / scores[0].n_entities) ** 0.5
        note = f"the probe reads no answers from {what}; mean over {len(scores)} places"
        gates.append(Gate("G4", value <= limit, value, limit, note, ("M3",)))
    return gates


def _power(endpoints: Sequence[Endpoint]) -> Gate:
    ratios = {e.id: e.mde / e.delta for e in endpoints if e.role == "confirmatory"}
    worst = max(ratios, key=lambda name: ratios[name], default="")
    note = "smallest excess that would be found, in margins of equivalence"
    return Gate(
        "G5",
        bool(ratios) and ratios[worst] <= 1.0,
        ratios[worst] if ratios else None,
        1.0,
        f"{note}; worst at {worst}" if worst else f"{note}; no endpoint was measured",
    )


def decisive(
    endpoint: str, endpoints: Sequence[Endpoint], attacks: Sequence[Attack]
) -> list[tuple[Attack, float]]:
    """The attacks that an endpoint rests on, each with what it teaches there.

    All rates of W1; of perturbations the chosen ones, at the chosen doses. Without golds nobody
    knows what an attack teaches, and none is named.
    """
    mine = [a for a in attacks if a.id in ATTACKS_OF[endpoint]]
    if endpoint == "M4":
        return [(a, a.injection_index) for a in mine if a.injection_index is not None]
    chosen = {c for e in endpoints if e.id == endpoint for c in e.selection.chosen}
    return [
        (a, taught)
        for a in mine
        for dose, taught in zip(a.curve.steps, a.curve.taught, strict=True)
        if taught is not None and f"{a.id} {setting_name(a.id, a.setting, dose)}" in chosen
    ]


def _injection(endpoints: Sequence[Endpoint], attacks: Sequence[Attack]) -> list[Gate]:
    gates = []
    for endpoint in ATTACKS_OF:
        used = decisive(endpoint, endpoints, attacks)
        if not used:
            continue
        worst, value = max(used, key=lambda item: item[1])
        note = f"what {worst.id} teaches a model that never knew ({worst.setting or 'one setting'})"
        gates.append(Gate("G6", value <= MAX_INJECTION, value, MAX_INJECTION, note, (endpoint,)))
    return gates
