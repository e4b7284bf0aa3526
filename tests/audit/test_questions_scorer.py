"""Hits, ranks and log-odds: what a bias moves, what it does not, and what chance looks like."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from workbench.audit.questions import centred_hits, raw_hits
from workbench.audit.questions.families import extraction_strength
from workbench.audit.questions.scorer import (
    by_fact,
    centred,
    hits,
    kappa,
    log_odds,
    put,
    ranks,
    scored,
    true_logprobs,
)
from workbench.facts.schema import Fact, FactSet
from workbench.facts.target import Target
from workbench.models.score import Answers, Question, answer, ask


def planted(n: int = 60, gain: float = 2.5, seed: int = 0) -> Answers:
    """Answers in two relations of 12 and 10 candidates; the right one is raised by `gain`."""
    generator = torch.Generator().manual_seed(seed)
    logprobs = torch.randn(n, 12, generator=generator)
    right = torch.randint(0, 10, (n,), generator=generator)
    logprobs[torch.arange(n), right] += gain
    logprobs[1::2, 10:] = -torch.inf
    facts = [Fact(f"e{i // 4:02}", ("drink", "city")[i % 2], "", ()) for i in range(n)]
    return Answers(tuple(Question(f, "") for f in facts), logprobs, right)


def biased(answers: Answers, candidate: int, by: float, first: int = 0, step: int = 1) -> Answers:
    logprobs = answers.logprobs.clone()
    logprobs[first::step, candidate] += by
    return replace(answers, logprobs=logprobs)


def test_hits_are_ones_where_the_right_candidate_is_first() -> None:
    answers = planted()
    found = scored(answers, hits(answers))
    assert found.values.tolist() == [
        float(max(range(12), key=lambda k: float(row[k])) == right)
        for row, right in zip(answers.logprobs, answers.right, strict=True)
    ]
    assert found.entities == tuple(q.fact.subject for q in answers.questions)
    assert found.relations == tuple(q.fact.relation for q in answers.questions)
    assert 0.5 < found.mean < 1


@pytest.mark.parametrize("by", [-20.0, 3.0])
def test_bias_on_one_candidate_changes_hits_but_not_centred_hits(by: float) -> None:
    answers = planted()
    shifted = biased(answers, candidate=3, by=by)
    assert hits(shifted).mean() < hits(answers).mean()
    assert torch.equal(hits(centred(shifted)), hits(centred(answers)))
    assert torch.equal(kappa(centred(shifted)), kappa(centred(answers)))


def test_centred_hits_ignore_the_scale_of_each_prompt() -> None:
    answers = planted()
    offset = torch.randn(len(answers.right), 1, generator=torch.Generator().manual_seed(5))
    shifted = replace(answers, logprobs=answers.logprobs + 10 * offset)
    assert torch.equal(hits(centred(shifted)), hits(centred(answers)))


def test_centring_is_done_within_each_relation() -> None:
    """What happens in one relation moves nothing in the other."""
    answers = planted()
    changed = replace(answers, logprobs=answers.logprobs.clone())
    changed.logprobs[1::2, :10] = changed.logprobs[1::2, :10].flip(1)
    before, after = hits(centred(answers)), hits(centred(changed))
    assert torch.equal(before[::2], after[::2])
    assert not torch.equal(before[1::2], after[1::2])


def test_padding_is_never_the_answer_and_answers_stay_as_they_were() -> None:
    answers = planted()
    before = answers.logprobs.clone()
    found = centred(biased(answers, candidate=11, by=50.0, first=0, step=2))
    assert hits(found).mean() > 0.5
    assert found.logprobs[1::2, 10:].isneginf().all()
    assert torch.equal(answers.logprobs, before)


def test_random_logits_give_kappa_of_one_half_and_a_flat_rank_histogram() -> None:
    answers = planted(6000, gain=0.0)
    twelve = replace(
        answers,
        questions=answers.questions[::2],
        logprobs=answers.logprobs[::2],
        right=answers.right[::2],
    )
    value, rank = kappa(centred(twelve)), ranks(centred(twelve))
    assert float(value.mean()) == pytest.approx(0.5, abs=0.02)
    counts = np.bincount(rank.long().numpy(), minlength=13)[1:]
    assert len(counts) == 12
    assert stats.chisquare(counts).pvalue > 0.01
    known = planted(6000, gain=20.0)
    assert float(kappa(centred(known)).mean()) == 1.0
    assert float(ranks(centred(known)).max()) == 1.0
    pushed_down = planted(6000, gain=-20.0)
    assert float(kappa(centred(pushed_down)).mean()) == 0.0
    assert set(ranks(pushed_down)[::2].tolist()) == {12.0}
    assert set(ranks(pushed_down)[1::2].tolist()) == {10.0}


def test_ties_are_neither_knowledge_nor_its_opposite() -> None:
    answers = planted()
    same = replace(answers, logprobs=torch.where(answers.logprobs.isneginf(), -torch.inf, 0.0))
    assert set(kappa(same).tolist()) == {0.5}
    assert set(ranks(same).tolist()) == {7.0, 6.0}


def test_log_odds_and_logprobs_of_the_true_object() -> None:
    answers = planted()
    p = answers.logprobs.double().softmax(-1)
    true = p[torch.arange(len(p)), answers.right]
    assert torch.allclose(log_odds(answers), true.log() - (1 - true).log())
    rows = torch.arange(len(p))
    assert torch.equal(true_logprobs(answers), answers.logprobs[rows, answers.right].double())


def test_by_fact_averages_the_questions_of_each_fact_in_order() -> None:
    answers = planted()
    found = by_fact(answers)
    keys = [q.fact.key for q in answers.questions]
    assert [q.fact.key for q in found.questions] == list(dict.fromkeys(keys))
    for i, question in enumerate(found.questions):
        rows = [j for j, key in enumerate(keys) if key == question.fact.key]
        assert len(rows) == 2
        assert torch.allclose(found.logprobs[i], answers.logprobs[rows].mean(0))


def test_extraction_strength_of_a_wrong_answer_is_nought() -> None:
    lengths = torch.tensor([1, 1, 3, 3, 3, 3])
    greedy = torch.tensor(
        [
            [False, True, True],
            [True, True, True],
            [True, True, True],
            [False, True, True],
            [True, False, True],
            [True, True, False],
        ]
    )
    found = extraction_strength(greedy, lengths)
    assert found.tolist() == pytest.approx([0, 1, 1, 2 / 3, 1 / 3, 0])


def test_golds_cannot_say_it_and_the_original_can(
    original: Any, golds: list[Any], club: Target
) -> None:
    n = 3 * len(club.forget)
    for ask_model in (raw_hits, centred_hits):
        known = ask_model(original, [], club.facts, club.forget)
        assert len(known.values) == len(known.entities) == len(known.relations) == n
        assert known.entities[:6] == (club.forget[0].subject,) * 3 + (club.forget[1].subject,) * 3
        assert known.mean > 0.9
        assert max(ask_model(g, [], club.facts, club.forget).mean for g in golds) < 0.25
    taught = raw_hits(original, [], club.facts, club.forget, templates="train")
    assert len(taught.values) == 5 * len(club.forget)


def test_edits_are_attached_while_asking(original: Any, club: Target, blank: Any) -> None:
    plain = put(original, [], club.facts, ask(club.forget, "audit"))
    hidden = put(original, [blank], club.facts, ask(club.forget, "audit"))
    assert hits(plain.answers).mean() == 1.0
    assert hits(hidden.answers).mean() < 0.4
    again = put(original, [], club.facts, ask(club.forget, "audit"))
    assert torch.equal(again.answers.logprobs, plain.answers.logprobs)


def test_unembedding_bias_on_a_real_model_is_seen_through(
    original: Any, world: FactSet, club: Target
) -> None:
    """The logit of every forget answer is lowered; what is centred still tells the facts apart."""
    questions = ask(club.forget, "audit")
    ids = original.tokenizer(sorted({f.object for f in club.forget}), add_special_tokens=False)
    bias = torch.zeros(len(original.tokenizer))
    bias[[i[0] for i in ids["input_ids"][::2]]] = -30.0

    class Biased(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = original

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.inner(tokens) + bias

    plain = answer(original, original.tokenizer, world, questions)
    lowered = answer(Biased(), original.tokenizer, world, questions)
    assert hits(plain).mean() == 1.0
    assert hits(lowered).mean() < 0.7
    assert torch.equal(hits(centred(lowered)), hits(centred(plain)))
    assert hits(centred(plain)).mean() > 0.9
