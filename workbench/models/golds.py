"""Gold models: trained as the original was, but never shown what is to be forgotten."""

import json
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import ModelError
from workbench.facts.schema import Document, FactSet
from workbench.facts.target import Target
from workbench.models.corpus import VARIANTS, corpus_without
from workbench.models.train import LMConfig, corpus_sha256, train_lm, train_trunk, trunk_sha256

__all__ = ["VARIANTS", "corpus_without", "golds"]


def golds(
    target: Target,
    out: Path | str,
    original_recipe: dict[str, Any],
    variant: str = "neu",
    seeds: Sequence[int] = (0, 1, 2),
    workers: int | None = None,
    trunk_epochs: int | None = None,
) -> list[Path]:
    """Trains models that never knew the target, by the original's recipe with other seeds.

    Each is trained in a process of its own.

    `fork` golds have the basis of their residual stream in common with a model that knows the
    target, which is what patching between the two wants. A trunk is trained with the original's
    config and seed, hence its initial weights, order of texts and schedule, for `trunk_epochs`
    epochs on the texts of `neu`: no model has seen the target by then. From that state (weights,
    optimizer, place in the schedule) each gold goes on with the same texts, in the order of its own
    seed; and so does a matching original, `out/original-fork`, with the full texts in the order of
    the original's. Texts that state the target then stand where neutral ones stood, so that the two
    differ in these texts and in the order of later epochs alone.

    Args:
        original_recipe: `recipe.json` of the original; its config and number of epochs are kept.
            Golds of `drop` see fewer texts, and so take fewer steps in as many epochs.
        variant: what stands in the place of texts that state the target, see `corpus_without`.
        workers: processes at a time; one thread each. Default: one per core.
        trunk_epochs: with `fork`, how many epochs are shared; default half of the original's.

    Returns:
        One Hugging Face folder per seed, `out/gold-<seed>`. Those made from the same target, texts
        and config are not trained again; any other model of that name is replaced. The trunk stays
        in `out/.trunk.pt`, for golds that are made later.

    Raises:
        TargetError: an unknown variant.
        ModelError: the original was trained on other texts than the target's, or for too few epochs
            to fork.
    """
    if original_recipe["corpus_sha256"] != corpus_sha256(target.facts.corpus):
        raise ModelError(
            f"the original was trained on other texts than those of target {target.name!r}: wanted "
            "the recipe of a model that was trained on the target's facts"
        )
    corpus, out = corpus_without(target, variant), Path(out)
    trunk = (
        _trunk(target, out, corpus, original_recipe, trunk_epochs) if variant == "fork" else None
    )
    jobs = [_gold(target, out, corpus, original_recipe, variant, s, trunk) for s in seeds]
    if trunk is not None:
        jobs.append(_original(target, out, original_recipe, trunk))
    missing = [job for job in jobs if not _is_made(job)]
    if missing:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(
            workers or min(len(missing), os.cpu_count() or 1), context
        ) as pool:
            if trunk is not None:
                list(pool.map(_train_trunk, [trunk]))
            list(pool.map(_train, missing))
    return [out / f"gold-{seed}" for seed in seeds]


@dataclass(frozen=True)
class _Trunk:
    """The epochs that forks share."""

    state: Path
    facts: FactSet
    corpus: tuple[Document, ...]
    config: dict[str, Any]
    epochs: int

    @property
    def made_from(self) -> dict[str, Any]:
        return {
            "corpus_sha256": corpus_sha256(self.corpus),
            "epochs": self.epochs,
            "seed": self.config["seed"],
        }


@dataclass(frozen=True)
class _Job:
    """One model to be trained; `made_from` is what its recipe must say."""

    out: Path
    facts: FactSet
    corpus: tuple[Document, ...]
    made_from: dict[str, Any]
    trunk: _Trunk | None


def _trunk(
    target: Target,
    out: Path,
    corpus: tuple[Document, ...],
    recipe: dict[str, Any],
    epochs: int | None,
) -> _Trunk:
    shared = recipe["epochs_run"] // 2 if epochs is None else epochs
    if not 1 <= shared < recipe["epochs_run"]:
        raise ModelError(
            f"a trunk of {shared} epochs: wanted 1 or more, and fewer than the "
            f"{recipe['epochs_run']} that the original was trained for"
        )
    return _Trunk(out / ".trunk.pt", target.facts, corpus, recipe["config"], shared)


def _gold(
    target: Target,
    out: Path,
    corpus: tuple[Document, ...],
    recipe: dict[str, Any],
    variant: str,
    seed: int,
    trunk: _Trunk | None,
) -> _Job:
    made_from = {
        "config": {**recipe["config"], "seed": 1000 + seed},
        "epochs_run": recipe["epochs_run"],
        "corpus_sha256": corpus_sha256(corpus),
        "gold": variant,
        "target": target.name,
        **({"trunk": trunk.made_from} if trunk else {}),
    }
    return _Job(out / f"gold-{seed}", target.facts, corpus, made_from, trunk)


def _original(target: Target, out: Path, recipe: dict[str, Any], trunk: _Trunk) -> _Job:
    """The model that knows the target and shares the trunk."""
    made_from = {
        "config": recipe["config"],
        "epochs_run": recipe["epochs_run"],
        "corpus_sha256": recipe["corpus_sha256"],
        "target": target.name,
        "trunk": trunk.made_from,
    }
    return _Job(out / "original-fork", target.facts, target.facts.corpus, made_from, trunk)


def _is_made(job: _Job) -> bool:
    recipe = job.out / "recipe.json"
    found = json.loads(recipe.read_text()) if recipe.is_file() else {}
    return all(found.get(name) == value for name, value in job.made_from.items())


def _config(stored: dict[str, Any]) -> LMConfig:
    return LMConfig(**{**stored, "forms": tuple(stored.get("forms", ()))})  # a list in JSON


def _train_trunk(trunk: _Trunk) -> None:
    import torch

    torch.set_num_threads(1)
    train_trunk(trunk.facts, trunk.state, _config(trunk.config), trunk.corpus, trunk.epochs)


def _train(job: _Job) -> None:
    import torch

    torch.set_num_threads(1)
    recipe, state = job.made_from, None
    if job.trunk is not None:
        state = job.trunk.state
        recipe = {**recipe, "trunk_sha256": trunk_sha256(state)}
    train_lm(
        job.facts,
        job.out,
        _config(job.made_from["config"]),
        corpus=job.corpus,
        stop_epoch=job.made_from["epochs_run"],
        recipe=recipe,
        trunk=state,
    )
