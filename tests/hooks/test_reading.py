"""Reading the residual stream of a TransformerBridge."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.hooks.tiny import EVERY_SITE
from workbench.hooks import Site, captured, hook_point, residuals


@pytest.mark.parametrize("site", EVERY_SITE, ids=lambda site: site.name)
def test_captured_is_what_the_model_itself_caches(bridge: Any, tokens: Tensor, site: Site) -> None:
    _, cache = bridge.run_with_cache(tokens)
    with captured(bridge, [site]) as found:
        bridge(tokens)
    assert found.keys() == {site}
    assert torch.equal(found[site], cache[site.name])
    assert torch.equal(residuals(bridge, tokens, [site])[site], cache[site.name])


def test_several_sites_are_read_in_one_pass(bridge: Any, tokens: Tensor) -> None:
    _, cache = bridge.run_with_cache(tokens)
    for given in (EVERY_SITE, EVERY_SITE[::-1], [*EVERY_SITE, *EVERY_SITE]):
        found = residuals(bridge, tokens, given)
        assert set(found) == set(EVERY_SITE)
        assert all(torch.equal(found[site], cache[site.name]) for site in EVERY_SITE)


def test_captured_holds_the_latest_pass(bridge: Any, tokens: Tensor) -> None:
    with captured(bridge, [Site(0)]) as found:
        bridge(tokens)
        bridge(tokens[:1, :3])
    assert found[Site(0)].shape == (1, 3, bridge.cfg.d_model)


def test_stop_runs_nothing_after_the_last_site(bridge: Any, tokens: Tensor) -> None:
    calls = dict.fromkeys(EVERY_SITE, 0)

    def count(site: Site) -> Callable:
        def counted(*_: Any) -> None:
            calls[site] += 1

        return counted

    handles = [hook_point(bridge, s).module.register_forward_hook(count(s)) for s in EVERY_SITE]
    try:
        residuals(bridge, tokens, [Site(1, "resid_mid"), Site(0)])
    finally:
        for handle in handles:
            handle.remove()
    read = EVERY_SITE[: EVERY_SITE.index(Site(1, "resid_mid")) + 1]
    assert calls == {site: int(site in read) for site in EVERY_SITE}


def test_model_works_on_after_a_stop(bridge: Any, tokens: Tensor) -> None:
    before = bridge(tokens)
    residuals(bridge, tokens, [Site(0)])
    assert torch.equal(bridge(tokens), before)


def test_captured_is_in_the_graph(bridge: Any, tokens: Tensor) -> None:
    with captured(bridge, [Site(0), Site(2)]) as found:
        loss = bridge(tokens).square().sum()
    early, late = torch.autograd.grad(loss, [found[Site(0)], found[Site(2)]])
    assert early.abs().sum() > 0 and late.abs().sum() > 0
