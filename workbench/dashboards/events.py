"""Which feature fires on which token, by how much: one pass over a model, put down by feature."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from workbench.activations.texts import Piece, pieces, special_ids
from workbench.errors import DataError
from workbench.hooks import Site, residuals
from workbench.models.score import batches_by_length, device_of
from workbench.sae.read import Reading

EVENT = np.dtype([("feature", "<u4"), ("token", "<u4"), ("act", "<f4")])
VALUES = 2**26
"""Activations of all features held at a time."""
PIECES = 2048
"""Runs of tokens that are sorted by length together."""


@dataclass(frozen=True)
class Corpus:
    """The texts as the model reads them, laid end to end.

    Attributes:
        tokens: ids of all tokens; `position`: each one's place in its passage.
        passage: index of each token's passage; `first`: where each passage begins, and the end.
        document: index of each passage's document in the source.
        counted: False for BOS and other special tokens, on which nothing is counted.
    """

    tokens: np.ndarray
    position: np.ndarray
    passage: np.ndarray
    first: np.ndarray
    document: np.ndarray
    counted: np.ndarray

    @classmethod
    def of(cls, found: Sequence[Piece], special: frozenset[int]) -> "Corpus":
        lengths = np.array([len(p.tokens) for p in found])
        first = np.concatenate([[0], lengths.cumsum()])
        tokens = np.fromiter((t for p in found for t in p.tokens), np.int32, int(first[-1]))
        passage = np.repeat(np.arange(len(found), dtype=np.int32), lengths)
        position = (np.arange(len(tokens)) - first[passage]).astype(np.int32)
        document = np.array([p.document for p in found], dtype=np.int32)
        counted = ~np.isin(tokens, sorted(special))
        return cls(tokens, position, passage, first, document, counted)


def read_corpus(model: Any, source: Any, most: int, context_size: int) -> Corpus:
    """The first passages of a source, up to `most` tokens.

    Raises:
        DataError: the source holds no text.
    """
    found, total = [], 0
    for piece in pieces(source, model.tokenizer, context_size):
        if total + len(piece.tokens) > most:
            break
        if piece.tokens:
            found.append(piece)
            total += len(piece.tokens)
    corpus = Corpus.of(found, special_ids(model.tokenizer)) if found else None
    if corpus is None or not corpus.counted.any():
        raise DataError(f"the source holds no text that fits in {most} tokens: wanted texts")
    return corpus


def write_events(
    model: Any, sae: Any, corpus: Corpus, folder: Path, features_at_once: int
) -> list[Path]:
    """Every activation above zero, in one file for each batch of features.

    The model runs over each passage once. What is held at a time is bounded whatever the number of
    tokens; the files take 12 bytes an activation.
    """
    n = -(-sae.cfg.d_sae // features_at_once)
    paths = [folder / f"{i}.events" for i in range(n)]
    with ExitStack() as leaving:
        files = [leaving.enter_context(path.open("wb")) for path in paths]
        for found in _events(model, sae, corpus):
            events = found[np.argsort(found["feature"], kind="stable")]
            ends = np.searchsorted(events["feature"], np.arange(1, n + 1) * features_at_once)
            for file, part in zip(files, np.split(events, ends[:-1]), strict=True):
                file.write(part.tobytes())
    return paths


def _events(model: Any, sae: Any, corpus: Corpus) -> Iterator[np.ndarray]:
    bar = tqdm(total=len(corpus.tokens), desc="read", unit="token", unit_scale=True, leave=False)
    with bar:
        for places, ids in _rows(corpus):
            yield from _read(model, sae, corpus, places, ids)
            bar.update(len(places))


@torch.no_grad()
def _read(
    model: Any, sae: Any, corpus: Corpus, places: np.ndarray, ids: list[list[int]]
) -> list[np.ndarray]:
    """The events of one batch of passages."""
    site = Site.parse(sae.cfg.metadata.hook_name)
    tokens = torch.tensor(ids, device=device_of(model))
    stream = residuals(model, tokens, [site])[site].flatten(0, 1)
    kept = corpus.counted[places]
    stream, places = stream[torch.from_numpy(kept).to(stream.device)], places[kept]
    most, found = max(64, VALUES // sae.cfg.d_sae), []
    for start in range(0, len(stream), most):
        where, features, acts = Reading(sae, stream[start : start + most]).active
        events = np.empty(len(acts), EVENT)
        events["feature"] = features.cpu().numpy()
        events["token"] = places[start + where.cpu().numpy()]
        events["act"] = acts.float().cpu().numpy()
        found.append(events)
    return found


def _rows(corpus: Corpus) -> Iterator[tuple[np.ndarray, list[list[int]]]]:
    """Batches of passages of equal length: places of their tokens, and these."""
    every = iter(range(len(corpus.document)))
    while some := list(islice(every, PIECES)):
        given = [corpus.tokens[corpus.first[i] : corpus.first[i + 1]].tolist() for i in some]
        for batch in batches_by_length(given):
            starts = corpus.first[[some[i] for i in batch]]
            length = len(given[batch[0]])
            places = (starts[:, None] + np.arange(length)).reshape(-1)
            yield places, [given[i] for i in batch]


def of_features(path: Path, n_tokens: int) -> np.ndarray:
    """The events of a file, by feature and within a feature by token."""
    events = np.fromfile(path, EVENT)
    key = events["feature"].astype(np.int64) * n_tokens + events["token"]
    return events[np.argsort(key, kind="stable")]
