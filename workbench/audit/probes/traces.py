"""P11: whether what the original's MLPs write about a fact is still written in the weights."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.audit.statistics import Key, Scores
from workbench.audit.views import Found, Measure, View
from workbench.facts.schema import Fact, prompt
from workbench.facts.target import Target
from workbench.hooks import edited
from workbench.hooks.inputs import inputs_read
from workbench.models.copies import copied
from workbench.models.score import batches_by_length, device_of, next_logits, object_tokens

NEURONS, TOKENS = 5, 10
"""Neurons per fact, and tokens that each of them raises most."""


def traces_job(target: Target, original: View) -> dict[str, Measure]:
    """P11, one job: how far the value vectors behind each forget fact are the original's.

    The neurons whose output in the original speaks most for the object's first token, at the end of
    the first training prompt, are compared with the same neurons of the measured model: `jaccard`
    of the tokens that their value vectors raise most, `cosine` of the vectors, and `moved`, the
    length of the difference over the original's. 1, 1 and 0 where the weights were not touched.
    Models whose MLPs have no single matrix that writes to the stream give nothing.

    Source: parametric traces, 2406.11614. Differs: neurons are found by attribution, not by hand.
    """
    return {"P11 traces": lambda view: _measure(view, target, original)}


def top_neurons(
    acts: Float[Tensor, "layer fact neuron"],
    values: Float[Tensor, "layer d_model neuron"],
    towards: Float[Tensor, "fact d_model"],
    count: int = NEURONS,
) -> Int[Tensor, "fact count"]:
    """Neurons, counted through all layers, whose output adds most to a direction, per fact.

    Args:
        acts: how active each neuron is; `values` what it then writes.
        towards: the unembedding of each fact's object.
    """
    written = torch.einsum("ldn,fd->lfn", values, towards) * acts
    flat = written.transpose(0, 1).flatten(1)
    return flat.topk(min(count, flat.shape[1]), dim=1).indices


def jaccard(
    a: Float[Tensor, "neuron vocab"], b: Float[Tensor, "neuron vocab"], count: int = TOKENS
) -> Float[Tensor, " neuron"]:
    """Overlap of the tokens that two sets of value vectors raise most: shared over all."""
    count = min(count, a.shape[1])
    marks = [
        torch.zeros_like(x, dtype=torch.bool).scatter(1, x.topk(count, dim=1).indices, True)
        for x in (a, b)
    ]
    return (marks[0] & marks[1]).sum(1) / (marks[0] | marks[1]).sum(1)


@torch.no_grad()
def _measure(view: View, target: Target, original: View) -> Found:
    model = copied(original.model)
    before, after = _values(model), _values(view.model)
    facts = [f for f in target.forget if f.templates]
    if before is None or after is None or before.shape != after.shape or not facts:
        return {}
    unembed = model.unembed.original_component.weight.detach().float().cpu()
    heads = torch.tensor([t[0] for t in object_tokens(model.tokenizer, [f.object for f in facts])])
    acts = _acts(replace(original, model=model), facts)
    chosen = top_neurons(acts, before, unembed[heads])
    layer, neuron = chosen // before.shape[2], chosen % before.shape[2]
    old, new = (v[layer, :, neuron].flatten(0, 1) for v in (before, after))
    found = {
        "jaccard": jaccard(old @ unembed.T, new @ unembed.T),
        "cosine": torch.nn.functional.cosine_similarity(old, new, dim=1),
        "moved": (new - old).norm(dim=1) / old.norm(dim=1).clamp_min(1e-9),
    }
    subjects, relations = tuple(f.subject for f in facts), tuple(f.relation for f in facts)
    return {
        Key("P11", "F", metric): Scores(
            each.view(len(facts), -1).mean(1).double().numpy(), subjects, relations
        )
        for metric, each in found.items()
    }


def _writers(model: Any) -> list[Any]:
    """The last linear map of each block's MLP; none where a block has no such single one."""
    found = []
    for block in getattr(model, "blocks", ()):
        out = getattr(getattr(block, "mlp", None), "out", None)
        found.append(getattr(out, "original_component", None))
    whole = all(isinstance(getattr(w, "weight", None), Tensor) for w in found)
    return found if whole else []


def _values(model: Any) -> Float[Tensor, "layer d_model neuron"] | None:
    """What each neuron writes to the stream; None where there is no such matrix."""
    writers = _writers(model)
    if not writers or not hasattr(model, "unembed"):
        return None
    weights = [w.weight.T if type(w).__name__ == "Conv1D" else w.weight for w in writers]
    return torch.stack([w.detach().float().cpu() for w in weights])


def _acts(view: View, facts: Sequence[Fact]) -> Float[Tensor, "layer fact neuron"]:
    """How active each neuron is at the end of each fact's first training prompt."""
    model, read = view.model, {}
    names = {id(p): name for name, p in model.named_parameters()}
    wanted = [names[id(w.weight)] for w in _writers(model)]
    rows = model.tokenizer([prompt(f, f.templates[0]) for f in facts])["input_ids"]
    parts: list[Any] = [None] * len(facts)
    with edited(model, view.edits), inputs_read(model, read.__setitem__):
        for batch in batches_by_length(rows):
            next_logits(model, torch.tensor([rows[i] for i in batch], device=device_of(model)))
            last = torch.stack([read[name][:, -1].float().cpu() for name in wanted])
            for i, row in zip(batch, last.unbind(1), strict=True):
                parts[i] = row
    return torch.stack(parts, dim=1)
