"""Rebuilding everything that is bundled: the world's facts, original, golds and SAEs."""

import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from workbench.activations import harvest
from workbench.artifacts import mark_replaceable, write_json
from workbench.facts import build_valley, require_contract, save_facts
from workbench.facts.read import BUNDLED as FACTS_FILE
from workbench.hooks import Site
from workbench.models import golds, load_model, read_recipe, train_lm
from workbench.models.load import BUNDLED as MODELS
from workbench.sae.load import BUNDLED as SAES
from workbench.sae.metrics import spliced
from workbench.sae.train import TrainConfig, train_sae
from workbench.sae.train import read_recipe as read_sae_recipe

TARGET, GOLD_SEEDS = "toxins", (0, 1, 2, 3, 4)
SITES = (Site(0), Site(1))


def main() -> None:
    """Trains everything anew, two processes at a time; about half an hour on two cores."""
    facts = build_valley()
    require_contract(facts.target(TARGET))
    save_facts(facts, FACTS_FILE["valley"])
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        pool.submit(_train_original).result()
        jobs = [pool.submit(_train_saes), *(pool.submit(_train_gold, seed) for seed in GOLD_SEEDS)]
        for job in jobs:
            job.result()
    sys.stdout.write("bundled world rebuilt\n")


def _train_original() -> None:
    torch.set_num_threads(1)
    train_lm(build_valley(), _replaceable(MODELS / "valley" / "original"))


def _train_gold(seed: int) -> None:
    torch.set_num_threads(1)
    recipe = read_recipe(MODELS / "valley" / "original")
    _replaceable(MODELS / "valley" / f"gold-{seed}")
    golds(build_valley().target(TARGET), MODELS / "valley", recipe, seeds=[seed])


def _train_saes() -> None:
    """Trains one SAE per site on the original's activations, and measures it in the model.

    Training sees the whole corpus, the measurement every twentieth text.
    """
    torch.set_num_threads(1)
    facts, model = build_valley(), load_model("valley")
    texts = [d.text for d in facts.corpus][::20]
    with TemporaryDirectory() as folder:
        for acts in harvest(model, facts, SITES, Path(folder) / "acts"):
            out = _replaceable(SAES / "valley" / acts.card.site)
            sae = train_sae(acts, TrainConfig(), out)
            write_json(
                out / "recipe.json", {**read_sae_recipe(out), "spliced": spliced(model, sae, texts)}
            )


def _replaceable(bundled: Path) -> Path:
    """The same folder; one that is there may be replaced, whatever wrote it."""
    if bundled.is_dir():
        mark_replaceable(bundled)
    return bundled


if __name__ == "__main__":
    main()
