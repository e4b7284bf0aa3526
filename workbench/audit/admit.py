"""What an audit refuses, before anything runs: models, golds, edits or targets that do not fit."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from workbench.audit.lira import SHADOW_ROLES
from workbench.audit.views import View
from workbench.errors import AuditError, ModelError
from workbench.facts.target import Target
from workbench.hooks.places import hook_point
from workbench.models.golds import corpus_without
from workbench.models.load import model_name, read_recipe, tokenizer_sha256
from workbench.models.train import corpus_sha256

REFERENCES = ("neu", "fork")
"""Variants of golds that others are held against."""
SHAPE = ("n_layers", "d_model", "d_vocab")


def require_target(target: Target) -> None:
    """Refuses a target without scored facts, or with facts that cannot be asked as they must be.

    Raises:
        AuditError: says what is missing.
    """
    missing = sorted({"T", "S", "V"} - set(target.folds))
    if missing or not target.fold("V"):
        raise AuditError(
            f"target {target.name!r} has no fold {', '.join(missing) or 'V with a fact in it'}: "
            "wanted entity folds T, S and V as FactSet.target makes them"
        )
    scored = (*target.forget, *(f for n in ("R_va", "R_te") for f in target.retain.get(n, ())))
    unasked = [f.key for f in scored if not f.audit_templates]
    if unasked:
        raise AuditError(
            f"target {target.name!r}: {len(unasked)} facts have no audit-only prompts, such as "
            f"{unasked[0]}; these alone are scored: give every forget and retained fact some"
        )


def require_model(name: str, model: Any, original: Any) -> None:
    """Refuses a model that is not the original's equal in shape and words, or holds NaN.

    Raises:
        AuditError: says what differs.
    """
    if not hasattr(model, "tokenizer") or not hasattr(model, "cfg"):
        raise AuditError(f"{name} is a {type(model).__name__}: wanted what load_model returns")
    for key in SHAPE:
        given, wanted = getattr(model.cfg, key), getattr(original.cfg, key)
        if given != wanted:
            raise AuditError(f"{name} has {key} {given}, the original {wanted}: wanted the same")
    if tokenizer_sha256(model.tokenizer) != tokenizer_sha256(original.tokenizer):
        raise AuditError(
            f"{name} has another vocabulary than the original: the same words would be asked by "
            "other tokens; use the original's tokenizer for every model"
        )
    broken = [n for n, t in model.state_dict().items() if not torch.isfinite(t).all()]
    if broken:
        raise AuditError(
            f"{name} has {len(broken)} tensors with NaN or infinite weights, such as {broken[0]!r}"
        )


def gold_recipe(name: str, gold: Any, target: Target) -> str:
    """How a gold was made, from the recipe beside it; empty if there is none.

    Raises:
        AuditError: the recipe says that it was trained on other texts than those without the
            target, or on false facts, or that it never saw the names.
    """
    try:
        recipe = read_recipe(gold.tokenizer.name_or_path)
    except ModelError:
        return ""
    variant = recipe.get("gold", "neu")
    if variant not in REFERENCES:
        raise AuditError(
            f"{name} ({model_name(gold)}) is of variant {variant!r}: wanted golds of "
            f"{' or '.join(REFERENCES)}, which saw the names and were told nothing false; audit "
            "this one as the edited model, to see that no attack gets the truth out of it"
        )
    wanted = corpus_sha256(corpus_without(target, variant))
    if recipe["corpus_sha256"] != wanted:
        raise AuditError(
            f"{name} ({model_name(gold)}) was trained on other facts: its texts are not those of "
            f"{target.facts.name!r} without target {target.name!r} (its recipe names target "
            f"{recipe.get('target')!r}); train golds for this target"
        )
    return f"{variant}, seed {recipe['config']['seed']}"


def require_edits(edits: Sequence[Any], model: Any) -> None:
    """Refuses edits for sites that the model does not have, or that do not take its stream.

    Raises:
        SiteError: the model has no such site.
        AuditError: an edit fails on the stream, or returns another shape or NaN.
    """
    for i, edit in enumerate(edits):
        hook_point(model, edit.site)
        device = next(model.parameters()).device
        resid = torch.randn(1, 4, model.cfg.d_model, generator=torch.Generator().manual_seed(i)).to(
            device
        )
        try:
            with torch.no_grad():
                out = edit(resid)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise AuditError(
                f"edit {i} ({type(edit).__name__} at {edit.site.name}) does not take this model's "
                f"residual stream of width {model.cfg.d_model}: {error}"
            ) from error
        if out.shape != resid.shape or not torch.isfinite(out).all():
            raise AuditError(
                f"edit {i} ({type(edit).__name__} at {edit.site.name}) returns shape "
                f"{tuple(out.shape)} for {tuple(resid.shape)}, or NaN: wanted a finite stream"
            )


def require_apart(views: Sequence[View], hashes: dict[tuple[str, str], str]) -> None:
    """Refuses golds that are the original, or the same model twice.

    Raises:
        AuditError: says which.
    """
    seen: dict[str, str] = {hashes["original", ""]: "the original"}
    for view in views:
        if view.role.startswith("gold-"):
            sha256 = hashes[view.role, view.view]
            if sha256 in seen:
                raise AuditError(
                    f"{view.role} has the very weights of {seen[sha256]}: wanted models trained "
                    "apart, with other seeds, without the target"
                )
            seen[sha256] = view.role


def require_unseen(views: Sequence[View], hashes: Mapping[tuple[str, str], str]) -> None:
    """Refuses a shadow model that is another one of the models, or given twice.

    Raises:
        AuditError: says which, or that a model edited by hooks has no shadows that are like it.
    """
    shadows = [v for v in views if v.role.partition("-")[0] in SHADOW_ROLES]
    if shadows and any(v.edits or v.filter is not None for v in views):
        raise AuditError(
            "shadow models with an edit by hooks or a filter: shadows are read as they are, and "
            "would not be edited alike; leave them out, or audit edited weights"
        )
    apart = (*SHADOW_ROLES, "random", "permuted")
    others = [v for v in views if v.role.partition("-")[0] not in apart]
    seen = {hashes[v.role, v.view]: v.role for v in others}
    for view in shadows:
        sha256 = hashes[view.role, view.view]
        if sha256 in seen:
            raise AuditError(
                f"shadow {view.role} has the weights of {seen[sha256]}: wanted models that are "
                "neither tested nor given twice"
            )
        seen[sha256] = view.role
