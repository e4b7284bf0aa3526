"""Running only what comes after a site, again and again with other streams there."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from workbench.errors import SiteError
from workbench.hooks.attach import captured, edited
from workbench.hooks.places import blocks_of, hook_point
from workbench.hooks.sites import Site


class Rerun:
    """One batch of prompts, run once; what follows a site can be run again from any token on.

    Earlier blocks are skipped, and earlier tokens are in the key-value cache of the first run: with
    causal attention, a change at a token changes nothing before it. A model without a cache of
    plain keys and values, such as a HookedTransformer, reruns all tokens.

    Attributes:
        stream: the residual stream at the site in the first run.
        logits: of the last tokens in the first run.

    Raises:
        SiteError: the model has no such site, or does not give the same logits when run from there.
    """

    stream: Float[Tensor, "batch pos d_model"]
    logits: Float[Tensor, "batch keep vocab"]

    @torch.no_grad()
    def __init__(
        self, model: Any, site: Site, tokens: Int[Tensor, "batch pos"], keep: int = 1
    ) -> None:
        self._model, self._site, self._tokens, self._keep = model, site, tokens, keep
        self._first = site.layer + (site.point == "resid_post")
        # A change within a block is made there; the block itself begins anew.
        self._entry_site = Site(site.layer, "resid_pre") if site.point == "resid_mid" else site
        self._tuples = False
        cache = _empty_cache(model)
        with captured(model, [site, self._entry_site]) as found, self._watched():
            self.logits = _last_logits(model, tokens, cache, keep)
        self._past = None if cache is None else _Past.of(cache, self._first)
        self.stream, self._entry = found[site], found[self._entry_site]
        self._check()

    @property
    def from_start(self) -> bool:
        """Whether every rerun has to begin at the first token."""
        return self._past is None

    def held(self, start: int) -> int:
        """Numbers that one run from a token on holds at a time, about."""
        pos, d_model = self.stream.shape[1:]
        past = 0 if self._past is None else pos * self._past.width
        return self.logits[0].numel() + past + (pos - start) * d_model

    def changed(
        self, rows: Int[Tensor, " n"], start: int, delta: Float[Tensor, "n later d_model"]
    ) -> Float[Tensor, "n keep vocab"]:
        """Logits of the last tokens with `delta` added to the stream at the site.

        Gradients reach `delta` and stop there.

        Args:
            rows: the prompt that each of the n runs is of; prompts may repeat.
            start: first token changed, at most the first whose logits are kept. `delta` holds
                this token and all later ones.
        """
        tokens = self._tokens[rows, start:]
        past = None if self._past is None or start == 0 else self._past.part(rows, start)
        entry = self._entry[rows, start:]
        with ExitStack() as stack:
            if self._site.point == "resid_mid":
                stack.enter_context(edited(self._model, [_Add(self._site, delta)]))
            else:
                entry = _added(entry, delta)
            stack.enter_context(self._entering(entry))
            return _last_logits(self._model, tokens, past, self._keep)

    def _check(self) -> None:
        """Raises SiteError if a rerun without a change gives other logits than the first run."""
        start = 0 if self.from_start else self._tokens.shape[1] - self._keep
        delta = torch.zeros_like(self.stream[:1, start:])
        again = self.changed(torch.zeros(1, dtype=torch.long, device=delta.device), start, delta)
        apart = (again[0] - self.logits[0]).abs().max()
        rounding = 0.05 if self.logits.dtype in (torch.bfloat16, torch.float16) else 1e-3
        if apart > rounding * self.logits[0].abs().max():
            raise SiteError(
                f"{type(self._model).__name__} cannot be run from {self._site.name} on: its later "
                "blocks read more than the residual stream, or its tokens see later ones"
            )

    @contextmanager
    def _entering(self, entry: Float[Tensor, "n later d_model"]) -> Iterator[None]:
        """Forward passes inside the block begin with `entry`, after all edits at its site."""

        def skip(*_args: Any, **_kwargs: Any) -> Any:
            return (entry,) if self._tuples else entry

        with ExitStack() as stack:
            for block in list(blocks_of(self._model))[: self._first]:
                stack.callback(_replaced(block, skip))
            place = hook_point(self._model, self._entry_site)
            stack.callback(place.attach(lambda _resid: entry).remove)
            stack.callback(_narrowed(blocks_of(self._model)[-1], self._keep))
            yield

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Notes whether blocks return tuples."""

        def see(_module: Any, _args: Any, output: Any) -> None:
            self._tuples = isinstance(output, tuple)

        handle = blocks_of(self._model)[0].register_forward_hook(see)
        try:
            yield
        finally:
            handle.remove()


