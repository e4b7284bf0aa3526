"""Gold models: trained as the original was, but never shown what is to be forgotten."""

import itertools
import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from workbench.errors import ModelError, TargetError
from workbench.facts.schema import Document, FactSet
from workbench.facts.target import Target
from workbench.models.train import LMConfig, corpus_sha256, train_lm


def corpus_without(target: Target, variant: str = "neu") -> tuple[Document, ...]:
    """The training texts without any that states a forget fact or one derived from it.

    Args:
        variant: `neu` puts neutral sentences about the same entities in the place of each text that
            goes, so that every name is seen as often as before and the data keep their length.
    """
    if variant != "neu":
        raise TargetError(f"gold variant {variant!r}: wanted 'neu'")
    neutral = itertools.cycle(target.facts.neutral or ("{} was mentioned .",))
    return tuple(
        _without_facts(document, neutral) if target.states_target(document) else document
        for document in target.facts.corpus
    )


def _without_facts(document: Document, neutral: Iterator[str]) -> Document:
    """Keeps the form, so that a choice of forms takes the same texts as for the original."""
    names = document.mentions or tuple(dict.fromkeys(subject for subject, _ in document.states))
    return Document(" ".join(next(neutral).replace("{}", n) for n in names), document.form, names)


def golds(
    target: Target,
    out: Path | str,
    original_recipe: dict[str, Any],
    variant: str = "neu",
    seeds: Sequence[int] = (0, 1, 2),
    workers: int | None = None,
) -> list[Path]:
    """Trains models that never knew the target, by the original's recipe with other seeds.

    Each is trained in a process of its own.

    Args:
        original_recipe: `recipe.json` of the original; its config and number of epochs are kept.
        workers: processes at a time; one thread each. Default: one per core.

    Returns:
        One Hugging Face folder per seed, `out/gold-<seed>`. Those made from the same target, texts
        and config are not trained again; any other model of that name is replaced.

    Raises:
        TargetError: an unknown variant.
        ModelError: the original was trained on other texts than the target's.
    """
    if original_recipe["corpus_sha256"] != corpus_sha256(target.facts.corpus):
        raise ModelError(
            f"the original was trained on other texts than those of target {target.name!r}: wanted "
            "the recipe of a model that was trained on the target's facts"
        )
    corpus = corpus_without(target, variant)
    folders = {seed: Path(out) / f"gold-{seed}" for seed in seeds}
    made_from = {
        seed: {
            "config": {**original_recipe["config"], "seed": 1000 + seed},
            "epochs_run": original_recipe["epochs_run"],
            "corpus_sha256": corpus_sha256(corpus),
            "gold": variant,
            "target": target.name,
        }
        for seed in seeds
    }
    missing = [seed for seed in seeds if not _is_made(folders[seed], made_from[seed])]
    if missing:
        jobs = [(target.facts, folders[seed], corpus, made_from[seed]) for seed in missing]
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers or min(len(jobs), os.cpu_count() or 1), context) as pool:
            list(pool.map(_train_gold, jobs))
    return list(folders.values())


def _is_made(folder: Path, made_from: dict[str, Any]) -> bool:
    recipe = folder / "recipe.json"
    found = json.loads(recipe.read_text()) if recipe.is_file() else {}
    return all(found.get(name) == value for name, value in made_from.items())


def _train_gold(job: tuple[FactSet, Path, tuple[Document, ...], dict[str, Any]]) -> None:
    import torch

    torch.set_num_threads(1)
    facts, out, corpus, made_from = job
    forms = tuple(made_from["config"].get("forms", ()))  # a list in JSON
    config = LMConfig(**{**made_from["config"], "forms": forms})
    epochs = made_from["epochs_run"]
    train_lm(facts, out, config, corpus=corpus, stop_epoch=epochs, recipe=made_from)
