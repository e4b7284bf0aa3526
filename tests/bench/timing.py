"""Two ways of doing one thing, in turns so that a busy machine slows both alike, and a record."""

import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results.json", HERE / "RESULTS.md"
HEADER = """# Results

Written by `make bench`. Each figure is a ratio of two things done in turns in one run: the
median, and in brackets the middle half of the repeats. Where the ratio is of speeds, above 1 is
faster than the peer; of memory, below 1 is less; of errors, below 1 is better. What bounds a
figure stands beside it.

| what | against | aim | ratio | ours | what bounds it | device, threads, date |
|---|---|---|---|---|---|---|
"""
PACKAGES = ("torch", "sae-lens", "transformer-lens")


def speed(
    name: str,
    against: str,
    aim: str,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    bound: str,
    *,
    repeats: int = 9,
    unit: tuple[float, str] | None = None,
) -> float:
    """Times both in turns and records how many times faster ours is.

    Args:
        unit: how much one call does, and of what, for the absolute figure; default: seconds.
    """
    ours(), theirs()
    ratios, seconds = [], []
    for turn in range(repeats):
        taken = {}
        for which in (ours, theirs) if turn % 2 else (theirs, ours):
            started = time.perf_counter()
            which()
            taken[which] = time.perf_counter() - started
        ratios.append(taken[theirs] / taken[ours])
        seconds.append(taken[ours])
    median = statistics.median(seconds)
    absolute = f"{unit[0] / median:,.0f} {unit[1]}/s" if unit else f"{median:.3g} s"
    return record(name, against, aim, ratios, absolute, bound)


def record(
    name: str, against: str, aim: str, ratios: Sequence[float], absolute: str, bound: str
) -> float:
    """Puts the median and the middle half of some ratios on record; gives the median."""
    ordered = sorted(ratios)
    low, high = ordered[len(ordered) // 4], ordered[-1 - len(ordered) // 4]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    entry = {
        "name": name,
        "against": against,
        "aim": aim,
        "median": round(statistics.median(ordered), 3),
        "low": round(low, 3),
        "high": round(high, 3),
        "device": f"{device}, {torch.get_num_threads()} threads",
        "versions": {package: version(package) for package in PACKAGES},
        "date": date.today().isoformat(),
        "ours": absolute,
        "bound": bound,
    }
    before = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    key = (name, against, entry["device"])
    entries = [e for e in before if (e["name"], e["against"], e["device"]) != key]
    write([*entries, entry])
    print(f"\n{name} / {against}: {entry['median']} [{entry['low']}, {entry['high']}], aim {aim}")
    return entry["median"]


def write(entries: list[dict]) -> None:
    """The record for programs, and the same as a page for people."""
    RESULTS.write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n")
    lines = [
        f"| {e['name']} | {e['against']} | {e['aim']} | {e['median']:.2f} "
        f"[{e['low']:.2f}, {e['high']:.2f}] | {e['ours']} | {e['bound']} "
        f"| {e['device']}, {e['date']} |"
        for e in entries
    ]
    versions = {f"{p} {v}" for e in entries for p, v in e["versions"].items()}
    PAGE.write_text(f"{HEADER}{chr(10).join(lines)}\n\nVersions: {', '.join(sorted(versions))}.\n")
