"""The verdict on top of the page: one word, one sentence, and all that they rest on."""

from collections.abc import Sequence

from workbench.audit.endpoints import RECOVERED_RHO
from workbench.audit.schema import AuditReport, EditedInfo, Endpoint
from workbench.report.markup import (
    Html,
    Part,
    html,
    interval,
    listed,
    note,
    number,
    small,
    table,
    terms,
    under,
)
from workbench.report.roles import usable
from workbench.report.words import ACCESS, CLAIMS, FLAGS, PRIMARY

RING = '<circle cx="24" cy="24" r="20" fill="none" stroke="currentColor" stroke-width="4"'
STROKE = 'fill="none" stroke="currentColor" stroke-width="5" stroke-linecap="round"'
ICONS = {
    "REMOVED": f'{RING}/><path d="M15 25l7 7 12-15" {STROKE}/>',
    "SUPPRESSED": f'{RING}/><path d="M4 24a20 20 0 0 0 40 0z" fill="currentColor"/>',
    "DEGRADED": f'<path d="M24 5L45 43H3z" {STROKE}/><path d="M24 18l-4 8h8l-4 9" {STROKE}/>',
    "NOT_REMOVED": '<rect x="4" y="4" width="40" height="40" rx="3" fill="currentColor"/>'
    '<path d="M24 12v15M24 35v1" fill="none" stroke="var(--paper)" stroke-width="6"'
    ' stroke-linecap="round"/>',
    "INCONCLUSIVE": f'{RING} stroke-dasharray="9 6"/>'
    f'<path d="M18 20a6 6 0 1 1 8.5 5.5q-2.5 1.2-2.5 4M24 36v.5" {STROKE}/>',
}
"""Shapes tell the verdicts apart where colours do not."""
SERVED = "A1"
"""The most that whoever uses a served model has; more access needs its weights."""


def verdict_card(report: AuditReport) -> Part:
    """The primary verdict and its sentence, for whom it holds, how sure it is, and the reasons."""
    v = report.verdict
    icon = f'<svg viewBox="0 0 48 48" width="44" height="44" aria-hidden="true">{ICONS[v.primary]}'
    flags = [(flag.replace("_", " ").capitalize(), FLAGS.get(flag, "")) for flag in v.flags]
    word = f"Verdict: {v.primary.replace('_', ' ')}"
    facts = (
        ("What was audited", _audited(report)),
        ("For whom the answer holds", _for_whom(report)),
        ("Where it comes back", _back(report)),
        ("How sure this is", _certainty(report)),
    )
    groups = "\n".join(f"<div>{under(heading, terms(told))}</div>" for heading, told in facts)
    return Part.of(
        word,
        "verdict",
        f"""<div class="word">{icon}</svg><h2 id="verdict-heading">{html(word)}</h2></div>
<p class="sentence">{html(v.sentence)}</p>
<p>{html(PRIMARY[v.primary])}</p>
<div class="groups">
{groups}
</div>
{under("Reasons", listed(v.reasons))}
{under("What is missing for a verdict of absence", listed(v.missing)) if v.missing else ""}
{under("Flags", terms(flags))}""",
        f"verdict {html(v.primary)}",
    )


def _audited(report: AuditReport) -> list[tuple[str, str]]:
    target = report.card.target
    facts = [
        ("Edit", _edit(report.card.models.edited)),
        ("Target", f"{target.id}: {target.n_facts} facts about {target.n_entities} entities"),
    ]
    shares = report.hooks.error_share.values() if report.hooks else ()
    if shares:
        most = max(shares, key=lambda share: share[0])
        told = f"{most[0]:.0%} {interval(most[1], most[2])} of the target's log-probability"
        facts.append(("Past the SAE, in its error", told))
    return facts


def _for_whom(report: AuditReport) -> list[tuple[str, str]]:
    """Whoever has the access that was audited, and the levels at which an endpoint counts."""
    access = report.verdict.access
    levels = sorted({e.access for e in report.endpoints if usable(report, e)})
    holder = "the deployer and all users" if access > SERVED else "users of the served model"
    hidden = [
        f"{c.access} {c.status.replace('_', ' ')}"
        for c in report.claims
        if c.claim == "output_suppression"
    ]
    return [
        ("Access audited, up to", f"{access}: {ACCESS.get(access, '')}; so for {holder}"),
        ("Levels at which an endpoint counts", ", ".join(levels) or "none"),
        ("Hidden from users of the served model", "; ".join(hidden) or "not tested"),
    ]


def _back(report: AuditReport) -> list[tuple[str, str]]:
    lowest = report.verdict.lowest_access_recovered
    counted = [e for e in report.endpoints if usable(report, e)]
    found = [e for e in counted if e.recovered]
    if lowest in ACCESS:
        told = f"{lowest}: {ACCESS[lowest]}"
    elif counted:
        told = "nowhere: no endpoint that counts recovers anything at any level"
    else:
        told = "not known: no endpoint counts"
    facts = [("Lowest access at which it comes back", told)]
    first = [e for e in found if e.access == lowest]
    if first:
        facts.append(("Most that comes back there", _most(first)))
    facts += [("Highest ρ at any access", _most(found or counted))] if counted else []
    if report.verdict.partial_share is not None:
        facts.append(("Facts left whole", f"{report.verdict.partial_share:.0%}"))
    return facts


def _most(endpoints: Sequence[Endpoint]) -> str:
    """The endpoint with the highest ρ, with its 95 % interval."""
    e = max(endpoints, key=lambda e: e.rho)
    name = e.name if e.id == e.name else f"{e.id} {e.name}"
    return f"{name} ({e.access}): ρ {number(e.rho)} {interval(e.low, e.high)}"


def _certainty(report: AuditReport) -> list[tuple[str, str]]:
    decisive = [e for e in report.endpoints if e.role == "confirmatory" and usable(report, e)]
    margin = max((e.delta for e in decisive), default=None)
    failed = sorted({g.id for g in report.gates if not g.passed})
    holds = sum(g.passed for g in report.gates)
    gates = f"{holds} of {len(report.gates)} hold"
    n = len(report.card.models.gold)
    return [
        ("Intervals", "95 %, from resampling entities"),
        ("Margin", f"±{number(margin)} of ρ" if margin is not None else "none"),
        ("Golds", f"{n} {'model' if n == 1 else 'models'} that never knew" if n else "none"),
        ("Gates", f"{gates}; failed: {', '.join(failed)}" if failed else gates),
        ("Battery", f"{report.battery_version}, profile {report.card.profile}"),
    ]


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
