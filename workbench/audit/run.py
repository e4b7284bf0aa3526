"""The audit: the same questions and attacks on the original, the edited model and the golds."""

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from workbench.audit.admit import (
    gold_recipe,
    require_apart,
    require_edits,
    require_model,
    require_target,
    require_unseen,
)
from workbench.audit.attacks import attacks
from workbench.audit.attacks.direction import behind_jobs
from workbench.audit.attacks.quantise import require_bnb, rounded_alike
from workbench.audit.concepts import (
    HigherOrder,
    concept_info,
    concept_job,
    require_held_out,
    require_words,
)
from workbench.audit.derivation import derivation
from workbench.audit.dual_use import mass_job
from workbench.audit.hook_bypass import bypass_jobs
from workbench.audit.hook_checks import hook_checks, weight_delta
from workbench.audit.hook_error import error_job, places
from workbench.audit.jobs import Jobs, Keys, repeated
from workbench.audit.judge import judge
from workbench.audit.lira import SHADOW_ROLES
from workbench.audit.plan import (
    FAMILIES_OF,
    PROBES_OF,
    AuditConfig,
    make_plan,
    measuring_plan_sha256,
    plan_sha256,
    target_sha256,
)
from workbench.audit.privacy import membership
from workbench.audit.probes import permuted, probes, random_init
from workbench.audit.probes.amnesic import amnesic_job
from workbench.audit.probes.depth import depth_job, drift_job
from workbench.audit.probes.restore import restore_jobs
from workbench.audit.probes.traces import traces_job
from workbench.audit.questions import questions
from workbench.audit.questions.damage import fluency, shifted_answers
from workbench.audit.rotation import facts_of, rotations
from workbench.audit.schema import (
    AuditReport,
    Card,
    DataInfo,
    DualUse,
    EditedInfo,
    Integrity,
    LeakCheck,
    ModelInfo,
    ModelsInfo,
    TargetInfo,
    WeightDelta,
)
from workbench.audit.store import battery_sha256, cache_folder, value_sha256
from workbench.audit.views import Filter, Measure, System, View
from workbench.errors import AuditError
from workbench.facts.contract import check_contract, priors
from workbench.facts.target import Target
from workbench.hooks import Intervention, Site
from workbench.models.copies import copied
from workbench.models.load import model_name, weights_sha256
from workbench.models.prompted import Prompted, SystemPrompt
from workbench.models.score import device_of

Say = Callable[[str], None]
Shadows = tuple[Sequence[Any], Sequence[Any]]
REPEATED = "B2 paraphrase"
"""The job that is done twice to see that it gives the same bytes."""


