"""Tables of what stands beside a verdict: derived knowledge, leaks, depth, text, coverage."""

from statistics import fmean
from typing import Any

from workbench.audit.schema import AuditReport, Gap, ShadowAttack
from workbench.report.markup import (
    Html,
    folded,
    html,
    interval,
    note,
    number,
    small,
    table,
    terms,
    yes,
)
from workbench.report.words import SIGNALS, TEXT

BESIDE = {
    "P7": "length of the probe's code",
    "P8": "information beyond names and other facts",
    "P11": "traces in the weights of MLPs",
    "P12": "distance of the stream from the original's",
    "P13": "features steered back",
}
VIEWS = {"Es": "Behind the filter", "Eh": "As deployed", "Ew": "Hooks off"}
ROLES = {"Original": "O", "Edited": "E", "Gold": "G"}
DEEP = {
    "success_du": "not derivable from what is answered",
    "recall": "of a smallest set gone",
    "acc": "of the rest kept",
    "derivable": "derivable from what is answered",
}


def derivation_part(report: AuditReport) -> Html:
    """What follows from the target and who can still derive it."""
    found = report.derivation
    if found is None:
        return Html()
    rows = [
        [what, *(number(at[r]) for r in ROLES.values())]
        for part, names in ((found.asked, {}), (found.deep, DEEP))
        for what, at in ((names.get(k, k), v) for k, v in part.items())
    ]
    flags = [
        [f.name, yes(f.raised), number(f.value), number(f.gold), yes(f.gold_too), f.note]
        for f in found.flags
    ]
    numbers = dict.fromkeys(ROLES, "number")
    head = {"Flag": "", "Raised": "", "Edited": "number", "Reference": "number"}
    told = note("""
What a model can derive from facts that stayed is no failure of the edit, and golds may derive it
too. Stored: asked as it is. Latent: both steps in one question. Chained: the model's own answer to
the first step is put into the second.
""")
    return Html(
        table("derivation", f"{found.n} facts that follow from the target.",
              {"Asked, or told of": "", **numbers}, rows)
        + table("derivation-flags", "Derived knowledge: flags.",
                {**head, "Golds too": "", "Note": "remark"}, flags)
        + told
    )  # fmt: skip


def concept_part(report: AuditReport) -> Html:
    """How often a higher-order concept is expressed; nothing where none was given."""
    found, about = report.concept, report.card.concept
    if found is None or about is None:
        return Html()
    golds = interval(min(found.golds), max(found.golds)) if found.golds else number(None)
    facts = [
        ("Definition", about.definition),
        ("Agreement of annotators", f"kappa {number(about.agreement)}, {about.annotators} of them"),
        ("Original", number(found.O)),
        *((f"Edited, {VIEWS[v].lower()}", number(x)) for v, x in found.by_view.items()),
        ("Golds, which are no reference for its absence", golds),
    ]
    return Html(
        f"<h3>Higher-order concept: {html(about.name)}</h3>"
        + terms(facts, "facts")
        + note(f"{found.sentence[0].upper()}{found.sentence[1:]}.")
    )


def leaks_table(report: AuditReport) -> Html:
    """Signals of membership; nothing where they were not measured."""
    if not report.leaks:
        return Html()
    rows = [[SIGNALS.get(row.signal, row.signal), *_leak_cells(row)] for row in report.leaks]
    head = {"Signal": ""}
    head |= dict.fromkeys(("AUC, edited", "Original", "Golds", "Edited less gold"), "number")
    told = note("""
How well each signal tells forget facts from the same prompts with exchanged objects, which nobody
was trained on: 0.5 is not at all, and below 0.5 tells as much as above. An attacker who holds the
original too is outside this claim: even exact retraining gives itself away to him.
""")
    head |= {"Told apart": "", "Why not": "remark"}
    shown = table("leaks", "Membership inference.", head, rows) + told
    if report.leaks_off:
        off = [[SIGNALS.get(r.signal, r.signal), *_leak_cells(r)] for r in report.leaks_off]
        shown = table("leaks-off", "Membership inference with the hooks off.", head, off) + shown
    return Html(shown + _shadows(report.shadows))


def _shadows(found: ShadowAttack | None) -> Html:
    if found is None:
        return note(
            "No shadow models were given: the attack with a threshold for each fact (U-LiRA)"
            " did not run."
        )
    facts = [
        ("Shadow models, unlearned and never trained", f"{found.unlearned} and {found.retrained}"),
        ("AUC", number(found.auc)),
        (
            "Forget facts found, of 5 % false alarms",
            f"{number(found.tpr_5)}, at least {number(found.low)}",
        ),
        ("Forget facts found, of 1 % false alarms", number(found.tpr_1)),
        ("Told apart", yes(None if found.why else found.leaks)),
    ]
    heading = Html("<h3>Attack with a threshold for each fact (U-LiRA)</h3>")
    why = note(f"U-LiRA did not run: {found.why}.") if found.why else Html()
    return Html(heading + terms(facts, "facts") + why)


