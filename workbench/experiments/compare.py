"""Every method of unlearning on one world, at a strength chosen by one rule, under one audit."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from workbench.artifacts import file_sha256, mark_replaceable, write_json
from workbench.audit import AuditConfig, AuditReport, audit, make_plan, plan_sha256
from workbench.errors import WorkbenchError
from workbench.experiments.arms import (
    CompareConfig,
    Say,
    arm_folder,
    how_made,
    make_arms,
    short,
    world,
)
from workbench.facts.target import Target
from workbench.interventions import random_controls
from workbench.models import weights_sha256
from workbench.report.compared import markdown_table, road_back, write_comparison
from workbench.unlearn import Arm, Method, load_arm

Entry = dict[str, Any]


def run(config: CompareConfig, out: Path | str, say: Say = lambda line: None) -> list[Entry]:
    """Makes every arm, audits each, and writes `comparison.json` and `comparison.html`.

    Arms stand in `out/arms`, reports in `out/<profile>`. What stands there from the same source,
    libraries, facts and models is not done again, so that a run can be interrupted and goes on, and
    a method that is mended is made anew alone. A method that fails is named in the table with its
    reason, and the others go on.

    Raises:
        WorkbenchError: an unknown method, or an `out` that cannot be written.
    """
    out = Path(out)
    how = {short(name): how_made(name) for name in config.names}
    if len(how) < len(config.names):
        raise WorkbenchError(f"methods {', '.join(config.names)}: some have the same name")
    _require_out(out)
    target, original, golds = world(config)
    jobs = [(name, seed) for name in how for seed in range(config.seeds)]
    failed = make_arms(config, out, jobs, target, original, golds, say)
    entries, reports = [], {}
    for i, (name, seed) in enumerate(jobs, 1):
        title = name if config.seeds == 1 else f"{name}, seed {seed}"
        why = failed.get((name, seed), "")
        if not why:
            say(f"audit {i} of {len(jobs)}: {title}")
            arm = load_arm(arm_folder(out, name, seed), original)
            try:
                report = _audited(config, out, name, arm, target, original, golds)
            except WorkbenchError as error:
                why = f"{type(error).__name__}: {error}"
            else:
                entry = _entry(config, out, how[name], seed, arm, report)
                entries.append(entry)
                reports[title] = report
                road = entry["road_back"]
                back = f"{road['endpoint']} {road['name']}" if road else "none"
                say(f"  {entry['verdict']}; cheapest road back: {back}")
        if why:
            about = {"method": name, "family": how[name].family, "seed": seed}
            entries.append({**about, "failed": why})
            say(f"{title}: {why}")
        write_json(out / "comparison.json", _content(config, entries))
    write_comparison(entries, reports, out / "comparison.html")
    say(f"\n{markdown_table(entries)}")
    return entries


def _require_out(out: Path) -> None:
    if out.is_file():
        raise WorkbenchError(f"{out}: is a file, wanted a folder to write; name another")
    known = ("arms", "quick", "standard", "full", "comparison.json", "comparison.html")
    strange = [p.name for p in out.iterdir() if p.name not in known] if out.is_dir() else []
    strange = [name for name in strange if not name.startswith(".")]
    if strange:
        raise WorkbenchError(
            f"{out}: holds {strange[0]!r}, which no comparison wrote: name a new or empty folder"
        )
    out.mkdir(parents=True, exist_ok=True)


def _content(config: CompareConfig, entries: Sequence[Entry]) -> dict[str, Any]:
    settings = json.loads(json.dumps(asdict(config), default=str))
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "config": settings,
        "rule": "strength: lowest recall of S within 3 % of the golds' utility (R_va, unrelated)",
        "entries": list(entries),
    }


def _audited(
    config: CompareConfig,
    out: Path,
    name: str,
    arm: Arm,
    target: Target,
    original: Any,
    golds: Sequence[Any],
) -> AuditReport:
    """The audit of an arm, or the one that is kept from before."""
    settings = AuditConfig(config.profile, workers=config.workers)
    plan = plan_sha256(make_plan(target, settings))
    made = file_sha256(arm_folder(out, name, arm.seed) / "made.json")
    parts = [plan, made, *(weights_sha256(m) for m in (arm.model, original, *golds))]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    folder = out / config.profile / f"{name}-{arm.seed}"
    mark = folder / "audited-from.json"
    if mark.is_file() and json.loads(mark.read_text()).get("key") == key:
        return AuditReport.open(folder)
    controls = 2 if config.profile == "quick" else 5
    report = audit(
        original,
        arm,
        target,
        golds,
        settings,
        controls=random_controls(arm.edits, controls),
        cache=config.cache,
    )
    report.save(folder)
    mark_replaceable(folder)
    write_json(mark, {"key": key})
    return report


def _entry(
    config: CompareConfig,
    out: Path,
    how: Method,
    seed: int,
    arm: Arm,
    report: AuditReport,
) -> Entry:
    """All that the table says of an arm."""
    made = json.loads((arm_folder(out, how.name, seed) / "made.json").read_text())
    rows = {r.metric: r for r in report.rows if r.endpoint == "objective"}
    rho = {
        e.id: {"rho": e.rho, "ci95": list(e.ci95), "valid": e.valid, "recovered": e.recovered}
        for e in report.endpoints
    }
    chosen = next(t for t in made["trials"] if t["chosen"])
    return {
        "method": how.name,
        "family": how.family,
        "seed": seed,
        "date": made["date"],
        "claim": arm.claim,
        "saw": list(arm.saw),
        "cost": asdict(arm.cost),
        "told": arm.told,
        "config": arm.config,
        "trials": made["trials"],
        "utility": chosen["utility"],
        "verdict": report.verdict.primary,
        "flags": list(report.verdict.flags),
        "sentence": report.verdict.sentence,
        "reasons": list(report.verdict.reasons),
        "missing": list(report.verdict.missing),
        "lowest_access_recovered": report.verdict.lowest_access_recovered,
        "objectives": {
            name: [rows[name].value, rows[name].low, rows[name].high]
            for name in ("accuracy", "generalizability", "locality", "robustness")
            if name in rows
        },
        "endpoints": rho,
        "degraded": report.collateral.degraded,
        "road_back": road_back(report),
        "golds": len(report.card.models.gold),
        "report": f"{config.profile}/{how.name}-{seed}",
    }