def audit(
    model: Any,
    edit: Any,
    target: Target,
    golds: Sequence[Any] = (),
    config: AuditConfig | None = None,
    say: Say = lambda line: None,
    *,
    filter: Filter | None = None,
    controls: Sequence[Sequence[Intervention]] = (),
    plan_hash: str | None = None,
    prevents: str = "",
    baked: Any = None,
    shadows: Shadows = ((), ()),
    concept: HigherOrder | None = None,
    cache: Path | str | None = None,
) -> AuditReport:
    """Measures what is left of the target and decides.

    REMOVED, SUPPRESSED, DEGRADED, NOT_REMOVED or INCONCLUSIVE; the report says why and what is
    missing. Everything that could be chosen is fixed and hashed before the edited model is looked
    at. The same call gives the same bytes on a CPU. Finished jobs are kept, by hash of weights and
    plan: an interrupted audit goes on where it was, and a second one pays for the edited model
    alone.

    Args:
        model: the original.
        edit: what was done to it: an intervention, several, none (an empty list), a model with
            changed weights, a list with such a model and interventions on it, or what a method of
            `workbench.unlearn` returned.
        golds: models that never knew the target. Without them nothing can be REMOVED.
        say: called with a line for each phase.
        filter: refuses text in the deployed system: asked of prompts, and of prompt and answer.
        controls: edits of random features matched to `edit`, to tell its effect from theirs.
        plan_hash: hash of the plan, if it was written down before (`make_plan`).
        prevents: what the edit is to prevent, for whom.
        baked: the edits folded into weights, if there is such a model: it must say what they say.
        shadows: with profile full, models that knew the target and were edited the same way, and
            models that never knew: the per-fact membership attack learns from them. Eight or more
            of each, none of which is `edit` or one of `golds`.
        concept: a higher-order concept, whose expression is measured beside the target.
        cache: folder of finished jobs; default `WORKBENCH_CACHE` or the user's cache folder.

    Raises:
        AuditError: models, golds, edits or target do not fit; it says what differs.
        SiteError: an edit for a site that the model does not have.
    """
    config = config or AuditConfig()
    require_target(target)
    if concept is not None:
        require_held_out(concept, target.facts)
        require_words(concept, model.tokenizer)
    if config.bnb:
        require_bnb(device_of(model))
    plan = make_plan(target, config, concept)
    if plan_hash is not None and plan_hash != plan_sha256(plan):
        raise AuditError(
            f"the plan was hashed as {plan_hash[:12]} and now is {plan_sha256(plan)[:12]}: target, "
            "settings or battery have changed since; write it down anew before opening the edit"
        )
    prompt = SystemPrompt()
    if isinstance(edit, System):
        filter, prompt = filter or edit.refuses, edit.prompt
        model = model if edit.original is None else edit.original
        golds = [gold for gold in golds if weights_sha256(gold) != edit.stands_on]
        edit = [edit.model, *edit.edits]
    changed, edits = _parted(model, edit)
    if baked is not None:
        require_model("the baked model", baked, model)
    views, recipes = _admitted(model, changed, edits, target, golds, filter, prompt)
    hashes = {(v.role, v.view): weights_sha256(v.model) for v in views}
    views = _apart(views, hashes)
    views += [
        View("random", "", random_init(model, config.seed)),
        View("permuted", "", permuted(model, config.seed)),
    ]
    views += _shadow_views(model, shadows, config)
    hashes |= {
        (v.role, v.view): weights_sha256(v.model) for v in views if (v.role, v.view) not in hashes
    }
    require_unseen(views, hashes)
    folder = Path(cache) if cache is not None else cache_folder()
    saes = tuple((edit.site, sae) for _, edit, sae in places(edits))
    beside = _Beside(controls, baked, saes, concept)
    keys = Keys(measuring_plan_sha256(plan), hashes, beside.hashes, folder)
    jobs = Jobs(keys, config.workers, say)
    # Read through hooks by one thread while others copy the original, which would copy the hooks.
    original = views[0] if config.workers == 1 else replace(views[0], model=copied(model))
    for view in views:
        jobs.add(view, _jobs_of(view, original, target, config, beside, edits))
    measured = jobs.run()
    say("judge")
    card = _card(views, recipes, hashes, target, config, plan, prevents)
    card = replace(card, concept=concept_info(concept) if concept is not None else None)
    integrity = Integrity(
        jobs.untouched,
        repeated(jobs, views[1], REPEATED, measured),
        plan_sha256(make_plan(target, config, concept)) == plan_sha256(plan),
    )
    report = judge(replace(card, integrity=integrity), measured)
    return replace(report, plan=plan, scores=measured, costs=tuple(jobs.costs()))


def _shadow_views(model: Any, shadows: Shadows, config: AuditConfig) -> list[View]:
    """Models that the per-fact membership attack learns from, unlearned ones first."""
    if any(shadows) and config.profile != "full":
        raise AuditError(f"shadow models with profile {config.profile!r}: wanted full")
    views = []
    for role, models in zip(SHADOW_ROLES, shadows, strict=True):
        for i, shadow in enumerate(models):
            require_model(f"shadow {role} {i}", shadow, model)
            views.append(View(f"{role}-{i}", "", shadow))
    return views


@dataclass(frozen=True)
class _Beside:
    """What some jobs read beside the models: random edits, the edits in weights, SAEs of edits."""

    controls: Sequence[Sequence[Intervention]]
    baked: Any
    saes: tuple[tuple[Site, Any], ...]
    concept: HigherOrder | None

    @property
    def hashes(self) -> dict[str, str | None]:
        """By the job that reads it; None where it has no stable content."""
        return {
            "H7": value_sha256([list(c) for c in self.controls]),
            "H8": weights_sha256(self.baked) if self.baked is not None else "",
            "concept": value_sha256(self.concept),
            "P13": value_sha256([[site, sae] for site, sae in self.saes]),
        }


