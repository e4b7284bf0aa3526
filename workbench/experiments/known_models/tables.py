"""What a calibration found, as tables."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from workbench.experiments.known_models.cases import BY_NAME

Entry = dict[str, Any]
SIGNATURE = (
    "untouched",
    "gold",
    "random weights",
    "ablation",
    "logit bias",
    "push-down",
    "rmu",
    "relearned",
)
"""Cases whose pattern over the endpoints tells them apart."""
ENDPOINTS = ("open", "M1", "M2", "M3", "M4", "M5", "M6")


def table(entries: Sequence[Entry]) -> str:
    """The confusion table: one row per case, verdicts counted over seeds, with rho beside.

    A verdict that is honest too, though another was expected, is counted apart from right ones.
    """
    lines = [
        "| case | expected | verdicts | right | open | M1 | M2 | M3 | M4 | M5 | M6 |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(e["case"] for e in entries):
        rows = [e for e in entries if e["case"] == name]
        counts = {v: sum(e["verdict"] == v for e in rows) for v in {e["verdict"] for e in rows}}
        verdicts = ", ".join(f"{v} {n}" for v, n in sorted(counts.items()))
        fine = [e["verdict"] == e["expected"] for e in rows if e["ok"]]
        other = f" and {len(fine) - sum(fine)} as honest" if not all(fine) else ""
        right = f"{sum(fine)}/{len(rows)}{other}"
        cells = [_cell(rows, m) for m in ENDPOINTS]
        also = BY_NAME[name].also if name in BY_NAME else ()
        expected = " or ".join([rows[0]["expected"], *also])
        expected = " ".join([expected, *rows[0]["expected_flags"]])
        lines.append(
            f"| {rows[0]['number']} {name} | {expected} | {verdicts} | {right} "
            f"| {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def _cell(rows: Sequence[Entry], endpoint: str) -> str:
    """Range of rho over seeds; in brackets where the endpoint could not be used."""
    found = [
        e["evidence"]["endpoints"][f"{endpoint} deployed"]
        for e in rows
        if f"{endpoint} deployed" in e["evidence"].get("endpoints", {})
    ]
    if not found:
        return ""
    low, high = min(f["rho"] for f in found), max(f["rho"] for f in found)
    text = f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}"
    return text if all(f["valid"] for f in found) else f"({text})"


def signature(entries: Sequence[Entry]) -> str:
    """Endpoints by known cases: the median of rho over seeds, then utility and verdict."""
    by_case = {name: [e for e in entries if e["case"] == name] for name in SIGNATURE}
    found = {name: some for name, some in by_case.items() if some}
    lines = ["| | " + " | ".join(found) + " |", "|---" * (len(found) + 1) + "|"]
    for endpoint in (*ENDPOINTS, "off"):
        cells = [
            _median(rows, "off weights" if endpoint == "off" else f"{endpoint} deployed")
            for rows in found.values()
        ]
        lines.append(f"| {endpoint} | " + " | ".join(cells) + " |")
    for title, told in (
        ("utility", lambda e: e["evidence"]["utility"]),
        ("verdict", lambda e: e["verdict"]),
    ):
        cells = [_commonest([told(e) for e in rows]) for rows in found.values()]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _median(rows: Sequence[Entry], name: str) -> str:
    read = [e["evidence"]["endpoints"].get(name) for e in rows]
    values = [r["rho"] for r in read if r is not None]
    return f"{median(values):.2f}" if values else ""


def _commonest(values: Sequence[str]) -> str:
    return max(values, key=values.count)
