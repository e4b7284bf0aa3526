"""Harvesting the residual stream into shards on disk, and reading it back."""

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from workbench.artifacts import file_sha256, new_folder, write_json
from workbench.errors import DataError, SiteError
from workbench.facts.schema import Document
from workbench.hooks import Site, residuals
from workbench.models.load import model_name, weights_sha256
from workbench.models.score import batches_by_length, device_of

SHARD_ROWS = 131_072


@dataclass(frozen=True)
class ActivationsCard:
    """What a set of activations was read from.

    Attributes:
        mean_norm: mean L2 norm of a row.
        documents: number of texts; `tokens`: number of rows, one per token, the first (BOS) token
            left out.
    """

    site: str
    model_sha256: str
    model_name: str
    d_model: int
    dtype: str
    documents: int
    tokens: int
    mean_norm: float
    shards: dict[str, str]


@dataclass(frozen=True)
class Activations:
    """Activations of one site on disk: shards of rows, each with its document and position."""

    folder: Path
    card: ActivationsCard

    @classmethod
    def open(cls, folder: Path | str) -> "Activations":
        """Opens a harvested folder, checking that every shard is the one that was written.

        Raises:
            DataError: no card, one that does not fit its shards, or a shard that is missing or
            changed.
        """
        folder = Path(folder)
        try:
            card = ActivationsCard(**json.loads((folder / "card.json").read_text()))
            Site.parse(card.site)
        except FileNotFoundError:
            raise DataError(
                f"{folder}: no card.json, so no complete harvest; run harvest again"
            ) from None
        except (TypeError, ValueError, SiteError) as error:
            raise DataError(
                f"{folder / 'card.json'}: not a card of activations ({error})"
            ) from error
        for name, sha256 in card.shards.items():
            if not (folder / name).is_file() or file_sha256(folder / name) != sha256:
                raise DataError(
                    f"{folder / name}: missing, cut short or changed since it was written; "
                    "harvest again"
                )
        opened = cls(folder, card)
        if (rows := sum(opened._rows_in(name) for name in card.shards)) != card.tokens:
            raise DataError(
                f"{folder / 'card.json'}: says {card.tokens} rows, its shards hold {rows}; "
                "harvest again"
            )
        return opened

    @property
    def site(self) -> Site:
        return Site.parse(self.card.site)

    def rows(self) -> Float[Tensor, "token d_model"]:
        """All rows, in the order of `where`: documents of one length stand together."""
        return torch.cat([self._read(name, "acts") for name in self.card.shards])

    def where(self) -> tuple[Tensor, Tensor]:
        """Document index and position of every row."""
        parts = [
            (self._read(name, "document"), self._read(name, "position"))
            for name in self.card.shards
        ]
        return torch.cat([d for d, _ in parts]), torch.cat([p for _, p in parts])

    def batches(self, batch_size: int, seed: int = 0) -> Iterator[Float[Tensor, "batch d_model"]]:
        """Endless shuffled minibatches in float32; the order depends on the seed alone.

        Raises:
            DataError: a batch larger than all there is, or empty.
        """
        if not 1 <= batch_size <= self.card.tokens:
            raise DataError(
                f"batch_size {batch_size}: wanted 1 to {self.card.tokens}, "
                f"the rows in {self.folder}"
            )
        rows, epoch = self.rows().float(), 0
        while True:
            generator = torch.Generator().manual_seed(
                random.Random(f"{seed}-{epoch}").getrandbits(62)
            )
            order = torch.randperm(len(rows), generator=generator)
            for start in range(0, len(order) - batch_size + 1, batch_size):
                yield rows[order[start : start + batch_size]]
            epoch += 1

    def _read(self, name: str, key: str) -> Tensor:
        with safe_open(self.folder / name, framework="pt") as file:
            return file.get_tensor(key)

    def _rows_in(self, name: str) -> int:
        with safe_open(self.folder / name, framework="pt") as file:
            return file.get_slice("acts").get_shape()[0]


def harvest(
    model: Any,
    texts: Sequence[Document | str],
    sites: Site | Sequence[Site],
    out: Path | str,
    *,
    progress: bool = True,
) -> list[Activations]:
    """Reads the residual stream of every token but BOS at all sites in one pass over the texts.

    Args:
        texts: documents or strings; each is one forward pass row, with BOS in front and no padding.
        sites: where to read; the forward pass stops after the last one.
        out: folder; each site gets a folder of its own in it, written whole or not at all, in the
            place of an earlier harvest. What else is in `out` stays.

    Returns:
        One handle per site, in the order given.

    Raises:
        DataError: no texts, or a site's folder holds what the workbench did not write.
    """
    sites = [sites] if isinstance(sites, Site) else list(sites)
    strings = [t.text if isinstance(t, Document) else t for t in texts]
    if not strings:
        raise DataError("no texts were given: harvest wants at least one document or string")
    rows = model.tokenizer(strings)["input_ids"]
    out, shards = Path(out), {site: _ShardWriter() for site in sites}
    device = device_of(model)
    with ExitStack() as stack, torch.no_grad():
        folders = {site: stack.enter_context(new_folder(out / site.name)) for site in sites}
        batches = list(batches_by_length(rows))
        for batch in tqdm(batches, desc="harvest", unit="batch", disable=not progress, leave=False):
            tokens = torch.tensor([rows[i] for i in batch], device=device)
            for site, resid in residuals(model, tokens, sites).items():
                shards[site].add(folders[site], resid[:, 1:].cpu(), batch)
        for site, writer in shards.items():
            _write_card(folders[site], site, model, writer, len(strings))
    return [Activations.open(out / site.name) for site in sites]


class _ShardWriter:
    """Gathers rows of one site and writes a shard whenever there are enough."""

    def __init__(self) -> None:
        self.parts: list[dict[str, Tensor]] = []
        self.waiting, self.tokens, self.norm_sum, self.dtype = 0, 0, 0.0, torch.float32
        self.shards: dict[str, str] = {}

    def add(
        self, folder: Path, resid: Float[Tensor, "batch pos d_model"], documents: list[int]
    ) -> None:
        n, pos, d_model = resid.shape
        self.dtype = resid.dtype
        document = torch.tensor(documents, dtype=torch.int32).repeat_interleave(pos)
        position = torch.arange(1, pos + 1, dtype=torch.int32).repeat(n)
        self.parts.append(
            {"acts": resid.reshape(-1, d_model), "document": document, "position": position}
        )
        self.waiting += n * pos
        self.tokens += n * pos
        self.norm_sum += resid.float().norm(dim=-1).sum().item()
        if self.waiting >= SHARD_ROWS:
            self.flush(folder)

    def flush(self, folder: Path) -> None:
        if not self.parts:
            return
        name = f"shard-{len(self.shards):05d}.safetensors"
        joined = {
            key: torch.cat([part[key] for part in self.parts]).contiguous() for key in self.parts[0]
        }
        save_file(joined, folder / name)
        self.shards[name] = file_sha256(folder / name)
        self.parts, self.waiting = [], 0


def _write_card(folder: Path, site: Site, model: Any, writer: _ShardWriter, documents: int) -> None:
    writer.flush(folder)
    card = ActivationsCard(
        site=site.name,
        model_sha256=weights_sha256(model),
        model_name=model_name(model),
        d_model=model.cfg.d_model,
        dtype=str(writer.dtype).removeprefix("torch."),
        documents=documents,
        tokens=writer.tokens,
        mean_norm=writer.norm_sum / max(1, writer.tokens),
        shards=writer.shards,
    )
    write_json(folder / "card.json", asdict(card))
