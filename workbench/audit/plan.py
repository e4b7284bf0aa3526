"""What is fixed before the edited model is opened: the plan of an audit, and its hash."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from workbench.audit import cost, endpoints, gates, reading, summary
from workbench.audit.attacks import FULL, QUICK, STANDARD, AttackConfig
from workbench.audit.concepts import HigherOrder
from workbench.audit.faithfulness import LEAST_AUC, faithfulness
from workbench.audit.probes import KINDS
from workbench.audit.rotation import rotations
from workbench.audit.schema import BATTERY_VERSION, Profile
from workbench.audit.statistics import MIN_ENTITIES, RESAMPLES
from workbench.audit.store import battery_sha256, measuring_sha256, value_sha256
from workbench.errors import AuditError
from workbench.facts.target import Target

FAMILIES_OF: dict[str, tuple[str, ...] | None] = {
    "quick": ("B1", "B2", "B6", "B12"),
    "standard": None,
    "full": None,
}
"""Kinds of questions by profile; None is all of them."""
PROBES_OF = {"quick": ("P1", "P2", "P6"), "standard": KINDS, "full": KINDS}
ATTACKS_OF = {"quick": QUICK, "standard": STANDARD, "full": FULL}


@dataclass(frozen=True)
class AuditConfig:
    """What the audit does.

    Attributes:
        profile: `quick` (never REMOVED), `standard` or `full`, which looks deeper and tries harder.
        seed: decides prompts that are drawn, attacks, controls and resamples.
        workers: jobs at a time, each with a copy of the model and one thread.
        bnb: of `int8` and `nf4`: rounding by bitsandbytes beside our own, on CUDA alone.
    """

    profile: Profile = "standard"
    seed: int = 0
    workers: int = 2
    bnb: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.profile not in FAMILIES_OF:
            raise AuditError(f"profile {self.profile!r}: wanted one of {sorted(FAMILIES_OF)}")
        if self.workers < 1:
            raise AuditError(f"workers {self.workers}: wanted 1 or more")

    @property
    def attacks(self) -> AttackConfig:
        given = ATTACKS_OF[self.profile]
        return replace(given, perturbing=replace(given.perturbing, bnb=self.bnb))


def make_plan(
    target: Target, config: AuditConfig, concept: HigherOrder | None = None
) -> dict[str, Any]:
    """Everything that the auditor could otherwise choose after seeing the edited model.

    The number of workers is no part of it, since it changes no figure.
    """
    relations = sorted({f.relation for f in target.forget})
    return json.loads(
        json.dumps(
            {
                "battery_version": BATTERY_VERSION,
                "battery_sha256": battery_sha256(),
                "profile": config.profile,
                "seed": config.seed,
                "questions": FAMILIES_OF[config.profile],
                "probes": PROBES_OF[config.profile],
                "attacks": asdict(config.attacks),
                "thresholds": thresholds(),
                "target": target.name,
                "target_sha256": target_sha256(target),
                "facts_sha256": target.facts.sha256,
                "concept_sha256": value_sha256(concept) if concept is not None else "",
                "folds": rotations(target),
                "templates": {
                    r: sorted(
                        {t for f in target.forget if f.relation == r for t in f.audit_templates}
                    )
                    for r in relations
                },
            }
        )
    )


def thresholds() -> dict[str, float]:
    """Every limit that a verdict rests on."""
    return {
        "recovered_rho": endpoints.RECOVERED_RHO,
        "delta": endpoints.DELTA,
        "max_delta": endpoints.MAX_DELTA,
        "gold_margin": endpoints.GOLD_MARGIN,
        "min_span": reading.MIN_SPAN,
        "max_injection": endpoints.MAX_INJECTION,
        "min_golds": gates.MIN_GOLDS,
        "loo_removed": gates.LOO_REMOVED,
        "least_auc": LEAST_AUC,
        **{f"faithfulness of {name}": auc for name, auc in faithfulness().items()},
        "tail": summary.TAIL_LIMIT,
        "ks": summary.KS_LIMIT,
        "max_loss": cost.MAX_LOSS,
        "max_ppl": cost.MAX_PPL,
        "degraded_share": cost.DEGRADED_SHARE,
        "degraded_ppl": cost.DEGRADED_PPL,
        "min_valid": cost.MIN_VALID,
        "resamples": RESAMPLES,
        "min_entities": MIN_ENTITIES,
    }


def measuring_plan_sha256(plan: dict[str, Any]) -> str:
    """Hash of what decides a measurement: the plan without the rules that judge it."""
    rules = ("battery_sha256", "battery_version", "thresholds")
    kept = {name: value for name, value in plan.items() if name not in rules}
    return plan_sha256({**kept, "measuring_sha256": measuring_sha256()})


def plan_sha256(plan: dict[str, Any]) -> str:
    """Hash of a plan, the same whatever the order of its entries."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def target_sha256(target: Target) -> str:
    """Hash of what is to be forgotten, with its folds and controls."""
    content = {
        "facts": target.facts.sha256,
        "forget": [(*f.key, f.object) for f in target.forget],
        "folds": target.folds,
        "retain": {name: [f.key for f in facts] for name, facts in target.retain.items()},
        "neighbours": {name: [f.key for f in facts] for name, facts in target.neighbours.items()},
        "fresh": [f.key for f in target.fresh],
        "derived": [f.key for f in target.derived],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