def _leak_cells(row: Any) -> list[Any]:
    golds = interval(min(row.golds), max(row.golds)) if row.golds else number(None)
    told = yes(None if row.why else row.leaks)
    return [_gap(row.auc), number(row.original), golds, _gap(row.gap), told, row.why]


def depth_part(report: AuditReport) -> Html:
    """How deep the change goes and whether what is read is used; nothing if not measured."""
    parts = Html()
    if report.depth is not None:
        rows = [
            [r.layer, *(number(x) for x in (r.E, r.G, r.E_kept, r.G_kept))]
            for r in report.depth.rows
        ]
        columns = ("Edited", "Gold", "Edited, retained", "Gold, retained")
        removal = report.depth.removal
        told = ""
        if removal is not None:
            share = f"{report.depth.coverage or 0:.0%} of the facts"
            told = f" Removal {removal:.2f} on {share}: 0 is intact, 1 as a gold."
        caption = f"Nats lost when a model's stream is put into the original (P10).{told}"
        head = {"Layer": "", **dict.fromkeys(columns, "number")}
        parts = Html(parts + table("depth", caption, head, rows))
        parts = Html(parts + (note(f"No depth: {report.depth.why}.") if report.depth.why else ""))
    if report.erasures:
        rows = [
            [e.layer, *(number(x) for x in (e.E, e.O, e.G)), f"{e.guard:.1g}"]
            for e in report.erasures
        ]
        head = {"Layer": "", **dict.fromkeys(("Edited", "Original", "Gold", "Left"), "number")}
        caption = "Hits that erasing what probes read costs, beyond random subspaces (P9)."
        parts = Html(parts + table("erasures", caption, head, rows))
    return folded("Depth and use", parts) if parts else Html()


def readings_table(report: AuditReport) -> Html:
    """What is measured beside the probes that decide: codes, information, traces, drift."""
    found: dict[tuple[str, ...], dict[str, list[float]]] = {}
    for r in report.rows:
        if r.endpoint in BESIDE and r.subset in ("F", "V") and r.view in ("", "deployed"):
            role = "gold" if r.role.startswith("gold-") else r.role
            key = r.endpoint, r.setting, r.metric
            found.setdefault(key, {}).setdefault(role, []).append(r.value)
    rows = [
        [
            small(f"{key[0]} {BESIDE[key[0]]}", f"{key[1]}, {key[2].replace('_', ' ')}"),
            *(
                number(fmean(at[role]) if role in at else None)
                for role in ("original", "edited", "gold")
            ),
        ]
        for key, at in found.items()
        if "edited" in at
    ]
    if not rows:
        return Html()
    head = {"Reading": "", **dict.fromkeys(("Original", "Edited", "Golds"), "number")}
    caption = "Readings that decide nothing: only what goes beyond the golds says something."
    return folded(f"Table of {len(rows)} other readings", table("readings", caption, head, rows))


def text_table(report: AuditReport) -> Html:
    """How texts are continued; nothing where it was not measured."""
    found = report.collateral.fluency
    if not found:
        return Html()
    rows = [[TEXT.get(k, k), *(number(x) for x in (o, e, g))] for k, (e, o, g) in found.items()]
    head = {"Continued texts": "", **dict.fromkeys(ROLES, "number")}
    return table("fluency", "How the model writes.", head, rows)


def costs_table(report: AuditReport) -> Html:
    """Seconds by item of the battery; nothing in a report that does not hold them."""
    if not report.costs:
        return Html()
    items = dict.fromkeys(c.job.split()[0] for c in report.costs)

    def seconds(item: str, role: str = "") -> float:
        mine = (c for c in report.costs if c.job.split()[0] == item)
        return sum(c.seconds for c in mine if not role or c.role == role)

    rows = [[i, *(number(s, 1) for s in (seconds(i, "edited"), seconds(i)))] for i in items]
    head = {"Item": "", **dict.fromkeys(("Edited model", "All models"), "number")}
    caption = "Seconds of one worker, when it was done; what was kept from before is counted too."
    return folded("What each item cost", table("costs", caption, head, rows))


def coverage_table(report: AuditReport) -> Html:
    """Published checklists, and what of this audit speaks to each entry."""
    rows = []
    for c in report.coverage:
        missing = ", ".join(b for b in c.by if b not in c.run)
        rows.append([c.item, c.checklist, ", ".join(c.run) or "nothing", missing])
    head = {"Entry": "", "Checklist": "remark", "Run here": "", "Not run": ""}
    return folded("Coverage of published checklists", table("coverage", "Coverage.", head, rows))


def _gap(gap: Gap | None) -> str:
    return "" if gap is None else f"{number(gap.value)} {interval(gap.low, gap.high)}"
