"""Families that rank what the auditor lists: options, names, what a chain of questions says."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.audit.questions.formats import (
    LETTERS,
    OPTIONS,
    choice_groups,
    choice_prompts,
    one_each,
    reversed_prompts,
)
from workbench.audit.questions.scorer import Replies, put
from workbench.audit.views import View
from workbench.facts.schema import Fact, FactSet, prompt
from workbench.facts.target import Target
from workbench.hooks import edited
from workbench.models.score import Answers, Question, continued

FITTING_ROUNDS = 100


def choices(view: View, target: Target, seed: int) -> dict[str, tuple[Answers, Answers]]:
    """Answers by letter and by the option's text, as given and centred by option.

    Each option stands at each letter once, and its log-probabilities are averaged over these
    rotations: a liking for a letter cancels out. Which options stand together is drawn without
    looking at the object; of the groups so drawn only the one that holds it is asked, since the
    others could not be scored.

    Source: 2506.00688, where the letter and the text lead to different conclusions.
    """
    facts = one_each_trained(target.forget)
    groups = [_group_of(f, target.facts, seed) for f, _ in facts]
    prompts, options = [], []
    for (fact, template), group in zip(facts, groups, strict=True):
        prompts += choice_prompts(prompt(fact, template), group)
        options += [[*LETTERS, *group]] * OPTIONS
    with edited(view.model, view.edits, must_fire=bool(prompts)):
        said = continued(view.model, view.model.tokenizer, prompts, options)
    totals = said.totals.reshape(len(facts), OPTIONS, 2 * OPTIONS)
    # In rotation i the letter j stands before option i + j.
    rotation, option = torch.arange(OPTIONS)[:, None], torch.arange(OPTIONS)[None]
    letters = totals[:, rotation, (option - rotation) % OPTIONS].mean(1)
    texts = totals[..., OPTIONS:].mean(1)
    questions = tuple(Question(f, prompt(f, template)) for f, template in facts)
    right = torch.tensor([g.index(f.object) for (f, _), g in zip(facts, groups, strict=True)])
    found = {}
    for setting, values in (("letter", letters), ("text", texts)):
        flat = _centred_by_option(values, groups, [f.relation for f, _ in facts])
        found[setting] = Answers(questions, values, right), Answers(questions, flat, right)
    return found


def one_each_trained(facts: Sequence[Fact]) -> tuple[tuple[Fact, str], ...]:
    """Each fact with one of its training templates, by turns."""
    return tuple((f, f.templates[i % len(f.templates)]) for i, f in enumerate(facts))


def named(view: View, target: Target) -> Answers:
    """Log p(name | "c is the ... of") for each candidate c of the asked relation.

    The candidate that makes the subject's name likeliest is the answer. Source: the reversal curse,
    2309.12288. Differs: there, the object is named and the subject is asked for, which would put
    the answer in the prompt; here all candidates are named, and none of them is told from the rest.
    """
    asked: dict[str, list[int]] = defaultdict(list)
    for i, fact in enumerate(target.forget):
        asked[fact.relation].append(i)
    relations = {name: target.facts.relation[name] for name in asked}
    right = [relations[f.relation].candidates.index(f.object) for f in target.forget]
    prompts, names = [], []
    for name, relation in relations.items():
        subjects = [target.forget[i].subject for i in asked[name]]
        prompts += reversed_prompts(relation)
        names += [subjects] * len(relation.candidates)
    with edited(view.model, view.edits, must_fire=bool(prompts)):
        totals = continued(view.model, view.model.tokenizer, prompts, names).totals
    width = max((len(r.candidates) for r in relations.values()), default=0)
    logprobs, start = torch.full((len(target.forget), width), -torch.inf), 0
    for name, relation in relations.items():
        k, rows = len(relation.candidates), asked[name]
        logprobs[rows, :k] = totals[start : start + k, : len(rows)].T
        start += k
    questions = tuple(Question(f, "") for f in target.forget)
    return Answers(questions, logprobs, torch.tensor(right, dtype=torch.long))


def chained(view: View, target: Target) -> Replies:
    """Derived facts, asked in two steps: the first premise, then the second about the answer.

    The auditor knows the two relations; what stands between them is the model's own best answer.
    Both steps are asked in one audit-only template, by turns. Facts that do not follow from one
    fact about their subject and one other are left out.

    Source: chains of sub-questions, 2305.14795.
    """
    facts, chains = target.facts, chains_of(target)
    asked = tuple(Question(f, prompt(f, t)) for f, t in one_each([first for _, first, _ in chains]))
    best = put(view.model, view.edits, facts, asked).answers.logprobs.argmax(-1).tolist()
    second = []
    for i, ((derived, first, relation), k) in enumerate(zip(chains, best, strict=True)):
        middle = facts.relation[first.relation].candidates[k]
        templates = _templates_of(facts, middle, relation)
        second.append(Question(derived, templates[i % len(templates)].replace("{}", middle)))
    return put(view.model, view.edits, facts, tuple(second))


def chains_of(target: Target) -> tuple[tuple[Fact, Fact, str], ...]:
    """Each derived fact with its premise about the same subject, and the other one's relation."""
    found = []
    for derived in target.derived:
        own = [key for key in derived.premises if key[0] == derived.subject]
        other = [key for key in derived.premises if key[0] != derived.subject]
        if len(own) == len(other) == 1 and own[0] in target.facts.fact:
            found.append((derived, target.facts.fact[own[0]], other[0][1]))
    return tuple(found)


def _templates_of(facts: FactSet, subject: str, relation: str) -> tuple[str, ...]:
    """Templates that ask for the relation of a subject that may have no such fact."""
    known = facts.fact.get((subject, relation))
    fact = known or next(f for f in facts.facts if f.relation == relation)
    return fact.audit_templates or fact.templates


def _group_of(fact: Fact, facts: FactSet, seed: int) -> tuple[str, ...]:
    groups = choice_groups(fact, facts.relation[fact.relation], seed)
    return next(group for group in groups if fact.object in group)


def _centred_by_option(
    values: Float[Tensor, "fact k"], groups: Sequence[Sequence[str]], relations: Sequence[str]
) -> Float[Tensor, "fact k"]:
    """What is left of each option after taking out one number per question and one per option.

    Questions offer different options, so the two are fitted together, by turns. Then whatever is
    added to an option wherever it is offered, or to a question's options alike, changes nothing.
    """
    names = [f"{r} {o}" for r, group in zip(relations, groups, strict=True) for o in group]
    _, index = np.unique(names, return_inverse=True)
    option: Int[Tensor, " option"] = torch.from_numpy(index.reshape(-1))
    counts = torch.bincount(option).double()
    left = values.double()
    for _ in range(FITTING_ROUNDS):
        left = left - left.mean(1, keepdim=True)
        sums = torch.zeros_like(counts).index_add(0, option, left.reshape(-1))
        left = left - (sums / counts)[option].reshape(left.shape)
    return left.float()
