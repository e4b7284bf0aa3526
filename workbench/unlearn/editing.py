"""What the methods share that edit an MLP's output matrix: keys and their second moment.

A key is what goes into the matrix at the last token of a subject, a value is what comes out. Many
forget facts are about few subjects, and all facts of a subject have one key; so an edit is made per
subject, and its value is to suit all of the subject's facts.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.errors import EditError, TargetError
from workbench.facts.schema import Fact
from workbench.facts.target import Target
from workbench.hooks import Site, residuals
from workbench.hooks.inputs import inputs_read, linear_layers
from workbench.models.copies import copied
from workbench.models.score import batches_by_length, device_of
from workbench.unlearn.streams import mlp_output
from workbench.unlearn.training import HELD_OUT, Told, kept_texts, stays, told

RIDGE = 1e-4
"""Added to a second moment before it is inverted, as a share of its mean eigenvalue."""


@dataclass(frozen=True)
class Contexts:
    """Prompts, and the number of the subject that each is about."""

    rows: tuple[Told, ...]
    subjects: tuple[int, ...]

    def alike(self, chosen: Sequence[int] | None = None) -> Iterator[list[int]]:
        """Indices of prompts of one length."""
        indices = range(len(self.rows)) if chosen is None else chosen
        for batch in batches_by_length([self.rows[i].ids for i in indices]):
            yield [indices[i] for i in batch]


def a_third(model: Any, layer: int | None) -> int:
    """The layer; where none is given, about a third up, where ROME and MEMIT edit.

    Raises:
        EditError: the model has no such layer.
    """
    count = len(model.blocks)
    if layer is not None and not 0 <= layer < count:
        raise EditError(f"layer {layer}: the model has layers 0 to {count - 1}; name one, or None")
    return round(count / 3) if layer is None else layer


def writer(model: Any, layer: int) -> Any:
    """The matrix whose output a block's MLP adds to the stream.

    Raises:
        EditError: there is no such single matrix, or a norm stands behind it.
    """
    block = model.blocks[layer]
    found = mlp_output(block)
    if found is None:
        raise EditError(
            f"the MLP of block {layer} has no single matrix that writes to the stream, such as a "
            "mixture of experts has none: wanted a model with one"
        )
    if "ln2_post" in dict(block.named_children()):
        raise EditError(
            f"block {layer} has ln2_post: a norm stands between the MLP's matrix and the stream, "
            "so what is added to its output is not what the stream gets; wanted a model without"
        )
    return found


def _turned(matrix: Any) -> bool:
    """Whether a linear map keeps its weight transposed, as GPT-2's do."""
    return type(matrix).__name__ == "Conv1D"


def weight_of(matrix: Any) -> Float[Tensor, "d_model k"]:
    """The weight as a map from keys to values, in float64."""
    weight = matrix.weight.detach().double()
    return weight.T if _turned(matrix) else weight


@torch.no_grad()
def add_to(matrix: Any, delta: Float[Tensor, "d_model k"]) -> None:
    """Adds to the weight, in place; gives up where nothing finite would come of it."""
    if not delta.isfinite().all():
        raise EditError("the edit is not finite: keys or values overflow; use weaker settings")
    found = weight_of(matrix) + delta
    matrix.weight.copy_((found.T if _turned(matrix) else found).to(matrix.weight))


def thawed(made: Any, model: Any) -> Any:
    """`made`, whose weights require gradients where those of `model` do."""
    for now, before in zip(made.parameters(), model.parameters(), strict=True):
        now.requires_grad_(before.requires_grad)
    return made


def frozen(model: Any) -> Any:
    """A copy whose weights require no gradients."""
    return copied(model).eval().requires_grad_(False)


def contexts_of(model: Any, target: Target, prefixes: int, seed: int) -> Contexts:
    """Forget facts in their training templates, and some of these after a neutral sentence.

    The first context of each subject is a bare prompt. Neutral sentences are the world's own, about
    others; a world that has none gives no prefixes.
    """
    rng = random.Random(f"{seed}, prefixes")
    barred = set(target.entities)
    others = sorted({f.subject for f in stays(target, HELD_OUT)} - barred)
    facts: list[Fact] = list(target.forget)
    if target.facts.neutral and others:
        for fact in target.forget:
            told_so = [
                f"{rng.choice(target.facts.neutral).replace('{}', rng.choice(others))} "
                f"{rng.choice(fact.templates)}"
                for _ in range(prefixes)
            ]
            facts.append(replace(fact, templates=tuple(told_so)))
    return _contexts(model, target, facts)


