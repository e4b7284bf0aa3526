"""One training step: losses and gradients of a batch, sparse where the architecture is.

For the TopK family the decoder and both backward passes touch the active features alone, and the
auxiliary loss the dead ones that it revives; the encoder's product is made once, whole. Loss and
gradients are those of SAELens' `training_forward_pass`, which every other architecture runs as it
is.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from sae_lens import TopKTrainingSAE
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE
from sae_lens.saes.sae import TrainStepInput
from torch import Tensor

CHUNK_BYTES = {"cpu": 2**25, "cuda": 2**30}
"""Pre-activations held at a time; on a CPU, about what stays in its caches."""
GROUP = 16
"""Features whose largest is looked at first when the k largest are sought."""


@dataclass(frozen=True)
class Step:
    """What one step found.

    Attributes:
        losses: by SAELens' names, and their sum as `loss`.
        grads: gradient of `loss` by parameter name.
        fired: features active on a token of the batch.
        squared_error: sum over the batch; `active`: number of active pairs of token and feature.
    """

    losses: dict[str, Float[Tensor, ""]]
    grads: dict[str, Tensor]
    fired: Bool[Tensor, " d_sae"]
    squared_error: Float[Tensor, ""]
    active: int | Tensor


@dataclass(frozen=True)
class Pairs:
    """Active features of a batch as pairs, those of one token together.

    Attributes:
        values: pre-activation of each pair.
        starts: first pair of each token.
    """

    tokens: Int[Tensor, " pair"]
    features: Int[Tensor, " pair"]
    values: Float[Tensor, " pair"]
    starts: Int[Tensor, " batch"]

    @classmethod
    def of(
        cls,
        tokens: Int[Tensor, " pair"],
        features: Int[Tensor, " pair"],
        values: Float[Tensor, " pair"],
        batch: int,
    ) -> "Pairs":
        counts = torch.bincount(tokens, minlength=batch)
        return cls(tokens, features, values, counts.cumsum(0) - counts)

    def where(self, mask: Bool[Tensor, " pair"]) -> "Pairs":
        return Pairs.of(self.tokens[mask], self.features[mask], self.values[mask], len(self.starts))

    def decode(
        self, table: Float[Tensor, "d_sae d_in"]
    ) -> tuple[Float[Tensor, "batch d_in"], Callable[[Tensor], Tensor]]:
        """Sum of each token's rows of the table, weighted by its values.

        Also the backward pass to the values: from the gradient at the sum, Float[batch d_in], to
        that at each pair.
        """
        with torch.enable_grad():
            values = self.values.detach().requires_grad_()
            summed = torch.nn.functional.embedding_bag(
                self.features, table.detach(), self.starts, mode="sum", per_sample_weights=values
            )

        def backward(grad: Float[Tensor, "batch d_in"]) -> Float[Tensor, " pair"]:
            return torch.autograd.grad(summed, values, grad)[0]

        return summed.detach(), backward


def is_sparse(sae: Any) -> bool:
    """Whether `sparse_step` gives this SAE's loss."""
    return isinstance(sae, TopKTrainingSAE) and sae.cfg.normalize_activations == "none"


def dense_step(
    sae: Any, rows: Float[Tensor, "batch d_in"], dead: Bool[Tensor, " d_sae"], coefficients: dict
) -> Step:
    """Any architecture, by SAELens' own forward pass and autograd."""
    given = TrainStepInput(rows, coefficients, dead, n_training_steps=0, is_logging_step=False)
    out = sae.training_forward_pass(given)
    names, parameters = zip(*sae.named_parameters(), strict=True)
    grads = torch.autograd.grad(out.loss, parameters, allow_unused=True)
    with torch.no_grad():
        acts = out.feature_acts.detach()  # never negative
        return Step(
            {**{k: v.detach() for k, v in out.losses.items()}, "loss": out.loss.detach()},
            {n: g for n, g in zip(names, grads, strict=True) if g is not None},
            acts.amax(0) > 0,
            out.losses["mse_loss"].detach().float() * len(rows),
            torch.count_nonzero(acts),
        )


