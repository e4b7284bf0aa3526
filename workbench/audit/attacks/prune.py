"""W6: does cutting weights away bring the target back?"""

import random
from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.audit.attacks.altered import (
    Change,
    altered,
    matrices,
    score_whole,
    unchanged,
)
from workbench.audit.attacks.config import AttackConfig
from workbench.audit.attacks.relearn import turns
from workbench.audit.attacks.training import score
from workbench.audit.rotation import Folds, facts_of
from workbench.audit.statistics import Key
from workbench.audit.views import Found, Measure, View
from workbench.errors import AuditError
from workbench.facts.schema import Fact
from workbench.facts.target import Target
from workbench.hooks import edited
from workbench.hooks.inputs import inputs_read
from workbench.models.score import ask, batches_by_length, device_of

PROMPTS = 128
Norms = dict[str, Float[Tensor, " column"]]
"""Length of each input of a linear layer over all tokens, by the name of its weight."""


def prune_jobs(target: Target, config: AttackConfig, seed: int = 0) -> dict[str, Measure]:
    """W6: one job that prunes by size and by Wanda, and one per fold that prunes by difference.

    The difference drops what matters for the prompts of T and not for retained ones, where a
    mechanism that only hides T's facts may sit. Prompts end before the object: no label is seen.
    Without retained facts, weights are pruned by size alone. The dose is the sparsity; of the
    difference, the share of each row that counts as mattering.

    Source: Wanda, Sun et al. 2023, 2306.11695; set difference, Wei et al. 2024, 2402.05162, and
    Łucki et al. 2024, 2409.18025. Differs: biases, embeddings and the unembedding stay; 128 prompts
    of the world's own.
    """
    doses = config.perturbing.sparsities
    if not doses:
        return {}
    retained = prompts_of(target.retain["R_tr"], f"{seed}, retained")
    whole = partial(prune, target=target, doses=doses, retained=retained)
    folds = {
        f"W6 fold {fold}": partial(
            prune_difference,
            target=target,
            turn=turn,
            doses=doses,
            prompts=(prompts_of(facts_of(target, turn["T"]), f"{seed}, fold {fold}"), retained),
            label=Key("W6", "", "centred", "set difference", fold),
        )
        for fold, turn in turns(target, config)
        if retained
    }
    return {"W6": whole, **folds}


def prompts_of(facts: Sequence[Fact], order: str, count: int = PROMPTS) -> tuple[str, ...]:
    """At most `count` of the facts' training prompts, which end before the object."""
    prompts = [question.prompt for question in ask(facts, "train")]
    return tuple(random.Random(order).sample(prompts, min(count, len(prompts))))


def prune(view: View, target: Target, doses: Sequence[float], retained: Sequence[str]) -> Found:
    """Centred hits on F and R_te before and after pruning by size and by Wanda."""
    transposed, before = matrices(view.model), unchanged(view, target, "W6")
    label, found = Key("W6", "", "centred", "magnitude"), Found()
    by_size = {dose: _by_size(transposed, dose) for dose in doses}
    found |= score_whole(view, target, by_size, label, before)
    if retained:
        norms = input_norms(view, retained)
        wanda = {dose: _by_wanda(transposed, norms, dose) for dose in doses}
        label = label._replace(setting="wanda")
        found |= score_whole(view, target, wanda, label, before)
    return found


def prune_difference(
    view: View,
    target: Target,
    turn: Folds,
    doses: Sequence[float],
    prompts: tuple[Sequence[str], Sequence[str]],
    label: Key,
) -> Found:
    """Centred hits on V, S and R_te before and after dropping what matters for T's prompts alone.

    Args:
        prompts: of T, and retained ones.
    """
    scored = {name: facts_of(target, turn[name]) for name in ("V", "S")}
    asked = {**scored, "R_te": target.retain["R_te"]}
    theirs, others = (input_norms(view, some) for some in prompts)
    transposed = matrices(view.model)
    changes = {dose: _by_difference(transposed, theirs, others, dose) for dose in doses}
    found = score(view, target.facts, asked, label)
    for dose, attacked in altered(view, changes):
        found |= score(attacked, target.facts, asked, label._replace(x=dose))
    return found


