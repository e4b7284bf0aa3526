"""Audits of models whose truth is known: whether the verdicts are right, with the evidence."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from workbench.artifacts import write_json
from workbench.audit import AuditConfig, AuditReport, audit
from workbench.audit.faithfulness import LEAST_AUC, faithfulness
from workbench.audit.plan import target_sha256
from workbench.audit.store import cache_folder, source_sha256
from workbench.errors import WorkbenchError
from workbench.experiments import metacheck
from workbench.experiments.known_models import (
    CASES,
    Built,
    Case,
    Trap,
    build,
    leaky_probe,
    teaching,
)
from workbench.experiments.known_models.checks import must_hold
from workbench.experiments.known_models.tables import signature, table
from workbench.facts import load_facts
from workbench.facts.target import Target
from workbench.interventions import random_controls
from workbench.models import load_golds, load_model, weights_sha256

Say = Callable[[str], None]
TRAPS: dict[tuple[str, str], Callable[..., Trap]] = {
    ("11", "probe split by template"): leaky_probe,
    ("12", "teaching attacks"): teaching,
}
Entry = dict[str, Any]
CORE = 12
"""The last of the cases that the core of the battery must get right."""


@dataclass(frozen=True)
class CalibrateConfig:
    """Which cases are audited.

    Attributes:
        cases: numbers or names; none is those that every battery must get right, 1 to 12.
        all: every case, where none are named.
        seeds: edits of each case that has seeds.
        cache: folder of finished jobs of audits; default the user's.
    """

    world: str = "valley"
    target: str = "toxins"
    cases: tuple[str, ...] = ()
    all: bool = False
    seeds: int = 1
    workers: int = 2
    cache: Path | None = None


def run(config: CalibrateConfig, out: Path | str, say: Say = lambda line: None) -> list[Entry]:
    """Builds each case, audits it by the standard profile and compares verdict with truth.

    `out/calibration.json` holds one entry per case and seed, `{case, expected, verdict, flags,
    seed, ok, evidence}`; what stands there from the same battery, cases, facts and models is not
    done again, so that a run can be interrupted and goes on. With every case, `out/metacheck.json`
    tells how well each endpoint keeps models apart.

    Raises:
        WorkbenchError: a case that does not exist, or entries that cannot be read.
    """
    file = Path(out) / "calibration.json"
    target = load_facts(config.world).target(config.target)
    original, golds = load_model(config.world), load_golds(config.world)
    made_with, entries = _made_with(target, original, golds), []
    kept = _kept(file)
    done = {(e["case"], e["seed"]): e for e in kept if e.get("made_with") == made_with}
    cases, traps = chosen(config.cases, config.all)
    jobs: list[tuple[str, int, Callable[[], Entry]]] = [
        (case.name, seed, partial(audit_case, case, seed, original, golds, target, config))
        for case in cases
        for seed in case.seeds(len(golds), config.seeds)
    ]
    jobs += [(name, 0, partial(_trap_entry, make, original, golds, target)) for name, make in traps]
    for name, seed, make in jobs:
        entry = done.pop((name, seed), None)
        if entry is None:
            started = time.monotonic()
            entry = {**make(), "made_with": made_with, "date": f"{datetime.now(UTC):%Y-%m-%d}"}
            say(
                f"{name} seed {seed}: {entry['verdict']}, {'right' if entry['ok'] else 'WRONG'}, "
                f"{time.monotonic() - started:.0f} s"
            )
        entries.append(entry)
        write_json(file, [*entries, *done.values()])
    say(f"\n{table(entries)}\n\n{file}")
    if config.all and not config.cases:
        say(f"\nρ by case, medians:\n{signature(entries)}")
        say(f"\nhow well each endpoint tells:\n{_meta(entries, made_with, Path(out))}")
    return entries


def _kept(file: Path) -> list[Entry]:
    """Entries of an earlier run."""
    if not file.is_file():
        return []
    try:
        kept = json.loads(file.read_text())
        return [e for e in kept if e["case"] and e["seed"] >= 0]
    except (ValueError, TypeError, KeyError) as broken:
        raise WorkbenchError(
            f"{file}: not the entries of a calibration ({broken!r}); move it away, and all is "
            "done again from the jobs that are kept"
        ) from broken


def _meta(entries: Sequence[Entry], made_with: str, out: Path) -> str:
    """Writes `metacheck.json`, the table that the audit ships; returns it for people."""
    checked = metacheck.check(entries)
    about = {"made_with": made_with, "date": max(e["date"] for e in entries)}
    write_json(out / "metacheck.json", {**about, "endpoints": metacheck.rows(checked)})
    return metacheck.table(checked)


ROOMS = ("audit", "experiments", "facts", "hooks", "interventions", "locate", "models", "sae")
"""Source that an entry rests on."""


def _made_with(target: Target, original: Any, golds: Sequence[Any]) -> str:
    """Hash of all that an entry rests on: the source, the facts, the models.

    Of the table of `metacheck`, which is made of entries, only which endpoints it bars.
    """
    models = [weights_sha256(model) for model in (original, *golds)]
    blunt = sorted(name for name, told in faithfulness().items() if told < LEAST_AUC)
    parts = [source_sha256(*ROOMS), target_sha256(target), *models, *blunt]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def chosen(
    names: Sequence[str], every: bool = False
) -> tuple[list[Case], list[tuple[str, Callable[..., Trap]]]]:
    """The cases and traps of these numbers or names; for none, the core's, or every one."""
    wanted = [str(name) for name in names]
    known = {key for case in CASES for key in (case.name, str(case.number))}
    known |= {key for number, name in TRAPS for key in (number, name)}
    if unknown := [name for name in wanted if name not in known]:
        raise WorkbenchError(f"no case {unknown}: wanted some of {sorted(known)}")
    return (
        [
            c
            for c in CASES
            if {c.name, str(c.number)} & set(wanted) or (not wanted and (every or c.number <= CORE))
        ],
        [(key[1], make) for key, make in TRAPS.items() if not wanted or set(key) & set(wanted)],
    )


