"""Exact retraining: a model trained as the original was, on texts that do not state the target."""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from workbench.artifacts import write_json
from workbench.errors import ModelError
from workbench.facts.mentions import name_finder, stands_in
from workbench.facts.schema import Document
from workbench.facts.target import Target
from workbench.models import corpus_without, golds, load_model, read_recipe, weights_sha256
from workbench.models.score import device_of
from workbench.models.train import corpus_sha256
from workbench.unlearn.arm import Arm, Spent, made, metered, require_arm

WITHOUT = "training texts with neutral sentences in place of the target"


@dataclass(frozen=True)
class Config:
    """Which model is trained, and where it is kept.

    Attributes:
        gold_seed: to which the arm's seed is added. Bundled golds have 0 to 4: an arm that is held
            against them is to be none of them.
        folder: where the model is kept; if empty, in `WORKBENCH_CACHE` or the user's cache.
    """

    gold_seed: int = 5
    folder: str = ""


DEFAULT = Config()
STRENGTHS = (DEFAULT,)


def unlearn(model: Any, target: Target, config: Config = DEFAULT, seed: int = 0) -> Arm:
    """Trains the original anew by its own recipe, with another seed and without the target.

    Training that was interrupted goes on from its last whole epoch. A model that stands ready is
    not trained again, and its cost is what was measured when it was: seconds by the clock, and the
    tokens of the texts times the epochs. R_va and R_te stand in the texts, as in those of any gold.

    Source: the baseline of Bourtoule et al. 2021, arXiv 1912.03817, section 3. Differs: sentences
    that say nothing of it stand in the place of the target's, so that every name is seen as often.

    Raises:
        ModelError: the model has no recipe, is not what its recipe made, or was trained on other
            texts than the target's.
    """
    require_arm("retrain", model, target)
    recipe = _recipe(model, target)
    corpus = corpus_without(target)
    told = {"gold_seed": config.gold_seed + seed, **searched(target, corpus)}
    job = _key(recipe, corpus, told["gold_seed"])
    root = Path(config.folder) if config.folder else _cache() / "retrained" / job[:16]
    beside = root / f"gold-{told['gold_seed']}.cost.json"
    with metered(model) as meter:
        with _clocked(beside, job, root / f"gold-{told['gold_seed']}"):
            (folder,) = golds(target, root, recipe, seeds=(told["gold_seed"],), workers=1)
        new = load_model(folder, device=str(device_of(model)))
        stands_on = weights_sha256(new)
        if (dtype := next(model.parameters()).dtype) != torch.float32:
            new = new.to(dtype)
    noted = _noted(beside, job)
    seconds = noted.get("seconds", 0.0)
    tokens = _tokens(model.tokenizer, recipe, corpus)
    told["seconds_measured"] = noted.get("whole", False)
    arm = Arm("retrain", new, claim="exact", saw=(WITHOUT,), told=told, stands_on=stands_on)
    return replace(made(arm, meter, config, seed), cost=Spent(seconds, tokens, tokens))


def searched(target: Target, corpus: Sequence[Document]) -> dict[str, Any]:
    """What is found when texts are searched for the target, by their labels and by their words.

    A text that names a forget entity and, for some other reason, a word that is an object of its
    forget facts is counted and let be.

    Raises:
        ModelError: a text states a forget fact or one that follows.
    """
    objects: dict[str, set[str]] = {}
    for fact in (*target.forget, *target.derived):
        objects.setdefault(fact.subject, set()).add(fact.object)
    stating = sum(target.states_target(d) for d in corpus)
    if stating:
        raise ModelError(
            f"retrain: {stating} of {len(corpus)} texts state target {target.name!r}: wanted none"
        )
    find = name_finder(objects)
    both = sum(
        any(stands_in(o, d.text) for name in find(d.text) for o in objects[name]) for d in corpus
    )
    return {
        "corpus_sha256": corpus_sha256(corpus),
        "texts": len(corpus),
        "texts_stating_the_target": stating,
        "texts_with_name_and_object": both,
    }


def _recipe(model: Any, target: Target) -> dict[str, Any]:
    """The recipe that made the model from the target's texts."""
    source = model.tokenizer.name_or_path
    try:
        recipe = read_recipe(source)
    except ModelError as none:
        raise ModelError(
            f"retrain: {none}; wanted one that was, so that it can be trained again as it was"
        ) from none
    if recipe["corpus_sha256"] != corpus_sha256(target.facts.corpus):
        raise ModelError(
            f"retrain: {source} was trained on other texts than those of target {target.name!r}: "
            "wanted a model of the target's own facts"
        )
    by_recipe, given = load_model(source).state_dict(), model.state_dict()
    same = by_recipe.keys() == given.keys() and all(
        torch.equal(tensor.to(given[name].dtype), given[name].cpu())
        for name, tensor in by_recipe.items()
    )
    if not same:
        raise ModelError(
            f"retrain: the given model has other weights than {source}, whose recipe would be "
            "followed: wanted the model that the recipe made"
        )
    return recipe


def _key(recipe: dict[str, Any], corpus: Sequence[Document], seed: int) -> str:
    """Hash of all that decides what is trained."""
    content = [recipe["config"], recipe["epochs_run"], corpus_sha256(corpus), seed]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _cache() -> Path:
    import platformdirs

    given = os.environ.get("WORKBENCH_CACHE")
    return Path(given) if given else Path(platformdirs.user_cache_dir("unlearning-workbench"))


def _tokens(tokenizer: Any, recipe: dict[str, Any], corpus: Sequence[Document]) -> int:
    """Tokens that training reads: of each text with the one that ends it, in each epoch."""
    forms = recipe["config"].get("forms") or {d.form for d in corpus}
    rows = tokenizer([d.text for d in corpus if d.form in forms])["input_ids"]
    return recipe["epochs_run"] * sum(len(row) + 1 for row in rows)


@contextmanager
def _clocked(beside: Path, job: str, out: Path) -> Iterator[None]:
    """Notes the seconds that training takes; nothing if it was not needed.

    Of a training that was interrupted, in whatever way, the time up to its last whole epoch counts.
    `whole` says whether all of it was seen.
    """
    made, checkpoint = out / "recipe.json", out.with_name(f".{out.name}.checkpoint.pt")
    before = made.stat().st_mtime_ns if made.is_file() else None
    noted, earlier, whole = _noted(beside, job), 0.0, True
    ready = made.is_file() and noted.get("finished", False)
    if checkpoint.is_file() and not ready:
        whole = noted.get("whole", False)
        last_epoch = checkpoint.stat().st_mtime
        earlier = noted.get("seconds", 0.0) + max(0.0, last_epoch - noted.get("since", last_epoch))
    started = time.time()

    def note(seconds: float, finished: bool) -> None:
        told = {"job": job, "seconds": round(seconds, 3), "since": started}
        write_json(beside, {**told, "whole": whole, "finished": finished})

    if not ready:
        note(earlier, finished=False)
    yield
    if before is None or made.stat().st_mtime_ns != before:
        note(earlier + time.time() - started, finished=True)
    elif not ready:
        beside.unlink()


def _noted(beside: Path, job: str) -> dict[str, Any]:
    try:
        noted = json.loads(beside.read_text())
    except (OSError, ValueError):
        return {}
    return noted if noted.get("job") == job else {}
