"""What each feature has to do with a target: scores, exact effects, and the facts it fires on."""

from collections.abc import Sequence
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.facts.schema import Fact
from workbench.facts.target import Target
from workbench.locate.concept import Concept, Prompt
from workbench.locate.effect import exact_effects
from workbench.locate.features import resampled
from workbench.locate.resample import ends, group_interval
from workbench.locate.rows import read_rows
from workbench.locate.scores import Method, measure
from workbench.models.score import ask

DRAWS = 100
"""Bootstrap draws behind the interval of a score."""
INTERVALS = 1024
"""Features of each score that get an interval: those farthest from zero."""
PROMPTS = 64
"""Prompts of each side on which exact effects are measured."""

Columns = dict[str, Float[Tensor, " d_sae"]]
"""A value for every feature, by name; nan where nothing was measured."""


def scores(model: Any, sae: Any, concept: Concept) -> Columns:
    """Every score of `locate` on the passages of the choice, with 95 % intervals over groups.

    `effect` is left out here: it stands in `effects`, from prompts that chose nothing.
    """
    found: Columns = {}
    generator = torch.Generator().manual_seed(0)
    methods: tuple[Method, ...] = get_args(Method)
    for method in methods:
        if method == "effect":
            continue
        measured = measure(model, sae, concept.select, method)
        value = measured.scores()
        best = value.abs().topk(min(INTERVALS, len(value))).indices
        low, high = ends(resampled(measured.only(best), DRAWS, generator))
        found[method] = value
        found[f"{method}_low"] = torch.full_like(value, torch.nan).scatter(0, best, low)
        found[f"{method}_high"] = torch.full_like(value, torch.nan).scatter(0, best, high)
    return found


def effects(model: Any, sae: Any, concept: Concept) -> Columns:
    """What ablating each feature alone costs the answers, in nats, with 95 % intervals.

    On prompts about the concept and on others, none of which had a part in a choice. A feature that
    fires on none of them has no effect, exactly.
    """
    found: Columns = {}
    generator = torch.Generator().manual_seed(0)
    for side in ("forget", "retain"):
        prompts = _spread(getattr(concept.report, side), PROMPTS)
        peaks = read_rows(model, sae, prompts, "peak").values.amax(0)
        fires = (peaks > 0).nonzero()[:, 0]
        value = torch.zeros(sae.cfg.d_sae)
        low, high = value.clone(), value.clone()
        if len(fires):
            each = exact_effects(model, sae, prompts, fires).each
            value[fires] = each.mean(0)
            low[fires], high[fires] = group_interval(each, prompts, generator)
        name = f"effect_{side}"
        found |= {name: value, f"{name}_low": low, f"{name}_high": high}
    return found


def asked_facts(target: Target) -> list[Fact]:
    """Forget facts of T and S. V is not asked; texts that state it are among the passages."""
    shown = [*target.fold("T"), *target.fold("S")]
    return shown or list(target.forget)


def by_fact(model: Any, sae: Any, facts: Sequence[Fact]) -> Float[Tensor, "fact d_sae"]:
    """Highest activation in each fact's training questions, mean over its wordings."""
    prompts = [
        Prompt(question.prompt, group=str(i), wording=wording)
        for i, fact in enumerate(facts)
        for wording, question in enumerate(ask([fact], "train"))
    ]
    return read_rows(model, sae, prompts, "peak").by_group()[0]


def _spread(items: Sequence[Prompt], most: int) -> list[Prompt]:
    """At most so many, evenly from the whole list."""
    step = max(1, -(-len(items) // most))
    return list(items[::step])
