"""Tables of an audit: every number of a report that is not a row."""

from typing import Any

from workbench.audit.attacks import setting_name
from workbench.audit.schema import Attack, AuditReport, Endpoint, Family, Measurement
from workbench.report.dots import family_name, ordered, set_name
from workbench.report.figures import ranked
from workbench.report.markup import (
    Html,
    brief,
    counted,
    folded,
    interval,
    listed,
    note,
    number,
    p_value,
    small,
    table,
    terms,
    yes,
)
from workbench.report.roles import standing
from workbench.report.words import ATTACKS, LEVELS, NOTES, OBJECTIVES, PROBES

PARTS = ("x", "xhat", "err", "post", "xhat edited")
VIEWS = {
    "O": "Original",
    "Es": "Behind filter",
    "Eh": "Edited",
    "Ew": "Hooks off",
    "G": "Gold",
}


def endpoints_table(report: AuditReport) -> Html:
    """One row per endpoint, the confirmatory ones first, and what was chosen for each."""
    head = {"Endpoint": "remark", "Access": "", "Result": ""}
    numbers = ("Original", "Edited", "Gold", "ρ, 95 %", "90 %, margin", "p; p TOST")
    head |= dict.fromkeys((*numbers, "MDE", "Faithful", "Facts"), "number")
    shown = ranked(report.endpoints)
    why = [f"{e.id} ({e.view}): {e.why_invalid}" for e in shown if e.why_invalid]
    chosen = [
        f"{e.id} ({e.view}), on {e.selection.on} from {e.selection.grid}: "
        + "; ".join(e.selection.chosen)
        for e in shown
        if e.selection.chosen
    ]
    return Html(
        table("endpoint-table", "Endpoints.", head, [_endpoint_cells(report, e) for e in shown])
        + note(f"{NOTES['endpoints']} Access, each level with all before it: {LEVELS}.")
        + (f"<h3>Why endpoints could not be used</h3>{listed(why)}" if why else "")
        + (folded("What was chosen, in each rotation", listed(chosen)) if chosen else "")
    )


def _endpoint_cells(report: AuditReport, e: Endpoint) -> list[Any]:
    each = Html("<br>".join(number(g) for g in e.m.G_each))
    return [
        small(f"{e.id} {e.name}", f"{e.role}, {e.metric}"),
        small(e.access, e.view),
        standing(report, e),
        number(e.m.O),
        number(e.m.E),
        small(number(e.m.G_mean), each),
        small(number(e.rho), interval(e.low, e.high)),
        small(interval(*e.ci90), f"±{number(e.delta)}"),
        small(p_value(e.p_sup_holm), p_value(e.p_tost)),
        number(e.mde),
        number(e.faithfulness),
        counted(e.n_facts, e.n_entities),
    ]


def families_table(report: AuditReport) -> Html:
    """Every way of asking: raw and centred hits in each view, and why some are dropped."""
    views = [v for v in VIEWS if any(v in f.raw or v in f.centred for f in report.families)]
    head = {"Way of asking": "", "Access": ""}
    head |= dict.fromkeys((VIEWS[v] for v in views), "number") | {"Kept": "remark"}

    def cells(f: Family) -> list[Any]:
        both = [small(number(f.raw.get(v)), number(f.centred.get(v))) for v in views]
        kept = "yes" if f.kept else f"dropped: {f.why_dropped}"
        return [family_name(f.id, f.setting), f.access, *both, kept]

    caption = "Ways of asking: raw hits, and centred hits below them."
    shown = table("family-table", caption, head, [cells(f) for f in ordered(report.families)])
    return folded(f"Table of all {len(report.families)} ways of asking", shown)


def probes_table(report: AuditReport) -> Html:
    """Every probe at every place."""
    if not report.probes:
        return Html()
    numbers = ("Edited", "Original", "Gold", "Random weights", "Random labels", "Bits")
    head = {"Probe": "", "Place": "", **dict.fromkeys(numbers, "number"), "Leak": ""}
    rows = [
        [
            p.id,
            p.place,
            *(number(x) for x in (p.acc, p.original, p.gold, p.random_init, p.control_acc, p.bits)),
            yes(p.leak),
        ]
        for p in report.probes
    ]
    kinds = sorted({p.id for p in report.probes})
    told = terms((kind, PROBES[kind]) for kind in kinds if kind in PROBES)
    shown = table("probe-table", "Probes: share of facts read at each place.", head, rows)
    return folded(f"Table of all {len(rows)} probes and places", told + shown)


