"""SISA: knowledge in shards that are trained apart, so that only those that held it are redone."""

import hashlib
import json
import math
import random
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from workbench.artifacts import file_sha256
from workbench.errors import TargetError
from workbench.facts.schema import Fact, prompt
from workbench.facts.target import Target
from workbench.models import recall, weights_sha256
from workbench.unlearn.adapters import (
    State,
    adapted,
    base_of,
    merged,
    promised,
    put,
    reference,
    taken,
    taught,
)
from workbench.unlearn.arm import FORGET, RETAINED, TEXTS, Arm, made, metered, require_arm
from workbench.unlearn.training import Steps

Plan = tuple[tuple[tuple[Fact, ...], ...], ...]
"""Facts by shard and slice."""

PACE = Steps(keep=1.0, batch_size=64, asked=32, texts=4, near=2)
"""What a step of a shard is shown; how many and how large they are is in the config."""


LEARNT = 0.99
"""A shard that answers so many of its questions when a slice begins has nothing to learn from it.

Steps without an error to correct would move the adapter at random, and the sum with it.
"""


@dataclass(frozen=True)
class Config:
    """How knowledge is laid out, and how a shard learns.

    Attributes:
        base: the trunk that never knew the target, as `load_model` takes it; if empty, the bundled
            gold of the model's world.
        folder: where a checkpoint is kept after each slice; if empty, none outlives the call.
        shards: how many adapters there are.
        holding: how many of them hold the target's entities, in slices after the first.
        slices: how many each shard's facts are cut into, 2 or more.
        epochs: how often a shard that is never restarted reads its facts.
        rank, lr: of an adapter and its training.
    """

    base: str = ""
    folder: str = ""
    shards: int = 3
    holding: int = 1
    slices: int = 2
    epochs: int = 8
    rank: int = 16
    lr: float = 4e-3


DEFAULT = Config()
STRENGTHS = (DEFAULT,)


@dataclass(frozen=True)
class Trained:
    """The adapters of all shards, and what it took to have them.

    Attributes:
        states: one adapter per shard; None of a shard that has no facts.
        files: the last checkpoint of each shard.
        steps: training steps that were run for each shard, 0 where a checkpoint stood ready.
    """

    states: tuple[State | None, ...]
    files: tuple[Path | None, ...]
    steps: tuple[int, ...]


def unlearn(model: Any, target: Target, config: Config = DEFAULT, seed: int = 0) -> Arm:
    """Deletes the target from shards of knowledge, and redoes those that had held it.

    A frozen trunk that never knew carries one LoRA adapter per shard. Each is trained on its own
    facts, slice by slice with a checkpoint after each; forget entities stand in the later slices of
    some shards, as data do whose deletion is expected. On deletion these go on from the last
    checkpoint before the affected slice, and end, to the bit, as shards that were never shown it;
    all others stay as they are. What is served is the trunk with the sum of the adapters in its
    weights. The knowledge of the given model is not undone: the arm's own original is the trunk
    with all adapters before the deletion.

    Retained facts (R_tr) fill the shards, and with retained texts they are replayed in all of them.
    A trunk that knows them already takes no step for them, and deleting those would not be exact.
    Adapters that were trained apart disturb each other in the sum: with the target in two shards of
    the bundled world most of it is answered by neither, so one is to hold it unless said otherwise.

    Source: Bourtoule et al. 2021, arXiv 1912.03817: sharding, slicing, 2E/(R+1) epochs per slice of
    E over R slices, later slices for what is likely to go (section 7). Differs: adapters on a
    common trunk in place of whole models, and their sum, which is one model again, in place of a
    vote.

    Raises:
        ModelError: no trunk, or one that knows.
        TargetError: a plan that has no place for the target.
    """
    require_arm("sisa", model, target, ("R_tr",))
    if not (1 <= config.holding <= config.shards and config.slices >= 2 and config.epochs >= 1):
        raise TargetError(
            f"sisa: {config.holding} of {config.shards} shards are to hold the target in "
            f"{config.slices} slices: wanted 1 or more, no more than there are, and slices after "
            "the first"
        )
    with metered(model) as meter:
        trunk = base_of("sisa", model, target, config.base)
        with _folder(config.folder) as folder:
            full = plan(target, config, seed)
            before = train(trunk, target, full, config, seed, Path(folder))
            hashes = [_hash(file) for file in before.files]
            after = train(trunk, target, deleted(full, target), config, seed, Path(folder))
            unchanged = [_hash(file) == h for file, h in zip(after.files, hashes, strict=True)]
        knows, forgot = (merged(trunk, config.rank, t.states) for t in (before, after))
        asked = (trunk.tokenizer, target.facts, target.forget, "train")
        told = {
            "steps_before": list(before.steps),
            "steps_after_deletion": list(after.steps),
            "adapters_unchanged": unchanged,
            "recall_before": recall(knows, *asked),
            "recall_after": recall(forgot, *asked),
        }
    arm = Arm(
        "sisa",
        forgot,
        claim=promised(trunk, target),
        saw=(FORGET, RETAINED, TEXTS),
        told=told,
        original=knows,
        stands_on=weights_sha256(trunk),
    )
    return made(arm, meter, config, seed)


