"""Every family on models that know and do not know, and on a scripted one whose replies are set."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from workbench.audit.questions import CHANCE, FAMILIES, FORMATS, KAPPA_CHANCE, questions
from workbench.audit.questions.choice import chained, choices, named
from workbench.audit.questions.lens import unembedded
from workbench.audit.statistics import Key
from workbench.audit.views import Found, View
from workbench.errors import AuditError
from workbench.facts.schema import Entity, Fact, FactSet, Group, Relation
from workbench.facts.target import Target
from workbench.hooks import Site
from workbench.hooks.attach import residuals
from workbench.models import load_model
from workbench.models.tokenizers import byte_pair_tokenizer, word_tokenizer

CITIES = tuple(f"city{i}" for i in range(12))
LORDS = tuple(f"lord{i}" for i in range(12))


class Scripted(torch.nn.Module):
    """A model whose likeliest next words are given by a function of the text before."""

    def __init__(self, tokenizer: Any, says: Callable[[str], dict[str, float]]) -> None:
        super().__init__()
        self.tokenizer, self.says = tokenizer, says
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, tokens: Tensor) -> Tensor:
        logits = torch.zeros(*tokens.shape, len(self.tokenizer))
        for i, row in enumerate(tokens):
            for j in range(len(row)):
                text = self.tokenizer.decode(row[: j + 1], skip_special_tokens=True)
                for word, logit in self.says(text).items():
                    logits[i, j, self.tokenizer.convert_tokens_to_ids(word)] = logit
        return logits


@pytest.fixture(scope="module")
def realm() -> Target:
    """Twelve people, their cities, the lords of the cities and, derived, of the people."""
    rng = random.Random(0)
    people = [f"p{i}" for i in range(12)]
    forms = {"city": ("{} is in",), "lord": ("{} bows to",), "liege": ("{} serves",)}
    relations = [
        Relation(name, CITIES if name == "city" else LORDS, t, t) for name, t in forms.items()
    ]
    home = {p: rng.choice(CITIES) for p in people}
    over = dict(zip(CITIES, rng.sample(LORDS, 12), strict=True))
    facts = [Fact(p, "city", c, forms["city"], forms["city"]) for p, c in home.items()]
    facts += [Fact(c, "lord", o, forms["lord"], forms["lord"]) for c, o in over.items()]
    for p, c in home.items():
        premises = ((p, "city"), (c, "lord"))
        facts.append(Fact(p, "liege", over[c], forms["liege"], forms["liege"], premises, False))
    entities = tuple(Entity(n, "person") for n in people) + tuple(Entity(c, "city") for c in CITIES)
    world = FactSet(
        "realm", entities, tuple(relations), tuple(facts), groups=(Group("all", tuple(people)),)
    )
    return world.target("all")


@pytest.fixture(scope="module")
def scripted(realm: Target) -> Callable[[Callable[[str], dict[str, float]]], View]:
    words = "choose : ? (a) (b) (c) (d) is the of in bows to serves city . _"
    texts = [words, *(f"{f.subject} {f.object}" for f in realm.facts.facts), *CITIES, *LORDS]
    tokenizer = word_tokenizer([" ".join(texts)])
    return lambda says: View("original", "", Scripted(tokenizer, says))


def means(found: Found) -> dict[tuple[str, str], float]:
    return {(k.setting, k.metric): s.mean for k, s in found.items()}


def test_letters_and_texts_of_options_are_read_apart(
    realm: Target, scripted: Callable[..., View]
) -> None:
    home = {f.subject: f.object for f in realm.forget}

    def by_letter(text: str) -> dict[str, float]:
        """Knows the letter of the right option, likes (b), and has no idea of the text."""
        word = text.split()
        if "choose" not in word or len(word) < 4 or home.get(word[2]) not in word:
            return {}
        return {"(b)": 2.0, word[word.index(home[word[2]]) - 1]: 3.0}

    letter, text = (choices(scripted(by_letter), realm, 0)[s] for s in ("letter", "text"))
    assert letter[0].hits.all()
    assert not text[0].hits.all()
    assert letter[0].logprobs.shape == (12, 4)
    only_b = choices(scripted(lambda _: {"(b)": 5.0}), realm, 0)["letter"][0].logprobs
    assert torch.allclose(only_b, only_b[:, :1], atol=1e-5)

    def by_text(asked: str) -> dict[str, float]:
        word = asked.split()
        return {home[word[2]]: 3.0} if len(word) > 2 and word[2] in home else {}

    letter, text = (choices(scripted(by_text), realm, 0)[s] for s in ("letter", "text"))
    assert text[0].hits.all()
    assert not letter[0].hits.all()
    offered = [c for c in CITIES if c not in home.values()]

    def biased(asked: str) -> dict[str, float]:
        return by_text(asked) | dict.fromkeys(offered, 9.0)

    shifted = choices(scripted(biased), realm, 0)["text"]
    assert shifted[0].hits.double().mean() < 0.5
    assert torch.allclose(shifted[1].logprobs, text[1].logprobs, atol=1e-2)
    assert shifted[1].hits.tolist() == text[1].hits.tolist()


def test_names_are_read_after_each_candidate(realm: Target, scripted: Callable[..., View]) -> None:
    living: dict[str, list[str]] = {}
    for fact in realm.forget:
        living.setdefault(fact.object, []).append(fact.subject)

    def says(text: str) -> dict[str, float]:
        at = text.split()[0] if text else ""
        return dict.fromkeys(living.get(at, []), 6.0) if text.endswith(" of") else {}

    answers = named(scripted(says), realm)
    assert answers.hits.all()
    assert not named(scripted(lambda _: {"p3": 4.0}), realm).hits.all()
    assert [q.fact.key for q in answers.questions] == [f.key for f in realm.forget]


def test_chained_questions_go_by_the_models_own_answer(
    realm: Target, scripted: Callable[..., View]
) -> None:
    told = {f"{f.subject} {f.relation}": f.object for f in realm.facts.facts}
    verbs = {"in": "city", "bows": "lord", "to": "lord"}

    def says(text: str) -> dict[str, float]:
        word = text.split()
        key = f"{word[0]} {verbs.get(word[-1], '')}" if word else ""
        return {told[key]: 5.0} if key in told else {}

    def misled(text: str) -> dict[str, float]:
        return {"city0": 5.0} if text.endswith(" in") else says(text)

    assert chained(scripted(says), realm).answers.hits.all()
    answers = chained(scripted(misled), realm).answers
    assert {q.prompt for q in answers.questions} == {"city0 bows to"}
    found = questions(realm, ["B5"])["B5 two-hop"](scripted(says))
    assert means(found)["chained", "raw"] == 1.0
    assert means(found)["latent", "raw"] < 0.5
    assert {k.subset for k in found} == {"D"}
    assert all(len(s.values) == 12 for s in found.values())


def test_a_filter_hides_text_and_nothing_else(realm: Target, scripted: Callable[..., View]) -> None:
    home = {f.subject: f.object for f in realm.forget}

    def says(text: str) -> dict[str, float]:
        return {home[w]: 5.0 for w in text.split() if w in home}

    jobs = questions(realm, ["B1", "B6", "B10"])
    view = replace(scripted(says), filter=lambda text: any(f"{p} is" in text for p in home))
    direct = means(jobs["B1 direct"](view))
    assert (direct["", "raw"], direct["", "text"]) == (1.0, 0.0)
    by_object = replace(view, filter=lambda text: any(c in text.split() for c in CITIES))
    assert means(jobs["B1 direct"](by_object))["", "text"] == 0.0
    reformatted = means(jobs["B10 reformat"](view))
    assert (reformatted["spacing", "raw"], reformatted["spacing", "text"]) == (1.0, 1.0)
    assert reformatted["table", "text"] == 1.0
    assert not any(metric == "text" for _, metric in means(jobs["B6 multiple choice"](view)))
    unfiltered = means(jobs["B1 direct"](replace(view, filter=None)))
    assert unfiltered["", "text"] == 1.0


def test_another_word_than_any_candidate_is_no_answer_as_text(
    realm: Target, scripted: Callable[..., View]
) -> None:
    """A model that was taught to refuse still ranks the true object first among candidates."""
    home = {f.subject: f.object for f in realm.forget}

    def says(text: str) -> dict[str, float]:
        return {home[w]: 5.0 for w in text.split() if w in home} | {"is": 9.0}

    found = means(questions(realm, ["B1"])["B1 direct"](scripted(says)))
    assert (found["", "raw"], found["", "text"]) == (1.0, 0.0)


@pytest.fixture(scope="module")
def everything(models: dict[str, Any], club: Target) -> dict[str, dict[str, Found]]:
    jobs = questions(club)
    return {
        name: {job: measure(View(name, "", models[name])) for job, measure in jobs.items()}
        for name in ("original", "gold-1")
    }


def test_every_family_reports_every_fact(
    everything: dict[str, dict[str, Found]], club: Target
) -> None:
    found = everything["original"]
    assert list(found) == [
        *(f"{i} {f.name}" for i, f in FAMILIES.items() if i not in ("B5", "B11", "B12", "B13")),
        "kept facts",
        "text",
    ]
    keys = [key for part in found.values() for key in part]
    assert len(keys) == len(set(keys))
    order = {f.key: i for i, f in enumerate(club.forget)}
    for part in found.values():
        for key, scores in part.items():
            assert len(scores.values) == len(scores.entities) == len(scores.relations)
            if key.subset == "F":
                facts = [order[e] for e in zip(scores.entities, scores.relations, strict=True)]
                assert facts == sorted(facts)
                assert set(facts) == set(range(len(order)))
    for family, forms in FORMATS.items():
        for setting in forms:
            for metric in ("raw", "centred", "kappa", "logp_nats"):
                job = f"{family} {FAMILIES[family].name}"
                assert Key(family, "F", metric, setting) in found[job]
    assert len(found["B2 paraphrase"][Key("B2", "F", "rank")].values) == len(club.forget)
    assert set(CHANCE) <= set(FAMILIES)


def test_the_original_answers_and_a_gold_does_not(
    everything: dict[str, dict[str, Found]],
) -> None:
    def mean(name: str, job: str, endpoint: str, subset: str, *how: str) -> float:
        metric, setting = (*how, "")[:2]
        return everything[name][job][Key(endpoint, subset, metric, setting)].mean

    for job, *key in (
        ("B1 direct", "B1", "F", "raw"),
        ("B2 paraphrase", "B2", "F", "raw"),
        ("B2 paraphrase", "B2", "F", "centred"),
        ("B2 paraphrase", "B12", "F", "extraction"),
        ("B2 paraphrase", "B11", "F", "leak@1", "tau 0.7"),
        ("B10 reformat", "B10", "F", "raw", "spacing"),
        ("B15 logit lens", "B15", "F", "raw", "layer 1"),
    ):
        assert mean("original", job, *key) > 0.85, (job, key)
        assert mean("gold-1", job, *key) < 0.3, (job, key)
    gold_kappa = mean("gold-1", "B2 paraphrase", "B2", "F", "kappa")
    assert gold_kappa == pytest.approx(KAPPA_CHANCE, abs=0.15)
    assert mean("original", "B2 paraphrase", "B2", "F", "kappa") > 0.95
    assert mean("original", "B2 paraphrase", "B2", "F", "rank") < 1.2
    assert mean("gold-1", "B2 paraphrase", "B2", "F", "rank") > 4
    job = everything["gold-1"]["B2 paraphrase"]
    leaks = [job[Key("B11", "F", f"leak@{k}", "tau 1")].mean for k in (1, 16, 128)]
    assert leaks[0] < 0.2 < leaks[1] < leaks[2]
    for name in ("original", "gold-1"):
        assert mean(name, "kept facts", "kept", "R_te", "raw") > 0.85
        assert mean(name, "kept facts", "text", "R_te", "valid") > 0.9


def test_jobs_repeat_bit_for_bit_and_leave_the_model_alone(
    original: Any, club: Target, blank: Any, everything: dict[str, dict[str, Found]]
) -> None:
    before = {k: v.clone() for k, v in original.state_dict().items()}
    for job, measure in questions(club, ["B2", "B10", "B15"]).items():
        hidden = measure(View("edited", "deployed", original, (blank,)))
        again = measure(View("original", "", original))
        for key, scores in everything["original"][job].items():
            assert scores.values.tolist() == again[key].values.tolist()
        if job == "B2 paraphrase":
            assert hidden[Key("B2", "F", "raw")].mean < 0.4
        if job == "B15 logit lens":
            assert hidden[Key("B15", "F", "raw", "layer 1")].mean < 0.4
    assert all(torch.equal(v, before[k]) for k, v in original.state_dict().items())


@torch.no_grad()
def test_the_lens_after_the_last_block_is_the_model(original: Any) -> None:
    tokens = torch.randint(4, 60, (5, 7), generator=torch.Generator().manual_seed(0))
    site = Site(original.cfg.n_layers - 1, "resid_post")
    read = residuals(original, tokens, [site])[site]
    assert torch.allclose(unembedded(original, read[:, -1]), original(tokens)[:, -1], atol=1e-5)


def test_objects_and_names_of_several_tokens(world: FactSet, club: Target, tmp_path: Path) -> None:
    """A random model whose words are cut into pieces: families run, and none finds anything."""
    tokenizer = byte_pair_tokenizer([d.text for d in world.corpus], vocab_size=300)
    tokenizer.save_pretrained(tmp_path)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = load_model(
            LlamaForCausalLM(config), tokenizer=AutoTokenizer.from_pretrained(tmp_path)
        )
    few = replace(club, forget=club.forget[:24])
    for measure in questions(few).values():
        for key, scores in measure(View("random", "", model)).items():
            assert np.isfinite(scores.values).all(), key
            if key.metric in ("raw", "extraction") and key.setting != "rest":
                assert scores.mean < 0.5, key
            if key.metric == "kappa":
                assert 0.2 < scores.mean < 0.8, key
    found = questions(few, ["B9"])["B9 prefill"](View("random", "", model))
    several = [f for f in few.forget if len(tokenizer.tokenize(f" {f.object}")) > 1]
    assert several
    entities = found[Key("B9", "F", "raw", "rest")].entities
    assert entities == tuple(f.subject for f in several)


def test_families_are_chosen_by_id(club: Target) -> None:
    assert list(questions(club, ["B12"])) == ["B2 paraphrase", "kept facts", "text"]
    assert list(questions(club, [])) == ["kept facts", "text"]
    with pytest.raises(AuditError, match="B99"):
        questions(club, ["B1", "B99"])
