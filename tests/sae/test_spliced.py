"""What a model loses when an SAE stands in for its residual stream."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from workbench.sae.metrics import spliced

SITES = ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_mid", "blocks.1.hook_resid_post"]


def identity(make_sae: Callable, site: str) -> Any:
    """Positive and negative part of every coordinate as features."""
    sae = make_sae("standard", site=site)
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([torch.eye(32), -torch.eye(32)], dim=1))
        sae.W_dec.copy_(sae.W_enc.T)
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    return sae


@pytest.mark.parametrize("site", SITES)
def test_lossless_sae_recovers_everything(
    make_sae: Callable, bridge: Any, texts: list[str], site: str
) -> None:
    found = spliced(bridge, identity(make_sae, site), texts)
    assert found["ce_recovered"] == pytest.approx(1.0, abs=1e-4)
    assert abs(found["ce_zeroed"] - found["ce_original"]) > 0.01


@pytest.mark.parametrize("site", SITES)
def test_empty_sae_recovers_nothing(
    make_sae: Callable, bridge: Any, texts: list[str], site: str
) -> None:
    sae = identity(make_sae, site)
    sae.W_dec.zero_()
    found = spliced(bridge, sae, texts)
    assert found["ce_recovered"] == 0.0
    assert found["ce_spliced"] == found["ce_zeroed"]


def test_original_loss_is_that_of_hugging_face(
    make_sae: Callable, bridge: Any, make_llama: Callable, texts: list[str]
) -> None:
    """One text at a time, with an end of text that is predicted and a beginning that is not."""
    llama, total, count = make_llama(), 0.0, 0
    for text in texts:
        ids = bridge.tokenizer(text)["input_ids"] + [bridge.tokenizer.eos_token_id]
        logits = llama(torch.tensor([ids])).logits[0, :-1]
        total += nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum").item()
        count += len(ids) - 1
    found = spliced(bridge, identity(make_sae, SITES[-1]), texts)
    assert found["ce_original"] == pytest.approx(total / count, rel=1e-5)


def test_original_loss_does_not_depend_on_the_sae(
    make_sae: Callable, bridge: Any, texts: list[str]
) -> None:
    one, two = (spliced(bridge, make_sae(kind), texts) for kind in ("topk", "standard"))
    assert one["ce_original"] == two["ce_original"] and one["ce_zeroed"] == two["ce_zeroed"]
    assert one["ce_spliced"] != two["ce_spliced"]
