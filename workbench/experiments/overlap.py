"""What an ablation costs by how far names give the concept away: trade-off by name overlap."""

import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path

import torch

from workbench.activations import harvest
from workbench.artifacts import write_json
from workbench.experiments.choose import ChooseConfig, choose_edit
from workbench.experiments.world import SITES, TARGET
from workbench.facts import ValleyConfig, build_valley
from workbench.models import LMConfig, load_model, recall, train_lm
from workbench.sae import TrainConfig, load_sae, train_sae


@dataclass(frozen=True)
class OverlapConfig:
    """One world of the study; all else is as in the bundled world."""

    name_overlap: float = 0.25
    lm: LMConfig = field(default_factory=LMConfig)
    sae: TrainConfig = field(default_factory=TrainConfig)
    choose: ChooseConfig = field(default_factory=ChooseConfig)


def run(config: OverlapConfig, out: Path | str) -> Path:
    """Trains an original and its SAEs at this overlap, chooses an edit and sweeps its dose.

    Writes `tradeoff.json` with recall before the edit and after it at every dose. Models and
    SAEs that are already in `out` are not made again.
    """
    torch.set_num_threads(1)
    out = Path(out)
    facts = build_valley(ValleyConfig(name_overlap=config.name_overlap))
    if not (out / "original").is_dir():
        train_lm(facts, out / "original", config.lm)
    model = load_model(out / "original")
    folders = {site: out / "saes" / site.name for site in SITES}
    if missing := [site for site, folder in folders.items() if not folder.is_dir()]:
        for acts in harvest(model, facts, missing, out / "acts"):
            train_sae(acts, config.sae, folders[acts.site])
    saes = [load_sae(folder) for folder in folders.values()]
    target = facts.target(TARGET)
    choice = choose_edit(model, saes, target, config.choose)
    write_json(
        out / "tradeoff.json",
        {
            "config": asdict(config),
            "unedited": {
                "forget": recall(model, model.tokenizer, facts, target.fold("S"), "audit"),
                "retained": recall(model, model.tokenizer, facts, target.retain["R_va"], "audit"),
            },
            "sweep": choice.rows(),
        },
    )
    return out / "tradeoff.json"


def main() -> None:
    """Runs the worlds at overlap 0 and 1, side by side; `make demo` has the one at 0.25."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/overlap")
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        jobs = [pool.submit(run, OverlapConfig(o), root / f"{o:g}") for o in (0.0, 1.0)]
        for job in jobs:
            sys.stdout.write(f"{job.result()}\n")


if __name__ == "__main__":
    main()
