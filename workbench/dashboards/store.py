"""Reading gathered dashboards: the overview at once, each feature when it is asked for."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from workbench.dashboards.tallies import AROUND, GROUPS, OF_GROUP
from workbench.errors import DataError

FILES = ("card.json", "overview.parquet", "features.parquet", "tokens.parquet")


@dataclass(frozen=True)
class Passage:
    """Tokens around one activation of a feature.

    Attributes:
        tokens: as they look in the text; `acts`: the feature's activation on each.
        at: index of the activation it was chosen for; `place`: of its first token in the corpus.
    """

    tokens: tuple[str, ...]
    acts: tuple[float, ...]
    at: int
    place: int


@dataclass(frozen=True)
class Feature:
    """All that is shown of one feature.

    Attributes:
        numbers: its row of the overview.
        top: passages with the highest activations, one for each passage of the corpus.
        groups: passages drawn from each fifth of its activations, lowest first.
        histogram: events by activation in bins from 0 to `peak`, by what the text states.
        positions: share of passages in which it fires at each position.
        like, fire: neighbours by decoder cosine, and by how often they fire together.
        up, down: tokens that it makes more and less likely, with centred logits.
        facts: index of facts it fires on, in `card["asked"]`, and how much.
    """

    index: int
    numbers: dict[str, float]
    top: tuple[Passage, ...]
    groups: tuple[tuple[Passage, ...], ...]
    histogram: dict[str, tuple[int, ...]]
    positions: tuple[float, ...]
    like: tuple[tuple[int, float], ...]
    fire: tuple[tuple[int, float], ...]
    up: tuple[tuple[str, float], ...]
    down: tuple[tuple[str, float], ...]
    facts: tuple[tuple[int, float], ...]


class Dashboards:
    """What `make_dashboards` wrote.

    Attributes:
        card: what was gathered, from which model and texts.
        overview: a row of numbers for each feature.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        missing = [name for name in FILES if not (self.folder / name).is_file()]
        if missing:
            raise DataError(
                f"{folder}: holds no {missing[0]}: wanted a folder that `workbench dashboards` or "
                "make_dashboards wrote"
            )
        try:
            self.card: dict[str, Any] = json.loads((self.folder / "card.json").read_text())
            self.overview = pd.read_parquet(self.folder / "overview.parquet")
            self._details = pq.ParquetFile(self.folder / "features.parquet")
        except (ValueError, OSError) as error:
            raise DataError(f"{folder}: cannot be read ({error}): gather it again") from error

    @cached_property
    def vocabulary(self) -> np.ndarray:
        """How each token looks within a text."""
        table = pq.read_table(self.folder / "vocabulary.parquet")
        return table["text"].to_numpy(zero_copy_only=False)

    @cached_property
    def _tokens(self) -> np.ndarray:
        return pq.read_table(self.folder / "tokens.parquet", columns=["token"])["token"].to_numpy()

    @cached_property
    def _passage(self) -> np.ndarray:
        table = pq.read_table(self.folder / "tokens.parquet", columns=["passage"])
        return table["passage"].to_numpy()

    @cached_property
    def _first_rows(self) -> list[int]:
        sizes = [
            self._details.metadata.row_group(i).num_rows
            for i in range(self._details.num_row_groups)
        ]
        return np.cumsum([0, *sizes]).tolist()

    def __len__(self) -> int:
        return len(self.overview)

    def feature(self, index: int) -> Feature:
        """One feature.

        Raises:
            DataError: there is none of that number.
        """
        if not 0 <= index < len(self):
            raise DataError(f"feature {index}: this SAE has 0 to {len(self) - 1}")
        group = int(np.searchsorted(self._first_rows, index, side="right")) - 1
        table = self._details.read_row_group(group)
        row = table.slice(index - self._first_rows[group], 1).to_pylist()[0]
        passages = self._passages(row)
        top, drawn = passages[: row["top"]], passages[row["top"] :]
        names = {"histogram": "forget" if "histogram_retain" in row else "all"}
        names |= {"histogram_retain": "retain"}
        half = len(row["tokens"]) // 2
        said = [str(self.vocabulary[t]) for t in row["tokens"]]
        logits = list(zip(said, row["logits"], strict=True))
        return Feature(
            index,
            {name: float(value) for name, value in self.overview.loc[index].items()},  # pyright: ignore[reportArgumentType]
            top,
            tuple(drawn[g * OF_GROUP : (g + 1) * OF_GROUP] for g in range(GROUPS)) if drawn else (),
            {names[name]: tuple(row[name]) for name in names if name in row},
            tuple(row["positions"]),
            _pairs(row["like"], row["cosine"]),
            _pairs(row["fire"], row["jaccard"]),
            tuple(logits[:half]),
            tuple(logits[half:]),
            _pairs(row.get("fact", []), row.get("fact_act", [])),
        )

    def _passages(self, row: dict[str, Any]) -> tuple[Passage, ...]:
        width = 2 * AROUND + 1
        acts = np.array(row["acts"], dtype=np.float32).reshape(-1, width)
        found = []
        for begin, at, values in zip(row["begin"], row["at"], acts, strict=True):
            end = min(at + AROUND + 1, len(self._tokens))
            own = self._passage[begin:end] == self._passage[at]
            ids = self._tokens[begin:end][own]
            tokens = tuple(str(self.vocabulary[t]) for t in ids)
            shown = tuple(float(a) for a in values[: len(tokens)])
            found.append(Passage(tokens, shown, at - begin, begin))
        return tuple(found)

    @cached_property
    def heads(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens that features fire on most or push up, and whose they are."""
        table = self._details.read(columns=["at", "top", "tokens"])
        features, found = [], []
        for name in ("at", "tokens"):
            column = table[name].combine_chunks()
            lengths = np.diff(column.offsets.to_numpy())
            values = column.flatten().to_numpy()
            owner = np.repeat(np.arange(len(lengths)), lengths)
            within = np.arange(len(values)) - np.repeat(lengths.cumsum() - lengths, lengths)
            most = table["top"].to_numpy() if name == "at" else lengths // 2
            kept = within < most[owner]
            features.append(owner[kept])
            found.append((self._tokens[values] if name == "at" else values)[kept])
        return np.concatenate(found), np.concatenate(features)

    def search(self, text: str) -> np.ndarray:
        """Features that fire most on a token with this text in it, or push one up; or a number.

        Upper and lower case are one; an empty text finds every feature.
        """
        wanted = text.strip().lower()
        if not wanted:
            return np.arange(len(self))
        if wanted.isdigit() and int(wanted) < len(self):
            return np.array([int(wanted)])
        lowered = (str(word).lower() for word in self.vocabulary)
        tokens = np.fromiter((wanted in word for word in lowered), bool, len(self.vocabulary))
        ids, features = self.heads
        return np.unique(features[tokens[ids]])


def _pairs(indices: list[int], values: list[float]) -> tuple[tuple[int, float], ...]:
    pairs = zip(indices, values, strict=True)
    return tuple((int(i), float(v)) for i, v in pairs if i >= 0)
