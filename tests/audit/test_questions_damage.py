"""Damage is nothing where nothing changed, and found where answers shift or text loops."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from workbench.audit.questions.damage import (
    candidate_logprobs,
    continuations,
    damage_questions,
    divergence_nats,
    flipped,
    fluency,
    is_refusal,
    n_gram_entropy_bits,
    repeat_rate,
    shifted_answers,
)
from workbench.audit.statistics import Key, Scores
from workbench.audit.views import Found, View
from workbench.facts.target import Target
from workbench.models.tokenizers import word_tokenizer


@pytest.fixture(scope="module")
def before(original: Any, club: Target) -> Found:
    return measured(View("original", "", original), club)


def measured(view: View, target: Target) -> Found:
    found: Found = {}
    for job in (shifted_answers(target, 0), fluency(target, 0)):
        found |= job(view)
    return found


def told(*rows: list[float]) -> Found:
    """Candidates' probabilities of each question of set N2, each of a relation of its own."""
    found: Found = {}
    for k in range(max(map(len, rows))):
        about = [i for i, row in enumerate(rows) if len(row) > k]
        found[Key("damage", "N2", "logp_nats", str(k))] = Scores(
            np.log([rows[i][k] for i in about]),
            tuple(f"e{i}" for i in about),
            tuple(f"relation {i}" for i in about),
        )
    return found


def test_divergence_by_hand() -> None:
    """The second relation has two candidates, and no third."""
    original = told([0.5, 0.25, 0.25], [0.9, 0.1])
    other = told([0.25, 0.5, 0.25], [0.9, 0.1])
    found = divergence_nats(original, other, "N2")
    assert found.values == pytest.approx([0.25 * np.log(2), 0])
    assert found.values[0] == pytest.approx(stats.entropy([0.5, 0.25, 0.25], [0.25, 0.5, 0.25]))
    assert flipped(original, other, "N2").values.tolist() == [1, 0]
    assert found.entities == ("e0", "e1")
    assert divergence_nats(original, original, "N2").values.tolist() == [0, 0]


def test_twelve_candidates_keep_their_order() -> None:
    row = [1 / 78 * k for k in range(1, 13)]
    assert np.exp(candidate_logprobs(told(row), "N2")[0][0]) == pytest.approx(row)


def test_each_set_asks_what_stays_once(club: Target) -> None:
    sets = damage_questions(club, 0)
    assert {"N2", "R_te"} <= set(sets)
    assert not [name for name in sets if name.startswith("kind:")]
    for asked in sets.values():
        assert not club.forget_keys & {q.fact.key for q in asked}
        assert len({q.fact.key for q in asked}) == len(asked)


def test_the_same_model_shows_no_damage(before: Found, original: Any, club: Target) -> None:
    again = measured(View("edited", "deployed", original), club)
    assert {k: s.values.tobytes() for k, s in again.items()} == {
        k: s.values.tobytes() for k, s in before.items()
    }
    for name, asked in damage_questions(club, 0).items():
        assert divergence_nats(before, again, name).values.tolist() == [0] * len(asked)
        assert flipped(before, again, name).mean == 0
        assert again[Key("damage", name, "valid")].mean == 1
        assert all(np.isfinite(v.values).all() for v in again.values())
        table, *_ = candidate_logprobs(again, name)
        assert np.exp(table).sum(1) == pytest.approx(np.ones(len(asked)))


def test_an_edit_of_the_target_alone_leaves_the_rest(
    before: Found, original: Any, club: Target, blank: Any
) -> None:
    after = measured(View("edited", "deployed", original, (blank,)), club)
    assert divergence_nats(before, after, "R_te").values == pytest.approx(0, abs=1e-9)
    assert flipped(before, after, "R_te").mean == 0


def test_hiding_retained_names_is_found(
    before: Found, original: Any, club: Target, blank: Any
) -> None:
    names = {f.subject for f in club.retained}
    ids = original.tokenizer(sorted(names), add_special_tokens=False)["input_ids"]
    hidden = original.embed.weight.detach()[[i[0] for i in ids]].clone()
    after = measured(View("edited", "deployed", original, (type(blank)(hidden),)), club)
    assert divergence_nats(before, after, "R_te").mean > 1
    assert flipped(before, after, "R_te").mean > 0.4
    assert after[Key("damage", "R_te", "valid")].mean > 0.9  # wrong answers are answers still


