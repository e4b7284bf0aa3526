"""Running a model from a site on gives what a whole edited pass gives, and skips the rest."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.hooks.tiny import EVERY_SITE, N_LAYERS, At, hooked, logits_of, no_hook_left, plain
from workbench.errors import SiteError
from workbench.hooks import Site, edited, residuals
from workbench.hooks.places import blocks_of
from workbench.hooks.rerun import Rerun
from workbench.models.load import load_model

KINDS = ("bridge-llama", "bridge-gpt2", "llama", "gpt2", "gemma2", "hooked")
ROWS = torch.tensor([2, 0, 2])


class Unpacked(nn.ModuleList):
    """Blocks whose model takes the first of what each returns."""

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, slice):
            return super().__getitem__(index)
        return [lambda *args, b=block, **kwargs: b(*args, **kwargs)[0] for block in self]


@pytest.fixture(scope="module")
def models(tokenizer: Any) -> dict[str, Any]:
    vocab = len(tokenizer)
    made = {name: plain(name, vocab) for name in ("llama", "gpt2", "gemma2")}
    for name in ("llama", "gpt2"):
        made[f"bridge-{name}"] = load_model(plain(name, vocab), tokenizer=tokenizer)
    made["hooked"] = hooked(vocab)
    for model in made.values():
        logits_of(model, torch.tensor([[1, 2]]))  # a bridge hangs hooks on itself
    return made


def delta_of(tokens: Tensor, start: int, seed: int = 0) -> Tensor:
    shape = (len(ROWS), tokens.shape[1] - start, 32)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def whole(model: Any, site: Site, tokens: Tensor, start: int, delta: Tensor, keep: int) -> Tensor:
    def change(resid: Tensor) -> Tensor:
        return torch.cat([resid[:, :start], resid[:, start:] + delta], 1)

    with edited(model, [At(site, change)]):
        return logits_of(model, tokens[ROWS])[:, -keep:]


@contextmanager
def counted(model: Any) -> Iterator[list[int]]:
    """Which blocks are really computed: their attention is called."""
    ran: list[int] = []
    handles = []
    for i, block in enumerate(blocks_of(model)):
        names = ("attn", "self_attn")
        part = next(m for name, m in block.named_children() if name in names)
        handles.append(part.register_forward_hook(lambda *_, i=i: ran.append(i)))
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()


def unpatched(model: Any) -> bool:
    return all(block._compiled_call_impl is None for block in blocks_of(model))


@pytest.mark.parametrize("site", EVERY_SITE, ids=lambda site: site.name)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_rerun_is_a_whole_edited_pass(
    models: dict[str, Any], tokens: Tensor, kind: str, site: Site
) -> None:
    """From every token on, with one kept token and with two."""
    model, pos = models[kind], tokens.shape[1]
    with no_hook_left(model):
        for keep in (1, 2):
            run = Rerun(model, site, tokens, keep)
            torch.testing.assert_close(run.logits, logits_of(model, tokens)[:, -keep:])
            torch.testing.assert_close(run.stream, residuals(model, tokens, [site])[site])
            for start in range(pos - keep + 1):
                delta = delta_of(tokens, start)
                expected = whole(model, site, tokens, start, delta, keep)
                assert (expected - run.logits[ROWS]).abs().max() > 1e-2
                if not run.from_start:
                    found = run.changed(ROWS, start, delta)
                    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
            full = delta_of(tokens, 0)
            found = run.changed(ROWS, 0, full)
            expected = whole(model, site, tokens, 0, full, keep)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert unpatched(model)


def test_only_a_model_without_a_cache_starts_at_the_first_token(
    models: dict[str, Any], tokens: Tensor
) -> None:
    starts = {kind: Rerun(models[kind], Site(1), tokens).from_start for kind in KINDS}
    assert starts == dict.fromkeys(KINDS, False) | {"hooked": True}


@torch.no_grad()
def test_prompts_longer_than_a_sliding_window_keep_their_first_tokens(
    models: dict[str, Any],
) -> None:
    model = models["gemma2"]
    assert model.config.sliding_window == 4
    tokens = torch.randint(3, 40, (3, 12), generator=torch.Generator().manual_seed(0))
    for start in (2, 6, 11):
        delta = delta_of(tokens, start)
        found = Rerun(model, Site(0), tokens).changed(ROWS, start, delta)
        expected = whole(model, Site(0), tokens, start, delta, 1)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("site", EVERY_SITE, ids=lambda site: site.name)
@pytest.mark.parametrize("kind", KINDS)
def test_earlier_blocks_are_not_run(
    models: dict[str, Any], tokens: Tensor, kind: str, site: Site
) -> None:
    model, first = models[kind], site.layer + (site.point == "resid_post")
    run = Rerun(model, site, tokens)
    with counted(model) as ran:
        run.changed(ROWS, 0, delta_of(tokens, 0))
        assert ran == list(range(first, N_LAYERS))
        ran.clear()
        logits_of(model, tokens)
        assert ran == list(range(N_LAYERS))


@pytest.mark.parametrize("site", [Site(0, "resid_pre"), Site(1, "resid_mid"), Site(1), Site(2)])
@torch.no_grad()
def test_blocks_may_return_tuples(tokens: Tensor, tokenizer: Any, site: Site) -> None:
    bare, model = plain("llama", len(tokenizer)), plain("llama", len(tokenizer))
    returned: list[Any] = []

    class Tupled(type(model.model.layers[0])):
        def forward(self, *args: Any, **kwargs: Any) -> tuple:
            returned.append((super().forward(*args, **kwargs), "weights"))
            return returned[-1]

    for block in model.model.layers:
        block.__class__ = Tupled
    model.model.layers = Unpacked(model.model.layers)
    torch.testing.assert_close(logits_of(model, tokens), logits_of(bare, tokens))
    assert len(returned) == N_LAYERS
    delta = delta_of(tokens, 3)
    found = Rerun(model, site, tokens).changed(ROWS, 3, delta)
    expected = Rerun(bare, site, tokens).changed(ROWS, 3, delta)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_after_an_exception(
    models: dict[str, Any], tokens: Tensor, kind: str
) -> None:
    model = models[kind]
    before = logits_of(model, tokens)
    with no_hook_left(model):
        run = Rerun(model, Site(1, "resid_mid"), tokens)

        def fail(*_args: Any) -> None:
            raise RuntimeError("on purpose")

        handle = blocks_of(model)[2].register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="on purpose"):
            run.changed(ROWS, 0, delta_of(tokens, 0))
        handle.remove()
    assert unpatched(model)
    assert torch.equal(logits_of(model, tokens), before)


def test_what_is_called_in_the_place_of_a_block_is_put_back(tokens: Tensor, tokenizer: Any) -> None:
    model = plain("llama", len(tokenizer))
    block = model.model.layers[0]
    block._compiled_call_impl = mine = block._call_impl
    Rerun(model, Site(1), tokens).changed(ROWS, 0, delta_of(tokens, 0))
    assert block._compiled_call_impl is mine


@pytest.mark.parametrize("site", EVERY_SITE, ids=lambda site: site.name)
@pytest.mark.parametrize("kind", ["bridge-llama", "llama", "hooked"])
@torch.no_grad()
def test_rerun_inside_an_edit_has_the_edit_once(
    models: dict[str, Any], tokens: Tensor, kind: str, site: Site
) -> None:
    """Edits at every site, the same one among them."""
    model = models[kind]
    edits = [At(s, lambda resid: 1.1 * resid + 0.1) for s in EVERY_SITE]
    delta = delta_of(tokens, 0)
    with edited(model, edits):
        found = Rerun(model, site, tokens).changed(ROWS, 0, delta)
        expected = whole(model, site, tokens, 0, delta, 1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_the_change_and_stop_there(
    models: dict[str, Any], tokens: Tensor, kind: str
) -> None:
    model, site = models[kind], Site(0)
    run = Rerun(model, site, tokens)
    delta = torch.zeros(len(ROWS), *run.stream.shape[1:], requires_grad=True)
    (found,) = torch.autograd.grad(run.changed(ROWS, 0, delta).log_softmax(-1)[..., 5].sum(), delta)
    leaf = torch.zeros_like(delta, requires_grad=True)
    with edited(model, [At(site, lambda resid: resid + leaf)]):
        said = logits_of(model, tokens[ROWS])[:, -1].log_softmax(-1)[..., 5].sum()
    (expected,) = torch.autograd.grad(said, leaf)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)
    assert not run.stream.requires_grad and not run.logits.requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_a_model_that_reads_more_than_the_stream_is_refused(tokens: Tensor, tokenizer: Any) -> None:
    """Its last block adds what the first one left elsewhere."""
    model = plain("llama", len(tokenizer))
    kept: list[Tensor] = []
    blocks = model.model.layers

    def keep(_module: Any, _args: Any, output: Tensor) -> None:
        kept[:] = [output]

    def add(_module: Any, _args: Any, output: Tensor) -> Tensor:
        return output + 20 * kept.pop().flip(-1) if kept else output

    blocks[0].self_attn.o_proj.register_forward_hook(keep)
    blocks[2].register_forward_hook(add)
    Rerun(model, Site(0, "resid_pre"), tokens)
    with pytest.raises(SiteError, match="LlamaForCausalLM cannot be run from"):
        Rerun(model, Site(1), tokens)


def test_an_unknown_site_is_an_error(models: dict[str, Any], tokens: Tensor) -> None:
    with pytest.raises(SiteError, match="layers 0 to 2"):
        Rerun(models["llama"], Site(3), tokens)


def test_a_run_holds_its_logits_its_cache_and_its_stream(
    models: dict[str, Any], tokens: Tensor
) -> None:
    """Two later blocks with keys and values of 32 numbers per token each."""
    pos, vocab = tokens.shape[1], models["llama"].config.vocab_size
    run = Rerun(models["llama"], Site(0), tokens, 2)
    assert run.held(3) == 2 * vocab + pos * 2 * 2 * 32 + (pos - 3) * 32
    run = Rerun(models["hooked"], Site(0), tokens, 2)
    assert run.held(0) == 2 * vocab + pos * 32
