"""The same code on CUDA: skipped where there is no device."""

import pytest
import torch

from workbench.facts import load_facts
from workbench.hooks import edited
from workbench.interventions import Clamp
from workbench.locate import locate
from workbench.models import load_model, recall
from workbench.sae.load import bundled_saes, load_sae

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("method", ["frequency", "attribution"])
def test_features_and_the_edited_model_agree_with_the_cpu(method):
    facts = load_facts("valley")
    target, found = facts.target("toxins"), {}
    for device in ("cpu", "cuda"):
        model, sae = load_model("valley", device=device), load_sae(bundled_saes()[0], device=device)
        located = locate(model, sae, target, 32, method)
        with edited(model, [Clamp(sae, located.features, -1.0)]):
            left = recall(model, model.tokenizer, facts, target.fold("S"), "audit")
        found[device] = set(located.features.tolist()), left
    assert len(found["cpu"][0] & found["cuda"][0]) >= 30
    assert found["cpu"][1] == pytest.approx(found["cuda"][1], abs=0.02)
