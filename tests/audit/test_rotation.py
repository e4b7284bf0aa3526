"""Folds are turned so that every forget fact is scored exactly once."""

from dataclasses import replace

import pytest

from workbench.audit.rotation import facts_of, rotations
from workbench.facts.schema import FactSet
from workbench.facts.target import Target


def test_every_entity_is_scored_once_and_never_by_an_attack_that_saw_it(club: Target) -> None:
    turns = rotations(club)
    assert len(turns) == 3
    scored = [name for turn in turns for name in turn["V"]]
    assert sorted(scored) == sorted(club.entities)
    for turn in turns:
        together = [name for fold in turn.values() for name in fold]
        assert sorted(together) == sorted(club.entities)
        assert all(turn.values())


def test_first_turn_is_the_targets_own_and_folds_keep_their_sizes(club: Target) -> None:
    first, *others = rotations(club)
    assert first == club.folds
    for turn in others:
        for name, members in turn.items():
            assert abs(len(members) - len(first[name])) <= 2


def test_turns_repeat(world: FactSet, club: Target) -> None:
    assert rotations(world.target("club")) == rotations(club)


def test_objects_have_no_say_in_the_folds(club: Target, moved) -> None:
    assert rotations(moved(club, "TSV")) == rotations(club)


@pytest.mark.parametrize("folds", [{"T": (), "S": (), "V": ("f000",)}, {"T": (), "S": ("f001",)}])
def test_target_too_small_to_turn_keeps_its_own_folds(club: Target, folds: dict) -> None:
    small = replace(club, folds={"V": ("f000",), **folds})
    assert rotations(small) == (small.folds,)


def test_facts_of_entities_are_all_of_theirs_in_order(club: Target) -> None:
    names = club.entities[2:5]
    found = facts_of(club, names)
    assert [f for f in club.forget if f.subject in names] == list(found)
    assert len(found) == 6
    assert facts_of(club, ()) == ()
