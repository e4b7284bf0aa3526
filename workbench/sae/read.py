"""What an SAE's features are in a residual stream, computed for the features that are asked for."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.errors import EditError
from workbench.sae.step import top_k


class Reading:
    """An SAE's features in one residual stream.

    For ReLU, JumpReLU and gated SAEs only the rows of the features asked for are multiplied. For
    TopK, whether a feature is active depends on all others: the pre-activations are computed whole,
    once, and every question to the same reading shares them. Other architectures are encoded whole,
    once. Gradients flow as through `sae.encode`.

    Attributes:
        sae: None for a stream that no SAE has read yet.
        resid: the stream, in the type it was given in.
    """

    def __init__(
        self,
        sae: Any,
        resid: Float[Tensor, "*batch d_model"],
        moved: Callable[[], Float[Tensor, "*batch d_sae"]] | None = None,
    ) -> None:
        self.sae, self.resid, self._moved = sae, resid, moved
        self._found: dict[str, Any] = {}

    def by(self, sae: Any) -> "Reading":
        """The reading of the same stream by an SAE: this one if it is that SAE's."""
        return self if self.sae is sae else Reading(sae, self.resid)

    @property
    def architecture(self) -> str:
        return self.sae.cfg.architecture()

    def of(self, features: Int[Tensor, " k"]) -> Float[Tensor, "*batch k"]:
        """Activations of some features, in the SAE's type or float32, whichever is wider."""
        if self.architecture == "topk":
            return self._pre[..., features].relu() * self._active(features)
        if self.architecture not in ROWS:
            return self.full[..., features]
        wide = torch.promote_types(self.sae.W_enc.dtype, torch.float32)
        x, sae = self.resid.to(wide), self.sae
        if sae.cfg.apply_b_dec_to_input:
            x = x - sae.b_dec.to(wide)
        return ROWS[self.architecture](sae, x @ sae.W_enc[:, features].to(wide), features)

    def dot(self, weights: Float[Tensor, " d_sae"]) -> Float[Tensor, "*batch"]:
        """Weights · activations of all features at each token."""
        if self.architecture == "topk":
            values, features = self._top
            return (values.relu() * weights.to(values)[features]).sum(-1)
        acts = self.full.to(torch.promote_types(self.full.dtype, torch.float32))
        return acts @ weights.to(acts)

    @property
    def full(self) -> Float[Tensor, "*batch d_sae"]:
        """Activations of all features."""
        return self._once("full", self._encode)

    @property
    def active(
        self,
    ) -> tuple[Int[Tensor, " active"], Int[Tensor, " active"], Float[Tensor, " active"]]:
        """Token, feature and activation wherever one is above zero, tokens laid end to end."""
        if self.architecture == "topk":
            values, features = (part.flatten(0, -2) for part in self._top)
            token, place = (values > 0).nonzero(as_tuple=True)
            return token, features[token, place], values[token, place]
        acts = self.full.flatten(0, -2)
        token, feature = (acts > 0).nonzero(as_tuple=True)
        return token, feature, acts[token, feature]

    def plus(self, features: Int[Tensor, " k"], change: Float[Tensor, "*batch k"]) -> "Reading":
        """The reading of the stream with each feature's activation changed by so much.

        What is added is `change` times the decoder rows; what the SAE does not explain stays. TopK
        pre-activations that have been computed are moved along, if they are asked for again and the
        stream is not in a short type, whose rounding they would miss.
        """
        rows = self.sae.W_dec[features].to(change.dtype)
        wide = torch.promote_types(self.resid.dtype, change.dtype)
        resid = (self.resid.to(wide) + change @ rows).to(self.resid.dtype)
        if self.architecture != "topk" or "pre" not in self._found or resid.dtype != wide:
            return Reading(self.sae, resid)

        def moved() -> Float[Tensor, "*batch d_sae"]:
            return self._pre + change @ self._scaled(rows @ self.sae.W_enc.to(rows.dtype))

        return Reading(self.sae, resid, moved)

    @property
    def _pre(self) -> Float[Tensor, "*batch d_sae"]:
        return self._once("pre", self._moved or self._multiply)

    @property
    def _top(self) -> tuple[Float[Tensor, "*batch top"], Int[Tensor, "*batch top"]]:
        return self._once("top", self._select)

    def _active(self, features: Int[Tensor, " k"] | slice) -> Bool[Tensor, "*batch k"]:
        """Whether each feature is among the k largest.

        In short types several can tie with the last of them: then those that were selected count.
        """
        values, selected = self._top
        if self.sae.W_enc.dtype in (torch.bfloat16, torch.float16):
            chosen = torch.zeros_like(self._pre, dtype=torch.bool)
            return chosen.scatter(-1, selected, True)[..., features]
        return self._pre[..., features] >= values.detach().amin(-1, keepdim=True)

    def _once(self, name: str, compute: Callable[[], Any]) -> Any:
        # A cached_property holds a lock in Python 3.11, at which compiled graphs break.
        if name not in self._found:
            self._found[name] = compute()
        return self._found[name]

    def _encode(self) -> Float[Tensor, "*batch d_sae"]:
        if self.architecture == "topk":
            return self._pre.relu() * self._active(slice(None))
        return self.sae.encode(self.resid.to(self.sae.W_dec.dtype))

    def _multiply(self) -> Float[Tensor, "*batch d_sae"]:
        """Pre-activations of a TopK SAE, scaled as they are compared."""
        sae = self.sae
        x = self.resid.to(sae.W_enc.dtype)
        if sae.cfg.apply_b_dec_to_input:
            x = x - sae.b_dec
        pre = self._scaled(torch.addmm(sae.b_enc, x.reshape(-1, x.shape[-1]), sae.W_enc))
        return pre.to(torch.promote_types(pre.dtype, torch.float32)).reshape(*x.shape[:-1], -1)

    def _scaled(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        rescaled = self.sae.cfg.rescale_acts_by_decoder_norm
        return pre * self.sae.W_dec.norm(dim=-1) if rescaled else pre

    def _select(self) -> tuple[Float[Tensor, "*batch top"], Int[Tensor, "*batch top"]]:
        """The k largest pre-activations of each token, and whose they are."""
        flat = self._pre.detach().reshape(-1, self._pre.shape[-1])
        features = top_k(flat, self.sae.cfg.k)[1].reshape(*self._pre.shape[:-1], -1)
        return self._pre.gather(-1, features), features


def _standard(
    sae: Any, pre: Float[Tensor, "*batch k"], features: Int[Tensor, " k"]
) -> Float[Tensor, "*batch k"]:
    return (pre + sae.b_enc[features].to(pre)).relu()


def _jumprelu(
    sae: Any, pre: Float[Tensor, "*batch k"], features: Int[Tensor, " k"]
) -> Float[Tensor, "*batch k"]:
    pre = pre + sae.b_enc[features].to(pre)
    return pre.relu() * (pre > sae.threshold[features].to(pre))


def _gated(
    sae: Any, pre: Float[Tensor, "*batch k"], features: Int[Tensor, " k"]
) -> Float[Tensor, "*batch k"]:
    active = pre + sae.b_gate[features].to(pre) > 0
    return (pre * sae.r_mag[features].exp().to(pre) + sae.b_mag[features].to(pre)).relu() * active


ROWS = {"standard": _standard, "jumprelu": _jumprelu, "gated": _gated}
"""Activations from the products of chosen encoder rows, by architecture."""


def require_plain_decoder(sae: Any) -> None:
    """Raises EditError if decoding is more than activations times `W_dec`.

    Edits of such an SAE would be of another size than asked.
    """
    if sae.cfg.normalize_activations != "none":
        raise EditError(
            f"this SAE normalizes its input ({sae.cfg.normalize_activations}): edits want one that "
            "reads the residual stream as it is"
        )
    norms = sae.W_dec.detach().float().norm(dim=-1)
    rescaled = getattr(sae.cfg, "rescale_acts_by_decoder_norm", False)
    if rescaled and not torch.allclose(norms, torch.ones_like(norms), atol=1e-3):
        raise EditError(
            "this SAE divides activations by the decoder's norms: call sae.fold_W_dec_norm() first"
        )
