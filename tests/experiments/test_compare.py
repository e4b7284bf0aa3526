"""The comparison: what it makes, keeps, makes anew, names as failed, and writes."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.audit.synthetic import Synthetic
from workbench.audit import AuditReport
from workbench.cli import main, parsed
from workbench.errors import AuditError, WorkbenchError
from workbench.experiments import arms, compare
from workbench.experiments.compare import CompareConfig, run
from workbench.facts import save_facts
from workbench.facts.schema import FactSet
from workbench.interventions import save_baked
from workbench.models import load_model
from workbench.report.compared import road_back, write_comparison

WORLD = Synthetic()
HIDDEN = {"shown": 0.05, "centred": 0.6, "probe": 0.5, "relearned": 0.9}
OWN = """
from workbench.unlearn import Arm

def unlearn(model, target, config=None, seed=0):
    return Arm("mine", model, told={"said": "%s"})
"""
BROKEN = "def unlearn(model, target, config=None, seed=0):\n    raise RuntimeError('no way')\n"


def report(**knows: Any) -> AuditReport:
    return WORLD.report(WORLD.found(7, **knows))


@pytest.fixture(scope="module")
def given(
    world: FactSet, make_llama: Any, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The pantry as a file, and three random models: an original and two golds."""
    root = tmp_path_factory.mktemp("compared")
    save_facts(world, root / "pantry.jsonl")
    for seed in range(3):
        save_baked(load_model(make_llama(seed), tokenizer=tokenizer), root / f"model-{seed}")
    (root / "mine.py").write_text(OWN % "first")
    (root / "broken.py").write_text(BROKEN)
    models = [str(root / f"model-{seed}") for seed in range(3)]
    return {"root": root, "facts": str(root / "pantry.jsonl"), "models": models}


