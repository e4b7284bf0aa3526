"""The small models' tokenizers behave alike in memory, on disk and in other tools."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from workbench.models.tokenizers import SPECIAL, byte_pair_tokenizer, word_tokenizer

TEXTS = ["ana bel lives in arno .", "the home of bo carr is dorn .", "choose : (a) ale (b) ink"]
MAKERS = {"word": word_tokenizer, "byte_pair": lambda t: byte_pair_tokenizer(t, vocab_size=300)}


@pytest.fixture(params=MAKERS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    make: Callable[[list[str]], PreTrainedTokenizerFast] = MAKERS[request.param]
    return make(TEXTS)


def test_saved_and_reloaded_gives_the_same_ids(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    asked = [*TEXTS, "ana bel of dorn", "zebra", "ana zebra ."]
    assert again(asked)["input_ids"] == tokenizer(asked)["input_ids"]
    plain = {"add_special_tokens": False}
    assert again(asked, **plain)["input_ids"] == tokenizer(asked, **plain)["input_ids"]
    assert len(again) == len(tokenizer)
    assert again.padding_side == "right"
    for name, token in SPECIAL.items():
        assert getattr(again, name) == token
        assert getattr(again, f"{name}_id") == getattr(tokenizer, f"{name}_id")


def test_bos_is_added_and_eos_is_not(tokenizer: PreTrainedTokenizerFast) -> None:
    for ids in tokenizer(TEXTS)["input_ids"]:
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1
        assert tokenizer.eos_token_id not in ids
    plain = tokenizer(TEXTS, add_special_tokens=False)["input_ids"]
    assert all(tokenizer.bos_token_id not in ids for ids in plain)


def test_special_tokens_are_distinct(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len({tokenizer.convert_tokens_to_ids(t) for t in SPECIAL.values()}) == 4


def test_words_are_single_tokens_and_unknown_ones_are_unk() -> None:
    tokenizer = word_tokenizer(TEXTS)
    ids = tokenizer("ana zebra bel")["input_ids"]
    assert len(ids) == 4
    assert ids[2] == tokenizer.unk_token_id
    assert tokenizer.unk_token_id not in (ids[1], ids[3])


def test_vocabulary_does_not_depend_on_the_order_of_texts() -> None:
    assert word_tokenizer(TEXTS).get_vocab() == word_tokenizer(TEXTS[::-1]).get_vocab()


@pytest.mark.parametrize("text", [" ana bel lives in arno .", " zebra", " naïve Ünsal №7"])
def test_byte_pairs_encode_any_text_without_loss(text: str) -> None:
    tokenizer = MAKERS["byte_pair"](TEXTS)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text


def test_byte_pairs_stay_within_the_asked_vocabulary() -> None:
    assert len(MAKERS["byte_pair"](TEXTS)) <= 300
