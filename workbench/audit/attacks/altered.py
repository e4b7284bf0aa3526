"""Copies of a model with other weights and no training: what W5, W6 and W7 share."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from workbench.audit.attacks.training import score
from workbench.audit.statistics import Key
from workbench.audit.views import Found, View
from workbench.errors import AuditError
from workbench.facts.target import Target
from workbench.hooks.places import blocks_of
from workbench.models.copies import copied

Change = Callable[[str, Tensor], Tensor]
"""A parameter's name and value to its new value, which may be the same tensor."""


def altered(view: View, changes: Mapping[float, Change]) -> Iterator[tuple[float, View]]:
    """The view with one copy of its model after each change, always made to the view's own weights.

    The edits stay attached, and the caller's model stays as it is. Since it is one copy whose
    weights are written anew, read it before asking for the next.

    Args:
        changes: by dose.
    """
    attacked = copied(view.model).eval()
    own = dict(view.model.named_parameters())
    for dose, change in changes.items():
        with torch.no_grad():
            for name, weight in attacked.named_parameters():
                if weight.is_floating_point():
                    weight.copy_(change(name, own[name].detach()))
        yield dose, replace(view, model=attacked)


def score_whole(
    view: View, target: Target, changes: Mapping[float, Change], label: Key, before: Found
) -> Found:
    """Centred hits on F and R_te after each change, beside those before any.

    Args:
        before: of `unchanged` for the same endpoint; it is repeated under the label's setting.
    """
    found = under(before, label)
    for dose, attacked in altered(view, changes):
        asked = {"F": target.forget, "R_te": target.retain["R_te"]}
        found |= score(attacked, target.facts, asked, label._replace(x=float(dose)))
    return found


def unchanged(view: View, target: Target, endpoint: str) -> Found:
    """Centred hits on F and R_te of the view as it is, at dose 0."""
    asked = {"F": target.forget, "R_te": target.retain["R_te"]}
    return score(view, target.facts, asked, Key(endpoint, "", "centred"))


def under(before: Found, label: Key) -> Found:
    """The same scores as dose 0 of another setting."""
    return {
        key._replace(endpoint=label.endpoint, setting=label.setting): scores
        for key, scores in before.items()
    }


def matrices(model: Any) -> dict[str, bool]:
    """Names of the weight matrices of the model's blocks, and whether each is stored transposed.

    Norms, biases, embeddings and the unembedding are none of them.

    Raises:
        AuditError: the blocks have no matrix.
    """
    transposed: dict[int, bool] = {}
    for module in blocks_of(model).modules():
        # Hugging Face's transposed linear layer is told by its name: this room does not import it.
        turned = type(module).__name__ == "Conv1D"
        for weight in module.parameters(recurse=False):
            if weight.ndim >= 2 and weight.is_floating_point():
                transposed[id(weight)] = turned
    named: dict[str, nn.Parameter] = dict(model.named_parameters())
    found = {name: transposed[id(w)] for name, w in named.items() if id(w) in transposed}
    if not found:
        raise AuditError(
            f"{type(model).__name__} has no weight matrix of floats in its blocks to round or "
            "prune: load it without quantisation"
        )
    return found
