"""W8: is the target hidden by a single direction of the residual stream?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.audit.attacks.altered import under
from workbench.audit.attacks.config import AttackConfig
from workbench.audit.attacks.fitting import Added, Fit, fitted
from workbench.audit.attacks.prune import prompts_of
from workbench.audit.attacks.relearn import turns
from workbench.audit.attacks.training import score
from workbench.audit.rotation import Folds, facts_of
from workbench.audit.statistics import Key
from workbench.audit.views import Found, Measure, View
from workbench.facts.target import Target
from workbench.hooks import Intervention, Site, captured, edited
from workbench.hooks.places import blocks_of
from workbench.models.score import ask, batches_by_length, device_of

STEPS, LR = 50, 0.05


def direction_jobs(target: Target, config: AttackConfig, seed: int = 0) -> dict[str, Measure]:
    """W8, one job per fold: a direction is taken away, and a vector is added; V and S are scored.

    `project out`: the difference between the mean streams of T's prompts and of retained ones, at
    their last tokens, within the attacked model, is taken out of every block's output; no label
    enters. `un-steer layer l`: one vector, the same at all positions of all texts, is added after
    block l and fitted on T's answers; its greatest length is the dose, in mean lengths of the
    stream there. One vector cannot hold the facts that it is scored on, so what comes back was
    hidden.

    Source: Łucki et al. 2024, 2409.18025, after Arditi et al. 2024, 2406.11717. Differs: (b), a
    fitted vector, is this project's; steps are counted in the stream's own root mean square.
    """
    retained = prompts_of(target.retain["R_tr"], f"{seed}, retained")
    return {
        f"W8 fold {fold}": partial(
            redirect,
            target=target,
            turn=turn,
            retained=retained,
            config=config,
            order=f"{seed}, fold {fold}",
            fold=fold,
        )
        for fold, turn in turns(target, config)
    }


def behind_jobs(
    target: Target, config: AttackConfig, edits: Sequence[Intervention], model: Any, seed: int = 0
) -> dict[str, Measure]:
    """W8's vector at the layer of the last of these edits, one job per fold, for any view.

    What a hook changes is met behind it. Behind the last block a vector would move all answers
    alike, which centring undoes: a hook there is met one block before. None where there is no edit,
    or where `direction_jobs` adds a vector there anyway. Models without hooks are given the vector
    at the same layer.
    """
    last = max(0, len(blocks_of(model)) - 2)
    layer = min(last, max((edit.site.layer for edit in edits), default=0))
    doses, tried = config.perturbing, spread(model, config.perturbing.layers)
    if not edits or "W8" not in config.names or not doses.norms or layer in tried:
        return {}
    return {
        f"W8 behind layer {layer} fold {fold}": partial(
            redirect,
            target=target,
            turn=turn,
            retained=(),
            config=config,
            order=f"{seed}, fold {fold}",
            fold=fold,
            layers=(layer,),
        )
        for fold, turn in turns(target, config)
    }


def redirect(
    view: View,
    target: Target,
    turn: Folds,
    retained: Sequence[str],
    config: AttackConfig,
    order: str,
    fold: int,
    layers: tuple[int, ...] | None = None,
) -> Found:
    """Centred hits on V, S and R_te before and after each way of changing the stream.

    Args:
        retained: prompts that `project out` needs; without any it is left out.
        layers: to add a vector after; default an even spread.
    """
    asked = {name: facts_of(target, turn[name]) for name in ("V", "S")}
    asked["R_te"] = target.retain["R_te"]
    stated = facts_of(target, turn["T"])
    prompts = prompts_of(stated, order)
    label = Key("W8", "", "centred", "project out", fold)
    before, found = score(view, target.facts, asked, label), Found()

    def add(edits: Sequence[Intervention], at: Key) -> None:
        pushed = replace(view, edits=(*view.edits, *edits))
        found.update(under(before, at) | score(pushed, target.facts, asked, at))

    if retained:
        add(projections(view, prompts, retained), label._replace(x=1.0))
    norms = config.perturbing.norms
    layers = spread(view.model, config.perturbing.layers) if layers is None else layers
    for layer in layers if norms else ():
        site = Site(layer)
        scale = rms(view, prompts, site)
        vectors = unsteering(view, ask(stated, "train"), site, scale, norms, order)
        for norm, vector in zip(norms, vectors, strict=True):
            at = label._replace(setting=f"un-steer layer {layer}", x=norm)
            add([Added(vector[None], site, scale)], at)
    return found


@dataclass(frozen=True)
class Without:
    """Takes the part of the stream along a unit vector out of it."""

    direction: Float[Tensor, " d_model"]
    site: Site

    def __call__(self, resid: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        unit = self.direction.to(resid.dtype)
        return resid - (resid @ unit)[..., None] * unit


def projections(view: View, prompts: Sequence[str], others: Sequence[str]) -> list[Without]:
    """For every block's output, the projection that takes out the difference of the two means."""
    sites = [Site(layer) for layer in range(len(blocks_of(view.model)))]
    means = [read(view, some, sites, lambda h: h[:, -1].float()) for some in (prompts, others)]
    return [Without(unit(means[0][s].mean(0) - means[1][s].mean(0)), s) for s in sites]


def unit(vector: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
    """The vector at length 1; zeros stay zeros."""
    return vector / vector.norm().clamp_min(1e-12)


def unsteering(
    view: View,
    questions: Sequence,
    site: Site,
    scale: float,
    norms: Sequence[float],
    order: str,
) -> Float[Tensor, "norm n d_model"]:
    """One vector per norm, in units of `scale`, at which T's answers are likeliest."""
    width = view.model.cfg.d_model
    start = torch.zeros(len(norms), 1, width)
    bounds = tuple(norm * width**0.5 for norm in norms)

    def attach(vectors: Tensor) -> list[Intervention]:
        return [*view.edits, Added(vectors, site, scale)]

    fit = Fit(STEPS, LR, order, bounds=bounds)
    return fitted(view, [questions] * len(norms), start, attach, fit)


def spread(model: Any, count: int) -> tuple[int, ...]:
    """Layers to add a vector after, evenly spread, the same for every view of a model.

    They begin in the first quarter: what comes late in a model can hardly undo what was done to it
    early.

    Args:
        count: 0 is every layer but the last, after which nothing is computed any more.
    """
    n = len(blocks_of(model))
    count = min(count, n) or max(1, n - 1)
    if count == n - 1:
        return tuple(range(count))
    return tuple((k * n + (n - 1) // 4) // count for k in range(count))


@torch.no_grad()
def read(
    view: View,
    prompts: Sequence[str],
    sites: Sequence[Site],
    pick: Callable[[Tensor], Tensor],
) -> dict[Site, Tensor]:
    """What `pick` takes from the stream at each site, batch by batch, with the edits attached."""
    model, parts = view.model, {site: [] for site in sites}
    rows = model.tokenizer(list(prompts))["input_ids"]
    with edited(model, view.edits), captured(model, sites) as found:
        for batch in batches_by_length(rows):
            model(torch.tensor([rows[i] for i in batch], device=device_of(model)))
            for site in sites:
                parts[site].append(pick(found[site]))
    return {site: torch.cat(some) for site, some in parts.items()}


def rms(view: View, prompts: Sequence[str], site: Site) -> float:
    """Mean length of the stream over the root of its width; the first token, often long, left out.

    So a vector whose entries are 1 is as long as the stream on average.
    """
    lengths = read(view, prompts, [site], lambda h: h[:, 1:].float().norm(dim=-1).flatten())
    return float(lengths[site].mean()) / view.model.cfg.d_model**0.5
