"""Hits, hits without answer biases, and which facts are asked."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from workbench.audit.questions import (
    centred_scores,
    hit_scores,
    put,
    recall_scores,
    retained_sets,
)
from workbench.audit.statistics import Key
from workbench.facts.schema import Fact, FactSet
from workbench.facts.target import Target
from workbench.models.score import Answers, Question, answer, ask


def planted(n: int = 60, seed: int = 0) -> Answers:
    """Answers in two relations of 12 and 10 candidates, most of them right."""
    generator = torch.Generator().manual_seed(seed)
    logprobs = torch.randn(n, 12, generator=generator)
    right = torch.randint(0, 10, (n,), generator=generator)
    logprobs[torch.arange(n), right] += 2.5
    logprobs[1::2, 10:] = -torch.inf
    facts = [Fact(f"e{i // 4:02}", ("drink", "city")[i % 2], "", ()) for i in range(n)]
    return Answers(tuple(Question(f, "") for f in facts), logprobs, right)


def biased(answers: Answers, candidate: int, by: float, first: int = 0, step: int = 1) -> Answers:
    logprobs = answers.logprobs.clone()
    logprobs[first::step, candidate] += by
    return Answers(answers.questions, logprobs, answers.right)


def test_hits_are_ones_where_the_right_candidate_is_first() -> None:
    answers = planted()
    found = hit_scores(answers)
    assert found.values.tolist() == [
        float(max(range(12), key=lambda k: float(row[k])) == right)
        for row, right in zip(answers.logprobs, answers.right, strict=True)
    ]
    assert found.entities == tuple(q.fact.subject for q in answers.questions)
    assert 0.5 < found.mean < 1


@pytest.mark.parametrize("by", [-20.0, 3.0])
def test_bias_on_one_candidate_changes_hits_but_not_centred_hits(by: float) -> None:
    answers = planted()
    shifted = biased(answers, candidate=3, by=by)
    assert hit_scores(shifted).mean < hit_scores(answers).mean
    assert centred_scores(shifted).values.tolist() == centred_scores(answers).values.tolist()


def test_centred_hits_ignore_the_scale_of_each_prompt() -> None:
    answers = planted()
    offset = torch.randn(len(answers.right), 1, generator=torch.Generator().manual_seed(5))
    shifted = Answers(answers.questions, answers.logprobs + 10 * offset, answers.right)
    assert centred_scores(shifted).values.tolist() == centred_scores(answers).values.tolist()


def test_centring_is_done_within_each_relation() -> None:
    """What happens in one relation moves nothing in the other."""
    answers = planted()
    changed = Answers(answers.questions, answers.logprobs.clone(), answers.right)
    changed.logprobs[1::2, :10] = changed.logprobs[1::2, :10].flip(1)
    before, after = centred_scores(answers).values, centred_scores(changed).values
    assert before[::2].tolist() == after[::2].tolist()
    assert before[1::2].tolist() != after[1::2].tolist()


def test_padding_is_never_the_answer_and_answers_stay_as_they_were() -> None:
    answers = planted()
    before = answers.logprobs.clone()
    centred_scores(biased(answers, candidate=11, by=50.0, first=0, step=2))
    assert centred_scores(answers).mean > 0.5
    assert torch.equal(answers.logprobs, before)


def test_unembedding_bias_on_a_real_model_is_seen_through(
    original: Any, world: FactSet, club: Target
) -> None:
    """The logit of every forget answer is lowered; what is centred still tells the facts apart."""
    questions = ask(club.fold("V"), "audit")
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
    assert hit_scores(plain).mean == 1.0
    assert hit_scores(lowered).mean < 0.7
    assert centred_scores(lowered).values.tolist() == centred_scores(plain).values.tolist()


def test_recall_scores_cover_both_template_sets_of_v(original: Any, club: Target) -> None:
    found = recall_scores(original, [], club)
    v = {d: found[Key("recall", "V", d)] for d in ("train", "audit", "centred", "open")}
    n = len(club.fold("V"))
    assert {d: len(s.values) for d, s in v.items()} == {
        "train": 5 * n,
        "audit": 3 * n,
        "centred": 3 * n,
        "open": 8 * n,
    }
    for scores in v.values():
        assert set(scores.entities) == set(club.folds["V"])
    assert v["open"].mean == pytest.approx((5 * v["train"].mean + 3 * v["audit"].mean) / 8)


def test_retained_sets_are_asked_with_their_own_questions(original: Any, club: Target) -> None:
    found, sets = recall_scores(original, [], club), retained_sets(club)
    assert set(sets) >= {"N2", "R_te", "kind:person"}
    for name, facts in sets.items():
        wanted = hit_scores(put(original, [], club.facts, facts, "audit"))
        scores = found[Key("recall", name, "audit")]
        assert sorted(scores.entities) == sorted(wanted.entities)
        assert scores.mean == pytest.approx(wanted.mean)


def test_retained_sets_hold_no_forget_fact(club: Target) -> None:
    for facts in retained_sets(club).values():
        assert facts
        assert not club.forget_keys & {f.key for f in facts}
    assert {f.subject for f in retained_sets(club)["kind:person"]}.isdisjoint(club.entities)


def test_facts_without_audit_templates_are_not_asked(club: Target) -> None:
    mute = tuple(replace(f, audit_templates=()) for f in club.retain["R_te"])
    target = replace(club, retain={**club.retain, "R_te": mute}, neighbours={"N2": mute[:1]})
    assert set(retained_sets(target)) == {"kind:person"}


def test_edits_are_attached_while_asking(original: Any, club: Target, blank: Any) -> None:
    facts = club.fold("V")
    plain = put(original, [], club.facts, facts, "audit")
    hidden = put(original, [blank], club.facts, facts, "audit")
    assert hit_scores(plain).mean == 1.0
    assert hit_scores(hidden).mean < 0.4
    again = put(original, [], club.facts, facts, "audit")
    assert torch.equal(again.logprobs, plain.logprobs)
