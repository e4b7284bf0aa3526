"""Faithfulness and robustness by hand."""

from typing import Any

import pytest

from workbench.experiments.metacheck import check, harmonic, table


def entry(case: str, rho: float, value: float = 0.0) -> dict[str, Any]:
    return {"case": case, "evidence": {"endpoints": {"M4 deployed": {"rho": rho, "E": value}}}}


def of_m4(*entries: dict[str, Any]) -> Any:
    return next(c for c in check(entries) if c.endpoint == "M4")


def test_models_that_know_are_told_from_models_that_never_did() -> None:
    found = of_m4(
        entry("untouched", 1.0), entry("rmu", 0.3), entry("gold", 0.02), entry("gold tuned on", 0.1)
    )
    assert (found.faithfulness, found.n_knowing, found.n_never) == (1.0, 2, 2)
    missed = of_m4(entry("untouched", 1.0), entry("rmu", 0.0), entry("gold", 0.1))
    assert missed.faithfulness == 0.5
    below = of_m4(entry("rmu", -0.4), entry("gold", 0.05))
    assert below.faithfulness == 1.0


def test_hooks_stand_beside_and_count_for_nothing() -> None:
    found = of_m4(entry("untouched", 1.0), entry("gold", 0.1), entry("ablation", 0.0))
    assert (found.faithfulness, found.hooked, found.n_knowing) == (1.0, 0.0, 1)


def test_what_teaching_brings_up_had_been_missed() -> None:
    """A gold gains 0.2; a reader that saw nothing before gains 0.8, one that saw all gains none."""
    golds = entry("gold", 0.0, 0.1), entry("gold, an epoch of the target", 0.0, 0.3)

    def hidden(before: float, after: float) -> float:
        pair = entry("rmu", 0.0, before), entry("rmu, an epoch of the target", 0.0, after)
        return of_m4(*golds, *pair).relearning

    assert hidden(0.1, 0.9) == pytest.approx(0.25)
    assert hidden(0.8, 0.9) == 1.0
    assert hidden(0.9, 0.9) == 1.0


def test_rounding_that_changes_a_reading_costs_it() -> None:
    found = of_m4(entry("rmu", 0.0, 0.2), entry("rmu in 4 bits", 0.0, 0.6))
    assert found.rounding == pytest.approx(0.5)
    assert of_m4(entry("rmu", 0.0, 0.2), entry("rmu in 4 bits", 0.0, 0.2)).rounding == 1.0
    assert (harmonic(0.5, 1.0), harmonic(0.0, 0.0), harmonic(None, 1.0)) == (
        pytest.approx(2 / 3),
        0.0,
        None,
    )


def test_what_was_not_audited_is_left_open() -> None:
    found = of_m4(entry("gold", 0.1))
    assert found.faithfulness is None and found.robustness is None
    assert "| M4 |  |  |  |  |  | 0 + 1 |" in table(check([entry("gold", 0.1)]))
