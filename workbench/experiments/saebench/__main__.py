"""Scores the SAEs of the bundled world: `python -m workbench.experiments.saebench OUT`."""

import sys
from pathlib import Path

import torch

from workbench.experiments.saebench import SAEBenchConfig, run, table


def main() -> None:
    """Scores the bundled SAEs; about two minutes on two cores."""
    torch.set_num_threads(1)
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/saebench")
    results = run(SAEBenchConfig(), out, _print)
    _print(table(results))


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
