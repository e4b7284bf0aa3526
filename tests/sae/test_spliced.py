"""What a model loses when an SAE stands in for its residual stream."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from workbench.errors import SAEError
from workbench.hooks import Site, edited
from workbench.models.score import next_logits
from workbench.sae import metrics
from workbench.sae.metrics import density_histogram, spliced, token_rows

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
    assert found["kl_recovered"] == pytest.approx(1.0, abs=1e-4)
    assert found["kl_zeroed"] > 0.01 > 1e-5 > abs(found["kl_spliced"])
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
    assert found["kl_recovered"] == 0.0
    assert found["kl_spliced"] == found["kl_zeroed"]


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


class Spliced:
    def __init__(self, sae: Any) -> None:
        self.site, self.sae = Site.parse(sae.cfg.metadata.hook_name), sae

    def __call__(self, resid: torch.Tensor) -> torch.Tensor:
        return self.sae(resid)


def test_divergence_is_that_of_the_definition(
    make_sae: Callable, bridge: Any, texts: list[str]
) -> None:
    """Sum over the vocabulary of p log(p / q), one text at a time and in float64."""
    sae, total, count = make_sae(), 0.0, 0
    for ids in token_rows(bridge, texts, eos=True):
        tokens = torch.tensor([ids])
        p = next_logits(bridge, tokens)[0, :-1].double().softmax(-1)
        with edited(bridge, [Spliced(sae)]):
            q = next_logits(bridge, tokens)[0, :-1].double().softmax(-1)
        total += (p * (p / q).log()).sum().item()
        count += len(p)
    found = spliced(bridge, sae, texts)
    assert found["kl_spliced"] == pytest.approx(total / count, rel=1e-4)
    assert found["kl_recovered"] == 1 - found["kl_spliced"] / found["kl_zeroed"]


def test_figures_do_not_depend_on_the_batches(
    make_sae: Callable, bridge: Any, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = spliced(bridge, make_sae(), texts)
    monkeypatch.setattr(metrics, "LOGITS", 9 * bridge.cfg.d_vocab)
    assert spliced(bridge, make_sae(), texts) == pytest.approx(whole, rel=1e-4)


def test_tokens_are_taken_as_they_are(make_sae: Callable, bridge: Any, texts: list[str]) -> None:
    same = [text for text in texts if len(text.split()) == len(texts[0].split())]
    tokens = torch.tensor(token_rows(bridge, same, eos=True))
    assert spliced(bridge, make_sae(), tokens) == spliced(bridge, make_sae(), same)


def test_first_position_is_kept_where_asked(
    make_sae: Callable, bridge: Any, texts: list[str]
) -> None:
    sae, resid = make_sae(), torch.randn(3, 7, 32, generator=torch.Generator().manual_seed(0))
    kept = metrics._reconstructed(sae, keep_first=True)(resid)
    assert torch.equal(kept[:, 0], resid[:, 0])
    torch.testing.assert_close(kept[:, 1:], sae(resid)[:, 1:])
    everywhere, spared = (spliced(bridge, sae, texts, keep_first=k) for k in (False, True))
    assert spared["kl_spliced"] < everywhere["kl_spliced"]
    assert spared["kl_zeroed"] == everywhere["kl_zeroed"]


# Densities


def test_features_are_counted_by_half_decades() -> None:
    fired = torch.tensor([0, 0, 0, 1, 3, 4, 9, 10, 31, 32, 99, 100, 316, 317, 1000])
    found = density_histogram(fired / 1000, 1000)
    assert found.edges.tolist() == [-3.0, -2.5, -2.0, -1.5, -1.0, -0.5, 0.0]
    assert found.counts.tolist() == [2, 2, 2, 2, 2, 2]
    assert found.never == 3


@pytest.mark.parametrize("tokens", [1, 2, 3, 10, 999, 1000, 1001, 258_512])
def test_rarest_and_commonest_features_have_bins(tokens: int) -> None:
    found = density_histogram(torch.tensor([1 / tokens, 1.0]), tokens)
    assert len(found.counts) == len(found.edges) - 1
    assert found.counts.sum() == 2 and found.never == 0
    assert found.counts[0] >= 1 and found.counts[-1] >= 1


def test_no_feature_fires() -> None:
    found = density_histogram(torch.zeros(7), 100)
    assert found.counts.tolist() == [0, 0, 0, 0] and found.never == 7


@pytest.mark.parametrize(
    ("density", "tokens"), [([1.5], 100), ([-0.1], 100), ([0.001], 100), ([0.5], 0)]
)
def test_impossible_densities_are_an_error(density: list[float], tokens: int) -> None:
    with pytest.raises(SAEError, match="give the number of tokens"):
        density_histogram(torch.tensor(density), tokens)
