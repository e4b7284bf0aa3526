"""Edits of compiled models."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_compiled_models_are_edited() -> None:
    script = Path(__file__).with_name("compiled.py")
    unchecked = ["-o", "addopts=--import-mode=importlib -p no:dash", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *unchecked, str(script), "-q", "--show-capture=no"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert " passed" in run.stdout