def _contexts(model: Any, target: Target, facts: Sequence[Fact]) -> Contexts:
    number = {name: i for i, name in enumerate(target.entities)}
    subjects = [number[f.subject] for f in facts for _ in f.templates]
    return Contexts(tuple(told(model.tokenizer, target, facts)), tuple(subjects))


def essence_of(model: Any, target: Target) -> Contexts:
    """What is kept of the subjects: their other facts in training templates, else the bare name."""
    known = [f for f in stays(target, HELD_OUT) if f.subject in set(target.entities)]
    known = [f for f in known if f.templates]
    have = {f.subject for f in known}
    first = {f.subject: f for f in reversed(target.forget)}
    bare = [replace(first[n], templates=("{}",)) for n in target.entities if n not in have]
    return _contexts(model, target, [*known, *bare])


def per_subject(contexts: Contexts, found: Float[Tensor, "n k"]) -> Float[Tensor, "m k"]:
    """Of what was found in each context, the mean of each subject."""
    number = torch.tensor(contexts.subjects, device=found.device)
    count = torch.bincount(number).to(found)[:, None]
    return found.new_zeros(len(count), found.shape[1]).index_add_(0, number, found) / count


@torch.no_grad()
def at_subjects(
    model: Any, contexts: Contexts, layer: int, last: int
) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n d_model"]]:
    """Each context's key in one layer and its stream after another, at the subject's last token.

    In float64, in the order of the contexts. What comes after the subject is not read, since it has
    no part in either, and contexts that begin alike are read once.
    """
    site, device, name = Site(last), device_of(model), weight_name(model, layer)
    begun = [tuple(row.ids[: row.subject_end + 1]) for row in contexts.rows]
    place = {ids: i for i, ids in enumerate(dict.fromkeys(begun))}
    rows = list(place)
    order: list[int] = []
    keys, streams = [], []
    seen: dict[str, Tensor] = {}
    with inputs_read(model, seen.__setitem__):
        for batch in batches_by_length(rows):
            tokens = torch.tensor([rows[i] for i in batch], device=device)
            stream = residuals(model, tokens, [site])[site]
            keys.append(seen[name][:, -1].double())
            streams.append(stream[:, -1].double())
            order += batch
    back = torch.tensor(order, device=device).argsort()
    back = back[torch.tensor([place[ids] for ids in begun], device=device)]
    return torch.cat(keys)[back], torch.cat(streams)[back]


def weight_name(model: Any, layer: int) -> str:
    """Name among the model's parameters of the weight of a block's MLP output."""
    matrix = writer(model, layer)
    return next(name for name, module in linear_layers(model).items() if module is matrix)


def ends(rows: Sequence[Told], device: Any) -> Int[Tensor, " n"]:
    """Positions of the subjects' last tokens."""
    return torch.tensor([t.subject_end for t in rows], device=device)


@torch.no_grad()
def moments(
    model: Any, target: Target, layers: Sequence[int], texts: int, seed: int
) -> dict[int, Float[Tensor, "k k"]]:
    """Uncentred second moment E[k kᵀ] of each layer's keys, over retained texts, in float64.

    Texts that mention a subject of the target are left out: they would hold its own key in place.

    Args:
        texts: how many are read at most.

    Raises:
        TargetError: no text is left.
    """
    members = set(target.entities)
    about = {d.text for d in target.facts.corpus if not members.isdisjoint(d.mentions)}
    left = [text for text in kept_texts(target, HELD_OUT) if text not in about]
    if not left:
        raise TargetError(
            f"target {target.name!r} leaves no training text without its subjects: wanted some, to "
            "tell which keys are to keep their values"
        )
    chosen = random.Random(f"{seed}, texts").sample(left, min(texts, len(left)))
    device, names = device_of(model), {weight_name(model, layer): layer for layer in layers}
    total: dict[int, Tensor] = {}

    def take(name: str, inputs: Tensor) -> None:
        if name in names:
            keys = inputs.detach().flatten(0, -2).double()
            total[names[name]] = total.get(names[name], 0) + keys.T @ keys

    rows, count = model.tokenizer(chosen)["input_ids"], 0
    with inputs_read(model, take):
        for batch in batches_by_length(rows):
            tokens = torch.tensor([rows[i] for i in batch], device=device)
            residuals(model, tokens, [Site(max(layers))])
            count += tokens.numel()
    return {layer: found / count for layer, found in total.items()}


def bare(contexts: Contexts) -> Contexts:
    """The first context of each subject: a prompt with nothing before it."""
    first: dict[int, Told] = {}
    for row, subject in zip(contexts.rows, contexts.subjects, strict=True):
        first.setdefault(subject, row)
    return Contexts(tuple(first.values()), tuple(first))
