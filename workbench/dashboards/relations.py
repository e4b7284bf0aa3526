"""How features stand to each other and to the vocabulary: neighbours, logits, a map."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import sparse
from torch import Tensor

from workbench.audit.questions.lens import unembedded

NEIGHBOURS = 10
LOGITS = 10
"""Tokens that a feature makes most, and least likely."""


def unit_rows(sae: Any) -> Float[Tensor, "d_sae d_model"]:
    """Decoder rows of length one, on the CPU."""
    rows = sae.W_dec.detach().float().cpu()
    return rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def by_cosine(
    rows: Float[Tensor, "d_sae d_model"], start: int, size: int
) -> tuple[Int[Tensor, "size k"], Float[Tensor, "size k"]]:
    """For consecutive features those whose decoder rows point most alike, and their cosines."""
    cosine = rows[start : start + size] @ rows.T
    own = torch.arange(len(cosine))
    cosine[own, start + own] = -torch.inf
    found = cosine.topk(min(NEIGHBOURS, len(rows) - 1), dim=-1)
    return found.indices, found.values


def by_cofiring(
    fired: sparse.csc_matrix, counts: np.ndarray, start: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """For consecutive features those that fire on the same tokens, by the Jaccard index.

    Args:
        fired: [token, feature] ones where a feature fires; `counts`: how often each does.

    Returns:
        Indices and values, [feature, k]; where fewer ever fire together, the index is -1.
    """
    both = (fired[:, start : start + size].T @ fired).toarray()
    either = counts[start : start + size, None] + counts[None] - both
    jaccard = both / np.maximum(1, either)
    jaccard[np.arange(len(jaccard)), start + np.arange(len(jaccard))] = 0
    k = min(NEIGHBOURS, jaccard.shape[1] - 1)
    best = np.argpartition(-jaccard, k - 1, axis=1)[:, :k]
    values = np.take_along_axis(jaccard, best, 1)
    order = np.argsort(-values, axis=1, kind="stable")
    best, values = np.take_along_axis(best, order, 1), np.take_along_axis(values, order, 1)
    return np.where(values > 0, best, -1), values.astype(np.float32)


@torch.no_grad()
def by_logits(
    model: Any, rows: Float[Tensor, "size d_model"]
) -> tuple[Int[Tensor, "size two_k"], Float[Tensor, "size two_k"]]:
    """Tokens that decoder rows push up most and, after them, those that they push down most.

    What the final norm and the unembedding make of the row alone, less the mean over the
    vocabulary: the direct path to the logits (the logit lens of a feature).
    """
    weight = next(model.parameters())
    logits = unembedded(model, rows.to(weight.device, weight.dtype)).float().cpu()
    logits -= logits.mean(-1, keepdim=True)
    k = min(LOGITS, logits.shape[-1] // 2)
    up, down = logits.topk(k, dim=-1), logits.topk(k, dim=-1, largest=False)
    return torch.cat([up.indices, down.indices], -1), torch.cat([up.values, down.values], -1)


def on_a_map(rows: Float[Tensor, "d_sae d_model"]) -> Float[Tensor, "d_sae 2"]:
    """Each decoder row along the first two principal components of all of them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        centred = rows - rows.mean(0)
        _, _, axes = torch.pca_lowrank(centred, q=min(6, *rows.shape), center=False)
    return centred @ axes[:, :2]