def _parted(model: Any, edit: Any) -> tuple[Any, tuple[Intervention, ...]]:
    """The model under the hooks, and the hooks."""
    parts = list(edit) if isinstance(edit, Sequence) else [edit]
    models = [part for part in parts if hasattr(part, "state_dict")]
    edits = tuple(part for part in parts if not hasattr(part, "state_dict"))
    strange = [type(e).__name__ for e in edits if not isinstance(e, Intervention)]
    if len(models) > 1 or strange:
        raise AuditError(
            f"edit: {len(models)} models and {strange or 'no'} strange things were given; wanted "
            "at most one changed model, and interventions"
        )
    return (models[0] if models else model), edits


def _admitted(
    model: Any,
    changed: Any,
    edits: tuple[Intervention, ...],
    target: Target,
    golds: Sequence[Any],
    filter: Filter | None,
    prompt: SystemPrompt,
) -> tuple[list[View], list[str]]:
    """The views of the audit, all of which fit, and what is known of how golds were made."""
    require_model("the original", model, model)
    require_model("the edited model", changed, model)
    recipes = []
    for i, gold in enumerate(golds):
        require_model(f"gold {i}", gold, model)
        recipes.append(gold_recipe(f"gold {i}", gold, target))
    require_edits(edits, changed)
    views = [View("original", "", model), View("edited", "deployed", changed, edits)]
    if edits:
        views.append(View("edited", "weights", changed))
    if filter is not None or not prompt.empty:
        system = changed if prompt.empty else Prompted(changed, prompt)
        views.append(View("edited", "text", system, edits, filter))
    return [*views, *(View(f"gold-{i}", "", gold) for i, gold in enumerate(golds))], recipes


def _apart(views: list[View], hashes: dict[tuple[str, str], str]) -> list[View]:
    """Without a gold that is the edited model itself, which would be compared with itself."""
    require_apart(views, hashes)
    edited = hashes["edited", "deployed"]
    return [
        v for v in views if not (v.role.startswith("gold-") and hashes[v.role, v.view] == edited)
    ]


def _jobs_of(
    view: View,
    original: View,
    target: Target,
    config: AuditConfig,
    beside: "_Beside",
    edits: Sequence[Intervention],
) -> dict[str, Measure]:
    """Everything that is measured on a view; models without knowledge are only probed."""
    leaks = {f"membership seed {config.seed}": membership(target, config.seed)}
    if view.role.partition("-")[0] in SHADOW_ROLES:
        return leaks
    # Probes are fitted on other entities: without any, M3 is missing, and the report says so.
    kinds = PROBES_OF[config.profile] if all(target.retain.values()) else ()
    if view.role in ("random", "permuted"):
        return probes(target, ("P1",), config.seed) if kinds else {}
    asked = questions(target, FAMILIES_OF[config.profile], config.seed)
    if config.profile != "quick":
        asked |= {"fluency": fluency(target, config.seed)}
    if beside.concept is not None:
        asked |= concept_job(beside.concept)
    if isinstance(view.model, Prompted):  # whose stream nobody who reads text can read
        return {name: job for name, job in asked.items() if not name.startswith("B15")}
    if view.view == "text":
        return asked
    jobs = {
        **asked,
        **(probes(target, kinds, config.seed, original=original) if kinds else {}),
        **attacks(target, config.attacks, config.seed),
        **behind_jobs(target, config.attacks, edits, view.model, config.seed),
    }
    if view.edits:
        jobs |= hook_checks(target, config.seed, beside.controls)
    if config.profile != "quick":
        jobs |= leaks | _telling(view, target, config.seed, beside.baked)
    if config.profile == "full":
        jobs |= {
            **amnesic_job(target, config.seed),
            **depth_job(target, original),
            **drift_job(target, original),
            **traces_job(target, original),
            **restore_jobs(target, original, beside.saes),
        }
    return jobs


def _telling(view: View, target: Target, seed: int, baked: Any) -> dict[str, Measure]:
    """What no verdict rests on: cost, leaks, derived knowledge, ways around hooks."""
    jobs = {
        "damage": shifted_answers(target, seed),
        f"derivation seed {seed}": derivation(target, seed),
    }
    if not view.edits:
        return jobs
    return {**jobs, **bypass_jobs(target, baked), **error_job(target), **mass_job(target)}


