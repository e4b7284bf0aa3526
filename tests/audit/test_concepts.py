"""A concept without a list of facts: read with care, measured, and never called removed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbench.audit.concepts import (
    KEY,
    HigherOrder,
    Probe,
    agreement,
    concept_job,
    kappa,
    make_concept,
    read_concept,
    require_held_out,
    require_words,
)
from workbench.audit.reading import Cast
from workbench.audit.schema import ConceptInfo
from workbench.audit.statistics import Scores
from workbench.audit.views import Found, View
from workbench.errors import DataError
from workbench.facts.target import Target

DEFINITION = "the text says or implies that the thing is dangerous"


def content(probes: int = 24, **changes: Any) -> dict[str, Any]:
    labels = {"ann": [True, False], "bob": [True, False]}
    probe = {"answers": ["bad", "good"], "expresses": labels}
    return {
        "name": "danger",
        "definition": DEFINITION,
        "probes": [{"prompt": f"thing {i} is", **probe} for i in range(probes)],
        **changes,
    }


def written(folder: Path, found: dict[str, Any]) -> Path:
    path = folder / "concept.json"
    path.write_text(json.dumps(found))
    return path


def test_a_concept_is_read_as_it_was_written(tmp_path: Path) -> None:
    concept = read_concept(written(tmp_path, content()))
    assert (concept.name, concept.definition, len(concept.probes)) == ("danger", DEFINITION, 24)
    assert concept.probes[3].prompt == "thing 3 is"
    assert concept.probes[3].expresses == {"ann": (True, False), "bob": (True, False)}


def broken(change: Any) -> dict[str, Any]:
    found = content()
    change(found)
    return found


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (content(probes=5), "5 probes: wanted 20 or more"),
        (content(definition="bad"), "definition"),
        (content(colour="red"), "no readable concept"),
        (broken(lambda c: c["probes"][2].update(expresses={"ann": [1, 0]})), "annotators in every"),
        (broken(lambda c: c["probes"][2].update(answers=["bad"])), "1 answers: wanted two or more"),
        (broken(lambda c: c["probes"][2].update(prompt="{} is")), "no place for a name"),
    ],
)
def test_what_is_no_concept_is_refused_with_the_reason(
    tmp_path: Path, found: dict[str, Any], told: str
) -> None:
    with pytest.raises(DataError, match=told):
        read_concept(written(tmp_path, found))


def test_agreement_by_hand() -> None:
    """Both say yes half the time and agree in three of four: (3/4 - 1/2) / (1 - 1/2)."""
    a, b = np.array([1, 1, 0, 0], dtype=bool), np.array([1, 0, 0, 1], dtype=bool)
    assert kappa(a, a) == 1.0
    assert kappa(a, b) == pytest.approx(0.0)
    assert kappa(a, ~a) == pytest.approx(-1.0)
    assert kappa(np.array([1, 1, 0, 0, 1, 0, 1, 0], dtype=bool),
                 np.array([1, 1, 0, 0, 1, 0, 0, 1], dtype=bool)) == pytest.approx(0.5)  # fmt: skip
    assert kappa(np.ones(3, dtype=bool), np.ones(3, dtype=bool)) == 1.0


@pytest.fixture
def asked(club: Target, tmp_path: Path) -> HigherOrder:
    """Whether a member's object is one of the first half of its relation's."""
    probes = []
    for fact in club.forget:
        answers = club.facts.relation[fact.relation].candidates
        labels = [a == fact.object for a in answers]
        prompt = fact.audit_templates[0].replace("{}", fact.subject)
        probes.append(
            {"prompt": prompt, "answers": answers, "about": fact.subject,
             "expresses": {"ann": labels, "bob": labels}}
        )  # fmt: skip
    return read_concept(written(tmp_path, content(probes=0) | {"probes": probes}))


def test_probability_of_what_expresses_it_among_the_answers(
    original: Any, another_gold: Any, club: Target, asked: HigherOrder
) -> None:
    (job,) = concept_job(asked).values()
    knows = job(View("original", "", original))[KEY]
    never = job(View("gold-0", "", another_gold))[KEY]
    assert len(knows.values) == len(asked.probes)
    assert knows.n_entities == len(club.entities)
    assert knows.mean > 0.8 > 0.4 > never.mean
    refused = View("edited", "text", original, (), lambda text: True)
    assert job(refused)[KEY].mean == 0.0
    names = set(club.entities[:3])
    some = View("edited", "text", original, (), lambda text: any(n in text for n in names))
    values = dict(zip(knows.entities, job(some)[KEY].values, strict=True))
    assert all((value == 0) == (name in names) for name, value in values.items())


def test_answers_in_dispute_are_left_out(original: Any, club: Target) -> None:
    probe = {"prompt": "what is", "answers": ["a", "b"]}
    split = {"ann": (True, False), "bob": (False, True)}
    concept = HigherOrder("odd", DEFINITION, (Probe(**probe, expresses=split),))
    (job,) = concept_job(concept).values()
    assert len(job(View("original", "", original))[KEY].values) == 0
    assert agreement(concept) == -1.0


def test_words_that_the_model_cannot_read_are_refused(original: Any, asked: HigherOrder) -> None:
    require_words(asked, original.tokenizer)
    labels = {"x": (True, False), "y": (True, False)}
    strange = Probe(asked.probes[0].prompt, ("zyzzyva", "quux"), labels)
    with pytest.raises(DataError, match="lacks words of 2 prompts or answers, such as 'zyzzyva'"):
        require_words(HigherOrder("odd", DEFINITION, (strange,)), original.tokenizer)


def test_prompts_that_were_trained_on_are_refused(club: Target, asked: HigherOrder) -> None:
    require_held_out(asked, club.facts)
    text = club.facts.corpus[0].text
    told = Probe(text[:20], ("a", "b"), {"x": (True, False), "y": (True, False)})
    with pytest.raises(DataError, match="stand in the training texts"):
        require_held_out(HigherOrder("danger", DEFINITION, (told,)), club.facts)


def said(value: float) -> Found:
    return {KEY: Scores(np.full(30, value), tuple(f"thing {i}" for i in range(30)))}


def test_the_sentence_says_how_far_outputs_fell_and_nothing_more() -> None:
    about = ConceptInfo("", "danger", DEFINITION, 0.9, 2)
    cast = Cast(said(0.5), said(0.8), (said(0.6),))
    found = make_concept({"O": said(0.8), "Eh": said(0.5), "Es": said(0.1)}, cast, about, 0)
    assert found is not None
    assert "fell from 0.80 to 0.10 on 30 prompts" in found.sentence
    assert "nothing says whether the concept is gone" in found.sentence
    assert found.by_view == pytest.approx({"Eh": 0.5, "Es": 0.1})
    assert found.golds == pytest.approx((0.6,))
    rose = make_concept({"Eh": said(0.9)}, Cast(said(0.9), said(0.8), ()), about, 0)
    assert rose is not None and "did not measurably fall" in rose.sentence
    vague = make_concept({}, cast, ConceptInfo("", "danger", DEFINITION, 0.1, 2), 0)
    assert vague is not None and "annotators agree little" in vague.sentence
    assert make_concept({}, cast, None, 0) is None