@torch.no_grad()
def sparse_step(
    sae: Any,
    rows: Float[Tensor, "batch d_in"],
    dead: Bool[Tensor, " d_sae"],
    *,
    bfloat16: bool = False,
    together: Callable[[Tensor], Tensor] | None = None,
    ranks: int = 1,
) -> Step:
    """TopK, BatchTopK and Matryoshka BatchTopK.

    Args:
        bfloat16: multiply the encoder in bfloat16; all else stays in the parameters' type.
        together: with several ranks, concatenates a tensor of one size over them all, so that
            BatchTopK selects from the whole batch.
    """
    encoder = encoder_of(sae, rows, bfloat16)
    if isinstance(sae, BatchTopKTrainingSAE):
        chosen = _batch_top_k(encoder, int(sae.cfg.k * len(rows) * ranks), together)
    else:
        chosen = encoder.top_k(sae.cfg.k)
    active = chosen.where(chosen.values > 0)
    losses, written, error = _reconstruct(sae, rows, active)
    grad_b_dec = written[0].grad.sum(0)
    losses["auxiliary_reconstruction_loss"], revived = _revive(sae, encoder, dead, error)
    grads = _gradients(sae, _inputs(sae, rows), [*written, *revived])
    grads["b_dec"] = grad_b_dec
    if sae.cfg.apply_b_dec_to_input:
        grads["b_dec"] = grad_b_dec - sae.W_enc @ grads["b_enc"]
    fired = torch.zeros_like(dead)
    fired[active.features] = True
    losses["loss"] = torch.stack(list(losses.values())).sum()
    return Step(losses, grads, fired, error.square().sum(), len(active.values))


@dataclass(frozen=True)
class Written:
    """What some pairs wrote, and the gradient of the loss at it."""

    pairs: Pairs
    backward: Callable[[Tensor], Tensor]
    grad: Float[Tensor, "batch d_in"]


def _reconstruct(
    sae: Any, rows: Float[Tensor, "batch d_in"], active: Pairs
) -> tuple[dict[str, Tensor], list[Written], Float[Tensor, "batch d_in"]]:
    """The loss of every width, what was written on the way, and the error of the widest."""
    names, losses, parts, errors = _loss_names(sae), {}, [], []
    recon = sae.b_dec.expand_as(rows)
    levels = _levels(sae, active.features)
    for i, name in enumerate(names):
        pairs = active if len(names) == 1 else active.where(levels == i)
        summed, backward = pairs.decode(sae.W_dec)
        recon = recon + summed
        parts.append((pairs, backward))
        errors.append(recon - rows)
        losses[name] = errors[-1].square().sum() / len(rows)
    written, grad = [], torch.zeros_like(rows)
    # What a feature writes stands in the reconstructions of its own width and of all wider ones.
    for (pairs, backward), error in zip(reversed(parts), reversed(errors), strict=True):
        grad = grad + error * (2 / len(rows))
        written.insert(0, Written(pairs, backward, grad))
    return losses, written, errors[-1]


def _revive(
    sae: Any, encoder: "Encoder", dead: Bool[Tensor, " d_sae"], error: Float[Tensor, "batch d_in"]
) -> tuple[Tensor, list[Written]]:
    """The auxiliary loss: the likeliest dead features are to write what is missing."""
    if not (n_dead := int(dead.sum())):
        return error.new_zeros(()), []
    wanted, batch = sae.cfg.d_in // 2, len(error)
    pairs = encoder.only(dead.nonzero().flatten()).top_k(min(wanted, n_dead))
    summed, backward = pairs.decode(sae.W_dec)
    scale = sae.cfg.aux_loss_coefficient * min(n_dead / wanted, 1.0)
    missing = summed + error
    loss = scale * missing.square().sum() / batch
    return loss, [Written(pairs, backward, missing * (scale * 2 / batch))]


def _loss_names(sae: Any) -> list[str]:
    """Name of each reconstruction loss, narrow to wide."""
    widths = getattr(sae.cfg, "matryoshka_widths", [sae.cfg.d_sae])
    return [*(f"inner_mse_loss_{width}" for width in widths[:-1]), "mse_loss"]