def _card(
    views: Sequence[View],
    recipes: Sequence[str],
    hashes: dict[tuple[str, str], str],
    target: Target,
    config: AuditConfig,
    plan: dict[str, Any],
    prevents: str,
) -> Card:
    original, edited = views[0], views[1]
    golds = [v for v in views if v.role.startswith("gold-")]
    identical = hashes["edited", "deployed"] == hashes["original", ""]
    filters = [v.filter for v in views if v.filter is not None]
    delta = weight_delta(original.model, edited.model)
    return Card(
        profile=config.profile,
        seed=config.seed,
        prereg_sha256=plan_sha256(plan),
        battery_sha256=battery_sha256(),
        target=_target_info(target, prevents),
        models=ModelsInfo(
            ModelInfo(hashes["original", ""], model_name(original.model), ""),
            EditedInfo(
                hashes["edited", "deployed"],
                tuple(f"{type(e).__name__} at {e.site.name}" for e in edited.edits),
                getattr(filters[0], "__name__", type(filters[0]).__name__) if filters else "",
                identical,
                WeightDelta(
                    delta.changed_tensors,
                    delta.rel_fro,
                    delta.max_rank,
                    _alike(edited.model, original.model, config),
                ),
                _prompt_of(views),
            ),
            tuple(
                ModelInfo(hashes[v.role, ""], v.role, recipes[int(v.role.removeprefix("gold-"))])
                for v in golds
            ),
            tuple(
                ModelInfo(hashes[v.role, ""], v.role, "")
                for v in views
                if v.role.partition("-")[0] in SHADOW_ROLES
            ),
        ),
        data=data_info(target),
        integrity=Integrity(0.0, 0.0, False),
        env={
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": str(next(original.model.parameters()).device),
        },
    )


def _prompt_of(views: Sequence[View]) -> str:
    """What stands before the texts of the deployed system, for people to read."""
    prompt = next((v.model.said for v in views if isinstance(v.model, Prompted)), SystemPrompt())
    about = f"what is said of {len(prompt.about)} names" if prompt.about else ""
    return " and ".join(filter(None, [prompt.text, about]))


def _alike(edited: Any, original: Any, config: AuditConfig) -> dict[str, float]:
    if "W5" not in config.attacks.names or weights_sha256(edited) == weights_sha256(original):
        return {}
    bits = config.attacks.perturbing.bits
    return {f"{n}": rounded_alike(edited, original, n) for n in bits}


def _target_info(target: Target, prevents: str) -> TargetInfo:
    relations = sorted({f.relation for f in target.forget})
    return TargetInfo(
        target.name,
        target.type,  # pyright: ignore[reportArgumentType]
        len(target.forget),
        len(target.entities),
        f"{len(target.forget)} stated facts of {', '.join(relations)}",
        target.facts.name,
        target_sha256(target),
        target.seed,
        DualUse(prevents) if prevents else None,
    )


def data_info(target: Target) -> DataInfo:
    """Folds, base rates and the checks of the data contract."""
    turns = rotations(target)
    gone = {f.key for f in (*target.forget, *target.derived)}
    others = [f for f in target.facts.facts if f.stated and f.key not in gone]
    # What follows from the target is of other relations than what was to stay beside it.
    shares = priors(others) | priors(target.retained or target.forget)
    relations = {f.relation for f in (*target.forget, *target.derived)}
    candidates = {r: len(target.facts.relation[r].candidates) for r in sorted(relations)}
    n = {name: len(facts_of(target, turns[0][name])) for name in ("T", "S", "V")}
    return DataInfo(
        folds=turns,
        n={**n, "Z": len(target.fresh), "H": len(target.holdout)},
        prior={r: max(shares[r].values()) if r in shares else 1 / k for r, k in candidates.items()},
        candidates=candidates,
        guessable_dropped=(),
        leak_checks=tuple(
            LeakCheck(c.id, bool(c.passed), _number(c.value), _number(c.limit), c.note)
            for c in check_contract(target)
        ),
    )


def _number(value: float) -> float | None:
    return None if value != value else float(value)
