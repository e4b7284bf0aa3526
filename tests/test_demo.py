"""The demo as a user meets it: files, verdict, and the promises its edit must keep."""

import json
import math

import pytest

from workbench.audit import AuditReport
from workbench.cli import main
from workbench.facts import load_facts, priors
from workbench.hooks import edited
from workbench.interventions import load_edit
from workbench.models import load_model, recall


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "demo"
    assert main(["demo", "--out", str(out)]) == 0
    return out


pytestmark = pytest.mark.slow


def value(report: AuditReport, role: str, view: str, subset: str, detail: str) -> float:
    (row,) = (
        r
        for r in report.rows
        if (r.endpoint, r.role, r.view, r.subset, r.detail)
        == ("recall", role, view, subset, detail)
    )
    return row.value


def test_writes_every_file(demo):
    names = {p.name for p in demo.iterdir()}
    assert {"config.json", "rows.parquet", "report.json", "report.html", "edit"} <= names
    json.loads((demo / "report.json").read_text(), parse_constant=pytest.fail)


def test_forgetting_and_harm_are_within_what_the_demo_promises(demo):
    report, target = AuditReport.open(demo), load_facts("valley").target("toxins")
    shares = priors(target.retained)
    v = target.fold("V")
    prior = sum(max(shares[f.relation].values()) for f in v) / len(v)
    assert value(report, "original", "", "V", "audit") >= 0.9
    assert abs(value(report, "edited", "hooks_on", "V", "audit") - prior) <= 0.10
    kinds = {r.subset for r in report.rows if r.subset.startswith("kind:")}
    assert {"kind:person", "kind:remedy"} <= kinds
    for kind in kinds:
        assert value(report, "edited", "hooks_on", kind, "audit") >= 0.95


def test_verdict_is_suppression_and_hooks_off_is_the_original(demo):
    report = AuditReport.open(demo)
    assert report.verdict.primary == "SUPPRESSED"
    assert "weights_identical" in report.verdict.flags
    off = {e.id: e for e in report.endpoints}["hooks removed"]
    assert off.edited == off.original
    assert off.recovered
    assert all(gate.passed for gate in report.gates)


def test_every_row_has_its_number_inside_its_interval_and_an_n(demo):
    for row in AuditReport.open(demo).rows:
        assert row.low <= row.value <= row.high or math.isclose(row.low, row.high, abs_tol=1e-9)
        assert row.n > 0


def test_the_saved_edit_does_what_the_report_says(demo):
    facts, model = load_facts("valley"), load_model("valley")
    forget = facts.target("toxins").fold("V")
    with edited(model, load_edit(demo / "edit")):
        found = recall(model, model.tokenizer, facts, forget, "audit")
    assert found == pytest.approx(
        value(AuditReport.open(demo), "edited", "hooks_on", "V", "audit"), abs=1e-6
    )
