"""Running a model over a shard's worth of texts, and putting the rows in the texts' order."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.activations.texts import Piece, pieces, special_ids
from workbench.errors import DataError
from workbench.hooks import Site, residuals
from workbench.models.score import batches_by_length, device_of


@dataclass(frozen=True)
class Reading:
    """How texts become rows: what decides them besides the model and the texts."""

    sites: tuple[Site, ...]
    dtype: str
    special_tokens: Literal["drop", "keep"]
    context_size: int
    shard_rows: int


@dataclass(frozen=True)
class Chunk:
    """Pieces of text laid end to end.

    Attributes:
        tokens: of all pieces; `kept` says whose rows are wanted.
        first: place of each piece's first token among them.
        document: index of each piece's document; `start`: position in it of the first token.
        documents: number of documents up to the end of this chunk.
    """

    tokens: Int[Tensor, " pos"]
    kept: Bool[Tensor, " pos"]
    first: Int[Tensor, " piece"]
    document: Int[Tensor, " piece"]
    start: Int[Tensor, " piece"]
    documents: int

    @classmethod
    def of(cls, gathered: Sequence[Piece], dropped: frozenset[int]) -> "Chunk":
        """Lays pieces end to end; `dropped` tokens and repeated BOS tokens are not kept."""
        some = [p for p in gathered if p.tokens]
        tokens = torch.tensor([t for p in some for t in p.tokens], dtype=torch.long)
        lengths = torch.tensor([len(p.tokens) for p in some], dtype=torch.long)
        first = lengths.cumsum(0) - lengths
        kept = ~torch.isin(tokens, torch.tensor(sorted(dropped), dtype=torch.long))
        kept[first[torch.tensor([p.again for p in some], dtype=torch.bool)]] = False
        document = torch.tensor([p.document for p in some], dtype=torch.long)
        start = torch.tensor([p.start for p in some], dtype=torch.long)
        return cls(tokens, kept, first, document, start, gathered[-1].document + 1)

    @cached_property
    def lengths(self) -> Int[Tensor, " piece"]:
        return torch.cat([self.first, torch.tensor([len(self.tokens)])]).diff()

    @cached_property
    def rows(self) -> int:
        return int(self.kept.sum())

    @cached_property
    def sha256(self) -> str:
        digest = hashlib.sha256(str(self.documents).encode())
        for part in (self.tokens, self.kept, self.first, self.document, self.start):
            digest.update(part.numpy().tobytes())
        return digest.hexdigest()

    def where(self) -> dict[str, Int[Tensor, " token"]]:
        """Document, position and token of every kept row."""
        within = torch.arange(len(self.tokens)) - self.first.repeat_interleave(self.lengths)
        columns = {
            "document": self.document.repeat_interleave(self.lengths),
            "position": self.start.repeat_interleave(self.lengths) + within,
            "token": self.tokens,
        }
        return {name: column[self.kept].int() for name, column in columns.items()}


def chunks(model: Any, source: Any, reading: Reading) -> Iterator[Chunk]:
    """The pieces of a source, gathered until there are tokens for a shard.

    Raises:
        DataError: what `pieces` raises; a token id that the model does not have.
    """
    dropped = special_ids(model.tokenizer) if reading.special_tokens == "drop" else frozenset()
    gathered, size = [], 0
    for piece in pieces(source, model.tokenizer, reading.context_size):
        low, high = min(piece.tokens, default=0), max(piece.tokens, default=0)
        if low < 0 or high >= model.cfg.d_vocab:
            raise DataError(
                f"document {piece.document} holds token ids {low} to {high}: the model has 0 to "
                f"{model.cfg.d_vocab - 1}"
            )
        gathered.append(piece)
        size += len(piece.tokens)
        if size >= reading.shard_rows:
            yield Chunk.of(gathered, dropped)
            gathered, size = [], 0
    if gathered:
        yield Chunk.of(gathered, dropped)


@torch.no_grad()
def read_chunk(
    model: Any, chunk: Chunk, acts: Mapping[Site, Float[Tensor, "token d_model"]]
) -> dict[Site, float]:
    """Runs the model and fills the rows of every site; gives the sum of the rows' norms.

    Pieces of one length are one batch, so that there is no padding.

    Raises:
        DataError: a row that is infinite or no number in the type of `acts`.
    """
    place, norms = chunk.kept.cumsum(0) - 1, dict.fromkeys(acts, 0.0)
    device, lengths = device_of(model), chunk.lengths.tolist()
    for batch in batches_by_length([range(n) for n in lengths]):
        at = chunk.first[batch][:, None] + torch.arange(lengths[batch[0]])
        kept, to = chunk.kept[at], place[at]
        for site, resid in residuals(model, chunk.tokens[at].to(device), list(acts)).items():
            rows = resid[kept.to(resid.device)].to(acts[site].dtype)
            norm = rows.float().norm(dim=-1).double().sum().item()
            if not math.isfinite(norm):
                raise DataError(
                    f"{site.name}: a row is infinite or not a number in {rows.dtype}; give another "
                    "dtype (bfloat16 reaches as far as float32) or look at the model"
                )
            norms[site] += norm
            acts[site].index_copy_(0, to[kept], rows.cpu())
    return norms