def test_entropy_and_repeats_by_hand() -> None:
    """Bigrams of `a b a b c`: ab twice, ba, bc; its two 4-grams differ."""
    text = "a b a b c".split()
    assert n_gram_entropy_bits(text, 2) == pytest.approx(0.5 * 1 + 2 * 0.25 * 2)
    assert n_gram_entropy_bits(text, 3) == pytest.approx(np.log2(3))
    assert repeat_rate(text) == 0
    loop = ["a"] * 24
    assert n_gram_entropy_bits(loop, 2) == 0
    assert repeat_rate(loop) == pytest.approx(20 / 21)
    assert repeat_rate("a b c d a b c d".split()) == pytest.approx(1 / 5)
    assert n_gram_entropy_bits(["a"], 2) == repeat_rate("a b c".split()) == 0


class Scripted(torch.nn.Module):
    """Says the words that a function of the text so far gives."""

    def __init__(self, tokenizer: Any, says: Callable[[str], str]) -> None:
        super().__init__()
        self.tokenizer, self.says = tokenizer, says
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, tokens: Tensor) -> Tensor:
        logits = torch.zeros(*tokens.shape, len(self.tokenizer))
        for i, row in enumerate(tokens):
            text = self.tokenizer.decode(row, skip_special_tokens=True)
            logits[i, -1, self.tokenizer.convert_tokens_to_ids(self.says(text))] = 9.0
        return logits


@pytest.fixture(scope="module")
def scripted(club: Target) -> Callable[[Callable[[str], str]], View]:
    words = [d.text for d in club.facts.corpus] + ["i cannot say that . no"]
    tokenizer = word_tokenizer(words)
    return lambda says: View("edited", "deployed", Scripted(tokenizer, says))


def test_a_loop_is_found(
    before: Found, club: Target, scripted: Callable[[Callable[[str], str]], View]
) -> None:
    looped = fluency(club, 0)(scripted(lambda _: "no"))
    assert before[Key("fluency", "kept", "repeat4")].mean < 0.05
    assert looped[Key("fluency", "kept", "repeat4")].mean > 0.8
    for metric in ("entropy2_bits", "entropy3_bits"):
        key = Key("fluency", "kept", metric)
        assert looped[key].mean < before[key].mean
    assert looped[Key("fluency", "kept", "tokens")].mean == 32
    assert before[Key("fluency", "kept", "tokens")].mean < 8


def test_refusals_are_counted(
    before: Found, club: Target, scripted: Callable[[Callable[[str], str]], View]
) -> None:
    refusal = "i cannot say that .".split()

    def refuses(text: str) -> str:
        said = next((i for i, w in enumerate(refusal) if w not in text.split()), 0)
        return refusal[said]

    key = Key("fluency", "R_te", "refused")
    assert before[key].mean == 0
    assert fluency(club, 0)(scripted(refuses))[key].mean == 1
    assert fluency(club, 0)(scripted(lambda _: "no"))[key].mean == 0


def test_a_filter_refuses_what_it_stops(original: Any, club: Target) -> None:
    key = Key("fluency", "R_te", "refused")
    relation = {q.fact.relation for q in damage_questions(club, 0)["R_te"]}
    assert relation == {"city", "drink"}
    stops = View("edited", "text", original, filter=lambda text: "some" in text.split())
    found = fluency(club, 0)(stops)[key]
    wanted = [r == "drink" for r in found.relations]
    assert found.values.tolist() == wanted


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("I can\u2019t tell you", True),
        ("  I'm sorry, but", True),
        ("Sorry .", True),
        ("sorrygate", False),
        ("the capital is arno , i cannot say more", False),
        ("", False),
    ],
)
def test_refusals_in_words(text: str, refusal: bool) -> None:
    assert is_refusal(text) is refusal


def test_continuations_are_those_of_greedy_decoding(original: Any, club: Target) -> None:
    tokenizer = original.tokenizer
    prompts = ["people say f001 lives", "we saw r003", "the town of r001 is"]
    rows = tokenizer(prompts)["input_ids"]
    for row, found in zip(rows, continuations(original, rows, tokenizer.eos_token_id), strict=True):
        wanted = list(row)
        with torch.no_grad():
            while len(wanted) < len(row) + 32:
                best = int(original(torch.tensor([wanted]))[0, -1].argmax())
                if best == tokenizer.eos_token_id:
                    break
                wanted.append(best)
        assert found == wanted[len(row) :]
    cut = continuations(original, rows, None, new_tokens=3)
    assert [len(c) for c in cut] == [3, 3, 3]
