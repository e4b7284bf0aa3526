"""Faults that are planted in a sound SAE are named, and sound SAEs pass."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from workbench.errors import SAEError, SiteError
from workbench.facts import load_facts
from workbench.hooks import Site, residuals
from workbench.models import load_model
from workbench.sae import SAECheck, check_sae
from workbench.sae.load import bundled_saes, load_sae
from workbench.sae.metrics import spliced, token_rows

BUNDLED = bundled_saes()
FIRST, SECOND = "valley/blocks.0.hook_resid_post", "valley/blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model("valley")


@pytest.fixture(scope="module")
def documents() -> list[str]:
    return [document.text for document in load_facts("valley").corpus[::300]]


@pytest.fixture(scope="module")
def sound(model: Any, documents: list[str]) -> dict[str, SAECheck]:
    """The bundled SAEs as they are."""
    return {name: check_sae(load_sae(name), model, documents) for name in BUNDLED}


# Sound SAEs


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_sae_is_ok_and_its_figures_are_those_of_the_metrics(
    name: str, model: Any, documents: list[str], sound: dict[str, SAECheck]
) -> None:
    sae, found = load_sae(name), sound[name]
    assert found.problems == ()
    assert found.ok
    tokens = token_rows(model, documents)
    assert found.tokens == sum(len(row) - 1 for row in tokens)
    assert found.fvu < 0.02 and found.l0 == pytest.approx(32, abs=0.1) and 0 < found.dead < 0.3
    effect = spliced(model, sae, documents)
    assert found.ce_recovered == effect["ce_recovered"] > 0.97
    assert found.kl_recovered == effect["kl_recovered"] > 0.97
    shown = found.show()
    assert f"{found.site}, {found.tokens} tokens: ok" in shown
    assert f"FVU {found.fvu:.3g}" in shown


def test_first_position_is_left_out_and_told_apart(
    model: Any, documents: list[str], sound: dict[str, SAECheck]
) -> None:
    """By hand: one text at a time."""
    sae, site = load_sae(SECOND), Site(1, "resid_post")
    rows, first = [], []
    for ids in token_rows(model, documents):
        resid = residuals(model, torch.tensor([ids]), [site])[site][0].detach()
        rows.append(resid[1:])
        first.append(resid[:1])
    rows, first = torch.cat(rows).double(), torch.cat(first).double()

    def fvu(given: torch.Tensor, mean: torch.Tensor) -> float:
        residual = given - sae(given.float()).double()
        return (residual.square().sum() / (given - mean).square().sum()).item()

    found, both = sound[SECOND], torch.cat([rows, first])
    assert found.fvu == pytest.approx(fvu(rows, rows.mean(0)), rel=1e-4)
    assert found.fvu_first == pytest.approx(fvu(first, rows.mean(0)), rel=1e-4)
    assert found.fvu_all == pytest.approx(fvu(both, both.mean(0)), rel=1e-4)
    assert found.fvu < found.fvu_all < found.fvu_first


@pytest.mark.parametrize("site", ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_mid"])
def test_lossless_sae_of_a_random_model_is_ok(
    make_sae: Callable, bridge: Any, texts: list[str], site: str
) -> None:
    """It is lossless at every site and scale, so none is better than its own."""
    sae = make_sae("standard", site=site)
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([torch.eye(32), -torch.eye(32)], dim=1))
        sae.W_dec.copy_(sae.W_enc.T)
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    found = check_sae(sae, bridge, texts)
    assert found.ok and found.fvu == pytest.approx(0, abs=1e-6)


def test_tokens_are_measured_as_their_texts(model: Any, documents: list[str]) -> None:
    length = len(documents[0].split())
    same = [text for text in documents if len(text.split()) == length]
    sae, tokens = load_sae(FIRST), torch.tensor(token_rows(model, same))
    by_text, by_tokens = check_sae(sae, model, same), check_sae(sae, model, tokens)
    assert by_tokens.fvu == by_text.fvu and by_tokens.tokens == by_text.tokens
    assert by_tokens.ok


# Sites


@pytest.mark.parametrize(
    ("name", "claimed", "apart"),
    [
        (FIRST, "blocks.1.hook_resid_post", "off by one layer"),
        (FIRST, "blocks.0.hook_resid_pre", "off by one layer"),
        (FIRST, "blocks.1.hook_resid_mid", "another point of the stream"),
        (FIRST, "blocks.3.hook_resid_post", "off by 3 layers"),
        (SECOND, "blocks.0.hook_resid_post", "off by one layer"),
        (SECOND, "blocks.1.hook_resid_pre", "off by one layer"),
        (SECOND, "blocks.2.hook_resid_post", "off by one layer"),
    ],
)
def test_other_site_is_told_with_the_right_one(
    name: str,
    claimed: str,
    apart: str,
    model: Any,
    documents: list[str],
    sound: dict[str, SAECheck],
) -> None:
    own, right = sound[name].site, sound[name].fvu
    found = check_sae(load_sae(name, hook_name=claimed), model, documents)
    assert not found.ok and found.fvu > 2 * right
    (problem,) = found.problems
    assert problem.startswith(f"Site: the SAE names {claimed}, where its FVU is {found.fvu:.3g}")
    assert f"fits {own}, where it is {right:.3g}: {apart}" in problem
    assert problem in found.show() and "does not fit" in found.show()


def test_input_of_the_next_block_is_the_same_site(
    model: Any, documents: list[str], sound: dict[str, SAECheck]
) -> None:
    sae = load_sae(FIRST, hook_name="blocks.1.hook_resid_pre")
    found = check_sae(sae, model, documents)
    assert found.ok and found.site == "blocks.1.hook_resid_pre"
    assert found.fvu == sound[FIRST].fvu


# Scales


@pytest.mark.parametrize(
    ("name", "factor"), [(FIRST, 1 / 64), (FIRST, 2.0), (SECOND, 0.5), (SECOND, 64.0)]
)
def test_other_scale_is_told_with_the_factor_that_mends_it(
    name: str, factor: float, model: Any, documents: list[str], sound: dict[str, SAECheck]
) -> None:
    sae, right = load_sae(name), sound[name].fvu
    sae.fold_activation_norm_scaling_factor(factor)
    found = check_sae(sae, model, documents)
    (problem,) = found.problems
    assert problem.startswith(f"Scale: FVU is {found.fvu:.3g} on activations as they are")
    fold = float(problem.split("fold_activation_norm_scaling_factor(")[1].split(")")[0])
    assert fold == pytest.approx(1 / factor, rel=0.1)
    sae.fold_activation_norm_scaling_factor(fold)
    mended = check_sae(sae, model, documents)
    assert mended.ok and mended.fvu == pytest.approx(right, rel=0.1)


def test_sae_of_normalised_activations_is_recognised(model: Any, documents: list[str]) -> None:
    """An SAE whose input has a mean norm of sqrt(d_in), the factor left out."""
    sae, site = load_sae(FIRST), Site(0, "resid_post")
    rows = [
        residuals(model, torch.tensor([ids]), [site])[site][0, 1:].detach()
        for ids in token_rows(model, documents)
    ]
    norm = torch.cat(rows).norm(dim=-1).mean().item()
    sae.fold_activation_norm_scaling_factor(norm / sae.cfg.d_in**0.5)
    (problem,) = check_sae(sae, model, documents).problems
    assert "a mean norm of sqrt(d_in)" in problem


# The first position


@pytest.mark.parametrize(
    ("prepend_bos", "cut", "said"),
    [
        (True, 1, "trained on texts with BOS in front, and 20 of 20 texts begin without"),
        (False, 0, "trained on texts without BOS, and 20 of 20 texts begin with it"),
    ],
)
def test_bos_that_does_not_fit_is_told(
    prepend_bos: bool, cut: int, said: str, model: Any, documents: list[str]
) -> None:
    sae = load_sae(FIRST)
    sae.cfg.metadata.prepend_bos = prepend_bos
    rows = [row[cut : cut + 5] for row in token_rows(model, documents) if len(row) > 5][:20]
    found = check_sae(sae, model, torch.tensor(rows))
    assert [p for p in found.problems if p.startswith("BOS:") and said in p]
    sae.cfg.metadata.prepend_bos = not prepend_bos
    assert not any("BOS" in p for p in check_sae(sae, model, torch.tensor(rows)).problems)


def garbling_bos(model: Any) -> Any:
    """The second SAE, with one more direction that BOS alone has and that leads far away."""
    sae, site = load_sae(SECOND), Site(1, "resid_post")
    bos = torch.tensor([[model.tokenizer.bos_token_id]])
    away = residuals(model, bos, [site])[site][0, 0].detach() - sae.b_dec
    feature = int(sae.density.argmin())
    sae.W_enc[:, feature] = 100 * away / away.square().sum()
    sae.b_enc[feature] = -90
    sae.W_dec[feature] = -50 * away / away.norm()
    return sae


def test_garbled_first_position_is_told(model: Any, documents: list[str]) -> None:
    found = check_sae(garbling_bos(model), model, documents)
    (problem,) = found.problems
    assert problem.startswith("BOS: the SAE garbles the first position (FVU ")
    assert f"{found.fvu_first:.3g} there, {found.fvu:.3g} elsewhere" in problem
    assert f"to {found.ce_recovered:.1%}" in problem
    assert found.fvu < 0.02 and found.fvu_first > 10


# Models


def test_other_weights_are_told(model: Any, documents: list[str]) -> None:
    gold = load_model("valley/gold-0")
    found = check_sae(load_sae(FIRST), gold, documents)
    assert found.problems[0].startswith("Model: the SAE was trained on weights d352d43f4605")
    assert "(valley/original)" in found.problems[0]


def test_sae_of_another_width_is_refused(
    make_sae: Callable, model: Any, documents: list[str]
) -> None:
    with pytest.raises(SAEError, match="reads 32 dimensions, the model has 128"):
        check_sae(make_sae(), model, documents)


def test_sae_that_fits_nowhere_is_told(model: Any, documents: list[str]) -> None:
    sae = load_sae(FIRST)
    order = torch.randperm(sae.cfg.d_sae, generator=torch.Generator().manual_seed(0))
    sae.W_dec.copy_(sae.W_dec[order])
    (problem,) = check_sae(sae, model, documents).problems
    assert problem.startswith("Fit: FVU is ") and "of another model" in problem


def test_sae_that_is_not_finite_is_told(model: Any, documents: list[str]) -> None:
    sae = load_sae(FIRST)
    sae.b_dec[3] = float("nan")
    (problem,) = check_sae(sae, model, documents).problems
    assert problem.startswith("Fit: FVU is nan")


# What cannot be checked


def test_sae_without_a_site_is_refused(model: Any, documents: list[str]) -> None:
    with pytest.raises(SAEError, match="names no site; load it with hook_name="):
        check_sae(load_sae(FIRST, hook_name=""), model, documents)
    with pytest.raises(SiteError, match="the model has layers 0 to 3"):
        check_sae(load_sae(FIRST, hook_name="blocks.4.hook_resid_post"), model, documents)


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_texts_without_tokens_are_refused(texts: list[str], model: Any) -> None:
    with pytest.raises(SAEError, match="no tokens after the first"):
        check_sae(load_sae(FIRST), model, texts)
