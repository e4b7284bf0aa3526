"""Names of sites, and errors that name the near ones."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.hooks.tiny import EVERY_SITE, WITHOUT_MID, hooked, plain, shift
from workbench.errors import SiteError
from workbench.hooks import Site, captured, edited, hook_point


@pytest.mark.parametrize("site", EVERY_SITE, ids=lambda site: site.name)
def test_site_is_read_back_from_its_name(site: Site) -> None:
    assert Site.parse(site.name) == site


def test_site_is_after_the_block_unless_told() -> None:
    assert Site(1).name == "blocks.1.hook_resid_post"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "blocks.1",
        "blocks.1.resid_post",
        "blocks.-1.hook_resid_post",
        "blocks.x.hook_resid_post",
        "blocks.².hook_resid_post",
        "blocks.1.hook_resid_end",
        "blocks.1.attn.hook_z",
        "layers.1.hook_resid_post",
    ],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(SiteError, match=r"wanted 'blocks\.<layer>\.hook_resid_pre'"):
        Site.parse(name)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("blocks.1.hook_resid_pots", "blocks.1.hook_resid_post"),
        ("blocks.1.resid_mid", "blocks.1.hook_resid_mid"),
        ("layers.7.hook_resid_pre", "blocks.7.hook_resid_pre"),
    ],
)
def test_a_misspelled_name_is_told_the_near_ones(name: str, near: str) -> None:
    with pytest.raises(SiteError, match=f"near: .*{near}"):
        Site.parse(name)


@pytest.mark.parametrize(("layer", "nearest"), [(-1, 0), (3, 2), (99, 2)])
def test_unknown_layer_is_an_error_that_names_the_layers(
    model: Any, layer: int, nearest: int
) -> None:
    wanted = rf"layers 0 to 2; nearest: blocks\.{nearest}\.hook_resid_post"
    with pytest.raises(SiteError, match=wanted):
        hook_point(model, Site(layer))


@pytest.mark.parametrize(("point", "near"), [("resid_pots", "resid_post"), ("mid", "resid_mid")])
def test_unknown_point_is_an_error_that_names_near_ones(model: Any, point: str, near: str) -> None:
    with pytest.raises(SiteError, match=f"blocks have no {point}; near: .*{near}"):
        hook_point(model, object_with(layer=0, point=point))


def object_with(layer: int, point: str) -> Site:
    """A site past the check of its type."""
    site = object.__new__(Site)
    object.__setattr__(site, "layer", layer)
    object.__setattr__(site, "point", point)
    return site


@pytest.mark.parametrize("name", WITHOUT_MID)
def test_a_block_without_resid_mid_is_an_error_that_names_what_it_has(name: str) -> None:
    near = r"near: blocks\.1\.hook_resid_pre, blocks\.1\.hook_resid_post"
    with pytest.raises(SiteError, match=rf"no resid_mid, since .*{near}"):
        hook_point(plain(name), Site(1, "resid_mid"))


def test_a_parallel_hooked_transformer_has_no_resid_mid() -> None:
    with pytest.raises(SiteError, match="no resid_mid, since"):
        hook_point(hooked(parallel_attn_mlp=True), Site(1, "resid_mid"))


@pytest.mark.parametrize(
    "given", [nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 2)]), "llama", None, torch.zeros(2)]
)
def test_a_model_without_blocks_is_an_error(given: Any) -> None:
    with pytest.raises(SiteError, match=rf"{type(given).__name__} has no `blocks` and no list"):
        hook_point(given, Site(0))


@pytest.mark.parametrize("attach", [captured, edited])
def test_unknown_site_is_found_out_before_the_block(model: Any, attach: Callable) -> None:
    given = [Site(0), Site(7)] if attach is captured else [shift(1.0, Site(0)), shift(1.0, Site(7))]
    with pytest.raises(SiteError, match=r"blocks\.7"), attach(model, given):
        pytest.fail("the block was entered")


@pytest.mark.parametrize("attach", [captured, edited])
def test_sites_are_resolved_at_entry_and_not_in_forward_passes(
    model: Any, tokens: torch.Tensor, attach: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.hooks import attach as room

    resolved = []
    for name in ("hook_point", "blocks_of", "watched_at"):
        own = getattr(room, name)
        monkeypatch.setattr(
            room, name, lambda *given, own=own, name=name: resolved.append(name) or own(*given)
        )
    given = [Site(0), Site(1)] if attach is captured else [shift(1.0, Site(0)), shift(1.0, Site(1))]
    with attach(model, given):
        assert resolved.count("hook_point") == 2
        entered = len(resolved)
        for _ in range(3):
            model(tokens)
        assert len(resolved) == entered
    assert len(resolved) == entered
