"""The bundled world is what it claims to be: what the models know, how faithful the SAEs are."""

import json

import pytest
import sae_lens
import torch

from workbench.facts import build_valley, load_facts, require_contract
from workbench.models import load_golds, load_model, read_recipe, recall, weights_sha256
from workbench.models.golds import corpus_without
from workbench.models.load import BUNDLED, bundled_models
from workbench.models.train import corpus_sha256
from workbench.sae.load import BUNDLED as SAES
from workbench.sae.load import bundled_saes, load_sae, require_fit
from workbench.sae.metrics import spliced

FACTS = load_facts("valley")
TARGET = FACTS.target("toxins")
PRIOR = sum(1 / len(FACTS.relation[f.relation].candidates) for f in TARGET.forget) / len(
    TARGET.forget
)


@pytest.fixture(scope="module")
def original():
    return load_model("valley")


def test_the_bundled_facts_are_what_the_generator_gives_and_keep_the_contract():
    assert FACTS.sha256 == build_valley().sha256
    for name in ("toxins", "guild"):
        assert require_contract(FACTS.target(name))


@pytest.mark.parametrize(("templates", "least"), [("train", 0.98), ("audit", 0.90)])
def test_the_original_recalls_forget_and_retain_facts(original, templates, least):
    for facts in (TARGET.forget, TARGET.retained):
        assert recall(original, original.tokenizer, FACTS, facts, templates) >= least


def test_each_gold_is_at_the_prior_on_forget_facts_and_knows_the_rest():
    models = load_golds("valley")
    assert len(models) == 5
    for gold in models:
        assert recall(gold, gold.tokenizer, FACTS, TARGET.forget, "train") <= PRIOR + 0.05
        assert recall(gold, gold.tokenizer, FACTS, TARGET.forget, "audit") <= PRIOR + 0.05
        assert recall(gold, gold.tokenizer, FACTS, TARGET.retained, "train") >= 0.97


def test_recipes_name_the_data_the_models_were_trained_on():
    corpora = {"original": FACTS.corpus, "gold": corpus_without(TARGET)}
    for name in bundled_models():
        recipe = read_recipe(name)
        corpus = corpora[name.split("/")[1].split("-")[0]]
        assert recipe["corpus_sha256"] == corpus_sha256(list(corpus))
        assert 0.97 <= recipe["recall_train_templates"] <= 1
        assert {"seed", "epochs", "lr"} <= recipe["config"].keys()
    assert len({json.dumps(read_recipe(name)["config"]) for name in bundled_models()}) == 6


def test_weights_are_half_precision_and_small():
    for name in bundled_models():
        assert (BUNDLED / name / "model.safetensors").stat().st_size <= 4_000_000


@pytest.mark.parametrize("name", bundled_saes())
def test_saes_belong_to_the_original_and_reconstruct_it(original, name):
    sae = load_sae(name)
    require_fit(sae, original)
    texts = [d.text for d in FACTS.corpus][::40]
    found = spliced(original, sae, texts)
    recipe = json.loads((SAES / name / "recipe.json").read_text())
    assert found["ce_recovered"] >= 0.97
    assert recipe["held_out"]["fvu"] <= 0.05
    assert (sae.density == 0).float().mean() <= 0.05
    same = sae_lens.SAE.load_from_disk(str(SAES / name))
    rows = torch.randn(7, sae.cfg.d_in)
    assert torch.equal(same.encode(rows), sae.encode(rows))


def test_there_are_saes_at_two_sites():
    assert len({load_sae(name).cfg.metadata.hook_name for name in bundled_saes()}) >= 2


def test_models_differ_from_each_other():
    assert len({weights_sha256(load_model(name)) for name in bundled_models()}) == 6
