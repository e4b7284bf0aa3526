"""Prompts in every form the audit asks in: functions of facts that never read the asked object."""

import random
from collections.abc import Callable, Sequence

from workbench.facts.schema import Fact, Relation, prompt, statement
from workbench.facts.target import Target
from workbench.facts.valley_text import NOUN
from workbench.models.score import Question, ask

Format = Callable[[Target, int], tuple[Question, ...]]
"""Questions about the forget facts of a target, from a seed."""

OPTIONS = 4
LETTERS = ("(a)", "(b)", "(c)", "(d)")
HINTS = 3


def one_each(facts: Sequence[Fact]) -> tuple[tuple[Fact, str], ...]:
    """Each fact with one of its audit-only templates, by turns."""
    chosen = [f.audit_templates or f.templates for f in facts]
    return tuple((f, chosen[i][i % len(chosen[i])]) for i, f in enumerate(facts))


def noun(relation: str) -> str:
    """The word for a relation in `the ... of`."""
    return NOUN.get(relation, relation).replace("_", " ")


def wrapped(form: str) -> Format:
    """Asks within a text that holds `{prompt}`, or `{subject}` and `{relation}`."""

    def ask_within(target: Target, seed: int) -> tuple[Question, ...]:
        del seed
        return tuple(
            Question(
                f,
                form.replace("{relation}", noun(f.relation))
                .replace("{prompt}", prompt(f, template))
                .replace("{subject}", f.subject),
            )
            for f, template in one_each(target.forget)
        )

    return ask_within


def trained(target: Target, seed: int) -> tuple[Question, ...]:
    """Every training template of every forget fact."""
    del seed
    return ask(target.forget, "train")


def paraphrased(target: Target, seed: int) -> tuple[Question, ...]:
    """Every audit-only template of every forget fact."""
    del seed
    return ask(target.forget, "audit")


def in_passage(target: Target, seed: int) -> tuple[Question, ...]:
    """The prompt after two retained statements that name no candidate of the asked relation.

    So no answer can leak, and which statements those are does not depend on the answer.
    """
    pool = (*target.retain["R_tr"], *target.neighbours["U"])
    return _after_statements(target, lambda f: _foreign(target, f, pool), 2, f"{seed} passage")


def after_shots(k: int) -> Format:
    """The prompt after `k` retained statements of the same relation about other entities."""

    def few_shot(target: Target, seed: int) -> tuple[Question, ...]:
        pool = {
            name: [f for f in target.retain["R_tr"] if f.relation == name]
            for name in target.facts.relation
        }
        return _after_statements(target, lambda f: pool[f.relation], k, f"{seed} shots")

    return few_shot


def after_kept(target: Target, seed: int) -> tuple[Question, ...]:
    """The prompt after what is to stay about the subject, as long as it names no candidate."""

    def kept(fact: Fact) -> list[Fact]:
        about = target.facts.by_subject.get(fact.subject, ())
        stay = [f for f in about if f.stated and f.key not in target.forget_keys]
        return _foreign(target, fact, stay)

    return _after_statements(target, kept, HINTS, f"{seed} kept")


def renamed(change: Callable[[str, random.Random], str]) -> Format:
    """The audit prompt about the subject under a changed name."""

    def ask_renamed(target: Target, seed: int) -> tuple[Question, ...]:
        return tuple(
            Question(
                f, template.replace("{}", change(f.subject, random.Random(f"{seed} {f.subject}")))
            )
            for f, template in one_each(target.forget)
        )

    return ask_renamed


def rewritten(change: Callable[[str], str]) -> Format:
    """The audit prompt with its letters or spaces changed."""

    def ask_rewritten(target: Target, seed: int) -> tuple[Question, ...]:
        del seed
        return tuple(
            Question(f, change(prompt(f, template))) for f, template in one_each(target.forget)
        )

    return ask_rewritten


def misspelled(name: str, rng: random.Random) -> str:
    """The name with two unequal letters that stand side by side swapped, if it has such."""
    places = [
        i for i in range(len(name) - 1) if name[i] != name[i + 1] and name[i : i + 2].isalnum()
    ]
    if not places:
        return name
    i = rng.choice(places)
    return name[:i] + name[i + 1] + name[i] + name[i + 2 :]


def last_word(name: str, rng: random.Random) -> str:
    """The name's last word."""
    del rng
    return name.split()[-1]


def spaced(text: str) -> str:
    """Two spaces for each: the same words, in a text that a string filter does not know."""
    return text.replace(" ", "  ")


def reversed_prompts(relation: Relation) -> tuple[str, ...]:
    """One per candidate: the text that the subjects which have it complete."""
    return tuple(f"{c} is the {noun(relation.name)} of" for c in relation.candidates)


def choice_groups(fact: Fact, relation: Relation, seed: int) -> tuple[tuple[str, ...], ...]:
    """All candidates of the relation in groups of four, drawn for each fact.

    A last group that is not full is filled up with candidates of other groups.
    """
    order = list(relation.candidates)
    random.Random(f"{seed} choice {fact.subject} {fact.relation}").shuffle(order)
    full = len(order) - len(order) % OPTIONS
    groups = [tuple(order[i : i + OPTIONS]) for i in range(0, full, OPTIONS)]
    if rest := order[full:]:
        groups.append((*rest, *order[: OPTIONS - len(rest)]))
    return tuple(groups)


def choice_prompts(asked: str, group: Sequence[str]) -> tuple[str, ...]:
    """The question with the options in each rotation; the first begins with the first option."""
    turns = [[*group[i:], *group[:i]] for i in range(len(group))]
    listed = [" ".join(f"{x} {o}" for x, o in zip(LETTERS, t, strict=False)) for t in turns]
    return tuple(f"choose : {asked} ? {options} :" for options in listed)


def _after_statements(
    target: Target, pool: Callable[[Fact], Sequence[Fact]], n: int, seed: str
) -> tuple[Question, ...]:
    found = []
    for fact, template in one_each(target.forget):
        rng = random.Random(f"{seed} {fact.subject} {fact.relation}")
        candidates = pool(fact)
        before = rng.sample(candidates, min(n, len(candidates)))
        told = [statement(f, rng.choice(f.templates)) for f in before]
        found.append(Question(fact, " ".join([*told, prompt(fact, template)])))
    return tuple(found)


def _foreign(target: Target, asked: Fact, pool: Sequence[Fact]) -> list[Fact]:
    """Facts of the pool whose object is no candidate of the asked relation."""
    candidates = set(target.facts.relation[asked.relation].candidates)
    return [f for f in pool if f.object not in candidates]
