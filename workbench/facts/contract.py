"""The data contract: what must hold of a target before a measurement on it can be believed."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from workbench.errors import DataError
from workbench.facts.guessers import (
    Guesser,
    guess_by_name,
    guessable,
    hit_rate,
    oracle,
    priors,
    standard_error,
)
from workbench.facts.mentions import name_finder, stands_in
from workbench.facts.schema import Document, Fact, FactKey, FactSet, prompt
from workbench.facts.target import Target

__all__ = ["Check", "check_contract", "guessable", "priors", "require_contract"]

MIN_FORGET_FACTS, MIN_FORGET_ENTITIES = 300, 100
MIN_CANDIDATES = 12
MIN_TEMPLATES, MIN_AUDIT_TEMPLATES = 5, 3


@dataclass(frozen=True)
class Check:
    """One condition of the contract.

    Attributes:
        id: what is checked.
        passed: whether the value is within the limit.
        value: what was found; nan where there is too little data to tell, which never passes.
        limit: what the value may not fall below or may not exceed; the note says which.
        note: what the value is, what is wanted, and the first cases of a violation.
    """

    id: str
    passed: bool
    value: float
    limit: float
    note: str


def check_contract(target: Target) -> tuple[Check, ...]:
    """Checks what the audit takes for granted; a check with too little data fails and says so."""
    about = _texts_about(target)
    return (
        _at_least("forget_facts", len(target.forget), MIN_FORGET_FACTS, "facts to be forgotten"),
        _at_least(
            "forget_entities",
            len(target.entities),
            MIN_FORGET_ENTITIES,
            "entities with facts to be forgotten",
        ),
        _candidates(target),
        _folds(target),
        _derived_follow(target),
        _templates(target),
        _audit_templates(target),
        _templates_apart(target),
        _audit_unseen(target, about),
        _beyond_prior("name_guesser", target, ("T", "S"), guess_by_name),
        _beyond_prior("oracle_guesser", target, ("T",), oracle(target)),
        _answers_in_prompts(target),
        _gold_clean(target, about),
    )


def require_contract(target: Target) -> tuple[Check, ...]:
    """Gives the checks of a target that passes all of them.

    Raises:
        DataError: some checks fail; all of these are listed with value and limit.
    """
    checks = check_contract(target)
    failed = [
        f"{c.id}: {c.value:.4g}, limit {c.limit:.4g} ({c.note})" for c in checks if not c.passed
    ]
    if failed:
        raise DataError(
            f"target {target.name!r} breaks the data contract; mend the facts: " + "; ".join(failed)
        )
    return checks


def _at_least(name: str, value: int, limit: int, what: str) -> Check:
    return Check(
        name, value >= limit, float(value), float(limit), f"{what}; wanted at least {limit}"
    )


def _none(name: str, cases: Sequence[str], what: str) -> Check:
    """A check that there is no case at all."""
    first = f", found {'; '.join(cases[:3])}" if cases else ""
    return Check(name, not cases, float(len(cases)), 0.0, f"{what}; wanted none{first}")


def _candidates(target: Target) -> Check:
    counts = {f.relation: len(target.facts.relation[f.relation].candidates) for f in target.forget}
    relation = min(counts, key=counts.__getitem__, default="")
    what = f"candidates of the forget relation with the fewest, {relation!r}"
    return _at_least("candidates", counts.get(relation, 0), MIN_CANDIDATES, what)


def _folds(target: Target) -> Check:
    times = Counter(name for names in target.folds.values() for name in names)
    wrong = [
        f"{name!r} in {times[name]}"
        for name in sorted({*times, *target.entities})
        if times[name] != 1
    ]
    strangers = [
        f"{name!r} has no forget fact" for name in sorted(set(times) - set(target.entities))
    ]
    return _none("folds", wrong + strangers, "entities that are not in one fold exactly")


def _derived_follow(target: Target) -> Check:
    """One that rests on, or is about, entities of two folds is trained on and scored at once."""
    fold = {name: fold for fold, names in target.folds.items() for name in names}
    forget, derived = {f.key for f in target.forget}, {f.key: f for f in target.derived}

    def roots(key: FactKey, above: tuple[FactKey, ...] = ()) -> set[str]:
        if key in forget:
            return {key[0]}
        premises = derived[key].premises if key in derived and key not in above else ()
        return {root for premise in premises for root in roots(premise, (*above, key))}

    folds = {key: {fold[name] for name in (*roots(key), key[0]) if name in fold} for key in derived}
    split = [f"{key} in {sorted(found)}" for key, found in folds.items() if len(found) != 1]
    return _none(
        "derived_follow",
        split,
        "derived facts that do not lie in the one fold of what they rest on",
    )


def _templates(target: Target) -> Check:
    fewest = min((len(set(f.templates)) for f in target.forget), default=0)
    return _at_least(
        "templates", fewest, MIN_TEMPLATES, "training templates of the forget fact with the fewest"
    )


def _audit_templates(target: Target) -> Check:
    fewest = min((len(set(f.audit_templates)) for f in target.forget), default=0)
    what = "audit templates of the forget fact with the fewest"
    return _at_least("audit_templates", fewest, MIN_AUDIT_TEMPLATES, what)


def _templates_apart(target: Target) -> Check:
    """Against the templates of every stated fact: one shown for another subject is shown."""
    shown = {t for f in target.facts.facts if f.stated for t in f.templates}
    both = sorted({t for f in target.forget for t in f.audit_templates} & shown)
    return _none("templates_apart", both, "audit templates that are training templates too")


def _texts_about(target: Target) -> dict[str, list[Document]]:
    """The training texts that name each subject of a forget fact or of one derived from it."""
    about: dict[str, list[Document]] = {f.subject: [] for f in (*target.forget, *target.derived)}
    subjects_in = name_finder(about)
    for document in target.facts.corpus:
        for name in subjects_in(document.text):
            about[name].append(document)
    return about


def _audit_unseen(target: Target, about: dict[str, list[Document]]) -> Check:
    """Anywhere in a text: within a question or a longer prompt it is trained on just the same."""
    seen = [
        text
        for fact in target.forget
        for text in (prompt(fact, t) for t in fact.audit_templates)
        if any(stands_in(text, document.text) for document in about[fact.subject])
    ]
    return _none("audit_unseen", seen, "audit prompts that stand in a training text")


def _beyond_prior(name: str, target: Target, folds: tuple[str, ...], guess: Guesser) -> Check:
    """Whether a guesser that learns from retained facts and some folds beats base rates on V."""
    scored, shares = target.fold("V"), priors(target.retained)
    missing = sorted({f.relation for f in scored} - set(shares))
    if not scored or missing:
        lack = f"no retained fact of {missing}" if scored else "no forget fact in fold V"
        return Check(name, False, math.nan, math.nan, f"cannot be checked: {lack}")
    learned = [*target.retained, *(f for fold in folds for f in target.fold(fold))]
    prior = sum(max(shares[f.relation].values()) for f in scored) / len(scored)
    limit = prior + 3 * standard_error(prior, len(scored))
    value = hit_rate(guess, learned, scored)
    wanted = f"wanted at most the prior of {prior:.4g} + 3 standard errors"
    return Check(
        name, value <= limit, value, limit, f"share of {len(scored)} facts guessed; {wanted}"
    )


def _answers_in_prompts(target: Target) -> Check:
    scored = target.fold("V")
    if not scored:
        return Check(
            "answers_in_prompts",
            False,
            math.nan,
            0.0,
            "cannot be checked: no forget fact in fold V",
        )
    texts = [(f, prompt(f, t)) for f in scored for t in (*f.templates, *f.audit_templates)]
    telling = [f"{f.object!r} in {text!r}" for f, text in texts if stands_in(f.object, text)]
    return _none("answers_in_prompts", telling, "prompts of fold V that hold their answer")


def _gold_clean(target: Target, about: dict[str, list[Document]]) -> Check:
    """By the words alone, so that a text whose `states` is wrong is found too."""
    secrets = (*target.forget, *target.derived)
    leaks = [
        f"{document.text!r} tells {fact.key}"
        for fact in secrets
        for document in about[fact.subject]
        if not target.states_target(document) and _tells(document, fact, target.facts)
    ]
    return _none(
        "gold_clean", leaks, "pairs of a text for the gold model and a fact that it must not tell"
    )


def _tells(document: Document, fact: Fact, facts: FactSet) -> bool:
    """Whether the subject has the object beside it and the text states no other fact with both."""
    others = (facts.fact[key] for key in document.states if key in facts.fact)
    if any(f.subject == fact.subject and f.object == fact.object for f in others):
        return False
    return fact.object in document.text and stands_in(
        fact.object, document.text.replace(fact.subject, " ")
    )
