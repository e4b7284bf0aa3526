"""The table that the audit ships: complete, made from a calibration, and acted on."""

import json

import pytest

from tests.audit.synthetic import Synthetic
from workbench.audit import endpoints, faithfulness
from workbench.audit.endpoints import CONFIRMATORY
from workbench.audit.faithfulness import LEAST_AUC
from workbench.audit.judge import judge
from workbench.audit.schema import Endpoint
from workbench.experiments.metacheck import ENDPOINTS

WORLD = Synthetic(36)


def test_the_shipped_table_tells_of_every_endpoint_that_decides() -> None:
    told = faithfulness.faithfulness()
    assert set(CONFIRMATORY) <= set(told) == set(ENDPOINTS)
    assert all(0 <= value <= 1 for value in told.values())
    rows = json.loads(faithfulness.SHIPPED.read_text())["endpoints"]
    assert all(row["n_knowing"] >= 5 and row["n_never"] >= 5 for row in rows)


def test_an_endpoint_that_tells_too_little_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def m3() -> Endpoint:
        report = judge(WORLD.card(), WORLD.measured(WORLD.original()))
        return next(e for e in report.endpoints if e.id == "M3")

    assert m3().valid and m3().recovered
    monkeypatch.setattr(endpoints, "faithfulness", lambda: {"M3": LEAST_AUC - 0.01})
    assert not m3().valid
    assert "0.94" in m3().why_invalid
