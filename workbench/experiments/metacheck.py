"""Are the endpoints worth their place? Measured on models whose truth is known.

Faithfulness: how surely an endpoint's ρ tells models that know the target from models that never
did. Robustness: whether it says the same after the model is taught the target for one epoch, when
hidden knowledge comes up, and after its weights are rounded to 4 bits.

Source: OpenUnlearning, 2506.12618; 2605.24614. Differs: AUC over audits of known models, relearning
on one epoch in their place of a learning rate of choice, rounding to nearest.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np

from workbench.audit.endpoints import CONFIRMATORY
from workbench.audit.privacy import auc

KNOWING = ("untouched", "original tuned on", "original with noise", "logit bias", "rmu")
NEVER = ("gold", "gold tuned on", "gold with noise")
HOOKED = ("ablation",)
HIDDEN, TAUGHT, COARSE = "rmu", "rmu, an epoch of the target", "rmu in 4 bits"
GOLD, GOLD_TAUGHT = "gold", "gold, an epoch of the target"
ENDPOINTS = ("open", *CONFIRMATORY)
Entry = dict[str, Any]


@dataclass(frozen=True)
class Checked:
    """One endpoint.

    Attributes:
        faithfulness: AUC of |ρ| between models that know and models that never did, weights
            changed or none; None without either.
        hooked: the same for models that know, read with a hook in place. It decides nothing: where
            the weights are the original's, no endpoint is asked.
        relearning: R, what teaching the target adds to a gold over what it adds to the hidden
            model, 0 to 1; low where the endpoint had missed what the teaching brought up.
        rounding: Q, 1 where 4 bits change nothing, towards 0 where they change everything.
        robustness: the harmonic mean of R and Q.
        n_knowing, n_never: audits behind the AUC.
    """

    endpoint: str
    faithfulness: float | None
    hooked: float | None
    relearning: float | None
    rounding: float | None
    robustness: float | None
    n_knowing: int
    n_never: int


def check(entries: Sequence[Entry]) -> list[Checked]:
    """Every endpoint, from the entries of a calibration."""
    return [_checked(name, entries) for name in ENDPOINTS]


def rows(checked: Sequence[Checked]) -> list[dict[str, Any]]:
    """As JSON values."""
    return [asdict(c) for c in checked]


def table(checked: Sequence[Checked]) -> str:
    """One row per endpoint."""
    lines = [
        "| endpoint | AUC, know or never | with a hook | R, relearning | Q, 4 bits | HM | models |",
        "|---|---|---|---|---|---|---|",
    ]
    for c in checked:
        shown = (c.faithfulness, c.hooked, c.relearning, c.rounding, c.robustness)
        cells = " | ".join("" if v is None else f"{v:.2f}" for v in shown)
        lines.append(f"| {c.endpoint} | {cells} | {c.n_knowing} + {c.n_never} |")
    return "\n".join(lines)


def _checked(name: str, entries: Sequence[Entry]) -> Checked:
    knowing, never, hooked = (_read(entries, cases, name) for cases in (KNOWING, NEVER, HOOKED))
    relearning = _relearning(
        *(_mean(entries, case, name) for case in (GOLD, GOLD_TAUGHT, HIDDEN, TAUGHT))
    )
    rounding = _rounding(_mean(entries, HIDDEN, name), _mean(entries, COARSE, name))
    return Checked(
        name,
        _auc(knowing, never),
        _auc(hooked, never),
        relearning,
        rounding,
        harmonic(relearning, rounding),
        len(knowing),
        len(never),
    )


def _auc(knowing: Sequence[float], never: Sequence[float]) -> float | None:
    """Two-sided: what is pushed below the golds is known as well."""
    return auc(np.abs(knowing), np.abs(never)) if knowing and never else None


def _relearning(
    gold: float | None, gold_taught: float | None, hidden: float | None, taught: float | None
) -> float | None:
    """R = min(1, what a gold gains over what the hidden model gains); 1 where neither gains."""
    if gold is None or gold_taught is None or hidden is None or taught is None:
        return None
    gained, of = gold_taught - gold, taught - hidden
    return 1.0 if of <= 0 else float(np.clip(gained / of, 0.0, 1.0))


def _rounding(before: float | None, after: float | None) -> float | None:
    """Q = 1 - |before - after| / (|before| + |after|)."""
    if before is None or after is None:
        return None
    total = abs(before) + abs(after)
    return 1.0 if total == 0 else 1 - abs(before - after) / total


def harmonic(a: float | None, b: float | None) -> float | None:
    """The harmonic mean, 0 where one is 0; None where one is not known."""
    if a is None or b is None:
        return None
    return 2 * a * b / (a + b) if a + b else 0.0


def _read(entries: Sequence[Entry], cases: Sequence[str], endpoint: str) -> list[float]:
    """ρ of the endpoint in every audit of these cases."""
    return [e["rho"] for e in _found(entries, cases, endpoint)]


def _mean(entries: Sequence[Entry], case: str, endpoint: str) -> float | None:
    """The measured value itself, mean over seeds."""
    values = [e["E"] for e in _found(entries, (case,), endpoint)]
    return fmean(values) if values else None


def _found(entries: Sequence[Entry], cases: Sequence[str], endpoint: str) -> list[dict[str, Any]]:
    name = f"{endpoint} deployed"
    read = [e["evidence"].get("endpoints", {}) for e in entries if e["case"] in cases]
    return [r[name] for r in read if name in r]
