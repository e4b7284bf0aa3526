"""Edits that are spread over several layers: what MEMIT and AlphaEdit have in common."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from workbench.errors import EditError
from workbench.facts.target import Target
from workbench.hooks import Site
from workbench.unlearn.arm import FORGET, RETAINED, TEXTS, Arm, made, metered, require_arm
from workbench.unlearn.editing import (
    a_third,
    add_to,
    at_subjects,
    contexts_of,
    essence_of,
    frozen,
    moments,
    per_subject,
    thawed,
    writer,
)
from workbench.unlearn.values import found_changes

Solve = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, dict[str, Any]]]
"""Of what is missing per key, the keys and their second moment: the change, and what it told."""


def spread(method: str, model: Any, target: Target, config: Any, seed: int, solve: Solve) -> Arm:
    """Moves the stream after the last layer to where the aim is said, a share in each layer.

    A subject's key and its place in the stream differ between contexts, here by more than between
    subjects; so each context gives a key of its own, all of a subject's with one change.

    Args:
        config: with `last`, `layers`, `values` and `texts`.
    """
    require_arm(method, model, target)
    last = a_third(model, config.last)
    if not 1 <= config.layers <= last + 1:
        raise EditError(
            f"{method}: {config.layers} layers up to layer {last}: wanted 1 to {last + 1}"
        )
    layers = range(last - config.layers + 1, last + 1)
    for layer in layers:
        writer(model, layer)
    with metered(model) as meter:
        now = frozen(model)
        held = moments(now, target, layers, config.texts, seed)
        contexts = contexts_of(now, target, config.values.prefixes, seed)
        essence = essence_of(now, target)
        _, before = at_subjects(now, contexts, last, last)
        radius = config.values.clamp * per_subject(contexts, before).norm(dim=-1)
        change = found_changes(now, contexts, essence, Site(last), config.values, radius, seed)
        number = torch.tensor(contexts.subjects, device=change.device)
        # Each subject weighs as one key, in however many contexts it is seen.
        weight = torch.bincount(number).double()[number].rsqrt()[:, None]
        wanted = before + change[number]
        told: dict[str, Any] = {"layers": list(layers), "edits": len(change)}
        for done, layer in enumerate(layers):
            keys, streams = at_subjects(now, contexts, layer, last)
            missing = (wanted - streams) / (len(layers) - done)
            delta, said = solve(missing * weight, keys * weight, held[layer])
            add_to(writer(now, layer), delta)
            told |= {f"{name}_{layer}": value for name, value in said.items()}
        _, streams = at_subjects(now, contexts, last, last)
        off = ((wanted - streams) * weight).norm()
        told["missed"] = (off / (change[number] * weight).norm()).item()
    arm = Arm(method, thawed(now, model), saw=(FORGET, RETAINED, TEXTS), told=told)
    return made(arm, meter, config, seed)
