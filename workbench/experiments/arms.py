"""Arms of a comparison: each made once, at a strength chosen by one rule, and kept."""

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

from workbench.artifacts import write_json
from workbench.audit.plan import target_sha256
from workbench.audit.schema import Profile
from workbench.audit.store import source_sha256
from workbench.facts import load_facts
from workbench.facts.target import Target
from workbench.models import load_golds, load_model, weights_sha256
from workbench.models.load import versions
from workbench.unlearn import METHODS, Method, choose_strength, method, method_from
from workbench.unlearn.save import save_arm

Say = Callable[[str], None]
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


def world(config: CompareConfig) -> tuple[Target, Any, list[Any]]:
    """The target, the original and the golds of a comparison."""
    target = load_facts(config.facts).target(config.target)
    original = load_model(config.model or config.facts)
    golds = [load_model(g) for g in config.golds] if config.golds else load_golds(config.facts)
    return target, original, golds


def make_arms(
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
    named = dict(zip(map(short, config.names), config.names, strict=True))
    todo = [
        (name, seed)
        for name, seed in jobs
        if not _is_made(arm_folder(out, name, seed), named[name], seed, made_from)
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
    target, original, golds = world(config)
    folder = arm_folder(out, short(name), seed)
    try:
        arm, trials = choose_strength(how_made(name), original, target, golds, seed)
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


def how_made(name: str) -> Method:
    """A method by its name, or by the user's file."""
    return method_from(name) if name.endswith(".py") else method(name)


def short(name: str) -> str:
    """A method's name as it stands in folders and tables."""
    return Path(name).stem if name.endswith(".py") else name


def arm_folder(out: Path, name: str, seed: int) -> Path:
    """Where an arm stands."""
    return out / "arms" / f"{name}-{seed}"


def _made_from(target: Target, original: Any, golds: Sequence[Any]) -> str:
    """Hash of what all arms are made from; other versions of torch and the like round otherwise."""
    parts = [target_sha256(target), *(weights_sha256(m) for m in (original, *golds))]
    below = (source_sha256(*BELOW), versions())
    return hashlib.sha256(json.dumps([*parts, *below]).encode()).hexdigest()


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
