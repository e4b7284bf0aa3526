"""Concepts: what is chosen on and what is reported on have nothing in common."""

from typing import Any

import pytest

from workbench.errors import TargetError
from workbench.facts.schema import FactSet
from workbench.facts.target import Target
from workbench.locate import Concept, Prompt, locate
from workbench.locate.concept import tokenized

TEXTS = tuple(f"we keep item {kind}{i} at" for i in range(6) for kind in ("toxin", "food"))
MARKS = tuple((False, False, False, False, "toxin" in text, False) for text in TEXTS)


def texts(part: Any) -> set[str]:
    return {p.text for p in (*part.forget, *part.retain)}


def made(kind: str, target: Target, seed: int = 0) -> Concept:
    if kind == "target":
        return Concept.from_target(target)
    if kind == "prompts":
        return Concept.from_prompts(TEXTS[::2], TEXTS[1::2], "poison", seed)
    return Concept.from_labels(TEXTS, MARKS, "poison", seed)


@pytest.mark.parametrize("kind", ["target", "prompts", "labels"])
def test_no_passage_is_on_both_sides(target: Target, kind: str) -> None:
    concept = made(kind, target)
    assert not texts(concept.select) & texts(concept.report)
    groups = [{p.group for p in part.forget} for part in (concept.select, concept.report)]
    assert all(groups) and not groups[0] & groups[1]


@pytest.mark.parametrize("kind", ["prompts", "labels"])
def test_halves_are_whole_and_drawn_by_the_seed(target: Target, kind: str) -> None:
    one, same, other = (made(kind, target, seed) for seed in (0, 0, 1))
    assert one == same and one.select != other.select
    assert texts(one.select) | texts(one.report) == set(TEXTS)
    assert len(one.select.forget) == len(one.report.forget) == 3


def test_a_repeated_prompt_stays_in_one_half() -> None:
    forget = [(t, a) for t in TEXTS[::2] for a in ("home0", "home1", "home1")]
    concept = Concept.from_prompts(forget, TEXTS[1::2])
    assert len(concept.select.forget) == 6
    assert not texts(concept.select) & texts(concept.report)


def test_labels_stand_against_all_other_tokens(tokenizer: Any) -> None:
    concept = Concept.from_labels(TEXTS, MARKS, "poison")
    forget, retain = (
        tokenized(tokenizer, side) for side in (concept.select.forget, concept.select.retain)
    )
    assert all(t.counted.tolist() == [False] * 4 + [True, False] for t in forget)
    assert len(retain) == 6 and {t.counted.sum().item() for t in retain} == {4, 5}
    assert not any(t.counted[0] for t in (*forget, *retain))


def test_labels_find_the_planted_feature(planted: Any) -> None:
    found = locate(planted.model, planted.sae, Concept.from_labels(TEXTS, MARKS, "poison"), 3)
    assert found.features[0] == planted.concept
    assert found.scores[0] == pytest.approx(1.0)
    assert found.held_out.argmax() == 0 and found.held_out[0] == pytest.approx(1.0)
    assert found.evidence.effect[0] > 2 * found.evidence.cost[0]


def test_subjects_count_from_their_end_on(tokenizer: Any, target: Target) -> None:
    concept = Concept.from_target(target)
    prompt = concept.select.forget[0]
    (tokens,) = tokenized(tokenizer, [prompt])
    words = prompt.text.split()
    assert tokens.counted.sum() == len(words) - words.index(prompt.group.split()[-1])
    (alone,) = tokenized(tokenizer, [Prompt(prompt.text, "")])
    assert alone.counted.sum() == len(words)


def test_answers_are_asked_for_token_by_token(tokenizer: Any) -> None:
    prompts = [Prompt(TEXTS[0], "", answer=a) for a in ("home0", "home0 at home1", None)]
    one, three, none = tokenized(tokenizer, prompts)
    assert [t.keep for t in (one, three, none)] == [1, 3, 1]
    assert [len(t.ids) for t in (one, three, none)] == [6, 8, 6]
    assert three.ids[6:] == three.answer[:2]


@pytest.mark.parametrize(
    ("forget", "retain", "message"),
    [
        (TEXTS[:1], TEXTS[1:], "1 prompts of one kind"),
        (TEXTS[:1] * 4, TEXTS[1:], "1 prompts of one kind"),
        (TEXTS[:4], TEXTS[3:], "stands among both"),
    ],
)
def test_prompts_that_cannot_be_halved_are_an_error(forget: Any, retain: Any, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        Concept.from_prompts(forget, retain)


@pytest.mark.parametrize(
    ("given", "labels", "message"),
    [
        (TEXTS[:3], MARKS[:2], "3 texts with 2 lists of labels"),
        (TEXTS[:2], MARKS[:2], "1 prompts of one kind"),
        (TEXTS[:4], [[True] * 6] * 4, "none without it"),
    ],
)
def test_labels_that_cannot_be_halved_are_an_error(given: Any, labels: Any, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        Concept.from_labels(given, labels)


def test_a_concept_of_a_world_is_the_same_each_time(world: FactSet, target: Target) -> None:
    assert Concept.from_target(world.target("toxins")) == Concept.from_target(target)
