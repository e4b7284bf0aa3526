"""Editing against the whole SAE."""

import torch

from workbench.facts import load_facts
from workbench.hooks import edited
from workbench.interventions import Clamp
from workbench.models import load_model
from workbench.models.score import batches_by_length
from workbench.sae.load import bundled_saes, load_sae

from .timing import speed


def test_clamp_against_the_whole_sae_with_its_error_term():
    model = load_model("valley")
    sae = load_sae(next(name for name in bundled_saes() if "blocks.1" in name))
    clamp = Clamp(sae, torch.arange(64), -1.0)
    rows = model.tokenizer([d.text for d in load_facts("valley").corpus][:6000])["input_ids"]
    batch = next(iter(batches_by_length(rows)))
    tokens = torch.tensor([rows[i] for i in batch])[:256]

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

    assert speed(
        "clamp of 64 features as a delta",
        "whole SAE with its error term",
        "≥ 1",
        lambda: run(clamp),
        lambda: run(Whole()),
        "the model's own forward pass",
    )
