"""What people say of an edit, and whether an audit bears it out."""

from collections.abc import Sequence
from statistics import fmean

from workbench.audit.endpoints import RECOVERED_RHO
from workbench.audit.gates import MIN_GOLDS
from workbench.audit.schema import Claim, Derivation, LeakRow, ShadowAttack, TargetInfo, Verdict
from workbench.audit.verdict import Evidence

MAX_GAP = 0.05
"""Of the AUC of a signal of membership from the golds', either way."""
LEAST_LEAK = 0.10
"""By how much a signal must tell the original from golds before its silence says anything."""
Bounds = dict[str, dict[str, tuple[float, float, float]]]
"""Rho with its interval by access level and kept family."""


def make_claims(
    verdict: Verdict,
    evidence: Evidence,
    target: TargetInfo,
    bounds: Bounds,
    leaks: Sequence[LeakRow] = (),
    derived: Derivation | None = None,
    shadows: ShadowAttack | None = None,
    concept: bool = False,
) -> tuple[Claim, ...]:
    """What people say of an edit, and whether this audit bears it out.

    Of knowledge that follows from other knowledge removal is never supported, since golds may
    derive it too.
    """
    removal = {"REMOVED": "supported", "INCONCLUSIVE": "not_testable", "DEGRADED": "not_testable"}
    status = removal.get(verdict.primary, "contradicted")
    if target.type != "observed" and status == "supported":
        status = "not_testable"
    recovered = tuple(e.id for e in evidence.confirmatory if e.recovered)
    claims = [Claim("removal_from_weights", target.type, "A4", status, recovered)]  # pyright: ignore[reportArgumentType]
    # Whoever reads log-probabilities reads ranks too, and can look for a prefix.
    more = {
        e.id: (e.rho, *e.ci95)
        for e in evidence.endpoints
        if e.id in ("M2", "prefix") and e.view == "deployed" and e.valid
    }
    asked = {access: {**rho, **(more if access == "A1" else {})} for access, rho in bounds.items()}
    if derived is not None:
        raised = tuple(f.name for f in derived.flags if f.name == "REDERIVABLE" and f.raised)
        state = "contradicted" if raised else "not_testable"
        claims.append(Claim("removal_from_weights", "latent", "A1", state, raised))
    if concept:
        # No model is a reference for the absence of what has no list of facts.
        claims.append(Claim("removal_from_weights", "higher_order", "A4", "not_testable", ()))
    return (
        *claims,
        *(_suppression(target, access, families) for access, families in asked.items()),
        _retrained(target, leaks, shadows),
        Claim("downstream_use", target.type, "A4", "not_tested", ()),
    )


def _suppression(
    target: TargetInfo, access: str, families: dict[str, tuple[float, float, float]]
) -> Claim:
    """Supported if every kept way of asking is bounded below the margin.

    Contradicted if one recovers the knowledge; what is only too uncertain cannot be told.
    """
    found = [n for n, (rho, low, _) in families.items() if low > 0 and rho >= RECOVERED_RHO]
    open_ones = [n for n, (_, _, high) in families.items() if high >= RECOVERED_RHO]
    if not families:
        status = "not_tested"
    else:
        status = "contradicted" if found else "not_testable" if open_ones else "supported"
    return Claim("output_suppression", target.type, access, status, tuple(found or open_ones))


def _retrained(target: TargetInfo, leaks: Sequence[LeakRow], shadows: ShadowAttack | None) -> Claim:
    """Contradicted if a signal of membership, or an attack with shadows, tells it from golds.

    By at least the margin, and in whatever view: whoever has the weights may take hooks off.

    Supported if no signal could by more than the margin, beside enough golds, and some of them told
    the original apart: signals that are blind to it say nothing of the edited model.
    """
    told = tuple(
        dict.fromkeys(
            leak.signal
            for leak in leaks
            if leak.leaks and leak.gap is not None and abs(leak.gap.value) >= MAX_GAP
        )
    )
    told += ("U-LiRA",) if shadows is not None and shadows.leaks else ()
    gaps = [leak.gap for leak in leaks if leak.gap is not None]
    if not leaks:
        status = "not_tested"
    elif told:
        status = "contradicted"
    elif (
        any(_sees(leak) for leak in leaks)
        and gaps
        and all(gap.low >= -MAX_GAP and gap.high <= MAX_GAP for gap in gaps)
    ):
        status = "supported"
    else:
        status = "not_testable"
    return Claim("retrain_indistinguishable", target.type, "A4", status, told)


def _sees(leak: LeakRow) -> bool:
    """Whether the signal tells the original, which was trained on the target, from enough golds."""
    if leak.original is None or len(leak.golds) < MIN_GOLDS:
        return False
    return abs(leak.original - fmean(leak.golds)) >= LEAST_LEAK
