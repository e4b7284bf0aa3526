"""Folds by entity, turned so that every forget fact is scored exactly once."""

from collections.abc import Collection

from workbench.facts.schema import Fact
from workbench.facts.target import Target

Folds = dict[str, tuple[str, ...]]
"""Entity names of T (attacks may train on them), S (selection) and V (scored)."""

ROTATIONS = 3


def rotations(target: Target) -> tuple[Folds, ...]:
    """The target's own folds, and two more turns of them; each entity is in V once.

    In each turn T is three quarters of what V leaves, S the rest. A target with too few entities
    for that keeps its own folds alone.
    """
    order = (*target.folds["T"], *target.folds["S"], *target.folds["V"])
    scored = len(target.folds["V"])
    if not all(target.folds.values()) or len(order) < ROTATIONS * 2:
        return (target.folds,)
    rest = order[: len(order) - scored]
    cut = len(rest) // 2
    turns = (target.folds["V"], rest[cut:], rest[:cut])
    return (target.folds, *(_turned(order, scored) for scored in turns[1:]))


def _turned(order: tuple[str, ...], scored: Collection[str]) -> Folds:
    rest = tuple(name for name in order if name not in set(scored))
    cut = len(rest) * 3 // 4
    return {"T": rest[:cut], "S": rest[cut:], "V": tuple(scored)}


def facts_of(target: Target, entities: Collection[str]) -> tuple[Fact, ...]:
    """The forget facts about these entities, in the target's order."""
    members = frozenset(entities)
    return tuple(f for f in target.forget if f.subject in members)
