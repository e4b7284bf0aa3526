"""What can be guessed without knowing a fact: from base rates, names and what else is known."""

import math
from collections import Counter
from collections.abc import Callable, Sequence

from workbench.facts.schema import Fact, FactKey, FactSet
from workbench.facts.target import Target

Guesser = Callable[[Sequence[Fact], Sequence[Fact]], list[str]]
"""Learns from the first facts, all of one relation, and guesses the objects of the second."""


def priors(facts: Sequence[Fact]) -> dict[str, dict[str, float]]:
    """Share of each object among the facts of its relation: all that mere counting gives."""
    return {
        relation: {name: count / len(objects) for name, count in Counter(objects).items()}
        for relation, objects in _objects(facts).items()
    }


def guessable(facts: FactSet) -> frozenset[FactKey]:
    """Facts that a guesser finds who knows the relation but has never heard of the subject.

    A fact is guessable if its object is the most common one of its relation, and far more common
    than chance even without this very fact: its share among the other n - 1 facts exceeds 1/K by
    more than three standard errors. K is the number of candidates, and the error is that of a share
    of 1/K in n draws. Where K is 1 there is nothing to know, and every fact is guessable.
    """
    objects = _objects(facts.facts)
    heads = {
        relation: _head(seen, len(facts.relation[relation].candidates))
        for relation, seen in objects.items()
    }
    return frozenset(f.key for f in facts.facts if f.object in heads[f.relation])


def _objects(facts: Sequence[Fact]) -> dict[str, list[str]]:
    objects: dict[str, list[str]] = {}
    for fact in facts:
        objects.setdefault(fact.relation, []).append(fact.object)
    return objects


def _head(objects: list[str], k: int) -> set[str]:
    """The most common objects, if they are far more common than chance has it."""
    counts, n = Counter(objects), len(objects)
    if k == 1:
        return set(counts)
    if n == 1:
        return set()
    top = max(counts.values())
    far = (top - 1) / (n - 1) > 1 / k + 3 * standard_error(1 / k, n)
    return {name for name, count in counts.items() if far and count == top}


def standard_error(p: float, n: int) -> float:
    """Binomial standard error of a share `p` in `n` draws."""
    return math.sqrt(p * (1 - p) / n)


def hit_rate(guess: Guesser, learned: Sequence[Fact], asked: Sequence[Fact]) -> float:
    """Share of the facts in `asked` that the guesser finds; it learns one relation at a time."""
    hits = 0
    for relation in dict.fromkeys(f.relation for f in asked):
        train, test = ([f for f in facts if f.relation == relation] for facts in (learned, asked))
        hits += sum(g == f.object for g, f in zip(guess(train, test), test, strict=True))
    return hits / len(asked)


def guess_by_name(train: Sequence[Fact], test: Sequence[Fact]) -> list[str]:
    """Multinomial naive Bayes over the character trigrams of the subject between two spaces."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import MultinomialNB

    vectorizer = CountVectorizer(analyzer="char", ngram_range=(3, 3))
    counts = vectorizer.fit_transform(f" {f.subject} " for f in train)
    model = MultinomialNB().fit(counts, [f.object for f in train])
    return [str(g) for g in model.predict(vectorizer.transform(f" {f.subject} " for f in test))]


def oracle(target: Target) -> Guesser:
    """Categorical naive Bayes over the parts of the name and all that is kept about the subject.

    It is given every stated fact about it that need not go: what a model that has forgotten the
    target may still work out from.
    """
    facts, gone = target.facts, target.forget_keys

    def traits(fact: Fact) -> dict[str, str]:
        kept = {
            f.relation: f.object
            for f in facts.by_subject[fact.subject]
            if f.stated and f.key not in gone
        }
        parts = {f"part {n} of the name": part for n, part in enumerate(fact.subject.split())}
        return {name: value for name, value in {**kept, **parts}.items() if name != fact.relation}

    def guess(train: Sequence[Fact], test: Sequence[Fact]) -> list[str]:
        return categorical_bayes(
            [traits(f) for f in train], [f.object for f in train], [traits(f) for f in test]
        )

    return guess


def categorical_bayes(
    rows: Sequence[dict[str, str]],
    labels: Sequence[str],
    asked: Sequence[dict[str, str]],
    smoothing: float = 1.0,
) -> list[str]:
    """Naive Bayes over named categories; a category or value that no row has says nothing.

    Unlike `CategoricalNB` of scikit-learn it takes rows with missing categories; where none is
    missing the two agree.

    Args:
        rows: the categories of each thing to learn from.
        labels: its label.
        asked: the categories of each thing to label.
        smoothing: added to each count of a value, above 0.
    """
    classes = Counter(labels)
    having = Counter((c, name) for row, c in zip(rows, labels, strict=True) for name in row)
    counts = Counter(
        (c, *item) for row, c in zip(rows, labels, strict=True) for item in row.items()
    )
    values = Counter(name for name, _ in {item for row in rows for item in row.items()})
    seen = {item for row in rows for item in row.items()}

    def score(row: dict[str, str], c: str) -> float:
        return math.log(classes[c]) + sum(
            math.log(
                (counts[c, name, value] + smoothing) / (having[c, name] + smoothing * values[name])
            )
            for name, value in row.items()
            if (name, value) in seen
        )

    return [max(classes, key=lambda c: score(row, c)) for row in asked]
