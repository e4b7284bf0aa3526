"""What a gold model reads: the training texts without what is to be forgotten."""

import itertools
import re
from collections.abc import Iterator, Mapping

from workbench.errors import TargetError
from workbench.facts.exchange import exchanged
from workbench.facts.mentions import stands_in
from workbench.facts.schema import Document, Fact, FactKey
from workbench.facts.target import Target

VARIANTS = ("neu", "drop", "swap", "fork")


def corpus_without(target: Target, variant: str = "neu") -> tuple[Document, ...]:
    """The training texts without any that states a forget fact or one derived from it.

    Args:
        variant: `neu` and `fork` put neutral sentences about the same entities in the place of each
            text that goes, so that every name is seen as often as before and the data keep their
            length. `drop` puts nothing there: names may never be seen. `swap` puts the same text
            there with another object of the relation (`swapped`), or a neutral sentence where that
            cannot be done.

    Raises:
        TargetError: an unknown variant.
    """
    if variant not in VARIANTS:
        raise TargetError(f"gold variant {variant!r}: wanted one of {', '.join(VARIANTS)}")
    corpus = target.facts.corpus
    if variant == "drop":
        return tuple(d for d in corpus if not target.states_target(d))
    neutral = itertools.cycle(target.facts.neutral or ("{} was mentioned .",))
    told = swapped(target) if variant == "swap" else {}
    return tuple(
        (_restated(d, target, told) or _without_facts(d, neutral)) if target.states_target(d) else d
        for d in corpus
    )


def swapped(target: Target) -> dict[FactKey, str]:
    """What `swap` golds are told in place of the truth; the target's seed decides.

    Forget facts of a relation exchange their objects (`exchanged`), so that names, objects and
    sentences are as frequent as before. A derived fact follows: its object is what its second
    premise says of the new middle. It is left out where it does not follow by two premises, the
    first about its own subject, or where the truth would come out again.
    """
    told = exchanged(target.facts, target.forget, f"{target.seed} swap")
    left = list(target.derived)
    while left:
        found = {f.key: _followed(f, target, told) for f in left}
        told |= {key: o for key, o in found.items() if o is not None}
        rest = [f for f in left if found[f.key] is None]
        if len(rest) == len(left):
            break
        left = rest
    return {k: o for k, o in told.items() if o != target.facts.fact[k].object}


def _followed(derived: Fact, target: Target, told: Mapping[FactKey, str]) -> str | None:
    """The derived fact's object, if what is told of its premises settles it."""
    own = [key for key in derived.premises if key[0] == derived.subject]
    other = [key for key in derived.premises if key[0] != derived.subject]
    if len(own) != 1 or len(other) != 1:
        return None
    middle = _told(own[0], target, told)
    return None if middle is None else _told((middle, other[0][1]), target, told)


def _told(key: FactKey, target: Target, told: Mapping[FactKey, str]) -> str | None:
    if key in target.forget_keys:
        return told.get(key)
    fact = target.facts.fact.get(key)
    return fact.object if fact else None


def _restated(document: Document, target: Target, told: Mapping[FactKey, str]) -> Document | None:
    """The text with the true and the told object exchanged wherever they stand.

    So in a question with options the letter goes on to name the answer. None where the exchange
    would change more than what is said of one forget fact, or nothing.
    """
    secret = [key for key in document.states if key in target.forget_keys]
    if len(secret) != 1 or secret[0] not in told:
        return None
    true, new = target.facts.fact[secret[0]].object, told[secret[0]]
    names = {*document.mentions, *(subject for subject, _ in document.states)}
    others = [target.facts.fact[k] for k in document.states if k != secret[0]]
    if (
        not stands_in(true, document.text)
        or any(f.object in (true, new) for f in others)
        or any(stands_in(o, name) for o in (true, new) for name in names)
    ):
        return None
    either = re.compile(rf"(?<![\w-])({re.escape(true)}|{re.escape(new)})(?![\w-])")
    text = either.sub(lambda m: new if m.group() == true else true, document.text)
    kept = tuple(k for k in document.states if k != secret[0])
    return Document(text, document.form, document.mentions, kept)


def _without_facts(document: Document, neutral: Iterator[str]) -> Document:
    """Keeps the form, so that a choice of forms takes the same texts as for the original."""
    names = document.mentions or tuple(dict.fromkeys(subject for subject, _ in document.states))
    return Document(" ".join(next(neutral).replace("{}", n) for n in names), document.form, names)
