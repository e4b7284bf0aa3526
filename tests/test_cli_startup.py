"""The command line answers before anything heavy is imported."""

import subprocess
import sys

HELP = """
import sys
from workbench.cli import main
sys.argv = ["workbench", "--help"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
heavy = set("numpy pandas plotly sae_lens sklearn torch transformer_lens transformers".split())
assert not heavy & set(sys.modules), f"--help imported {sorted(heavy & set(sys.modules))}"
"""


def test_help_imports_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", HELP], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: workbench" in done.stdout


def test_scores_are_those_of_locate() -> None:
    from typing import get_args

    from workbench.cli import SCORES
    from workbench.locate import Method

    assert get_args(Method) == SCORES
