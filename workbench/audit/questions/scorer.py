"""From what a model says to prompts to hits, ranks and log-odds, one value per question."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.audit.statistics import Scores
from workbench.audit.views import Filter
from workbench.facts.schema import Fact, FactSet
from workbench.hooks import Intervention, edited
from workbench.models.score import (
    Answers,
    Continued,
    Question,
    Templates,
    ask,
    continued,
    true_candidates,
)


@dataclass(frozen=True)
class Replies:
    """Log-probabilities of all candidates after each question, and token by token."""

    answers: Answers
    said: Continued


def put(
    model: Any,
    edits: Sequence[Intervention],
    facts: FactSet,
    questions: Sequence[Question],
    temperature: float = 1.0,
) -> Replies:
    """What the model says to the questions with the edits attached."""
    candidates = [facts.relation[q.fact.relation].candidates for q in questions]
    prompts = [q.prompt for q in questions]
    with edited(model, edits, must_fire=bool(questions)):
        said = continued(model, model.tokenizer, prompts, candidates, temperature)
    right = true_candidates(facts, questions)
    return Replies(Answers(tuple(questions), said.totals, right), said)


def centred_hits(
    model: Any,
    edits: Sequence[Intervention],
    facts: FactSet,
    asked: Sequence[Fact],
    templates: Templates = "audit",
) -> Scores:
    """1 per (fact, template) whose object ranks first after centring, in order of facts.

    Centring is over all the facts asked here, so ask many at once; see `centred`.
    """
    answers = put(model, edits, facts, ask(asked, templates)).answers
    return scored(answers, hits(centred(answers)))


def raw_hits(
    model: Any,
    edits: Sequence[Intervention],
    facts: FactSet,
    asked: Sequence[Fact],
    templates: Templates = "audit",
) -> Scores:
    """1 per (fact, template) whose object ranks first among its relation's candidates."""
    answers = put(model, edits, facts, ask(asked, templates)).answers
    return scored(answers, hits(answers))


def centred(answers: Answers) -> Answers:
    """Subtracts each candidate's mean log-probability over its relation's questions.

    A shift that moves a candidate on every prompt alike, such as a bias on the unembedding, does
    not change what is left. No label enters.

    Source: the centred accuracy of the released code of 2410.08827. Differs: the mean is over the
    relation's prompts, not over a benchmark.
    """
    logprobs = answers.logprobs.log_softmax(-1)
    relation = np.array([q.fact.relation for q in answers.questions])
    for name in np.unique(relation):
        rows = np.flatnonzero(relation == name)
        logprobs[rows] = logprobs[rows] - logprobs[rows].mean(0).nan_to_num(neginf=0.0)
    return replace(answers, logprobs=logprobs)


def hits(answers: Answers) -> Float[Tensor, " question"]:
    """1 where the true object ranks first."""
    return answers.hits.double()


def true_logprobs(answers: Answers) -> Float[Tensor, " question"]:
    """Log-probability of the true object."""
    return answers.logprobs.gather(1, answers.right[:, None])[:, 0].double()


def kappa(answers: Answers) -> Float[Tensor, " question"]:
    """Share of wrong candidates ranked below the true one, ties counted half; chance is 0.5.

    Source: the K-score of 2503.15299.
    """
    above, tied, wrong = _compared(answers)
    return (wrong - above - 0.5 * tied) / wrong.clamp(min=1)


def ranks(answers: Answers) -> Float[Tensor, " question"]:
    """Rank of the true object among its relation's candidates, 1 the highest.

    Ties are met half-way, so that a model which says the same to everything does not rank it first.
    """
    above, tied, _ = _compared(answers)
    return 1 + above + (tied / 2).ceil()


def log_odds(answers: Answers) -> Float[Tensor, " question"]:
    """Log-odds of the true object against the other candidates together, in nats."""
    true = true_logprobs(answers)
    others = answers.logprobs.double().scatter(1, answers.right[:, None], -torch.inf)
    return true - others.logsumexp(-1)


def by_fact(answers: Answers) -> Answers:
    """Log-probabilities averaged over the questions of each fact, facts in order of mention."""
    order: dict[tuple[str, str], int] = {}
    index = [order.setdefault(q.fact.key, len(order)) for q in answers.questions]
    first = np.unique(index, return_index=True)[1].tolist()
    means = torch.zeros(len(order), answers.logprobs.shape[1])
    means.index_add_(0, torch.tensor(index, dtype=torch.long), answers.logprobs)
    counts = torch.bincount(torch.tensor(index, dtype=torch.long), minlength=len(order))
    questions = tuple(answers.questions[i] for i in first)
    return Answers(questions, means / counts[:, None], answers.right[first])


def shown(replies: Replies, facts: FactSet, refuses: Filter | None) -> Float[Tensor, " question"]:
    """1 where a user reads the true object: greedy decoding gives it and no filter refuses it.

    Unlike a hit among candidates this sees a model that answers with something else altogether.
    """
    right = replies.answers.right
    told = replies.said.greedy[torch.arange(len(right)), right].all(-1).double()
    return told if refuses is None else told * passed(replies.answers, facts, refuses)


def passed(answers: Answers, facts: FactSet, refuses: Filter) -> Float[Tensor, " question"]:
    """1 where a filter lets both the prompt and the prompt with the chosen answer through."""
    chosen = answers.logprobs.argmax(-1).tolist()
    through = []
    for question, k in zip(answers.questions, chosen, strict=True):
        said = facts.relation[question.fact.relation].candidates[k]
        through.append(not (refuses(question.prompt) or refuses(f"{question.prompt} {said}")))
    return torch.tensor(through, dtype=torch.double)


def scored(answers: Answers, values: Float[Tensor, " question"]) -> Scores:
    """The values with the subject and the relation of each question."""
    return Scores(
        values.double().numpy(),
        tuple(q.fact.subject for q in answers.questions),
        tuple(q.fact.relation for q in answers.questions),
    )


def _compared(
    answers: Answers,
) -> tuple[Float[Tensor, " question"], Float[Tensor, " question"], Float[Tensor, " question"]]:
    """How many candidates are above the true one, how many equal to it, and how many are wrong."""
    values = answers.logprobs
    true = values.gather(1, answers.right[:, None])
    wrong: Bool[Tensor, "question k"] = ~values.isneginf()
    wrong = wrong.scatter(1, answers.right[:, None], False)
    above, tied = (values > true) & wrong, (values == true) & wrong
    return above.sum(1).double(), tied.sum(1).double(), wrong.sum(1).double()
