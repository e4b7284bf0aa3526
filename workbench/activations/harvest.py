"""Harvesting the residual stream at any number of sites in one pass over the texts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm.auto import tqdm

from workbench.activations.chunks import Reading, chunks
from workbench.activations.partial import PartialHarvest
from workbench.activations.shards import DTYPES
from workbench.activations.stream import ActivationStream
from workbench.artifacts import require_replaceable
from workbench.errors import DataError
from workbench.hooks import Site, hook_point

SHARD_BYTES = 2**28
CONTEXT = 1024
"""Longest row of a forward pass for a model that does not say how long it can be."""


def harvest(
    model: Any,
    source: Any,
    sites: Site | Sequence[Site],
    out: Path | str | None = None,
    *,
    dtype: torch.dtype | None = None,
    special_tokens: Literal["drop", "keep"] = "drop",
    context_size: int | None = None,
    shard_rows: int | None = None,
    keep: bool = True,
    progress: bool = True,
) -> Any:
    """Reads the residual stream of every token at all sites in one pass over the texts.

    The forward pass stops after the last site. A run that was killed goes on when it is called
    again with the same arguments, repeats at most the shard it was in, and ends with the same bytes
    as one that was not.

    Args:
        source: what `workbench.activations.texts.pieces` reads: a FactSet, texts, token ids, a
            dataset (also streamed), or a Path to a file of texts or tokens.
        out: folder; each site gets a folder of its own in it, in the place of an earlier harvest of
            that site, once it is complete. What else is in `out` stays.
        dtype: of the rows on disk: float32, bfloat16 or float16; default: the model's.
        special_tokens: "drop" leaves out the rows of BOS, EOS, padding, CLS and SEP.
        context_size: longest row of a forward pass; longer documents are cut, each part with the
            document's BOS in front, which has a row only the first time. Default: the model's, at
            most 1,024.
        shard_rows: tokens of one shard, rounded up to a whole row of a forward pass; default:
            256 MiB. With `keep=False`: rows that wait to be mixed.
        keep: False writes nothing and gives an ActivationStream, which runs the model while it is
            read.

    Returns:
        One handle per site, in the order given; with `keep=False` one stream of all sites.

    Raises:
        DataError: no texts; a source, a setting or a type that cannot be used; a full disk; texts
        other than those an interrupted harvest began with; a site's folder holds what the workbench
        did not write.
        SiteError: a site that the model does not have.
    """
    reading = _reading(model, sites, dtype, special_tokens, context_size, shard_rows)
    for site in reading.sites:
        hook_point(model, site)
    if not keep:
        return ActivationStream(model, source, reading)
    if out is None:
        raise DataError("harvest writes to a folder: give `out`, or keep=False to write nothing")
    out = Path(out)
    for site in reading.sites:
        require_replaceable(out / site.name)
    partial = PartialHarvest(model, reading, out)
    with tqdm(desc="harvest", unit="token", disable=not progress, leave=False) as bar:
        for i, chunk in enumerate(chunks(model, source, reading)):
            partial.write(i, chunk)
            bar.update(chunk.rows)
    return partial.finish()


def _reading(
    model: Any,
    sites: Site | Sequence[Site],
    dtype: torch.dtype | None,
    special_tokens: Literal["drop", "keep"],
    context_size: int | None,
    shard_rows: int | None,
) -> Reading:
    sites = (sites,) if isinstance(sites, Site) else tuple(sites)
    name = str(dtype or next(model.parameters()).dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise DataError(f"dtype {name}: wanted one of {', '.join(DTYPES)}")
    if special_tokens not in ("drop", "keep"):
        raise DataError(f"special_tokens {special_tokens!r}: wanted 'drop' or 'keep'")
    limit = getattr(model.cfg, "n_ctx", None)
    context_size = min(CONTEXT, limit or CONTEXT) if context_size is None else context_size
    if not 2 <= context_size <= (limit or context_size):
        raise DataError(f"context_size {context_size}: wanted 2 to {limit or 'any number'}")
    row_bytes = model.cfg.d_model * getattr(torch, name).itemsize
    shard_rows = max(1, SHARD_BYTES // row_bytes) if shard_rows is None else shard_rows
    if shard_rows < 1 or not sites or len(set(sites)) < len(sites):
        raise DataError(
            f"sites {[s.name for s in sites]}, shard_rows {shard_rows}: wanted one site or more, "
            "each once, and one row or more"
        )
    return Reading(sites, name, special_tokens, context_size, shard_rows)
