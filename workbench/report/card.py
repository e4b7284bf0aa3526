"""The verdict on top of the page: one word, one sentence, and all that they rest on."""

from workbench.audit.endpoints import RECOVERED_RHO
from workbench.audit.schema import AuditReport, EditedInfo
from workbench.report.markup import Html, html, interval, listed, note, number, small, table, terms
from workbench.report.roles import usable
from workbench.report.words import ACCESS, CLAIMS, FLAGS, PRIMARY

RING = '<circle cx="24" cy="24" r="20" fill="none" stroke="currentColor" stroke-width="4"'
STROKE = 'fill="none" stroke="currentColor" stroke-width="5" stroke-linecap="round"'
ICONS = {
    "REMOVED": f'{RING}/><path d="M15 25l7 7 12-15" {STROKE}/>',
    "SUPPRESSED": f'{RING}/><path d="M4 24a20 20 0 0 0 40 0z" fill="currentColor"/>',
    "DEGRADED": f'<path d="M24 5L45 43H3z" {STROKE}/><path d="M24 18l-4 8h8l-4 9" {STROKE}/>',
    "NOT_REMOVED": '<rect x="4" y="4" width="40" height="40" rx="3" fill="currentColor"/>'
    '<path d="M24 12v15M24 35v1" fill="none" stroke="#fff" stroke-width="6"'
    ' stroke-linecap="round"/>',
    "INCONCLUSIVE": f'{RING} stroke-dasharray="9 6"/>'
    f'<path d="M18 20a6 6 0 1 1 8.5 5.5q-2.5 1.2-2.5 4M24 36v.5" {STROKE}/>',
}
"""Shapes tell the verdicts apart where colours do not."""


def verdict_card(report: AuditReport) -> Html:
    """The primary verdict, its sentence, reasons, flags, claims, and what is missing."""
    v = report.verdict
    icon = f'<svg viewBox="0 0 48 48" width="44" height="44" aria-hidden="true">{ICONS[v.primary]}'
    flags = [(flag.replace("_", " ").capitalize(), FLAGS.get(flag, "")) for flag in v.flags]
    missing = (
        f"<h3>What is missing for a verdict of absence</h3>{listed(v.missing)}" if v.missing else ""
    )
    told = f"<h3>Flags</h3>{terms(flags)}" if flags else ""
    return Html(f"""<section class="verdict {html(v.primary)}" aria-labelledby="verdict">
<div class="word">{icon}</svg><h2 id="verdict">Verdict: {html(v.primary.replace("_", " "))}</h2>
</div>
<p class="sentence">{html(v.sentence)}</p>
<p>{html(PRIMARY[v.primary])}</p>
{terms(_facts(report), "facts")}
<h3>Reasons</h3>
{listed(v.reasons)}
{missing}{told}
</section>""")


def _facts(report: AuditReport) -> list[tuple[str, str]]:
    card, v = report.card, report.verdict
    lowest = v.lowest_access_recovered
    decisive = [e for e in report.endpoints if e.role == "confirmatory" and usable(report, e)]
    margin = max((e.delta for e in decisive), default=None)
    facts = [
        ("What was done", _edit(card.models.edited)),
        ("Access audited, up to", f"{v.access}: {ACCESS.get(v.access, '')}"),
        (
            "Lowest access at which it comes back",
            f"{lowest}: {ACCESS[lowest]}" if lowest in ACCESS else lowest,
        ),
        ("Facts", f"{card.target.n_facts} about {card.target.n_entities} entities"),
        ("Margin", f"±{number(margin)} of ρ" if margin is not None else "none"),
        ("Golds", f"{len(card.models.gold)} models that never knew"),
        ("Battery", f"{report.battery_version}, profile {card.profile}"),
    ]
    shares = report.hooks.error_share.values() if report.hooks else ()
    if shares:
        most = max(shares, key=lambda share: share[0])
        told = f"{most[0]:.0%} {interval(most[1], most[2])} of the target's log-probability"
        facts.append(("Past the SAE, in its error", told))
    if v.partial_share is not None:
        facts.append(("Facts left whole", f"{v.partial_share:.0%}"))
    return facts


def _edit(edited: EditedInfo) -> str:
    parts = [", ".join(edited.hooks)] if edited.hooks else []
    if edited.filter:
        parts.append(f"filter {edited.filter}")
    if edited.prompt:
        parts.append("system prompt")
    if not edited.weights_identical:
        delta = edited.delta
        rank = f", rank up to {delta.max_rank}" if delta.max_rank else ""
        parts.append(
            f"{delta.changed_tensors} tensors changed by {delta.rel_fro:.2%} of their norm{rank}"
        )
    return "; ".join(parts) or "nothing: the weights are the original's"


def claims_table(report: AuditReport) -> Html:
    """What people say of an edit, and whether this audit bears it out."""
    head = dict.fromkeys(("Claim", "Access, target", "Status"), "") | {"Evidence": "remark"}
    rows = [
        [
            CLAIMS[c.claim],
            small(c.access, c.target_type.replace("_", " ")),
            Html(f"<strong>{html(c.status.replace('_', ' '))}</strong>"),
            ", ".join(c.evidence) or "none",
        ]
        for c in report.claims
    ]
    told = note(f"""
Evidence of a contradicted claim: the endpoints that recovered the knowledge, or the ways of asking
whose upper bound of ρ reaches {RECOVERED_RHO:.2f}. A verdict on one claim says nothing about the
others.
""")
    return Html(
        table("claims", "Claims, and whether this audit bears them out.", head, rows) + told
    )