@dataclass(frozen=True)
class _Past:
    """Keys and values of the blocks from `first` on, Float[batch head pos d_head] each."""

    first: int
    layers: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def of(cls, cache: Any, first: int) -> "_Past":
        return cls(first, tuple((layer.keys, layer.values) for layer in cache.layers[first:]))

    @property
    def width(self) -> int:
        """Numbers for one token."""
        return sum(part.shape[1] * part.shape[3] for layer in self.layers for part in layer)

    def part(self, rows: Int[Tensor, " n"], length: int) -> Any:
        """A cache that holds the first tokens of some prompts."""
        from transformers import DynamicCache

        cache = DynamicCache()
        # Of a skipped block, nobody reads more than how many tokens it has seen.
        unread = torch.zeros(1, device=rows.device).expand(len(rows), 1, length, 1)
        for i in range(self.first):
            cache.update(unread, unread, i)
        for i, layer in enumerate(self.layers, self.first):
            keys, values = (part[:, :, :length].index_select(0, rows) for part in layer)
            cache.update(keys, values, i)
        return cache


@dataclass(frozen=True)
class _Add:
    site: Site
    delta: Tensor

    def __call__(self, resid: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        return _added(resid, self.delta)


def _added(resid: Tensor, delta: Tensor) -> Tensor:
    """The sum, rounded to the stream's type once, as an edit's is."""
    return (resid.to(torch.promote_types(resid.dtype, delta.dtype)) + delta).to(resid.dtype)


def _last_logits(
    model: Any, tokens: Int[Tensor, "batch pos"], cache: Any, keep: int
) -> Float[Tensor, "batch keep vocab"]:
    """Logits of the last tokens; a cache is read and filled."""
    inner = getattr(model, "original_model", model)
    given = {} if cache is None else {"past_key_values": cache, "use_cache": True}
    if _takes(inner, "logits_to_keep"):
        given["logits_to_keep"] = keep
    out = (inner if given else model)(tokens, **given)
    return (out.logits if hasattr(out, "logits") else out)[:, -keep:]


def _empty_cache(model: Any) -> Any:
    """A cache that will hold all keys and values, None where the model has none of that kind."""
    inner = getattr(model, "original_model", model)
    if not _takes(inner, "past_key_values") or not hasattr(inner, "config"):
        return None
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    kinds = {type(layer) for layer in DynamicCache(config=inner.config).layers}
    # Made for the model, the cache of a sliding window would drop tokens outside it.
    return DynamicCache() if kinds <= {DynamicLayer, DynamicSlidingWindowLayer} else None


def _takes(model: nn.Module, name: str) -> bool:
    return name in inspect.signature(model.forward).parameters


def _narrowed(block: nn.Module, keep: int) -> Callable[[], None]:
    """Has the last block's MLP run on the last tokens alone: nobody reads its output elsewhere."""
    mlp = getattr(block, "mlp", None)
    if not isinstance(mlp, nn.Module):
        return lambda: None
    whole = mlp._call_impl

    def on_last(*args: Any, **kwargs: Any) -> Any:
        given = args[0] if args else None
        if not isinstance(given, Tensor) or given.ndim != 3:
            return whole(*args, **kwargs)
        out = whole(given[:, -keep:].contiguous(), *args[1:], **kwargs)
        if not isinstance(out, Tensor) or out.shape[:2] != (len(given), min(keep, given.shape[1])):
            return whole(*args, **kwargs)
        return torch.nn.functional.pad(out, (0, 0, given.shape[1] - out.shape[1], 0))

    return _replaced(mlp, on_last)


def _replaced(module: nn.Module, call: Callable) -> Callable[[], None]:
    """Calls something else in the place of a module and its hooks; what is returned ends that.

    What stands in `_compiled_call_impl` is called by torch instead of all that a module does.
    """
    own = module._compiled_call_impl
    module._compiled_call_impl = call

    def restore() -> None:
        module._compiled_call_impl = own

    return restore