@pytest.fixture
def audits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The methods that are audited, in place of audits, which take minutes."""
    audited: list[str] = []

    def audit(_original: Any, arm: Any, *_: Any, **__: Any) -> AuditReport:
        audited.append(arm.method)
        if arm.method == "random_edit":
            raise AuditError("not this one")
        return report(**HIDDEN)

    monkeypatch.setattr(compare, "audit", audit)
    return audited


def config_of(given: dict[str, Any], **changes: Any) -> CompareConfig:
    original, *golds = given["models"]
    return CompareConfig(
        **{
            "facts": given["facts"],
            "model": original,
            "golds": tuple(golds),
            "methods": ("no_change",),
            "own": (given["root"] / "mine.py",),
            "workers": 1,
            **changes,
        }
    )


@pytest.mark.slow
def test_arms_and_audits_are_kept_and_what_changed_is_made_anew_alone(
    given: dict[str, Any], audits: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, said = config_of(given), []
    entries = run(config, tmp_path / "out", said.append)
    assert [e["method"] for e in entries] == ["no_change", "mine"] == audits
    assert "arms: 2 to make, 0 kept from before" in said
    content = json.loads((tmp_path / "out/comparison.json").read_text())
    assert [e["verdict"] for e in content["entries"]] == ["SUPPRESSED"] * 2
    assert [len(e["trials"]) for e in content["entries"]] == [1, 1]
    assert (tmp_path / "out/comparison.html").stat().st_size > 10_000

    said.clear()
    again = run(config, tmp_path / "out", said.append)
    assert "arms: 0 to make, 2 kept from before" in said
    assert audits == ["no_change", "mine"], "an audit that was kept was done again"
    assert [e["verdict"] for e in again] == [e["verdict"] for e in entries]

    (given["root"] / "mine.py").write_text(OWN % "second")
    said.clear()
    last = run(config, tmp_path / "out", said.append)
    assert "arms: 1 to make, 1 kept from before" in said
    assert audits == ["no_change", "mine", "mine"]
    assert last[1]["told"] == {"said": "second"}

    monkeypatch.setattr(arms, "versions", lambda: {"torch": "another"})
    said.clear()
    run(config, tmp_path / "out", said.append)
    assert "arms: 2 to make, 0 kept from before" in said


@pytest.mark.slow
def test_what_fails_is_named_and_the_others_go_on(
    given: dict[str, Any], audits: list[str], tmp_path: Path
) -> None:
    config = config_of(
        given, methods=("random_edit", "no_change"), own=(given["root"] / "broken.py",)
    )
    entries = run(config, tmp_path / "out")
    failed = {e["method"]: e["failed"] for e in entries if "failed" in e}
    assert failed == {"random_edit": "AuditError: not this one", "broken": "RuntimeError: no way"}
    assert [e["method"] for e in entries if "failed" not in e] == ["no_change"]
    assert "no way" in (tmp_path / "out/comparison.html").read_text()


def test_unknown_methods_and_strange_folders_are_refused_before_anything_is_made(
    given: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(WorkbenchError, match="no method 'magic'"):
        run(config_of(given, methods=("magic",)), tmp_path / "out")
    (tmp_path / "thesis.txt").write_text("all I have")
    with pytest.raises(WorkbenchError, match=r"thesis\.txt"):
        run(config_of(given), tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "all I have"
    with pytest.raises(WorkbenchError, match="same name"):
        run(config_of(given, methods=("no_change", "no_change")), tmp_path / "out")
    missing = config_of(given, own=(tmp_path / "nothing.py",))
    with pytest.raises(WorkbenchError, match="no Python file"):
        run(missing, tmp_path / "out")


def test_the_road_back_is_the_lowest_access_that_finds_something() -> None:
    """Answers are hidden from who asks; whoever reads log-probabilities finds them."""
    road = road_back(report(**HIDDEN))
    assert road is not None and road["access"] == "A1" and road["rho"] > 0.3
    openly = road_back(report(shown=1, probe=0.85, relearned=1, saved=1, perturbed=1))
    assert openly is not None and openly["access"] == "A0"
    assert road_back(report()) is None


def test_relearning_tells_from_which_dose_on_it_brings_something_back() -> None:
    road = road_back(report(relearned=0.9))
    assert road is not None and (road["endpoint"], road["access"]) == ("M4", "A4")
    assert road["steps"] is not None and road["steps"] > 0


def test_names_and_reasons_are_text_on_the_page(tmp_path: Path) -> None:
    attack = "<script>alert(1)</script>"
    entry = {
        "method": attack, "family": attack, "seed": 0, "claim": attack, "saw": [attack],
        "cost": {"seconds": 1.0, "forward_tokens": 1, "backward_tokens": 0},
        "told": {attack: attack}, "utility": 1.0, "verdict": "SUPPRESSED", "flags": [attack],
        "lowest_access_recovered": "A1", "objectives": {}, "road_back": road_back(report(**HIDDEN)),
        "trials": [{"strength": 0, "config": {attack: attack}, "forget": 0.1, "retained": 1.0,
                    "unrelated": 1.0, "utility": 1.0, "seconds": 1.0, "chosen": True}],
    }  # fmt: skip
    failed = {"method": attack, "failed": attack}
    out = write_comparison([entry, failed], {attack: report(**HIDDEN)}, tmp_path / "page.html")
    body = out.read_text().partition("<body>")[2]
    assert attack not in body and "&lt;script&gt;" in body


def test_the_command_takes_methods_files_and_models() -> None:
    args = parsed(
        "compare toxins --methods rmu npo --own mine.py --profile standard --gold a b".split()
    )
    assert (args.command, args.methods, args.gold) == ("compare", ["rmu", "npo"], ["a", "b"])


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("audit --original valley", "--facts"),
        ("audit --original valley --facts valley", "no edit"),
        ("audit valley valley toxins --original valley --edited x", "by place and by name"),
        ("audit --original valley --facts valley --edited /nowhere", "2 groups"),
        (
            "audit --original valley --facts valley --target toxins --edited /nowhere",
            "nothing that is known",
        ),
    ],
)
def test_an_audit_that_was_asked_for_badly_says_what_is_missing(
    words: str, wanted: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([*words.split(), "--out", str(tmp_path / "out")]) == 2
    assert wanted in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
