"""Finding names in texts, as whole words."""

import re
from collections.abc import Callable, Iterable

WORD = re.compile(r"[\w-]+")


def stands_in(phrase: str, text: str) -> bool:
    """Whether the text has the phrase as whole words; `ivory` does not stand in `ivory-mortar`."""
    start = text.find(phrase)
    while start >= 0:
        end = start + len(phrase)
        if not WORD.search(text[max(start - 1, 0) : start] + text[end : end + 1]):
            return True
        start = text.find(phrase, start + 1)
    return False


def name_finder(names: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
    """Gives a function that lists those of the names that stand in a text.

    Names are looked up by their first word, so that the cost grows with the texts and not with the
    number of names.
    """
    by_word: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        word = WORD.search(name)
        by_word.setdefault(word.group() if word else "", []).append(name)

    def find(text: str) -> tuple[str, ...]:
        words = dict.fromkeys(("", *WORD.findall(text)))
        return tuple(
            name for word in words for name in by_word.get(word, ()) if stands_in(name, text)
        )

    return find
