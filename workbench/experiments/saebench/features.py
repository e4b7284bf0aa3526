"""The features that fire on forget text and hardly on retain text, as SAEBench picks them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.errors import DataError, EditError
from workbench.hooks import Site, residuals
from workbench.locate import saebench_filter
from workbench.models.score import batches_by_length, device_of

Rows = Sequence[Sequence[int]]
"""Token ids of a corpus, one row per forward pass."""


def concatenated_rows(
    texts: Sequence[str], tokenizer: Any, dataset_size: int = 1024, seq_len: int = 1024
) -> list[list[int]]:
    """Texts of more than 50 characters laid end to end and cut into rows of one length.

    EOS stands between texts. BOS takes the place of the first token of each row, and what does not
    fill a row is left out.

    Raises:
        DataError: the texts do not fill one row.
    """
    ids: list[int] = []
    for text in (t for t in texts if len(t) > 50):
        if len(ids) >= dataset_size * seq_len:
            break
        end = [tokenizer.eos_token_id] if ids and tokenizer.eos_token_id is not None else []
        ids += [*end, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    rows = [ids[i : i + seq_len] for i in range(0, len(ids) - seq_len + 1, seq_len)]
    if not rows:
        raise DataError(f"{len(texts)} texts give {len(ids)} tokens: wanted {seq_len} for a row")
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return [begin + row[len(begin) :] for row in rows[:dataset_size]]


@torch.no_grad()
def firing_frequencies(model: Any, sae: Any, rows: Rows) -> Float[Tensor, " d_sae"]:
    """Share of the tokens of a corpus on which each feature fires, BOS, padding and EOS left out.

    Raises:
        DataError: the corpus has no other tokens.
    """
    site, device = Site.parse(sae.cfg.metadata.hook_name), device_of(model)
    marks = (getattr(model.tokenizer, f"{name}_token_id") for name in ("bos", "pad", "eos"))
    special = torch.tensor([mark for mark in marks if mark is not None], dtype=torch.long)
    fired, seen = torch.zeros(sae.cfg.d_sae, dtype=torch.float64), 0
    for batch in batches_by_length([row for row in rows if len(row)]):
        tokens = torch.tensor([rows[i] for i in batch])
        counted = ~torch.isin(tokens, special)
        resid = residuals(model, tokens.to(device), [site])[site][counted.to(device)]
        for part in resid.split(8192):
            fired += (sae.encode(part.to(sae.W_dec.dtype)) > 0).sum(0).cpu()
        seen += int(counted.sum())
    if not seen:
        raise DataError(f"a corpus of {len(rows)} rows has no tokens but BOS, padding and EOS")
    return fired / seen


def top_features(
    forget: Float[Tensor, " d_sae"], retain: Float[Tensor, " d_sae"], retain_threshold: float
) -> list[int]:
    """Features that fire on forget text and below the threshold on retain text, most firing first.

    Frequencies count with the six decimals that SAEBench saves, so that one just below the
    threshold can reach it. Of equals the later feature comes first, as in SAEBench.
    """
    scores = saebench_filter(forget, retain, retain_threshold).numpy()
    order = scores.argsort(kind="stable")[::-1]
    return order[: np.count_nonzero(scores)].tolist()


def require_unit_rows(sae: Any) -> None:
    """Raises EditError unless all decoder rows are of norm 1, the unit of multipliers."""
    norms = sae.W_dec.detach().float().norm(dim=-1)
    if not torch.allclose(norms, torch.ones_like(norms), atol=1e-3):
        raise EditError(
            f"the SAE's decoder rows have norms of {norms.min():.3g} to {norms.max():.3g}: "
            "multipliers are activations on rows of norm 1, so call sae.fold_W_dec_norm() first"
        )
