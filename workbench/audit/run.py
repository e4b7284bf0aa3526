"""The audit: the same questions and attacks on the original, the edited model and the golds."""

import copy
import json
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from workbench.audit.endpoints import Roles, make_endpoints, make_gates, make_objectives
from workbench.audit.probes import permuted, transfer_probe
from workbench.audit.questions import recall_scores
from workbench.audit.relearn import RelearnConfig, relearn
from workbench.audit.schema import AuditReport, Gate, Measurement
from workbench.audit.statistics import Key, Scores, entity_interval
from workbench.audit.verdict import FIXED_LIMIT, FULL_SIZE, decide
from workbench.errors import AuditError
from workbench.facts.contract import check_contract
from workbench.facts.target import Target
from workbench.hooks import Intervention
from workbench.models.load import weights_sha256


@dataclass(frozen=True)
class AuditConfig:
    """What the audit does beyond asking.

    Attributes:
        relearn: the relearning attack, the same on every model.
        seed: decides bootstrap draws and the shuffled control model.
        workers: models measured at a time, each with a copy and a thread of its own.
    """

    relearn: RelearnConfig = field(default_factory=RelearnConfig)
    seed: int = 0
    workers: int = 1


@dataclass(frozen=True)
class View:
    """One model as one kind of reader meets it: with its hooks, or without."""

    role: str
    view: str
    model: Any
    edits: tuple[Intervention, ...] = ()


Steps = Callable[[str], None]
Hashes = dict[tuple[str, str], str]


def audit(
    model: Any,
    edit: Any,
    target: Target,
    golds: Sequence[Any],
    config: AuditConfig | None = None,
    say: Steps = lambda line: None,
) -> AuditReport:
    """Measures what is left of the target; decides NOT_REMOVED, SUPPRESSED or INCONCLUSIVE.

    Args:
        model: the original.
        edit: an intervention, several, none (an empty list), or a model with changed weights.
        golds: models that never knew the target; three or more.
        say: called with one line as each step begins.

    Raises:
        AuditError: fewer than three golds, or a target with nothing to score.
    """
    config, started = config or AuditConfig(), time.monotonic()
    _require_scorable(target, golds)
    views = _views(model, edit, golds, config.seed)
    before = {(v.role, v.view): weights_sha256(v.model) for v in views}
    scores, after = _measure_all(views, target, config, say)
    deployed = views[1].view
    roles = Roles(
        original=scores["original", ""],
        edited=scores["edited", deployed],
        hooks_off=scores.get(("edited", "hooks_off")),
        golds=[scores[v.role, v.view] for v in views if v.role.startswith("gold")],
        control=scores.get(("control", "permuted"), {}),
    )
    endpoints = make_endpoints(roles, target, deployed, config.seed)
    identical = before["edited", deployed] == before["original", ""]
    gates = (*make_gates(roles, target, check_contract(target)), _untouched(before, after))
    rows = [
        _row(view, key, s, config.seed)
        for view, found in scores.items()
        for key, s in found.items()
    ]
    return AuditReport(
        rows=(
            *rows,
            *make_objectives(roles, deployed, config.seed),
            _weights_row(identical, config.seed),
        ),
        endpoints=endpoints,
        gates=gates,
        verdict=decide(endpoints, gates, identical, target.name),
        limits=_limits(target, config),
        provenance=_provenance(target, config, views, before, time.monotonic() - started),
    )


def _require_scorable(target: Target, golds: Sequence[Any]) -> None:
    if len(golds) < 3:
        raise AuditError(
            f"{len(golds)} golds were given; wanted three or more models that never knew "
            f"{target.name!r}"
        )
    retained = (f for fold in ("R_va", "R_te") for f in target.retain[fold])
    scored = (*target.fold("V"), *target.fold("S"), *retained)
    if not target.fold("V") or not all(f.audit_templates for f in scored):
        raise AuditError(
            f"target {target.name!r}: every fact of its folds V, S, R_va and R_te needs audit-only "
            "prompts, since these alone are scored, and V needs a fact"
        )


def _untouched(before: Hashes, after: Hashes) -> Gate:
    """G7: what was measured is what was given; an attack that leaked would change it."""
    same = sum(after[name] == sha256 for name, sha256 in before.items()) / len(before)
    return Gate(
        "G7",
        same == 1.0,
        same,
        1.0,
        "share of the measured models whose weights are bitwise what they were",
    )