def hooks_part(report: AuditReport) -> Html:
    """What the checks of hooks found; nothing for an edit without hooks."""
    h = report.hooks
    if h is None:
        return Html()
    parts = sorted(h.split.items(), key=lambda item: _part_order(item[0]))
    found: dict[str, Any] = {
        "Stream before the first edit is bitwise the original's": yes(h.upstream_equal),
        "What a later layer can be read better than the stream after the edit": number(
            h.recompute_gain
        ),
        "What the edit takes away, less what matched random features take away": number(
            h.specificity
        ),
    }
    found |= {
        f"Prompts in which the edit changes anything, {k}": v
        for k, v in sorted(h.fire_rate.items())
    }
    found |= {f"Probe on the part {k!r} of the stream": v for k, v in parts}
    found |= {
        f"Same answer when called otherwise: {k}": v for k, v in sorted(h.same_answer.items())
    }
    found |= {
        f"Share of the target's log-probability that the SAE's error carries, {k}": (
            f"{number(v[0])} {interval(v[1], v[2])}"
        )
        for k, v in h.error_share.items()
    }
    found |= {
        f"Share of the features' activation mass on what was to stay, {k}": (
            f"{number(v[0])} {interval(v[1], v[2])}"
        )
        for k, v in h.feature_share_retain.items()
    }
    found |= {f"Hits with the edit met another way: {k}": v for k, v in h.bypass.items()}
    if h.baked_difference is not None:
        found["Largest difference of a log-probability from the edit in the weights"] = (
            f"{h.baked_difference:.2g}"
        )
    head = {"Check": "", "Value": "number"}
    rows = [[k, v if isinstance(v, str) else number(v)] for k, v in found.items()]
    told = note("""
The stream x at an edit of SAE features is its reconstruction (xhat) plus an error (err) that such
edits leave alone; post is what the edit leaves. Hits of a probe fitted on each part by itself.
""")
    doses = [
        [f"{float(x):g}", *(number(d.get(k)) for k in ("F", "R_te", "last"))]
        for x, d in sorted(h.doses.items(), key=lambda item: float(item[0]))
    ]
    columns = ("Forget facts", "Retained facts", "Forget facts ranked last")
    ladder = table(
        "doses", "Less and more of the edit: 1 is as deployed.",
        {"Dose": "", **dict.fromkeys(columns, "number")}, doses,
    )  # fmt: skip
    checks = table("hooks", "Checks of hooks.", head, rows)
    return Html(f"<h3>The hooks</h3>{checks}{told}{ladder if doses else ''}")


def _part_order(name: str) -> tuple[int, str]:
    part = name.split(",")[0]
    return (PARTS.index(part) if part in PARTS else len(PARTS)), name


def attacks_table(report: AuditReport) -> Html:
    """Every attack with what it teaches, what it costs, and where its curves end."""
    numbers = ("Rotations", "Injection index", "Retained after", "Original", "Edited", "Gold")
    head = {"Attack": "", **dict.fromkeys(numbers, "number"), "Use": "remark"}
    caption = "Attacks: hits before, and after the last step below them."
    rows = [_attack_cells(a) for a in report.attacks]
    return Html(table("attacks", caption, head, rows) + note(NOTES["attacks"]))


def _attack_cells(a: Attack) -> list[Any]:
    c = a.curve
    ends = [small(number(v[0]), number(v[-1])) if v else "none" for v in (c.O, c.E, c.G)]
    use = "admissible" if a.admissible else f"not admissible: {a.why}"
    name = f"{a.id} {ATTACKS.get(a.id, '')}".strip()
    doses = setting_name(a.id, a.setting, c.steps[-1]) if c.steps else f"{a.setting}, no steps"
    return [
        small(name, doses),
        a.runs,
        number(a.injection_index),
        number(a.utility_after),
        *ends,
        use + (", destructive" if a.destructive else ""),
    ]


