"""Harvesting, training and checking dictionaries from the command line."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from workbench.activations import Activations
from workbench.cli import main
from workbench.sae import load_sae
from workbench.sae.logs import tensorboard_log, wandb_log

SITES = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]


@pytest.fixture(scope="module")
def harvested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few hundred rows of tokens at two sites of the bundled model, in bfloat16."""
    folder = tmp_path_factory.mktemp("cli")
    rows = np.random.default_rng(0).integers(4, 400, size=(80, 12))
    np.save(folder / "tokens.npy", rows)
    given = ["harvest", "valley", str(folder / "tokens.npy"), "--file", "--out", str(folder / "a")]
    assert main([*given, "--sites", *SITES, "--dtype", "bfloat16"]) == 0
    return folder / "a"


def test_token_file_is_harvested_in_the_type_asked_for(harvested: Path) -> None:
    for site in SITES:
        acts = Activations.open(harvested / site)
        assert (acts.card.tokens, acts.dtype) == (80 * 12, torch.bfloat16)
        assert acts.card.special_tokens == "dropped"


def test_sites_and_sizes_are_trained_side_by_side(harvested: Path, tmp_path: Path) -> None:
    given = ["--architecture", "batchtopk", "--d-sae", "32", "64", "--k", "4", "--samples", "2560"]
    out = ["--batch-size", "64", "--out", str(tmp_path / "saes")]
    folders = [str(harvested / site) for site in SITES]
    assert main(["train-sae", *folders, *given, *out]) == 0
    for site in SITES:
        for d_sae in (32, 64):
            sae = load_sae(tmp_path / "saes" / site / f"batchtopk-{d_sae}")
            assert (sae.cfg.d_sae, sae.cfg.metadata.hook_name) == (d_sae, site)
            assert sae.cfg.metadata.l0 == pytest.approx(4, rel=0.05)


def test_fit_is_said_in_words(capsys: pytest.CaptureFixture) -> None:
    given = ["check-sae", f"valley/{SITES[0]}", "valley", "valley", "--texts", "100"]
    assert main(given) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("ok")
    assert main([*given, "--site", SITES[1]]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0].endswith("does not fit") and SITES[0] in said


def test_unknown_log_is_an_error(
    harvested: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    given = ["train-sae", str(harvested / SITES[0]), "--out", str(tmp_path / "sae")]
    assert main([*given, "--log", "somewhere"]) == 2
    assert "wanted wandb:PROJECT or tensorboard:FOLDER" in capsys.readouterr().err


def test_figures_go_where_they_are_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sent: list[Any] = []
    run = SimpleNamespace(log=lambda figures, step: sent.append((step, figures)))

    def init(**options: Any) -> Any:
        sent.append(options)
        return run

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    wandb_log("mine", mode="offline")(20, {"loss": 1.0})
    assert sent == [{"project": "mine", "mode": "offline"}, (20, {"loss": 1.0})]

    class Writer:
        def __init__(self, folder: str) -> None:
            self.file = Path(folder)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            self.file.write_text(json.dumps([name, value, step]))

        def flush(self) -> None:
            pass

    module = SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    tensorboard_log(tmp_path / "events")(20, {"loss": 1.0})
    assert json.loads((tmp_path / "events").read_text()) == ["loss", 1.0, 20]
