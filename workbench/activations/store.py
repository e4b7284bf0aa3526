"""Activations on disk: a card and shards, read back in shuffled minibatches of bounded memory."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.activations.reader import Documents, Reader
from workbench.activations.shards import DTYPES, Shard
from workbench.artifacts import file_sha256
from workbench.errors import DataError, SiteError
from workbench.hooks import Site
from workbench.models.load import tokenizer_sha256, weights_sha256


@dataclass(frozen=True)
class ActivationsCard:
    """What a set of activations was read from.

    Attributes:
        tokenizer_sha256: of the tokenizer that made the tokens.
        dtype: of the rows on disk.
        documents: number of texts; `tokens`: number of rows.
        mean_norm: mean L2 norm of a row.
        special_tokens: whether rows of BOS, EOS, padding, CLS and SEP were dropped or kept.
        context_size: longest row of a forward pass; longer documents were cut.
        processing: class of the model, and its normalisation (`LNPre` or `RMSPre` where weights
            were folded).
        versions: of the libraries that made the rows.
        shards: file name to rows and SHA-256.
    """

    site: str
    model_sha256: str
    model_name: str
    tokenizer_sha256: str
    d_model: int
    dtype: str
    documents: int
    tokens: int
    mean_norm: float
    special_tokens: str
    context_size: int
    processing: str
    versions: dict[str, str]
    shards: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Activations:
    """Activations of one site on disk: shards of rows, each with its document and position.

    No two rows have the same document and position. Rows are in the type they were saved in.
    """

    folder: Path
    card: ActivationsCard

    @classmethod
    def open(
        cls, folder: Path | str, *, model: Any = None, site: Site | None = None, verify: bool = True
    ) -> "Activations":
        """Opens a harvested folder.

        Args:
            model: refuse activations of other weights or another tokenizer.
            site: refuse activations of another site.
            verify: hash every shard. Without it a shard that is missing or cut short is still
                found, one whose bytes were changed is not.

        Raises:
            DataError: no card, one that does not fit its shards, the model or the site, or a shard
            that is missing or changed.
        """
        opened = cls(Path(folder), _read_card(Path(folder) / "card.json"))
        if site is not None and site != opened.site:
            raise DataError(
                f"{opened.folder / 'card.json'}: is of {opened.card.site}, wanted {site.name}"
            )
        if model is not None:
            opened.require_fit(model)
        for shard in opened._shards:
            if not shard.path.is_file() or shard.path.stat().st_size != shard.size:
                raise DataError(f"{shard.path}: missing or cut short; harvest again")
            if verify and file_sha256(shard.path) != opened.card.shards[shard.path.name]["sha256"]:
                raise DataError(f"{shard.path}: changed since it was written; harvest again")
        return opened

    @property
    def site(self) -> Site:
        return Site.parse(self.card.site)

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.card.dtype)

    def require_fit(self, model: Any) -> None:
        """Raises DataError if another model or tokenizer made these activations."""
        for what, wanted, given in (
            ("weights", self.card.model_sha256, weights_sha256(model)),
            ("tokenizer", self.card.tokenizer_sha256, tokenizer_sha256(model.tokenizer)),
        ):
            if wanted != given:
                raise DataError(
                    f"{self.folder / 'card.json'}: was harvested with {what} {wanted[:12]}, the "
                    f"model given has {given[:12]}; harvest again or load {self.card.model_name}"
                )

    def rows(self) -> Float[Tensor, "token d_model"]:
        """All rows, in the order of their documents.

        They are memory-mapped if there is one shard; several are copied into memory.
        """
        return self._column("acts")

    def where(self) -> tuple[Int[Tensor, " token"], Int[Tensor, " token"]]:
        """Document index and position of every row; BOS is position 0."""
        return self._column("document"), self._column("position")

    def tokens(self) -> Int[Tensor, " token"]:
        """Token id of every row."""
        return self._column("token")

    def count(self, documents: Documents | None = None) -> int:
        """Number of rows whose document is wanted."""
        return Reader(self._shards, 0, documents, 1).total

    def batches(
        self,
        batch_size: int,
        seed: int = 0,
        *,
        documents: Documents | None = None,
        start: int = 0,
        rank: int = 0,
        ranks: int = 1,
        workers: int = 1,
    ) -> Iterator[Float[Tensor, "batch d_model"]]:
        """Endless shuffled minibatches in the type on disk.

        An epoch is every wanted row once, the last incomplete batch left out. Blocks of 1,024 rows
        are taken in random order and as many as fit in 256 MiB are mixed row by row, so memory does
        not grow with the data. The order depends on the seed, the batch size and the wanted
        documents alone; it is the same at every site of one harvest.

        Args:
            documents: tells from document indices which rows are wanted; None wants all.
            start: number of batches to pass over, without reading them.
            rank: which of `ranks` equal parts of each batch to give.
            workers: threads that read blocks ahead.

        Raises:
            DataError: a batch larger than all there is, or empty; a rank beyond `ranks`.
        """
        reader = Reader(self._shards, seed, documents, workers)
        if not 1 <= batch_size <= reader.total:
            raise DataError(
                f"batch_size {batch_size}: wanted 1 to {reader.total}, "
                f"the rows to read in {self.folder}"
            )
        if not 0 <= rank < ranks <= batch_size or start < 0:
            raise DataError(
                f"rank {rank} of {ranks}, start {start}: wanted a rank from 0, below a number of "
                f"ranks that is at most the batch size ({batch_size}), and a start from 0"
            )
        per_epoch = reader.total // batch_size
        epoch, first = divmod(start, per_epoch)
        low, high = (batch_size * r // ranks for r in (rank, rank + 1))
        while True:
            begins = range(first * batch_size, per_epoch * batch_size, batch_size)
            yield from reader.spans(epoch, [(begin + low, begin + high) for begin in begins])
            epoch, first = epoch + 1, 0

    @property
    def _shards(self) -> list[Shard]:
        return [
            Shard(self.folder / name, shard["rows"], self.card.d_model, self.card.dtype)
            for name, shard in self.card.shards.items()
        ]

    def _column(self, name: str) -> Tensor:
        none = Shard(self.folder, 0, self.card.d_model, self.card.dtype)
        parts = [shard.mapped(name) for shard in self._shards] or [none.mapped(name)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _read_card(path: Path) -> ActivationsCard:
    try:
        card = ActivationsCard(**json.loads(path.read_text()))
        Site.parse(card.site)
        rows = sum(shard["rows"] for shard in card.shards.values())
        if card.dtype not in DTYPES:
            raise ValueError(f"dtype {card.dtype}")
    except FileNotFoundError:
        raise DataError(
            f"{path.parent}: no card.json, so no complete harvest; run harvest again"
        ) from None
    except (OSError, TypeError, ValueError, KeyError, AttributeError, SiteError) as error:
        raise DataError(f"{path}: not a card of activations ({error}); harvest again") from error
    if rows != card.tokens:
        raise DataError(f"{path}: says {card.tokens} rows, its shards hold {rows}; harvest again")
    return card
