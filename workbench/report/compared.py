"""Methods side by side: one page with their claims, verdicts, objectives, costs and roads back."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.audit.schema import AuditReport, Endpoint
from workbench.report.html import figure_html, write_page
from workbench.report.markup import (
    Html,
    brief,
    folded,
    interval,
    listed,
    note,
    number,
    plain,
    section,
    small,
    table,
)
from workbench.report.pareto import pareto_figure
from workbench.report.words import OBJECTIVES

JOBS = {
    "open": ("B1", "B2"),
    "text": ("B",),
    "M1": ("B",),
    "M2": ("B2",),
    "lens": ("B15",),
    "M3": ("probes",),
    "off": ("B1", "B2"),
    "M4": ("W1",),
    "M5": ("W2",),
    "M6": ("W3", "W4", "W5", "W6", "W7", "W8", "W9"),
    "prefix": ("W10",),
}
"""Jobs of the audit that an endpoint rests on, by the beginning of their names."""
LEAST_GAIN = 0.1
"""Share of what the original knows, above the golds, from which a relearned answer counts."""
ORDER = ("REMOVED", "INCONCLUSIVE", "DEGRADED", "SUPPRESSED", "NOT_REMOVED")
Entry = Mapping[str, Any]


def road_back(report: AuditReport) -> dict[str, Any] | None:
    """The cheapest way to what is left: the lowest access, and of these the fewest seconds.

    Returns:
        The endpoint that found it, what it needed and how much it found; None where no valid
        endpoint found anything.
    """
    found = [e for e in report.endpoints if e.valid and e.recovered]
    if not found:
        return None
    best = min(found, key=lambda e: (e.access, _seconds(report, e)))
    return {
        "endpoint": best.id,
        "name": best.name,
        "access": best.access,
        "rho": best.rho,
        "ci95": list(best.ci95),
        "chosen": sorted(set(best.selection.chosen)),
        "seconds": round(_seconds(report, best), 1),
        "steps": _steps(report) if best.id == "M4" else None,
    }


def write_comparison(
    entries: Sequence[Entry], reports: Mapping[str, AuditReport], out: Path | str
) -> Path:
    """Writes the page of a comparison, in a file that is complete.

    Args:
        entries: as `workbench.experiments.compare.run` gives them.
        reports: by the name that the figures give each arm.
        out: a path that ends in `.html`.
    """
    done = sorted((e for e in entries if "failed" not in e), key=_rank)
    failed = [f"{e['method']}: {e['failed']}" for e in entries if "failed" in e]
    profiles = sorted({r.card.profile for r in reports.values()})
    sections = [
        section("Verdicts", note(_reading(profiles)), verdicts_table(done)),
        *(
            [
                section(
                    "Removed for good, against what is left of the rest",
                    figure_html("pareto", "Robust removal and locality", pareto_figure(reports)),
                )
            ]
            if reports
            else []
        ),
        section("The cheapest road back", roads_table(done)),
        section("What each was shown, and what it cost", costs_table(done)),
        section("How strengths were chosen", strengths_table(done)),
        *([section("What could not be made or audited", listed(failed))] if failed else []),
    ]
    targets = ", ".join(sorted({r.card.target.id for r in reports.values()})) or "a target"
    return write_page(Path(out), f"Ways to unlearn {targets}", sections)


def markdown_table(entries: Sequence[Entry]) -> str:
    """The verdicts as a table of text, the best first: for a terminal or a README."""
    head = ["method", "family", "claim", "verdict", "comes back at", "asked", "robust removal"]
    rows: list[Sequence[str]] = [[*head, "locality", "utility", "cost, s", "cheapest road back"]]
    rows.append(["---"] * len(rows[0]))
    for e in sorted((e for e in entries if "failed" not in e), key=_rank):
        road, shown = e["road_back"], e["endpoints"].get("open")
        objectives = (_told(e["objectives"].get(k)) for k in ("robustness", "locality"))
        rows.append(
            (
                _title(e, entries),
                e["family"],
                e["claim"],
                " ".join((e["verdict"], *(f for f in e["flags"] if f == "ANTI_KNOWLEDGE"))),
                e["lowest_access_recovered"] or "nowhere",
                _told([shown["rho"], *shown["ci95"]] if shown else None),
                *objectives,
                f"{e['utility']:.3f}",
                brief(e["cost"]["seconds"]),
                f"{road['endpoint']} {road['name']}, ρ {road['rho']:.2f}" if road else "none",
            )
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _told(at: Sequence[float] | None) -> str:
    return "" if at is None else f"{at[0]:.2f} [{at[1]:.2f}, {at[2]:.2f}]"


def verdicts_table(entries: Sequence[Entry]) -> Html:
    """One row per arm, the best verdict first."""
    names = {"accuracy": "Forgetting", "generalizability": "However asked"}
    names |= {"locality": "Locality", "robustness": "Robust removal"}
    head = {"Method": "", "Claim": "", "Verdict": "", "Comes back at": ""}
    head |= dict.fromkeys(names.values(), "number") | {"Utility": "number", "Cost": "number"}
    rows = []
    for e in entries:
        cells = [
            small(number(at[0]), interval(at[1], at[2]))
            if (at := e["objectives"].get(name))
            else number(None)
            for name in names
        ]
        flags = ", ".join(f for f in e["flags"] if f != "weights_identical")
        rows.append(
            [
                small(_title(e, entries), e["family"]),
                e["claim"],
                small(e["verdict"], flags),
                e["lowest_access_recovered"] or "nowhere",
                *cells,
                number(e["utility"]),
                f"{brief(e['cost']['seconds'])} s",
            ]
        )
    shown = table("verdicts", "Arms with 95 % intervals; 1 is as good as a gold.", head, rows)
    told = "; ".join(f"{names[k].lower()}: {v}" for k, v in OBJECTIVES.items() if k in names)
    return Html(shown + note(f"{told}. Utility: recall of what stays, as a share of the golds'."))


def roads_table(entries: Sequence[Entry]) -> Html:
    """Of every arm from which something can be had: who has it most cheaply, and how."""
    head = {"Method": "", "Verdict": "", "Access": "", "Way": "remark"}
    head |= {"ρ, 95 %": "number", "Seconds": "number", "Chosen": "remark"}
    rows = []
    for e in entries:
        road = e["road_back"]
        if road is None:
            continue
        steps = f", from {road['steps']:g} steps on" if road["steps"] is not None else ""
        rows.append(
            [
                _title(e, entries),
                e["verdict"],
                road["access"],
                f"{road['endpoint']} {road['name']}{steps}",
                small(number(road["rho"]), interval(*road["ci95"])),
                brief(road["seconds"]),
                "; ".join(road["chosen"]) or "nothing to choose",
            ]
        )
    if not rows:
        return note("No endpoint that counts found anything in any arm.")
    caption = "The lowest access that finds something, then the fewest seconds."
    return table("roads", caption, head, rows)


def costs_table(entries: Sequence[Entry]) -> Html:
    """Data, seconds and tokens of each arm."""
    head = {"Method": "", "Seconds": "number", "Tokens read": "number"}
    head |= {"of them gone back through": "number", "Shown": "remark", "Told of itself": "remark"}
    rows = [
        [
            _title(e, entries),
            brief(e["cost"]["seconds"]),
            f"{e['cost']['forward_tokens']:,}",
            f"{e['cost']['backward_tokens']:,}",
            "; ".join(e["saw"]) or "nothing",
            plain(e["told"]),
        ]
        for e in entries
    ]
    return table("costs", "At the strength that was chosen, on one thread.", head, rows)


def strengths_table(entries: Sequence[Entry]) -> Html:
    """Every strength that was tried."""
    head = {"Method": "", "Strength": "", "Chosen": ""}
    head |= dict.fromkeys(("Recall of S", "R_va", "Unrelated", "Utility", "Seconds"), "number")
    rows = [
        [
            _title(e, entries),
            small(f"{t['strength'] + 1} of {len(e['trials'])}", plain(t["config"])),
            "yes" if t["chosen"] else "",
            *(number(t[k], 3) for k in ("forget", "retained", "unrelated", "utility")),
            brief(t["seconds"]),
        ]
        for e in entries
        for t in e["trials"]
    ]
    told = note("""
