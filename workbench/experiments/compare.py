"""Every method of unlearning on one world, at a strength chosen by one rule, under one audit."""

import hashlib
import json
import multiprocessing
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from workbench.artifacts import file_sha256, mark_replaceable, write_json
from workbench.audit import AuditConfig, AuditReport, audit, make_plan, plan_sha256
from workbench.audit.plan import target_sha256
from workbench.audit.schema import Profile
from workbench.audit.store import source_sha256
from workbench.errors import WorkbenchError
from workbench.facts import load_facts
from workbench.facts.target import Target
from workbench.interventions import random_controls
from workbench.models import load_golds, load_model, weights_sha256
from workbench.report.compared import markdown_table, road_back, write_comparison
from workbench.unlearn import METHODS, Arm, Method, choose_strength, load_arm, method, method_from
from workbench.unlearn.save import save_arm

Say = Callable[[str], None]
Entry = dict[str, Any]
ROOM = Path(__file__).parent.parent / "unlearn"
BELOW = ("facts", "hooks", "interventions", "locate", "models", "sae")
"""Rooms that every method rests on."""


@dataclass(frozen=True)
class CompareConfig:
    """What is compared.

    Attributes:
        facts: a fact set's name or file.
        model: the original; empty is the fact set's name.
        golds: models that never knew; empty is those that come with the fact set.
        methods: names; empty is all.
        own: files of the user's, each with a function `unlearn`.
        seeds: arms of each method.
        workers: arms made, and audit jobs done, at a time.
    """

    facts: str = "valley"
    target: str = "toxins"
    model: str = ""
    golds: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    own: tuple[Path, ...] = ()
    profile: Profile = "quick"
    seeds: int = 1
    workers: int = 2
    cache: Path | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Of methods, those of the user's last."""
        listed = self.methods or (() if self.own else METHODS)
        return (*listed, *map(str, self.own))


def run(config: CompareConfig, out: Path | str, say: Say = lambda line: None) -> list[Entry]:
    """Makes every arm, audits each, and writes `comparison.json` and `comparison.html`.

    Arms stand in `out/arms`, reports in `out/<profile>`. What stands there from the same source,
    facts and models is not done again, so that a run can be interrupted and goes on, and a method
    that is mended is made anew alone. A method that fails is named in the table with its reason,
    and the others go on.

    Raises:
        WorkbenchError: an unknown method, or an `out` that cannot be written.
    """
    out = Path(out)
    how = {_short(name): _method(name) for name in config.names}
    if len(how) < len(config.names):
        raise WorkbenchError(f"methods {', '.join(config.names)}: some have the same name")
    _require_out(out)
    target, original, golds = _world(config)
    jobs = [(name, seed) for name in how for seed in range(config.seeds)]
    failed = _make_arms(config, out, jobs, target, original, golds, say)
    entries, reports = [], {}
    for i, (name, seed) in enumerate(jobs, 1):
        title = name if config.seeds == 1 else f"{name}, seed {seed}"
        why = failed.get((name, seed), "")
        if not why:
            say(f"audit {i} of {len(jobs)}: {title}")
            arm = load_arm(_arm_folder(out, name, seed), original)
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


def _world(config: CompareConfig) -> tuple[Target, Any, list[Any]]:
    target = load_facts(config.facts).target(config.target)
    original = load_model(config.model or config.facts)
    golds = [load_model(g) for g in config.golds] if config.golds else load_golds(config.facts)
    return target, original, golds


def _make_arms(
    config: CompareConfig,
    out: Path,
    jobs: Sequence[tuple[str, int]],
    target: Target,
    original: Any,
    golds: Sequence[Any],
    say: Say,
) -> dict[tuple[str, int], str]:
    """Makes the arms that are missing, each in a process with one thread; returns what failed."""
    made_from = _made_from(target, original, golds)
    named = dict(zip(map(_short, config.names), config.names, strict=True))
    todo = [
        (name, seed)
        for name, seed in jobs
        if not _is_made(_arm_folder(out, name, seed), named[name], seed, made_from)
    ]
    say(f"arms: {len(todo)} to make, {len(jobs) - len(todo)} kept from before")
    failed: dict[tuple[str, int], str] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(config.workers, len(todo) or 1), context) as pool:
        futures = {
            pool.submit(_make_arm, config, out, named[name], seed, made_from): (name, seed)
            for name, seed in todo
        }
        try:
            for future in as_completed(futures):
                (name, seed), why = futures[future], future.result()
                if why:
                    failed[name, seed] = why
                say(f"  {name} seed {seed}: {why or 'made'}")
        except KeyboardInterrupt as stopped:
            pool.shutdown(cancel_futures=True)
            raise KeyboardInterrupt(
                "arms that were finished are kept, and the same command goes on from there"
            ) from stopped
    return failed


def _make_arm(config: CompareConfig, out: Path, name: str, seed: int, made_from: str) -> str:
    """Chooses a strength and saves the arm; returns why not, if so."""
    torch.set_num_threads(1)
    target, original, golds = _world(config)
    folder = _arm_folder(out, _short(name), seed)
    try:
        arm, trials = choose_strength(_method(name), original, target, golds, seed)
        save_arm(arm, original, folder)
    except Exception as error:  # a file of the user's may do anything; the others go on
        return f"{type(error).__name__}: {error}"
    write_json(
        folder / "made.json",
        {
            "made_with": _made_with(name, seed, made_from),
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "trials": [asdict(trial) for trial in trials],
        },
    )
    return ""


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
    made = file_sha256(_arm_folder(out, name, arm.seed) / "made.json")
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
    made = json.loads((_arm_folder(out, how.name, seed) / "made.json").read_text())
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


def _method(name: str) -> Method:
    return method_from(name) if name.endswith(".py") else method(name)


def _short(name: str) -> str:
    return Path(name).stem if name.endswith(".py") else name


def _arm_folder(out: Path, name: str, seed: int) -> Path:
    return out / "arms" / f"{name}-{seed}"


def _made_from(target: Target, original: Any, golds: Sequence[Any]) -> str:
    """Hash of what all arms are made from."""
    parts = [target_sha256(target), *(weights_sha256(m) for m in (original, *golds))]
    return hashlib.sha256(json.dumps([*parts, source_sha256(*BELOW)]).encode()).hexdigest()


def _made_with(name: str, seed: int, made_from: str) -> str:
    """Hash of what one arm is made with: the source of its method, and all that this imports."""
    own = Path(name) if name.endswith(".py") else ROOM / f"{name}.py"
    digest = hashlib.sha256(f"{made_from} {seed}".encode())
    for path in sorted({own, *_imported([own, ROOM / "choose.py", ROOM / "save.py"])}):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _imported(files: Sequence[Path]) -> set[Path]:
    """Files of this room that these import, and those that they import, and so on.

    The table of methods is left out: a new name in it changes no method.
    """
    found, left = set(files), list(files)
    while left:
        text = left.pop().read_text()
        names = re.findall(r"workbench\.unlearn\.(\w+) import", text)
        new = {ROOM / f"{name}.py" for name in names}
        new = {path for path in new - found if path.is_file() and path.stem != "methods"}
        found |= new
        left += new
    return found - set(files[:1])


def _is_made(folder: Path, name: str, seed: int, made_from: str) -> bool:
    noted = folder / "made.json"
    if not (noted.is_file() and (folder / "arm.json").is_file()):
        return False
    try:
        return json.loads(noted.read_text())["made_with"] == _made_with(name, seed, made_from)
    except (ValueError, KeyError, TypeError):
        return False