def _levels(sae: Any, features: Int[Tensor, " pair"]) -> Int[Tensor, " pair"]:
    """Index of the narrowest width that each feature is in."""
    widths = getattr(sae.cfg, "matryoshka_widths", [sae.cfg.d_sae])
    return torch.bucketize(features, torch.tensor(widths, device=features.device), right=True)


def _gradients(
    sae: Any, inputs: Float[Tensor, "batch d_in"], written: list[Written]
) -> dict[str, Tensor]:
    """Gradients of the encoder and the decoder through what was written.

    The decoder's norms, by which pre-activations are scaled to be compared and divided again to be
    decoded, cancel out.
    """
    batch = len(inputs)
    inner = torch.cat([w.backward(w.grad) for w in written])
    tokens = torch.cat([w.pairs.tokens for w in written])
    rows = torch.cat([i * batch + w.pairs.tokens for i, w in enumerate(written)])
    features = torch.cat([w.pairs.features for w in written])
    values = torch.cat([w.pairs.values for w in written])
    order = features.argsort(stable=True)
    counts = torch.bincount(features, minlength=sae.cfg.d_sae)
    starts = counts.cumsum(0) - counts

    def gathered(weights: Tensor, places: Tensor, source: Tensor) -> Tensor:
        """For each feature, the sum over its pairs of rows of the source."""
        return torch.nn.functional.embedding_bag(
            places[order], source, starts, mode="sum", per_sample_weights=weights[order]
        )

    table = torch.cat([w.grad for w in written]) if len(written) > 1 else written[0].grad
    return {
        "W_dec": gathered(values, rows, table),
        "W_enc": gathered(inner, tokens, inputs).T,
        "b_enc": torch.zeros_like(sae.b_enc).index_add_(0, features, inner),
    }


