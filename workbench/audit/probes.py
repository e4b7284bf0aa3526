"""P1, the transfer probe: is the answer decodable by a reader that was fitted on other entities?"""

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.audit.statistics import Key, Scores
from workbench.facts.schema import Fact, FactSet
from workbench.facts.target import Target
from workbench.hooks import Intervention, Site, edited, residuals
from workbench.models.score import Templates, ask, batches_by_length, device_of, last_subject_token

POSITIONS = ("subject", "last")
RIDGE = (1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class _Examples:
    """One row per fact: the residual stream averaged over its templates."""

    rows: dict[tuple[int, str], Float[Tensor, "fact d_model"]]
    label: Int[Tensor, " fact"]
    allowed: Bool[Tensor, "fact object"]


def transfer_probe(model: Any, edits: Sequence[Intervention], target: Target) -> dict[Key, Scores]:
    """Fits a multinomial probe at every layer and position on R_tr and scores it on other facts.

    Labels come from retained entities alone, so a hit on a forget fact means that the model encodes
    it as it encodes what it kept. The ridge penalty is chosen per place on R_va. Training
    templates for fitting, audit-only ones for scoring. Source: audit battery P1; entity-level
    readability after Allen-Zhu & Li 2023, arXiv 2309.14316.

    Returns:
        Hits on S, V and R_te for every position (`detail`) and number of blocks below (`x`; 0 reads
        the embeddings).
    """
    objects = sorted(
        {
            (f.relation, c)
            for f in target.forget
            for c in target.facts.relation[f.relation].candidates
        }
    )
    facts = {
        "R_va": target.retain["R_va"],
        "R_te": target.retain["R_te"],
        "S": target.fold("S"),
        "V": target.fold("V"),
    }
    train = _examples(model, edits, target.retain["R_tr"], "train", objects, target.facts)
    held_out = {
        n: _examples(model, edits, f, "audit", objects, target.facts) for n, f in facts.items()
    }
    found = {}
    for (layer, position), rows in train.rows.items():
        mean, std = rows.mean(0), rows.std(0).clamp_min(1e-6)
        scaled = {n: (e.rows[layer, position] - mean) / std for n, e in held_out.items()}
        fits = [
            fit_probe((rows - mean) / std, train.label, train.allowed, ridge) for ridge in RIDGE
        ]
        weights = max(fits, key=lambda w: _hits(scaled["R_va"], w, held_out["R_va"]).mean())
        for name in ("S", "V", "R_te"):
            hits = _hits(scaled[name], weights, held_out[name])
            found[Key("probe", name, position, layer)] = Scores(
                hits, tuple(f.subject for f in facts[name])
            )
    return found


def best_place(scores: dict[Key, Scores], original: dict[Key, Scores]) -> Key:
    """The place with the most hits on the S fold, as the V fold's key.

    Only places count at which the original can be read at least half as well as at its best: where
    a probe finds nothing in a model that knows, finding nothing in another says nothing. What is
    scored on V has no say.
    """
    places = [key for key in scores if key[:2] == ("probe", "S")]
    readable = max(original[key].mean for key in places) / 2
    best = max(
        (key for key in places if original[key].mean >= readable), key=lambda key: scores[key].mean
    )
    return best._replace(subset="V")


def fit_probe(
    x: Float[Tensor, "fact d_model"],
    label: Int[Tensor, " fact"],
    allowed: Bool[Tensor, "fact object"],
    ridge: float,
    steps: int = 100,
) -> Float[Tensor, "d_model1 object"]:
    """Multinomial logistic regression by L-BFGS.

    Each row's softmax is over the objects of its own relation.

    Args:
        ridge: penalty ridge/2 · ||W||² on the mean loss; the intercept (last row) is free.
    """
    weights = torch.zeros(x.shape[1] + 1, allowed.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        fit = torch.nn.functional.cross_entropy(_logits(x, weights, allowed), label)
        value = fit + ridge / 2 * weights[:-1].square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weights.detach()


def permuted(model: Any, seed: int = 0) -> Any:
    """A copy of the model, shuffled within each parameter: the same numbers, no knowledge."""
    shuffled, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in shuffled.parameters():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return shuffled


def _hits(
    x: Float[Tensor, "fact d_model"], weights: Float[Tensor, "d_model1 object"], examples: _Examples
) -> np.ndarray:
    return (
        (_logits(x, weights, examples.allowed).argmax(-1) == examples.label).numpy().astype(float)
    )


def _logits(
    x: Float[Tensor, "fact d_model"],
    weights: Float[Tensor, "d_model1 object"],
    allowed: Bool[Tensor, "fact object"],
) -> Float[Tensor, "fact object"]:
    return (x @ weights[:-1] + weights[-1]).masked_fill(~allowed, -1e9)


def _examples(
    model: Any,
    edits: Sequence[Intervention],
    facts: Sequence[Fact],
    templates: Templates,
    objects: list[tuple[str, str]],
    fact_set: FactSet,
) -> _Examples:
    index = {key: i for i, key in enumerate(objects)}
    allowed = torch.zeros(len(facts), len(objects), dtype=torch.bool)
    for row, fact in enumerate(facts):
        allowed[
            row, [index[fact.relation, c] for c in fact_set.relation[fact.relation].candidates]
        ] = True
    label = torch.tensor([index[f.relation, f.object] for f in facts])
    return _Examples(_mean_rows(model, edits, facts, templates), label, allowed)


@torch.no_grad()
def _mean_rows(
    model: Any, edits: Sequence[Intervention], facts: Sequence[Fact], templates: Templates
) -> dict[tuple[int, str], Float[Tensor, "fact d_model"]]:
    """Residual stream at both positions and every depth, averaged over each fact's templates."""
    sites = [Site(0, "resid_pre"), *(Site(layer) for layer in range(model.cfg.n_layers))]
    questions = ask(facts, templates)
    row_of = {fact.key: i for i, fact in enumerate(facts)}
    owner = torch.tensor([row_of[q.fact.key] for q in questions])
    tokens = model.tokenizer([q.prompt for q in questions])["input_ids"]
    subject = torch.tensor([last_subject_token(model.tokenizer, q) for q in questions])
    sums = {
        (layer, p): torch.zeros(len(facts), model.cfg.d_model)
        for layer in range(len(sites))
        for p in POSITIONS
    }
    device = device_of(model)
    with ExitStack() as stack:
        stack.enter_context(edited(model, edits))
        for batch in batches_by_length(tokens):
            found = residuals(model, torch.tensor([tokens[i] for i in batch], device=device), sites)
            rows = torch.arange(len(batch))
            for layer, site in enumerate(sites):
                resid = found[site].float().cpu()
                sums[layer, "subject"].index_add_(0, owner[batch], resid[rows, subject[batch]])
                sums[layer, "last"].index_add_(0, owner[batch], resid[:, -1])
    counts = torch.bincount(owner, minlength=len(facts))[:, None]
    return {place: total / counts for place, total in sums.items()}