def pruned(
    weight: Float[Tensor, "row column"], importance: Float[Tensor, "row column"], share: float
) -> Float[Tensor, "row column"]:
    """The weights with the least important share of each row set to zero, ties by position.

    Args:
        share: of each row, rounded to whole weights.
    """
    count = round(share * weight.shape[1])
    least = importance.argsort(dim=1, stable=True)[:, :count]
    return weight.scatter(1, least, 0.0)


def wanda(
    weight: Float[Tensor, "row column"], norms: Float[Tensor, " column"]
) -> Float[Tensor, "row column"]:
    """Importance of each weight, |W_ij| times the length of input j. Source: Sun et al. 2023."""
    return weight.float().abs() * norms.to(weight.device)


def difference(
    ours: Float[Tensor, "row column"], theirs: Float[Tensor, "row column"], share: float
) -> Bool[Tensor, "row column"]:
    """True where a weight is among the most important share of its row for us and not for them.

    Source: Wei et al. 2024, 2402.05162, with p = q.
    """
    count = round(share * ours.shape[1])
    marks = []
    for importance in (ours, theirs):
        most = importance.argsort(dim=1, descending=True, stable=True)[:, :count]
        marks.append(torch.zeros_like(importance, dtype=torch.bool).scatter(1, most, True))
    return marks[0] & ~marks[1]


@torch.no_grad()
def input_norms(view: View, prompts: Sequence[str]) -> Norms:
    """Length of each linear layer's inputs over all tokens of the prompts, with the edits attached.

    Raises:
        AuditError: the blocks have no linear layer.
    """
    squares: Norms = {}

    def add(name: str, given: Tensor) -> None:
        found = given.detach().float().flatten(0, -2).square().sum(0)
        squares[name] = squares[name] + found if name in squares else found

    rows = view.model.tokenizer(list(prompts))["input_ids"]
    with edited(view.model, view.edits), inputs_read(view.model, add):
        for batch in batches_by_length(rows):
            view.model(torch.tensor([rows[i] for i in batch], device=device_of(view.model)))
    if not squares:
        raise AuditError(
            f"{type(view.model).__name__} has no linear layer in its blocks whose inputs could be "
            "read, as pruning wants: open it with load_model, which gives a TransformerBridge"
        )
    return {name: total.sqrt() for name, total in squares.items()}


def _by_size(transposed: dict[str, bool], share: float) -> Change:
    """Least of each whole matrix."""

    def change(name: str, weight: Tensor) -> Tensor:
        if name not in transposed:
            return weight
        flat = weight.reshape(1, -1)
        return pruned(flat, flat.float().abs(), share).view_as(weight)

    return change


def _by_wanda(transposed: dict[str, bool], norms: Norms, share: float) -> Change:
    return _of_linear(transposed, norms, lambda w, name: pruned(w, wanda(w, norms[name]), share))


def _by_difference(
    transposed: dict[str, bool], theirs: Norms, others: Norms, share: float
) -> Change:
    def drop(weight: Tensor, name: str) -> Tensor:
        marked = difference(wanda(weight, theirs[name]), wanda(weight, others[name]), share)
        return weight.masked_fill(marked, 0.0)

    return _of_linear(transposed, theirs, drop)


def _of_linear(
    transposed: dict[str, bool], norms: Norms, prune: Callable[[Tensor, str], Tensor]
) -> Change:
    """The change of those matrices whose inputs were read, each with its outputs as rows."""

    def change(name: str, weight: Tensor) -> Tensor:
        if name not in norms:
            return weight
        return prune(weight.mT, name).mT if transposed[name] else prune(weight, name)

    return change
