"""ROME: one key after another gets its new value, each by a change of rank one."""

import random
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.facts.target import Target
from workbench.hooks import Site
from workbench.unlearn.arm import FORGET, RETAINED, TEXTS, Arm, made, metered, require_arm
from workbench.unlearn.editing import (
    RIDGE,
    a_third,
    add_to,
    at_subjects,
    bare,
    contexts_of,
    essence_of,
    frozen,
    moments,
    per_subject,
    thawed,
    weight_of,
    writer,
)
from workbench.unlearn.values import Values, found_changes


@dataclass(frozen=True)
class Config:
    """How far values are moved, and with which key.

    Attributes:
        layer: the one that is edited; about a third of the depth if None.
        texts: retained texts that the second moment of keys is taken from, at most.
        mismatched: the direction of the change is made from the mean key, its length from the key
            of one bare prompt, as the published code has it: only the bare key then gives its
            value. False takes the mean key for both.
    """

    layer: int | None = None
    values: Values = field(default_factory=lambda: Values(clamp=2.0))
    texts: int = 2500
    mismatched: bool = False


DEFAULT = Config()
STRENGTHS = (
    DEFAULT,
    *(replace(DEFAULT, layer=0, values=replace(DEFAULT.values, clamp=c)) for c in (1.0, 2.0)),
)
"""From the weakest on. A third up a shallow model is late: what is known of a name has partly been
read from lower blocks by then, so the stronger ones edit the first."""


def unlearn(model: Any, target: Target, config: Config = DEFAULT, seed: int = 0) -> Arm:
    """Gives each subject's key a value that says the aim, one subject after another.

    After each edit its own key gives its value exactly; edits that follow move it again, and what
    is left of it in the end is told as `missed`. All keys and values are found on the model as it
    was: the keys of a layer do not change with that layer's matrix. Many edits ruin a model, since
    nothing weighs them against each other; MEMIT does.

    Source: Meng et al. 2022, arXiv 2202.05262, eq. 2; consistent keys: Gupta et al. 2024, arXiv
    2403.07175. Differs: one edit per subject, for all its facts; values as `found_changes` says;
    the second moment is of the world's retained texts; prefixes are its neutral sentences, by seed.
    """
    require_arm("rome", model, target)
    layer = a_third(model, config.layer)
    writer(model, layer)
    with metered(model) as meter:
        now = frozen(model)
        moment = moments(now, target, [layer], config.texts, seed)[layer]
        contexts = contexts_of(now, target, config.values.prefixes, seed)
        keys, before = (per_subject(contexts, x) for x in at_subjects(now, contexts, layer, layer))
        used = at_subjects(now, bare(contexts), layer, layer)[0] if config.mismatched else keys
        radius = config.values.clamp * before.norm(dim=-1)
        essence = essence_of(now, target)
        change = found_changes(now, contexts, essence, Site(layer), config.values, radius, seed)
        matrix = writer(now, layer)
        weight = weight_of(matrix)
        values = used @ weight.T + change
        total = in_turn(weight, keys, used, values, moment, seed)
        add_to(matrix, total)
        missed = used @ (weight + total).T - values
    told = {"layer": layer, "edits": len(keys), "missed": (missed.norm() / change.norm()).item()}
    arm = Arm("rome", thawed(now, model), saw=(FORGET, RETAINED, TEXTS), told=told)
    return made(arm, meter, config, seed)


def in_turn(
    weight: Float[Tensor, "d_model k"],
    keys: Float[Tensor, "n k"],
    used: Float[Tensor, "n k"],
    values: Float[Tensor, "n d_model"],
    moment: Float[Tensor, "k k"],
    seed: int,
) -> Float[Tensor, "d_model k"]:
    """The sum of changes of rank one, each on top of those before, in an order decided by seed."""
    ways = directions(keys, moment)
    order = list(range(len(keys)))
    random.Random(f"{seed}, order").shuffle(order)
    total = torch.zeros_like(weight)
    for i in order:
        total += rank_one(weight + total, ways[i], used[i], values[i])
    return total


def directions(keys: Float[Tensor, "n k"], moment: Float[Tensor, "k k"]) -> Float[Tensor, "n k"]:
    """For each key, the inverse second moment of retained keys times it."""
    eye = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    return torch.linalg.solve(moment + RIDGE * moment.diagonal().mean() * eye, keys.T).T


def rank_one(
    weight: Float[Tensor, "d_model k"],
    direction: Float[Tensor, " k"],
    key: Float[Tensor, " k"],
    value: Float[Tensor, " d_model"],
) -> Float[Tensor, "d_model k"]:
    """The change along a direction after which the key gives the value.

    With the key's own direction no other change moves the outputs of retained keys less.
    """
    return torch.outer(value - weight @ key, direction) / (direction @ key)
