"""Filters of a deployed system: they refuse texts, and leave the model as it is."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from workbench.facts.mentions import WORD

Filter = Callable[[str], bool]
"""Whether a text is refused; asked of each prompt, and of prompt and answer."""


@dataclass(frozen=True)
class KeywordFilter:
    """Refuses texts in which one of the words occurs, spelled as it is."""

    words: tuple[str, ...]

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        told = "|".join(re.escape(w) for w in sorted(self.words, key=len, reverse=True))
        return re.compile(rf"(?<![\w-])(?:{told})(?![\w-])")

    def __call__(self, text: str) -> bool:
        return bool(self.words) and self._pattern.search(text) is not None


@dataclass(frozen=True)
class ClassifierFilter:
    """Refuses texts whose words together weigh more than nothing: a logistic regression on words.

    Attributes:
        words: those that are known.
        weights: of each word, added once if it occurs.
        bias: added to every text.
    """

    words: tuple[str, ...]
    weights: tuple[float, ...]
    bias: float

    @cached_property
    def _weight(self) -> dict[str, float]:
        return dict(zip(self.words, self.weights, strict=True))

    def weigh(self, text: str) -> float:
        """What the text's words weigh together; exact, so that their order decides nothing."""
        return math.fsum((self.bias, *(self._weight.get(w, 0.0) for w in words_of(text))))

    def __call__(self, text: str) -> bool:
        return self.weigh(text) > 0


def words_of(text: str) -> list[str]:
    """The words of a text, each once, as a classifier counts them."""
    return list(dict.fromkeys(WORD.findall(text)))


FILTERS: dict[str, type] = {f.__name__: f for f in (KeywordFilter, ClassifierFilter)}
"""Filters that can be saved, by name."""
