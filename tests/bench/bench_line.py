"""Harvesting and editing against the peers' own way; below 1 is faster than the peer."""

import tempfile

import torch

from workbench.activations import harvest
from workbench.facts import load_facts
from workbench.hooks import Site, edited
from workbench.interventions import Clamp
from workbench.models import load_model
from workbench.models.score import batches_by_length
from workbench.sae.load import bundled_saes, load_sae

from .timing import ratio

FACTS = load_facts("valley")
TEXTS = [d.text for d in FACTS.corpus][:6000]


def batches(model):
    rows = model.tokenizer(TEXTS)["input_ids"]
    return [torch.tensor([rows[i] for i in batch]) for batch in batches_by_length(rows)]


def test_harvest_against_run_with_cache_without_writing():
    model, site = load_model("valley"), Site(1)

    def ours():
        with tempfile.TemporaryDirectory() as folder:
            harvest(model, TEXTS, site, f"{folder}/acts", progress=False)

    @torch.no_grad()
    def theirs():
        for tokens in batches(model):
            model.run_with_cache(
                tokens, names_filter=lambda name: name == "blocks.1.hook_out", stop_at_layer=2
            )

    assert ratio("harvest with shards on disk / run_with_cache, nothing kept", ours, theirs) > 0


def test_clamp_against_the_whole_sae_with_its_error_term():
    model = load_model("valley")
    sae = load_sae(next(name for name in bundled_saes() if "blocks.1" in name))
    clamp = Clamp(sae, torch.arange(64), -1.0)
    tokens = batches(model)[0][:256]

    class Whole:
        site = clamp.site

        def __call__(self, resid):
            acts = sae.encode(resid)
            error = resid - sae.decode(acts)
            changed = acts.clone()
            changed[..., :64] = torch.where(
                acts[..., :64] > 0, -sae.max_activation[:64], acts[..., :64]
            )
            return sae.decode(changed) + error

    @torch.no_grad()
    def run(edit):
        with edited(model, [edit]):
            model(tokens)

    assert (
        ratio(
            "clamp as a delta / whole SAE with error term", lambda: run(clamp), lambda: run(Whole())
        )
        > 0
    )
