"""Which facts stand for what was to stay, and the likelihood of sentences."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from workbench.audit.questions import kept, questions, raw_hits, retained_sets
from workbench.audit.questions.kept import kept_questions, nll_nats
from workbench.audit.statistics import Key
from workbench.audit.views import View
from workbench.facts.target import Target


def test_retained_sets_hold_no_forget_fact(club: Target) -> None:
    for facts in retained_sets(club).values():
        assert facts
        assert not club.forget_keys & {f.key for f in facts}
    assert {f.subject for f in retained_sets(club)["kind:person"]}.isdisjoint(club.entities)


def test_facts_without_audit_templates_are_not_asked(club: Target) -> None:
    mute = tuple(replace(f, audit_templates=()) for f in club.retain["R_te"])
    target = replace(club, retain={**club.retain, "R_te": mute}, neighbours={"N2": mute[:1]})
    assert set(retained_sets(target)) == {"kind:person"}


def test_sets_are_asked_with_their_own_questions(original: Any, club: Target) -> None:
    found = questions(club, [])["kept facts"](View("original", "", original))
    sets = retained_sets(club)
    assert set(sets) >= {"N2", "R_te", "kind:person"}
    for name, facts in sets.items():
        scores = found[Key("kept", name, "raw")]
        wanted = {f.key: 3 + 5 if name == "R_te" else 2 for f in facts}
        assert Counter(zip(scores.entities, scores.relations, strict=True)) == wanted
    hits = [raw_hits(original, [], club.facts, sets["R_te"], t).values for t in ("audit", "train")]
    assert found[Key("kept", "R_te", "raw")].values.tolist() == np.concatenate(hits).tolist()
    assert found[Key("kept", "R_te", "text")].mean > 0.85


def test_a_filter_that_refuses_all_leaves_no_text(original: Any, club: Target) -> None:
    view = View("edited", "text", original, filter=lambda _: True)
    found = questions(club, [])["kept facts"](view)
    assert found[Key("kept", "R_te", "text")].mean == 0.0
    assert found[Key("kept", "R_te", "raw")].mean > 0.85


def test_large_sets_are_sampled_alike(club: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MAX_FACTS", 10)
    asked = kept_questions(club, 0)
    facts = {name: {q.fact.key for q in some} for name, some in asked.items()}
    assert {len(keys) for keys in facts.values()} == {10}
    assert facts["N2"] == facts["kind:person"]
    assert kept_questions(club, 1) != asked


@torch.no_grad()
def test_likelihood_is_that_of_the_models_own_loss(original: Any, club: Target) -> None:
    texts = [d.text for d in club.facts.corpus[:40]]
    found = nll_nats(original, original.tokenizer, texts)
    for text, nll in zip(texts, found.tolist(), strict=True):
        ids = torch.tensor([original.tokenizer(text)["input_ids"]])
        logits = original(ids)
        wanted = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
        assert nll == pytest.approx(float(wanted), abs=1e-4)


def test_held_out_sentences_have_one_value_each(original: Any, club: Target) -> None:
    scores = questions(club, [])["text"](View("original", "", original))[
        Key("text", "kept", "nll_nats")
    ]
    assert sorted(zip(scores.entities, scores.relations, strict=True)) == sorted(
        f.key for f in retained_sets(club)["R_te"]
    )
    assert 0 < scores.mean < 4