def audit_case(
    case: Case,
    seed: int,
    original: Any,
    golds: Sequence[Any],
    target: Target,
    config: CalibrateConfig,
) -> Entry:
    """Builds one edit of a case, audits it, and says whether the audit was right."""
    torch.set_num_threads(1)
    folder = config.cache if config.cache is not None else cache_folder()
    built = build(case, original, golds, target, seed, folder=folder / "golds")
    report = audited(built, original, target, config)
    checks = must_hold(case, report)
    flags = list(report.verdict.flags)
    right = report.verdict.primary in (case.expected, *case.also) and set(case.flags) <= set(flags)
    return {
        "case": case.name,
        "number": case.number,
        "truth": case.truth,
        "expected": case.expected,
        "expected_flags": list(case.flags),
        "verdict": report.verdict.primary,
        "flags": flags,
        "seed": seed,
        "ok": right and all(c["holds"] for c in checks.values()),
        "evidence": {**_evidence(report), "must_hold": checks},
    }


def _trap_entry(
    make: Callable[..., Trap], original: Any, golds: Sequence[Any], target: Target
) -> Entry:
    """A broken attack must be told from an honest one by its controls."""
    trap = make(original, golds, target)
    return {
        "case": trap.name,
        "number": trap.number,
        "truth": "the broken attack finds what is not there",
        "expected": "void",
        "expected_flags": [],
        "verdict": "void" if min(trap.broken.values()) > trap.limit else "valid",
        "flags": [],
        "seed": 0,
        "ok": trap.ok,
        "evidence": {
            "broken": trap.broken,
            "honest": trap.honest,
            "beside": trap.beside,
            "limit": trap.limit,
        },
    }


def audited(built: Built, original: Any, target: Target, config: CalibrateConfig) -> AuditReport:
    """The standard audit of a built case."""
    parts = built.edit if isinstance(built.edit, Sequence) else [built.edit]
    edits = [part for part in parts if not hasattr(part, "state_dict")]
    return audit(
        original,
        built.edit,
        built.target or target,
        built.golds,
        AuditConfig("standard", workers=config.workers),
        filter=built.filter,
        controls=random_controls(edits, 3),
        cache=config.cache,
    )


def _evidence(report: AuditReport) -> dict[str, Any]:
    return {
        "sentence": report.verdict.sentence,
        "reasons": list(report.verdict.reasons),
        "missing": list(report.verdict.missing),
        "endpoints": {
            f"{e.id} {e.view}": {
                "O": e.m.O, "E": e.m.E, "G": e.m.G_mean, "rho": e.rho, "ci95": list(e.ci95),
                "valid": e.valid, "recovered": e.recovered, "equivalent": e.equivalent,
                "chosen": list(e.selection.chosen),
            }
            for e in report.endpoints
        },
        "kept": {s.id: [s.O, s.E, s.G] for s in report.collateral.sets if s.id in ("R_te", "U")},
        "utility": (
            "fails"
            if report.collateral.degraded
            else "as gold" if report.collateral.non_inferior else "less than gold"
        ),
        "failed_gates": [f"{g.id}: {g.note}" for g in report.gates if not g.passed],
        "tail": {t.id: t.share_E for t in report.tail},
        "loo_verdicts": list(report.loo_verdicts),
    }  # fmt: skip