def plan(target: Target, config: Config, seed: int) -> Plan:
    """Which facts stand in which shard and slice: by entity, in an order that the seed decides.

    Entities of R_tr are dealt to all slices of all shards; those of the target to slices after the
    first of the first `config.holding` shards.
    """
    rng = random.Random(f"{seed}, plan")
    cells: list[list[list[Fact]]] = [
        [[] for _ in range(config.slices)] for _ in range(config.shards)
    ]
    everywhere = [(s, i) for i in range(config.slices) for s in range(config.shards)]
    late = [(s, i) for i in range(1, config.slices) for s in range(config.holding)]
    for facts, places in ((target.retain["R_tr"], everywhere), (target.forget, late)):
        by_entity: dict[str, list[Fact]] = {}
        for fact in facts:
            by_entity.setdefault(fact.subject, []).append(fact)
        names = sorted(by_entity)
        rng.shuffle(names)
        for n, name in enumerate(names):
            shard, cut = places[n % len(places)]
            cells[shard][cut] += by_entity[name]
    return tuple(tuple(tuple(cut) for cut in shard) for shard in cells)


def deleted(full: Plan, target: Target) -> Plan:
    """The plan without the facts of the target."""
    keys = target.forget_keys
    return tuple(
        tuple(tuple(f for f in cut if f.key not in keys) for cut in shard) for shard in full
    )


def train(
    trunk: Any, target: Target, given: Plan, config: Config, seed: int, folder: Path
) -> Trained:
    """Trains each shard of a plan from the last checkpoint whose data are the plan's.

    A checkpoint is named by a hash over the trunk, the settings and all that the shard has read by
    then; those of the shards that the plan does not lead to are deleted.
    """
    root = _digest([weights_sha256(trunk), config.epochs, config.rank, config.lr, seed])
    found = [
        _train_shard(trunk, target, cuts, config, f"{seed}, shard {s}", folder / f"shard-{s}", root)
        for s, cuts in enumerate(given)
    ]
    states, files, steps = zip(*found, strict=True)
    return Trained(states, files, steps)


def _train_shard(
    trunk: Any,
    target: Target,
    cuts: Sequence[Sequence[Fact]],
    config: Config,
    order: str,
    folder: Path,
    root: str,
) -> tuple[State | None, Path | None, int]:
    """The shard's adapter, its last checkpoint, and the steps that were run."""
    folder.mkdir(parents=True, exist_ok=True)
    seen, key, stages = [], f"{root} {order}", []
    for i, cut in enumerate(cuts):
        if cut:
            seen, key = [*seen, *cut], _digest([key, [_texts(f) for f in cut]])
            stages.append((seen, folder / f"slice-{i}-{key[:32]}.safetensors", f"{order}, {i}"))
    wanted = {file for _, file, _ in stages}
    for stale in set(folder.iterdir()) - wanted:
        stale.unlink()
    ready = [_read(file) for _, file, _ in stages]
    start = next((n for n in range(len(stages), 0, -1) if ready[n - 1] is not None), 0)
    state, run = (ready[start - 1] if start else None), 0
    for facts, file, name in stages[start:]:
        given = _steps(facts, config)
        model = adapted(reference(trunk), config.rank, order)
        if state is not None:
            put(model, state)
        if recall(model, trunk.tokenizer, target.facts, facts, "train") < LEARNT:
            model = taught(model, reference(trunk), target, facts, given, name)
            run += given.steps
        state = taken(model)
        _write(state, file)
    return state, stages[-1][1] if stages else None, run


def _steps(facts: Sequence[Fact], config: Config) -> Steps:
    """Each slice's share of the epochs over all that the shard has read by then."""
    epochs = 2 * config.epochs / (config.slices + 1)
    prompts = sum(len(f.templates) for f in facts)
    steps = math.ceil(epochs * prompts / PACE.batch_size)
    return replace(PACE, steps=steps, lr=config.lr)


def _texts(fact: Fact) -> list[str]:
    return [*(prompt(fact, t) for t in fact.templates), fact.object]


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _hash(file: Path | None) -> str:
    return file_sha256(file) if file else ""


def _folder(folder: str) -> Any:
    return nullcontext(folder) if folder else tempfile.TemporaryDirectory()


def _write(state: State, file: Path) -> None:
    """Writes a checkpoint in one step: there is a whole one or none."""
    partial = file.with_suffix(".part")
    save_file(
        {name: t.cpu().contiguous() for name, t in state.items()}, partial, {"seen": file.stem}
    )
    partial.replace(file)


def _read(file: Path) -> State | None:
    """A checkpoint, or None if there is none of these data."""
    try:
        with safe_open(file, "pt") as content:
            if content.metadata() != {"seen": file.stem}:
                return None
            return {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
