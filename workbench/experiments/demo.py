"""The straight line on the bundled world: locate a concept, ablate it, audit what is left."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from workbench.artifacts import new_folder, require_replaceable, write_json
from workbench.audit import AuditConfig, AuditReport, audit
from workbench.experiments.choose import ChooseConfig, choose_edit
from workbench.facts import load_facts
from workbench.interventions import random_controls, save_edit
from workbench.models import load_golds, load_model
from workbench.report import write_html
from workbench.sae.load import bundled_saes, load_sae

Say = Callable[[str], None]


@dataclass(frozen=True)
class DemoConfig:
    """What the demo runs on; the defaults are the bundled world and its default target."""

    world: str = "valley"
    target: str = "toxins"
    choose: ChooseConfig = field(default_factory=ChooseConfig)
    audit: AuditConfig = field(default_factory=lambda: AuditConfig("quick"))


def run(config: DemoConfig, out: Path | str, say: Say = lambda line: None) -> AuditReport:
    """Runs every step and writes the config, the choice, the edit and the report to `out`.

    `out` holds `config.json`, `choice.json`, `rows.parquet`, `report.json`, `report.html` and the
    folder `edit`; it appears only when all of it is there.

    Raises:
        DataError: `out` holds what the workbench did not write.
    """
    require_replaceable(out)
    torch.set_num_threads(1)
    with _timed(say, "load facts, model, golds and SAEs"):
        facts = load_facts(config.world)
        target = facts.target(config.target)
        model, golds = load_model(config.world), load_golds(config.world)
        saes = [load_sae(name) for name in bundled_saes() if name.startswith(f"{config.world}/")]
    with _timed(say, "choose an edit on the S fold"):
        choice = choose_edit(model, saes, target, config.choose)
    with _timed(say, "audit original, edited and golds"):
        edits = list(choice.edits)
        report = audit(
            model, edits, target, golds, config.audit, controls=random_controls(edits, 2)
        )
    with _timed(say, "write the report"), new_folder(out) as folder:
        report.save(folder)
        write_json(folder / "config.json", asdict(config))
        write_json(
            folder / "choice.json",
            {
                "trials": [asdict(t) for t in choice.trials],
                "sweep": choice.rows(),
                "features": {e.site.name: e.edit.features.tolist() for e in choice.edits},  # pyright: ignore[reportAttributeAccessIssue]
            },
        )
        save_edit(choice.edits, folder / "edit")
        write_html(report, folder, tradeoff=choice.rows())
    return report


@contextmanager
def _timed(say: Say, what: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    say(f"{what}  {time.monotonic() - started:.1f} s")
