"""What a batch of features does over a corpus, from its events: counts, peaks, passages."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from workbench.dashboards.events import Corpus

BINS = 40
"""Bins of a histogram, from zero to a feature's largest activation."""
POSITIONS = 32
"""Positions in a passage that are told apart; later ones fall together."""
AROUND = 10
"""Tokens shown on each side of a peak."""
GROUPS, OF_GROUP = 5, 4
"""Quantile groups of a feature's activations, and passages of each."""
TOP = 20
"""Passages with the highest activations."""


@dataclass(frozen=True)
class Tally:
    """The events of consecutive features.

    Attributes:
        events: by feature, and within a feature by token.
        start: the first feature; `size`: how many.
    """

    corpus: Corpus
    events: np.ndarray
    start: int
    size: int

    @cached_property
    def feature(self) -> np.ndarray:
        """Each event's feature, counted from the first of this batch."""
        return self.events["feature"].astype(np.int64) - self.start

    @cached_property
    def token(self) -> np.ndarray:
        return self.events["token"].astype(np.int64)

    @property
    def act(self) -> np.ndarray:
        return self.events["act"]

    @cached_property
    def first(self) -> np.ndarray:
        """Where each feature's events begin, and the end."""
        return np.searchsorted(self.feature, np.arange(self.size + 1))

    @cached_property
    def peak(self) -> np.ndarray:
        """Largest activation of each feature; 0 of one that never fires."""
        found = np.zeros(self.size, np.float32)
        np.maximum.at(found, self.feature, self.act)
        return found

    def mean(self) -> np.ndarray:
        """Mean activation where a feature fires; 0 of one that never does."""
        total = np.bincount(self.feature, self.act, self.size)
        return total / np.maximum(1, np.diff(self.first))

    def rate(self, among: np.ndarray) -> np.ndarray:
        """Share of the tokens `among` the corpus on which each feature fires."""
        fired = np.bincount(self.feature, among[self.token], self.size)
        return fired / max(1, int(among.sum()))

    def histogram(self, among: np.ndarray) -> np.ndarray:
        """Events of each feature on the tokens `among`, by activation: [feature, bin]."""
        share = self.act / np.maximum(self.peak, 1e-30)[self.feature]
        place = np.minimum((share * BINS).astype(np.int64), BINS - 1)
        return self._counted(place, BINS, among[self.token])

    def by_position(self) -> np.ndarray:
        """Share of passages in which each feature fires at each position: [feature, position]."""
        position = np.minimum(self.corpus.position, POSITIONS - 1)
        counted = np.bincount(position[self.corpus.counted], minlength=POSITIONS)
        return self._counted(position[self.token], POSITIONS) / np.maximum(1, counted)

    def _counted(self, place: np.ndarray, n: int, weight: np.ndarray | None = None) -> np.ndarray:
        flat = np.bincount(self.feature * n + place, weight, self.size * n)
        return flat.reshape(self.size, n)

    def top(self) -> list[np.ndarray]:
        """For each feature events of highest activation, one a passage, highest first."""
        order = np.lexsort((-self.act, self.corpus.passage[self.token], self.feature))
        of = np.stack([self.feature, self.corpus.passage[self.token]])[:, order]
        is_first = np.ones(len(order), bool)
        is_first[1:] = (of[:, 1:] != of[:, :-1]).any(0)
        peaks = order[is_first]
        peaks = peaks[np.lexsort((-self.act[peaks], self.feature[peaks]))]
        ends = np.searchsorted(self.feature[peaks], np.arange(self.size + 1))
        return [peaks[a : min(b, a + TOP)] for a, b in pairwise(ends)]

    def quantiles(self, seed: int) -> list[np.ndarray]:
        """For each feature events drawn evenly from each group of its activations, lowest first.

        Groups hold equally many events. A feature with fewer events than are drawn has none.
        """
        order = np.lexsort((self.act, self.feature))
        rng = np.random.default_rng([seed, self.start])
        wanted = GROUPS * OF_GROUP
        steps = np.arange(GROUPS).repeat(OF_GROUP)
        found = []
        for a, b in pairwise(self.first):
            within = np.sort((steps + rng.random(wanted)) / GROUPS)
            n = b - a
            found.append(order[a + (within * n).astype(np.int64)] if n >= wanted else order[:0])
        return found

    def windows(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the passages around events begin, and the activations on their tokens.

        Returns:
            First token of each window, and [event, 2 · AROUND + 1] activations of the event's
            feature from there on; zero beyond the passage.
        """
        token, passage = self.token[chosen], self.corpus.passage[self.token[chosen]]
        begin = np.maximum(token - AROUND, self.corpus.first[passage])
        places = begin[:, None] + np.arange(2 * AROUND + 1)
        inside = places < np.minimum(self.corpus.first[passage + 1], token + AROUND + 1)[:, None]
        n = len(self.corpus.tokens)
        keys = self.feature * n + self.token
        wanted = self.feature[chosen][:, None] * n + places
        found = np.minimum(np.searchsorted(keys, wanted), max(0, len(keys) - 1))
        hit = (keys[found] == wanted) & inside if len(keys) else np.zeros_like(inside)
        return begin, np.where(hit, self.act[found] if len(keys) else 0, 0).astype(np.float16)