def _views(model: Any, edit: Any, golds: Sequence[Any], seed: int) -> list[View]:
    """The original, the edited model as deployed, the same with hooks off, golds and control.

    The view with hooks off is left out if there are none.
    """
    if hasattr(edit, "state_dict"):
        changed, edits = edit, ()
    else:
        changed, edits = model, tuple(edit) if isinstance(edit, Sequence) else (edit,)
    off = [View("edited", "hooks_off", changed)] if edits else []
    never = [View(f"gold-{i}", "", gold) for i, gold in enumerate(golds)]
    edited = View("edited", "hooks_on" if edits else "weights", changed, edits)
    return [
        View("original", "", model),
        edited,
        *off,
        *never,
        View("control", "permuted", permuted(model, seed)),
    ]


def _measure_all(
    views: Sequence[View], target: Target, config: AuditConfig, say: Steps
) -> tuple[dict[tuple[str, str], dict[Key, Scores]], Hashes]:
    """The scores of every view, `config.workers` views at a time, and its weights afterwards.

    With several workers each view has a model of its own, since hooks are attached to models, and
    one thread, which for small models is as fast as two.
    """
    names = [(v.role, v.view) for v in views]
    if config.workers == 1:
        measured = list(views)
        found = [_measure(v, target, config, say) for v in measured]
    else:
        measured = [replace(v, model=copy.deepcopy(v.model)) for v in views]
        with ThreadPoolExecutor(config.workers, "audit", torch.set_num_threads, (1,)) as pool:
            found = list(pool.map(lambda view: _measure(view, target, config, say), measured))
    after = {name: weights_sha256(v.model) for name, v in zip(names, measured, strict=True)}
    return dict(zip(names, found, strict=True)), after


def _measure(view: View, target: Target, config: AuditConfig, say: Steps) -> dict[Key, Scores]:
    """All scores of one view; the control model is only probed."""
    name = f"{view.role} {view.view}".strip().replace("_", " ")
    found: dict[Key, Scores] = {}
    if view.role != "control":
        say(f"ask {name}")
        found |= recall_scores(view.model, view.edits, target)
    if all(target.retain.values()) and target.folds["S"]:
        say(f"probe {name}")
        found |= transfer_probe(view.model, view.edits, target)
    if view.role != "control" and target.folds["T"]:
        say(f"relearn {name}")
        found |= relearn(view.model, view.edits, target, config.relearn)
    return found


def _row(view: tuple[str, str], key: Key, scores: Scores, seed: int) -> Measurement:
    at = entity_interval(scores, seed)
    return Measurement(
        key.endpoint,
        *view,
        key.subset,
        key.detail,
        float(key.x),
        at.value,
        at.low,
        at.high,
        len(scores.values),
        scores.n_entities,
        seed,
    )


def _weights_row(identical: bool, seed: int) -> Measurement:
    """H0: 1 if every parameter and buffer of the edited model is bitwise the original's."""
    value = float(identical)
    return Measurement(
        "weights", "edited", "hooks_off", "all", "identical", 0.0, value, value, value, 1, 0, seed
    )


def _limits(target: Target, config: AuditConfig) -> tuple[str, ...]:
    facts, entities = FULL_SIZE
    limits = [
        FIXED_LIMIT,
        f"One learning rate ({config.relearn.lr:g}), one fold rotation and one attack seed; the "
        "other endpoints of the battery (ranks, savings, tampering) were not run, so REMOVED "
        "cannot be given.",
    ]
    if len(target.forget) < facts or len(target.entities) < entities:
        limits.append(
            f"{len(target.forget)} facts about {len(target.entities)} entities are too few for a "
            f"verdict of absence under any battery: at least {facts} facts about {entities} "
            "entities are wanted."
        )
    if not target.folds["T"]:
        limits.append(
            "The target has too few entities to train an attack on some and score others: "
            "no relearning was run."
        )
    if not (all(target.retain.values()) and target.folds["S"]):
        limits.append(
            "No retained facts of the same relations, or no S fold: no transfer probe was run."
        )
    return tuple(limits)


def _provenance(
    target: Target,
    config: AuditConfig,
    views: Sequence[View],
    hashes: Hashes,
    runtime_s: float,
) -> dict[str, Any]:
    return {
        "target": {
            "name": target.name,
            "type": target.type,
            "n_facts": len(target.forget),
            "n_entities": len(target.entities),
            "folds": {name: len(members) for name, members in target.folds.items()},
            "facts": target.facts.name,
            "facts_sha256": target.facts.sha256,
            "seed": target.seed,
        },
        "models": {f"{role} {view}".strip(): sha256 for (role, view), sha256 in hashes.items()},
        "edits": [f"{type(e).__name__} at {e.site.name}" for e in views[1].edits],
        "config": json.loads(json.dumps(asdict(config))),  # as it will be read back
        "contract": [asdict(check) for check in check_contract(target)],
        "runtime_s": round(runtime_s, 1),
        "env": {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
        },
    }
