"""What shuffled reading holds does not grow with what there is to read."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from workbench.activations import Activations

PEAK = """
import os, resource, sys, torch
torch.set_num_threads(1)
from itertools import islice
from workbench.activations import Activations, reader
reader.POOL_BYTES = 2**21
SIZE = 500

def passes(folder):
    acts = Activations.open(folder)
    for batch in islice(acts.batches(SIZE, documents=lambda d: d >= 0), 2 * acts.count() // SIZE):
        assert len(batch) == SIZE

def whole(folder):
    Activations.open(folder).rows().clone()

def peak(work, folder):
    receive, send = os.pipe()
    if not (child := os.fork()):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        work(folder)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        os.write(send, str(after - before).encode())
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    return int(os.read(receive, 99)) * 1024

small, large = sys.argv[1:]
print([peak(passes, small), peak(passes, large), peak(whole, large)])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a fork's peak starts at what it holds")
def test_memory_does_not_grow_with_the_data(
    write_by_hand: Callable[..., Activations], tmp_path: Path
) -> None:
    width, megabyte = 256, 2**20
    for name, megabytes in (("small", 20), ("large", 200)):
        rows = torch.zeros(1, width).expand(megabytes * megabyte // (4 * width), width)
        write_by_hand(tmp_path / name, rows, 5 * megabyte // (4 * width))
    found = subprocess.run(
        [sys.executable, "-c", PEAK, tmp_path / "small", tmp_path / "large"],
        capture_output=True,
        text=True,
        check=True,
    )
    small, large, whole = json.loads(found.stdout)
    for file in (tmp_path / "large").iterdir():
        file.unlink()
    assert whole > 180 * megabyte  # as the large one would if it kept what it has read
    assert large < small + 8 * megabyte
    assert large < 60 * megabyte
