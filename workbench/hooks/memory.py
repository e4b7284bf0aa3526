"""Carrying what an edit remembers along a key-value cache."""

import inspect
import weakref
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from workbench.errors import SiteError


@dataclass
class _Left:
    """What a forward pass left: a cache, its length in tokens, and the memory up to there."""

    cache: weakref.ref
    tokens: int
    memory: Any


class Memory:
    """What one edit remembers of the sequences in each key-value cache.

    A forward pass without earlier tokens starts afresh; one that goes on must bring a cache as the
    latest pass with it left it, since nobody else knows what stood before.

    Args:
        watched: the module whose call takes the cache and the attention mask.
    """

    def __init__(self, watched: nn.Module) -> None:
        self.given: Any = None
        self.kept: Any = None
        self.real: Tensor | None = None
        self._names = list(inspect.signature(watched.forward).parameters)
        self._left: dict[int, _Left] = {}

    def before(self, _watched: nn.Module, args: tuple, kwargs: dict) -> None:
        named = dict(zip(self._names, args, strict=False)) | kwargs
        self.real = _real(named.get("attention_mask"))
        cache = _cache(named)
        earlier = _length(cache)
        left = self._left.get(id(cache))
        if earlier == 0:
            self.given = None
        elif left is None or left.cache() is not cache or left.tokens != earlier:
            raise SiteError(
                f"a forward pass goes on after {earlier} tokens of a key-value cache that this "
                "block did not fill: an edit that remembers must see a sequence from its start, "
                "and without tokens taken back"
            )
        else:
            self.given = left.memory

    def after(self, _watched: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        cache = _cache(dict(zip(self._names, args, strict=False)) | kwargs, output)
        if cache is None:
            return
        left, tokens = self._left.get(id(cache)), _length(cache)
        if left is not None and left.cache() is cache and left.tokens == tokens:
            return  # a frozen cache took up nothing
        self._left = {key: each for key, each in self._left.items() if each.cache() is not None}
        self._left[id(cache)] = _Left(weakref.ref(cache), tokens, self.kept)
        if hasattr(cache, "reorder_cache"):
            _Reordering.of(cache).follow(self)

    def on_padding(self, resid: Tensor) -> Tensor | None:
        """False on padding, for the tokens of `resid`; None where nothing is masked."""
        return None if self.real is None else self.real[:, -resid.shape[-2] :].to(resid.device)

    def reorder(self, cache: Any, beams: Tensor) -> None:
        """Takes the sequences of a cache in another order, as a beam search does."""
        left = self._left[id(cache)]
        left.memory = tree_map_only(
            Tensor, lambda t: t.index_select(0, beams.to(t.device)), left.memory
        )

    def close(self) -> None:
        """Leaves all caches as they were before they were followed."""
        for left in self._left.values():
            if (cache := left.cache()) is not None and hasattr(cache, "reorder_cache"):
                _Reordering.of(cache).leave(self)


class _Reordering:
    """Stands in for the `reorder_cache` of one cache, so that memories are reordered with it."""

    def __init__(self, cache: Any) -> None:
        self._cache = weakref.ref(cache)
        self._memories: list[Memory] = []

    @classmethod
    def of(cls, cache: Any) -> "_Reordering":
        standing = vars(cache).get("reorder_cache")
        return standing if isinstance(standing, cls) else cls(cache)

    def __call__(self, beams: Tensor) -> None:
        cache: Any = self._cache()
        type(cache).reorder_cache(cache, beams)
        for memory in self._memories:
            memory.reorder(cache, beams)

    def __deepcopy__(self, memo: dict) -> "_Reordering":
        return _Reordering(memo[id(self._cache())])

    def follow(self, memory: Memory) -> None:
        if memory not in self._memories:
            self._memories.append(memory)
            vars(self._cache())["reorder_cache"] = self

    def leave(self, memory: Memory) -> None:
        self._memories.remove(memory)
        if not self._memories:
            del vars(self._cache())["reorder_cache"]


def _real(mask: Any) -> Tensor | None:
    if mask is None:
        return None
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return mask.bool()
    raise SiteError(
        "an edit that remembers was given an attention mask of "
        f"{tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__}: wanted batch × "
        "tokens, which says what is padding (`generate` makes another for a static cache)"
    )


def _cache(given: dict, output: Any = None) -> Any:
    """The cache in what a module was given or has returned; None where there is none."""
    for name in ("past_key_values", "past_kv_cache_entry"):
        if given.get(name) is not None:
            return given[name]
    if isinstance(output, tuple):
        return next((part for part in output if hasattr(part, "get_seq_length")), None)
    return getattr(output, "past_key_values", None)


def _length(cache: Any) -> int:
    """Tokens in a cache of transformers, or in a block's of TransformerLens; 0 for none."""
    if cache is None:
        return 0
    if hasattr(cache, "get_seq_length"):
        return int(cache.get_seq_length())
    return cache.past_keys.shape[1]
