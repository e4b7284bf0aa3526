"""Two ways of doing the same thing, timed in turns, so that a busy machine slows both alike."""

import statistics
import time
from collections.abc import Callable

import torch


def ratio(
    name: str, ours: Callable[[], object], theirs: Callable[[], object], repeats: int = 9
) -> float:
    """Prints the median of ours/theirs over interleaved runs with its spread, and returns it."""
    ours(), theirs()
    ratios, seconds = [], []
    for turn in range(repeats):
        pair = {}
        for which in (ours, theirs) if turn % 2 else (theirs, ours):
            started = time.perf_counter()
            which()
            pair[which] = time.perf_counter() - started
        ratios.append(pair[ours] / pair[theirs])
        seconds.append(pair[ours])
    ratios.sort()
    median = statistics.median(ratios)
    spread = f"{ratios[len(ratios) // 4]:.2f} to {ratios[-1 - len(ratios) // 4]:.2f}"
    print(
        f"| {name} | {median:.2f} | {spread} | {statistics.median(seconds) * 1000:.0f} ms "
        f"| {torch.get_num_threads()} | torch {torch.__version__} |"
    )
    return median