Of each method's strengths the one that leaves least of the S fold, among those that keep at least
97 % of what golds recall of retained and unrelated facts; where none keeps as much, the one that
keeps most. Answers in V, on which verdicts rest first, and in R_te had no part in the choice.
""")
    return Html(told + folded(f"All {len(rows)} strengths", table("tried", "Tried.", head, rows)))


def _reading(profiles: Sequence[str]) -> str:
    quick = "The quick profile never says REMOVED: such arms are INCONCLUSIVE here. "
    return (quick if "quick" in profiles else "") + (
        "Each arm met the same audit as the others. Claim is what the method promises, verdict "
        "what was found; the two need not agree."
    )


def _title(entry: Entry, entries: Sequence[Entry]) -> str:
    several = any(e["seed"] for e in entries)
    return f"{entry['method']}, seed {entry['seed']}" if several else entry["method"]


def _rank(entry: Entry) -> tuple[int, float, str, int]:
    robust = entry["objectives"].get("robustness", [0.0])[0]
    return ORDER.index(entry["verdict"]), -robust, entry["method"], entry["seed"]


def _seconds(report: AuditReport, endpoint: Endpoint) -> float:
    """What the jobs behind an endpoint took on the edited model."""
    starts = JOBS.get(endpoint.id, ())
    costs = (c for c in report.costs if (c.role, c.view) == ("edited", endpoint.view))
    return sum((c.seconds for c in costs if c.job.startswith(starts)), 0.0)


def _steps(report: AuditReport) -> float | None:
    """The first dose of relearning at which more comes back than golds learn."""
    found = [
        step
        for a in report.attacks
        if a.id == "W1" and a.admissible
        for step, e, g in zip(a.curve.steps, a.curve.E, a.curve.G, strict=True)
        if g is not None and e - g >= LEAST_GAIN * max(a.curve.O)
    ]
    return min(found, default=None)
