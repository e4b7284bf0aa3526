"""Doing a report again from its stored scores: whether every number in it is what they give."""

import json
from pathlib import Path
from typing import Any

from workbench.artifacts import file_sha256
from workbench.audit.endpoints import CONFIRMATORY, MAX_INJECTION
from workbench.audit.gates import ATTACKS_OF, decisive
from workbench.audit.judge import judge
from workbench.audit.plan import plan_sha256, thresholds
from workbench.audit.schema import SEALED, AuditReport
from workbench.audit.store import load_scores
from workbench.errors import AuditError


def verify(folder: Path | str) -> AuditReport:
    """Recomputes a saved report from `scores.parquet` and checks every invariant.

    It proves that the report follows from the scores and the plan; that the scores were measured on
    the models named, only measuring again can show.

    Raises:
        DataError: a file is missing or not of the schema.
        AuditError: lists what does not hold.
    """
    folder = Path(folder)
    report = AuditReport.open(folder)
    scores = load_scores(folder / "scores.parquet")
    faults = [*_broken_seals(folder), *_plan_faults(report), *invariants(report)]
    try:
        again = judge(report.card, scores)
    except (KeyError, ValueError, IndexError) as error:
        raise AuditError(f"{folder}: the scores do not make a report: {error!r}") from error
    faults += _differences(again.content(), report.content())
    if again.rows != report.rows:
        faults.append("rows.parquet is not what the scores give")
    if faults:
        more = f"; and {len(faults) - 8} more" if len(faults) > 8 else ""
        raise AuditError(f"{folder}: not verified: " + "; ".join(faults[:8]) + more)
    return report


def _broken_seals(folder: Path) -> list[str]:
    """Files that were changed since they were written."""
    try:
        seals = json.loads((folder / "seal.json").read_text())
    except (OSError, ValueError) as error:
        return [f"seal.json cannot be read ({error})"]
    return [
        f"{name} is not the file that was sealed"
        for name in SEALED
        if seals.get(name) != file_sha256(folder / name)
    ]


def invariants(report: AuditReport) -> list[str]:
    """What must hold of any report, whatever its scores."""
    verdict, card, faults = report.verdict, report.card, []
    confirmatory = [e for e in report.endpoints if e.role == "confirmatory"]
    if verdict.primary == "REMOVED":
        wanted = {
            "the quick profile": card.profile != "quick",
            "a target that is not observed": card.target.type == "observed",
            "the original's weights": not card.models.edited.weights_identical,
            "fewer than three golds": len(card.models.gold) >= 3,
            "a failed gate": all(g.passed for g in report.gates),
            "fewer than six endpoints": {e.id for e in confirmatory} == set(CONFIRMATORY),
            "an endpoint that is not equivalent": all(e.equivalent for e in confirmatory),
            "a tail": all(t.passed for t in report.tail),
            "a distance from the golds": report.ks is not None and report.ks.passed,
            "a loss of utility": report.collateral.non_inferior,
        }
        faults += [f"REMOVED with {what}" for what, holds in wanted.items() if not holds]
    same = card.models.original.sha256 == card.models.edited.sha256
    if same != card.models.edited.weights_identical:
        faults.append("weights_identical contradicts the hashes of the weights")
    told = " ".join(verdict.reasons)
    faults += [
        f"{endpoint} decides though its attack is inadmissible"
        for endpoint in ATTACKS_OF
        if f"{endpoint} " in told
        and any(
            taught > MAX_INJECTION
            for _, taught in decisive(endpoint, report.endpoints, report.attacks)
        )
    ]
    removal = next((c for c in report.claims if c.claim == "removal_from_weights"), None)
    if removal is None or (removal.status == "supported") != (verdict.primary == "REMOVED"):
        faults.append("the claim of removal contradicts the verdict")
    unexplained = [f.id for f in report.families if not f.kept and not f.why_dropped]
    unexplained += [a.id for a in report.attacks if not a.admissible and not a.why]
    unexplained += [e.id for e in report.endpoints if not e.valid and not e.why_invalid]
    if unexplained:
        faults.append(f"dropped without a reason: {', '.join(unexplained)}")
    for part in (card.target.id, str(card.target.n_facts), report.battery_version):
        if part not in verdict.sentence:
            faults.append(f"the sentence does not name {part!r}")
    if verdict.primary == "INCONCLUSIVE" and not verdict.missing:
        faults.append("INCONCLUSIVE without saying what is missing")
    return faults


def _plan_faults(report: AuditReport) -> list[str]:
    plan, card, faults = report.plan, report.card, []
    if plan_sha256(plan) != card.prereg_sha256:
        faults.append("plan.json does not have the hash that the report gives")
    agreed: dict[str, Any] = {
        "profile": card.profile,
        "seed": card.seed,
        "battery_sha256": card.battery_sha256,
        "battery_version": report.battery_version,
        "target": card.target.id,
        "target_sha256": card.target.facts_sha256,
        "folds": json.loads(json.dumps(card.data.folds)),
        "thresholds": thresholds(),
        "concept_sha256": card.concept.sha256 if card.concept is not None else "",
    }
    faults += [f"the plan's {name} is another" for name, v in agreed.items() if plan.get(name) != v]
    return faults


def _differences(wanted: Any, given: Any, where: str = "") -> list[str]:
    """Paths at which two JSON values differ."""
    if isinstance(wanted, dict) and isinstance(given, dict):
        return [
            fault
            for key in sorted({*wanted, *given})
            for fault in _differences(wanted.get(key), given.get(key), f"{where}.{key}")
        ]
    if isinstance(wanted, list) and isinstance(given, list) and len(wanted) == len(given):
        return [
            fault
            for i, (a, b) in enumerate(zip(wanted, given, strict=True))
            for fault in _differences(a, b, f"{where}[{i}]")
        ]
    if wanted == given:
        return []
    shown = [json.dumps(value)[:60] for value in (given, wanted)]
    return [f"{where.lstrip('.')} is {shown[0]}, the scores give {shown[1]}"]
