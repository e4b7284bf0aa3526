"""The plan holds all that could be chosen, and its hash changes with any of it."""

from dataclasses import replace

import pytest

from workbench.audit import AuditConfig, make_plan, plan_sha256
from workbench.audit import plan as room
from workbench.audit.plan import measuring_plan_sha256, target_sha256
from workbench.errors import AuditError
from workbench.facts.target import Target


def test_plan_repeats_and_the_number_of_workers_is_no_part_of_it(club: Target) -> None:
    first = make_plan(club, AuditConfig("quick", 0, 1))
    assert first == make_plan(club, AuditConfig("quick", 0, 2))
    assert plan_sha256(first) == plan_sha256(dict(reversed(first.items())))


def test_plan_changes_with_profile_seed_target_and_objects(club: Target, moved) -> None:
    plans = [
        make_plan(club, AuditConfig("quick")),
        make_plan(club, AuditConfig("standard")),
        make_plan(club, AuditConfig("quick", 1)),
        make_plan(moved(club, "V"), AuditConfig("quick")),
        make_plan(replace(club, name="other"), AuditConfig("quick")),
    ]
    assert len({plan_sha256(p) for p in plans}) == 5
    assert len({measuring_plan_sha256(p) for p in plans}) == 5
    assert target_sha256(club) != target_sha256(moved(club, "V"))


def test_limits_are_in_the_plan_but_do_not_decide_what_is_measured(
    club: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = make_plan(club, AuditConfig("quick"))
    monkeypatch.setattr(room.endpoints, "MAX_INJECTION", 0.9)
    after = make_plan(club, AuditConfig("quick"))
    assert plan_sha256(before) != plan_sha256(after)
    assert measuring_plan_sha256(before) == measuring_plan_sha256(after)


@pytest.mark.parametrize(("profile", "workers"), [("slow", 2), ("quick", 0)])
def test_unknown_profile_and_no_workers_are_refused(profile, workers: int) -> None:
    with pytest.raises((AuditError, TypeError), match=r"profile|workers"):
        AuditConfig(profile, 0, workers)