def kept_part(report: AuditReport) -> Html:
    """What the edit cost: sets of facts, perplexity and the form of answers."""
    c = report.collateral
    numbers = ("Original", "Edited", "Gold", f"Edited less {c.reference}, at least")
    numbers += ("KL, nats", "KL of golds", "Flipped", "Questions")
    head = {"Set": "", **dict.fromkeys(numbers, "number")}
    rows = [
        [
            set_name(s.id),
            *(number(x, 3) for x in (s.O, s.E, s.G)),
            *(number(x, 3) for x in (s.lcb_vs_gold, s.kl_nats, s.kl_gold_nats, s.flipped)),
            counted(s.n, s.n_entities),
        ]
        for s in c.sets
    ]
    ppl = c.ppl_ratio
    facts = [
        ("Non-inferior", yes(c.non_inferior)),
        ("Degraded", yes(c.degraded)),
        (
            f"Perplexity over the {c.reference}'s",
            "not measured" if ppl is None else f"{number(ppl[0], 3)} {interval(ppl[1], ppl[2])}",
        ),
        ("Prompts answered by an answer", number(c.valid_answers, 3)),
        ("Lost on sets near the target, on average", number(c.dual_cost, 3)),
    ]
    why = listed(c.why) if c.why else Html()
    caption = "Facts that were to stay: recall, and a one-sided 95 % bound."
    return Html(
        table("kept", caption, head, rows) + note(NOTES["kept"]) + terms(facts, "facts") + why
    )


def distribution_part(report: AuditReport) -> Html:
    """Facts that stayed whole, and how far log-odds are from the golds'."""
    head = {"Facts left whole": "", **dict.fromkeys(("Edited", "Gold"), "number")}
    head |= {"Difference, at most": "number", "Limit": "number", "Result": ""}
    rows = [
        [
            t.id,
            *(number(x, 3) for x in (t.share_E, t.share_G, t.ucb95_diff, t.limit)),
            _passed(t.passed),
        ]
        for t in report.tail
    ]
    shown = table("tail", "Tail: facts left whole, as shares.", head, rows) + note(NOTES["tail"])
    ks = report.ks
    if ks is None:
        return Html(shown + note("The distance to the golds' distribution was not measured."))
    facts = [
        ("Kolmogorov–Smirnov distance to the golds", f"{number(ks.D)}, at most {number(ks.ucb)}"),
        ("Limit", number(ks.limit)),
        ("95 % of pairs of golds are nearer than", number(ks.gold_gold_p95)),
        ("Result", _passed(ks.passed)),
        ("p of the same test, never used", p_value(ks.tofu_p)),
    ]
    about = note("Distribution of the log-odds of true answers, against the golds':")
    return Html(shown + about + terms(facts, "facts"))


def _passed(passed: bool) -> Html:
    return Html("pass" if passed else "<strong>FAIL</strong>")


def gates_table(report: AuditReport) -> Html:
    """Every gate with its value and limit."""
    rows = [
        [
            g.id,
            _passed(g.passed),
            brief(g.value),
            brief(g.limit),
            g.note,
            ", ".join(g.drops) if g.drops and not g.passed else "none",
        ]
        for g in report.gates
    ]
    failed = sum(not g.passed for g in report.gates)
    told = f"{failed} of {len(rows)} failed" if failed else f"all {len(rows)} passed"
    head = {"Gate": "", "Result": "", "Value": "number", "Limit": "number"}
    head |= {"What must hold": "remark", "Endpoints it takes away": ""}
    return Html(table("gates", f"Gates: {told}.", head, rows) + note(NOTES["gates"]))


def objectives_table(report: AuditReport) -> Html:
    """Objectives of unlearning, 1 as in a model that never knew."""
    rows = [_objective_cells(r) for r in report.rows if r.endpoint == "objective"]
    numbers = dict.fromkeys(("Value", "95 % interval", "Questions"), "number")
    caption = "Objectives, calibrated by the golds: 1 is as good as a model that never knew."
    head = {"Objective": "", **numbers, "What it is": "remark"}
    return table("objectives", caption, head, rows)


def _objective_cells(row: Measurement) -> list[Any]:
    # An interval without width would claim a certainty that nothing measured.
    told = interval(row.low, row.high) if row.low < row.high else "none given"
    name, _, which = row.metric.partition(":")
    title = name.replace("_", " ") + (f" ({set_name(which)})" if which else "")
    count = counted(row.n, row.n_entities)
    return [title, number(row.value), told, count, OBJECTIVES.get(name, "")]
