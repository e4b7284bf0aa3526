"""The whole line on a few dozen records in CounterFact's format, by the command line alone."""

import json
import random
from pathlib import Path

import pytest

from workbench.audit import AuditReport
from workbench.cli import main

SITE = "blocks.0.hook_resid_post"
FIRST = "Orla Bram Ketil Sunna Dario Mira Tove Anselm Rika Joost Pell Ysolde".split()
LAST = "Harrow Quist Denholm Vane Abara Lindqvist".split()
TOWNS = "Marlow Tolven Stenwick Ardle Kelby Dunmere Orsley Pellam Yarrow Quenby Foxmoor Bray"
TRADES = "baker smith weaver miller scribe mason cooper tanner fletcher potter printer glazier"
RELATIONS = {
    "home": (
        TOWNS.split(),
        "{} lives in",
        "A cold wind blew. {} has a house in",
        "A cold wind blew. {} lives in",
    ),
    "trade": (
        TRADES.split(),
        "{} works as a",
        "It rained. {} earns a living as a",
        "It rained. {} works as a",
    ),
}


def records() -> list[dict]:
    """72 people with a home and a trade each, drawn at random."""
    rng, made = random.Random(0), []
    for first in FIRST:
        for last in LAST:
            for relation, (objects, prompt, taught, asked) in RELATIONS.items():
                subject, answer = f"{first} {last}", rng.choice(objects)
                rewrite = {
                    "prompt": prompt,
                    "relation_id": relation,
                    "subject": subject,
                    "target_true": {"str": answer},
                }
                paraphrases = [p.replace("{}", subject) for p in (taught, asked)]
                made.append(
                    {
                        "requested_rewrite": rewrite,
                        "paraphrase_prompts": paraphrases,
                        "neighborhood_prompts": [],
                    }
                )
    return made


@pytest.mark.slow
def test_from_a_counterfact_file_to_a_verdict(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("records.json").write_text(json.dumps(records()))
    small = "--tokenizer byte_pair --d-model 64 --layers 2 --epochs 60 --batch-size 32"
    golds = " ".join(f"golds/gold-{seed}" for seed in range(3))
    for line in (
        "facts records.json --target relation:home@0.7",
        f"train-model records.json --out original {small}",
        "train-model records.json --golds-of original --target relation:home@0.7 --out golds",
        f"harvest original records.json --sites {SITE} --out acts",
        f"train-sae acts/{SITE} --out sae --d-sae 256 --k 16 --samples 100000 --batch-size 512",
        "locate original records.json relation:home@0.7 --sae sae --k 16 --out features.json",
        "choose-edit original records.json relation:home@0.7 --sae sae --k 16 --out edit",
        f"audit original records.json relation:home@0.7 --edit edit --golds {golds} --out audit "
        "--profile quick",
        "audit verify audit",
    ):
        assert main(line.split()) == 0, capsys.readouterr().err
    report = AuditReport.open("audit")
    recipe = json.loads(Path("original/recipe.json").read_text())
    assert recipe["recall_train_templates"] > 0.95
    (asked,) = (f for f in report.families if (f.id, f.setting) == ("B2", ""))
    assert asked.raw["O"] > 0.6 > asked.raw["G"]
    assert any("too few" in limit for limit in report.limits)
    assert Path("audit/report.html").is_file()
