"""No hook outlives its block, and none of the user's is lost (checked after every test)."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.hooks.tiny import EVERY_SITE, At, all_hooks, direction, logits_of, no_hook_left, shift
from workbench.hooks import Site, captured, edited, hook_point, residuals
from workbench.interventions import Gate, Probe

ERRORS = [ValueError, KeyboardInterrupt, SystemExit]


def everywhere() -> list[Any]:
    gate = Gate(shift(1.0, Site(1)), Probe(direction()), 0.0)
    return [*(shift(1.0, site) for site in EVERY_SITE), gate]


def test_the_check_sees_hooks(model: Any) -> None:
    before = all_hooks(model)
    with edited(model, everywhere(), must_fire=False):
        new = sum(len(hooks) for hooks in all_hooks(model).values())
        assert new - sum(map(len, before.values())) >= len(everywhere()) + 2
    assert all_hooks(model) == before
    with pytest.raises(AssertionError), no_hook_left(model):
        handle = model.register_forward_hook(lambda *_: None)
    handle.remove()


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("where", ["in an edit", "in the block", "in the log"])
def test_an_exception_passes_and_the_model_is_as_before(
    model: Any, tokens: Tensor, error: type[BaseException], where: str
) -> None:
    before = logits_of(model, tokens)

    def fail(resid: Tensor) -> Tensor:
        if where == "in an edit":
            raise error
        return "nothing" if where == "in the log" else resid

    with (
        pytest.raises((error, TypeError, AttributeError)),
        captured(model, [Site(0)]),
        edited(model, [*everywhere(), At(Site(1), fail)]),
    ):
        model(tokens)
        raise error
    assert torch.equal(logits_of(model, tokens), before)


@pytest.mark.parametrize("error", ERRORS)
def test_an_exception_within_generate(
    model: Any, tokens: Tensor, error: type[BaseException]
) -> None:
    before, calls = logits_of(model, tokens), itertools.count()

    def fail_later(resid: Tensor) -> Tensor:
        if next(calls) == 3:
            raise error
        return resid

    with pytest.raises(error), edited(model, [*everywhere(), At(Site(1), fail_later)]):
        if hasattr(model, "cfg"):
            model.generate(tokens, max_new_tokens=8, verbose=False, stop_at_eos=False)
        else:
            model.generate(tokens, max_new_tokens=8, eos_token_id=None, pad_token_id=0)
    assert next(calls) == 4
    assert torch.equal(logits_of(model, tokens), before)


@pytest.mark.parametrize("error", ERRORS)
def test_an_exception_on_the_way_in(
    model: Any, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some hooks are on when the next one fails."""
    from workbench.hooks.places import Place

    own, calls = Place.attach, itertools.count()

    def attach(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == 5:
            raise error
        return own(*args, **kwargs)

    monkeypatch.setattr(Place, "attach", attach)
    before = all_hooks(model)
    with pytest.raises(error), edited(model, everywhere()):
        pytest.fail("the block was entered")
    assert all_hooks(model) == before


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_blocks_may_be_left_in_any_order(model: Any, tokens: Tensor, order: tuple) -> None:
    before = logits_of(model, tokens)
    blocks = [
        edited(model, [shift(1.0, Site(0)), shift(1.0, Site(1, "resid_mid"))]),
        captured(model, EVERY_SITE),
        edited(model, [shift(2.0, Site(0)), Gate(shift(1.0, Site(1)), Probe(direction()), 0.0)]),
    ]
    for block in blocks:
        block.__enter__()
    for i in order:
        model(tokens)
        blocks[i].__exit__(None, None, None)
    assert torch.equal(logits_of(model, tokens), before)


def test_captured_reads_what_edits_entered_before_it_left(model: Any, tokens: Tensor) -> None:
    for site in EVERY_SITE:
        plain = residuals(model, tokens, [site])[site]
        with edited(model, [shift(1.0, site)]), captured(model, [site]) as inside:
            model(tokens)
        with captured(model, [site]) as outside, edited(model, [shift(1.0, site)]):
            model(tokens)
        torch.testing.assert_close(inside[site], plain + 1)
        if site.point != "resid_post" or not hasattr(model, "config"):
            torch.testing.assert_close(outside[site], plain)


def test_edits_compose_in_the_order_given(model: Any, tokens: Tensor) -> None:
    """At one site, and the list order does not matter between sites."""
    for site in EVERY_SITE:
        twice, plus = At(site, lambda resid: 2 * resid), shift(1.0, site)
        for edits, both in (
            ([twice, plus], lambda resid: 2 * resid + 1),
            ([plus, twice], lambda resid: 2 * (resid + 1)),
        ):
            with edited(model, edits):
                one_by_one = logits_of(model, tokens)
            with edited(model, [At(site, both)]):
                torch.testing.assert_close(one_by_one, logits_of(model, tokens))
    many = [shift(direction(i), site) for i, site in enumerate(EVERY_SITE)]
    with edited(model, many):
        forwards = logits_of(model, tokens)
    with edited(model, many[::-1]):
        torch.testing.assert_close(forwards, logits_of(model, tokens))


def test_hooks_of_the_user_stay(model: Any, tokens: Tensor) -> None:
    """Put on before and within the block, before and after the module."""
    seen: list[str] = []

    def note(name: str) -> Any:
        return lambda *_: seen.append(name)

    modules = {hook_point(model, site).module for site in EVERY_SITE}
    handles = [module.register_forward_hook(note("after")) for module in modules]
    handles += [module.register_forward_pre_hook(note("before")) for module in modules]
    mine = all_hooks(model)
    with edited(model, everywhere()), captured(model, EVERY_SITE):
        handles += [module.register_forward_hook(note("later")) for module in modules]
        model(tokens)
    counts = {name: seen.count(name) for name in ("after", "before", "later")}
    assert set(counts.values()) == {len(modules)}
    for name, hooks in mine.items():
        assert set(map(id_of, hooks)) <= set(map(id_of, all_hooks(model)[name]))
    seen.clear()
    model(tokens)
    assert {name: seen.count(name) for name in counts} == counts
    for handle in handles:
        handle.remove()


def id_of(hook: tuple[int, Any]) -> int:
    return hook[0]


@pytest.mark.parametrize("kind", ["bridge", "hooked"])
def test_hooks_of_transformer_lens_stay(kinds: dict[str, Any], tokens: Tensor, kind: str) -> None:
    model, seen, site = kinds[kind], [], Site(1)
    model.add_hook(site.name, lambda resid, hook: seen.append("own"))
    if kind == "hooked":
        model.add_perma_hook(site.name, lambda resid, hook: seen.append("always"))
    wanted = ["always", "own"] if kind == "hooked" else ["own"]
    try:
        with edited(model, everywhere()), captured(model, [site]):
            model(tokens)
        assert sorted(seen) == wanted
        seen.clear()
        model(tokens)
        assert sorted(seen) == wanted
    finally:
        model.reset_hooks(including_permanent=kind == "hooked")


@pytest.mark.parametrize("kind", ["bridge", "hooked"])
def test_edits_stay_when_transformer_lens_takes_its_hooks_away(
    kinds: dict[str, Any], tokens: Tensor, kind: str
) -> None:
    model, site = kinds[kind], Site(1)
    with edited(model, [shift(direction(), site)]) as log:
        wanted = model(tokens)
        model.run_with_hooks(tokens, fwd_hooks=[(site.name, lambda resid, hook: 0 * resid)])
        model.run_with_cache(tokens)
        model.reset_hooks()
        assert torch.equal(model(tokens), wanted)
    assert log.calls == [4]


def test_backward_hooks_of_the_user_fire(model: Any, tokens: Tensor) -> None:
    seen: list[Any] = []
    module: nn.Module = hook_point(model, Site(1)).module
    handle = module.register_full_backward_hook(lambda *_: seen.append("gradient"))
    try:
        with edited(model, [shift(1.0, Site(1))]):
            logits_of(model, tokens).sum().backward()
    finally:
        handle.remove()
        model.zero_grad()
    assert seen == ["gradient"]