@dataclass(frozen=True)
class Encoder:
    """Pre-activations of a batch, computed a chunk of tokens at a time and never all held.

    Attributes:
        norms: of the decoder rows, by which pre-activations are scaled; None where they are not.
        features: which features these are, where they are not all.
    """

    inputs: Float[Tensor, "batch d_in"]
    weights: Float[Tensor, "d_in some"]
    bias: Float[Tensor, " some"]
    norms: Float[Tensor, " d_sae"] | None
    features: Int[Tensor, " some"] | None = None

    def only(self, features: Int[Tensor, " some"]) -> "Encoder":
        """The same for some of the features."""
        return replace(
            self, weights=self.weights[:, features], bias=self.bias[features], features=features
        )

    def chunks(self) -> Any:
        """First token and scaled pre-activations, Float[chunk some]; each replaces the last."""
        room = CHUNK_BYTES["cuda" if self.inputs.is_cuda else "cpu"]
        size = max(1, room // (4 * len(self.bias)))
        buffer = self.inputs.new_empty(min(size, len(self.inputs)), len(self.bias))
        for first in range(0, len(self.inputs), size):
            some = self.inputs[first : first + size]
            out = torch.addmm(self.bias, some, self.weights, out=buffer[: len(some)])
            yield first, out.float() if out.dtype == torch.bfloat16 else out

    def at(self, tokens: Int[Tensor, " token"]) -> Float[Tensor, "token some"]:
        """Pre-activations of some tokens."""
        return torch.addmm(self.bias, self.inputs[tokens], self.weights).to(torch.float32)

    def unscaled(
        self, values: Float[Tensor, " pair"], features: Int[Tensor, " pair"]
    ) -> Float[Tensor, " pair"]:
        return values if self.norms is None else values / self.norms[features]

    def top_k(self, k: int) -> Pairs:
        """The k features of each token with the largest scaled pre-activations."""
        found = [top_k(pre, k) for _, pre in self.chunks()]
        values = torch.cat([value for value, _ in found]).flatten()
        features = torch.cat([feature for _, feature in found]).flatten()
        if self.features is not None:
            features = self.features[features]
        batch = len(self.inputs)
        tokens = torch.arange(batch, device=features.device).repeat_interleave(k)
        return Pairs.of(tokens, features, self.unscaled(values, features), batch)


def encoder_of(sae: Any, rows: Float[Tensor, "batch d_in"], bfloat16: bool = False) -> Encoder:
    """The encoder of an SAE of the TopK family on a batch."""
    inputs = _inputs(sae, rows)
    norms = sae.W_dec.norm(dim=-1) if sae.cfg.rescale_acts_by_decoder_norm else None
    # Scaling the encoder and not the pre-activations saves a pass over these.
    weights, bias = (
        part if norms is None else part * norms for part in (sae.W_enc.data, sae.b_enc.data)
    )
    if bfloat16:
        inputs, weights, bias = inputs.bfloat16(), weights.bfloat16(), bias.bfloat16()
    return Encoder(inputs, weights, bias, norms)


def _inputs(sae: Any, rows: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
    return rows - sae.b_dec if sae.cfg.apply_b_dec_to_input else rows


def top_k(
    values: Float[Tensor, "batch d"], k: int
) -> tuple[Float[Tensor, "batch k"], Int[Tensor, "batch k"]]:
    """The k largest of each row, in no order; exact.

    The k largest stand in the k groups with the largest maxima, so all but these are looked at only
    once.
    """
    batch, width = values.shape
    whole = width // GROUP * GROUP
    if whole < 4 * k * GROUP:
        return torch.topk(values, k, dim=-1, sorted=False)
    groups = values[:, :whole].unflatten(-1, (GROUP, -1))
    chosen = torch.topk(groups.amax(1), k, dim=-1, sorted=False).indices
    members = torch.arange(0, whole, whole // GROUP, device=values.device)
    places = (chosen[..., None] + members).flatten(1)
    if whole < width:
        rest = torch.arange(whole, width, device=values.device).expand(batch, -1)
        places = torch.cat([places, rest], dim=-1)
    best = torch.topk(values.gather(-1, places), k, dim=-1, sorted=False)
    return best.values, places.gather(-1, best.indices)


def _batch_top_k(
    encoder: Encoder, total: int, together: Callable[[Tensor], Tensor] | None
) -> Pairs:
    """The `total` largest positive pre-activations of the batch."""
    batch = len(encoder.inputs)
    tokens, features, values = largest(encoder, total)
    highest = values.topk(min(total, len(values))).values
    if together is not None:
        padded = values.new_full((total,), -torch.inf)
        padded[: len(highest)] = highest
        everywhere = together(padded)
        highest = everywhere.topk(min(total, int((everywhere > 0).sum()))).values
    if not len(highest):
        return Pairs.of(tokens, features, values, batch)
    kept = values > highest[-1]
    ties = (values == highest[-1]).nonzero().flatten()
    # With several ranks each would have to know of the others' ties: all are kept.
    kept[ties if together else ties[: total - int(kept.sum())]] = True
    tokens, features, values = tokens[kept], features[kept], values[kept]
    return Pairs.of(tokens, features, encoder.unscaled(values, features), batch)


def largest(encoder: Encoder, total: int) -> tuple[Tensor, Tensor, Tensor]:
    """Token, feature and scaled pre-activation of pairs that include the `total` largest.

    All are positive; fewer than `total` only if there are no more.
    """
    batch = len(encoder.inputs)
    sample = encoder.at(torch.arange(0, batch, max(1, batch // 64), device=encoder.bias.device))
    share = max(1, min(sample.numel(), total * len(sample) // batch))
    # Half of what the sample says is needed leaves room for its error; too few is seen and mended.
    guess = sample.flatten().topk(share).values[-1].clamp(min=0) / 2
    found = _above(encoder, guess)
    return _above(encoder, guess * 0) if len(found[2]) < total and guess > 0 else found


def _above(encoder: Encoder, cut: Float[Tensor, ""]) -> tuple[Tensor, Tensor, Tensor]:
    """Token, feature and scaled pre-activation of all pairs above a value, in that order."""
    tokens, features, values = [], [], []
    for first, pre in encoder.chunks():
        token, feature = (pre > cut).nonzero(as_tuple=True)
        tokens.append(token + first)
        features.append(feature)
        values.append(pre[token, feature])
    return torch.cat(tokens), torch.cat(features), torch.cat(values)
