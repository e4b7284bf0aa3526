"""The scorer says what one forward pass per prompt and candidate would say."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from workbench.facts.schema import Fact, FactSet
from workbench.models import load_model
from workbench.models.score import (
    Question,
    answer,
    ask,
    batches_by_length,
    last_subject_token,
    recall,
)
from workbench.models.tokenizers import byte_pair_tokenizer, word_tokenizer


def words(facts: FactSet) -> PreTrainedTokenizerFast:
    asked = [f"{q.prompt} {c}" for q in every_question(facts) for c in candidates(facts, q)]
    return word_tokenizer([*(d.text for d in facts.corpus), *asked])


def pieces(facts: FactSet) -> PreTrainedTokenizerFast:
    """So few merges that many names and objects have several tokens, and some one."""
    return byte_pair_tokenizer([d.text for d in facts.corpus], vocab_size=370)


MAKERS = {"word": words, "byte_pair": pieces}


def every_question(facts: FactSet) -> list[Question]:
    return [*ask(facts.facts, "train"), *ask(facts.facts, "audit")]


def candidates(facts: FactSet, question: Question) -> tuple[str, ...]:
    return facts.relation[question.fact.relation].candidates


@pytest.fixture(scope="module", params=MAKERS)
def tokenizer(request: pytest.FixtureRequest, dozen: FactSet) -> PreTrainedTokenizerFast:
    make: Callable[[FactSet], PreTrainedTokenizerFast] = MAKERS[request.param]
    return make(dozen)


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Random weights, large enough for the candidates' probabilities to be far apart."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.5,
    )
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def brute_force(model: Any, tokenizer: Any, prompt: str, candidate: str) -> float:
    """Log-probability of the candidate after the prompt, one forward pass per token."""
    ids, total = tokenizer(prompt)["input_ids"], 0.0
    for token in tokenizer(f" {candidate}", add_special_tokens=False)["input_ids"]:
        logits = model(torch.tensor([ids])).logits[0, -1]
        total += float(logits.log_softmax(-1)[token])
        ids = [*ids, token]
    return total


def test_answer_equals_brute_force(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, dozen: FactSet
) -> None:
    questions = every_question(dozen)[::4]
    lengths = {
        len(tokenizer(f" {c}", add_special_tokens=False)["input_ids"])
        for q in questions
        for c in candidates(dozen, q)
    }
    found = answer(model, tokenizer, dozen, questions)
    assert lengths == {1} or max(lengths) >= 3
    for row, question in zip(found.logprobs, questions, strict=True):
        expected = [
            brute_force(model, tokenizer, question.prompt, c) for c in candidates(dozen, question)
        ]
        assert row[: len(expected)].tolist() == pytest.approx(expected, abs=1e-4)


def test_byte_pair_objects_have_one_token_and_more(dozen: FactSet) -> None:
    objects = [f" {c}" for r in dozen.relations for c in r.candidates]
    lengths = [len(ids) for ids in pieces(dozen)(objects, add_special_tokens=False)["input_ids"]]
    assert min(lengths) == 1 < 3 <= max(lengths)


def test_relations_with_fewer_candidates_are_padded(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, dozen: FactSet
) -> None:
    questions = every_question(dozen)
    found = answer(model, tokenizer, dozen, questions)
    counts = torch.tensor([len(candidates(dozen, q)) for q in questions])
    assert found.logprobs.shape == (len(questions), 12)
    assert set(counts.tolist()) == {10, 12}
    assert (found.logprobs.isfinite().sum(1) == counts).all()
    assert (found.logprobs[counts == 10, 10:] == -torch.inf).all()


def test_right_points_at_the_object_and_hits_at_the_first_rank(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, dozen: FactSet
) -> None:
    questions = every_question(dozen)
    found = answer(model, tokenizer, dozen, questions)
    for i, question in enumerate(questions):
        options = candidates(dozen, question)
        assert options[found.right[i]] == question.fact.object
        best = max(range(len(options)), key=lambda k: float(found.logprobs[i, k]))
        assert bool(found.hits[i]) == (options[best] == question.fact.object)
    assert found.questions == tuple(questions)


def test_questions_in_one_call_score_as_one_by_one(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, dozen: FactSet
) -> None:
    questions = every_question(dozen)
    assert len({len(tokenizer(q.prompt)["input_ids"]) for q in questions}) > 2
    together = answer(model, tokenizer, dozen, questions).logprobs
    for i, question in enumerate(questions):
        alone = answer(model, tokenizer, dozen, [question]).logprobs[0]
        torch.testing.assert_close(together[i, : len(alone)], alone, atol=1e-5, rtol=1e-5)


def test_bridge_and_hugging_face_model_answer_alike(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, dozen: FactSet, tmp_path: Any
) -> None:
    tokenizer.save_pretrained(tmp_path)
    saved = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    questions = every_question(dozen)
    mine = answer(model, tokenizer, dozen, questions)
    bridged = answer(load_model(model, tokenizer=saved), saved, dozen, questions)
    torch.testing.assert_close(mine.logprobs, bridged.logprobs, atol=1e-4, rtol=1e-4)


def test_batches_hold_each_row_once_and_one_length() -> None:
    rows = [[0] * n for n in (3, 5, 3, 3, 5, 40, 3)]
    batches = list(batches_by_length(rows, max_tokens=9))
    assert sorted(i for batch in batches for i in batch) == list(range(len(rows)))
    for batch in batches:
        lengths = {len(rows[i]) for i in batch}
        assert len(lengths) == 1
        assert len(batch) == 1 or len(batch) * lengths.pop() <= 9
    assert [0, 2, 3] in batches


def test_ask_gives_one_question_per_template(dozen: FactSet) -> None:
    fact = dozen.fact["bo carr", "city"]
    assert [q.prompt for q in ask([fact], "train")] == [
        "bo carr lives in",
        "the home of bo carr is",
    ]
    assert [q.prompt for q in ask([fact], "audit")] == ["bo carr lives of the home in"]


def test_last_subject_token_ends_the_subject(
    tokenizer: PreTrainedTokenizerFast, dozen: FactSet
) -> None:
    for question in every_question(dozen):
        ids, at = tokenizer(question.prompt)["input_ids"], last_subject_token(tokenizer, question)
        upto, before = (
            tokenizer.decode(ids[1:stop]).replace("<bos>", "").strip() for stop in (at + 1, at)
        )
        assert upto.endswith(question.fact.subject)
        assert not before.endswith(question.fact.subject)


@pytest.mark.parametrize(
    ("prompt", "position"),
    [
        ("ana lives in", 1),
        ("ana or ana lives in", 3),
        ("ana likes ananas from", 1),
        ("ana likes red-ana from", 1),
    ],
)
def test_last_subject_token_is_the_last_whole_mention(prompt: str, position: int) -> None:
    question = Question(Fact("ana", "city", "arno", ()), prompt)
    assert last_subject_token(word_tokenizer([prompt]), question) == position


def test_recall_is_the_share_of_hits(bridge: Any, dozen: FactSet) -> None:
    chosen = dozen.facts[:7]
    hits = answer(bridge, bridge.tokenizer, dozen, ask(chosen, "audit")).hits
    found = recall(bridge, bridge.tokenizer, dozen, chosen, "audit")
    assert found == pytest.approx(float(hits.sum()) / len(chosen))
