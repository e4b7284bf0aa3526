"""Multinomial ridge regression, many problems at once."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

NEWTON_STEPS, CG_STEPS, HALVINGS = 15, 40, 6
TOLERANCE = 2e-3
"""Length of the gradient at which a problem is solved; at the start it is of the order of 1."""
CG_TOLERANCE = 0.2
NOISE = 1e-5
"""What float32 cannot tell apart in a mean loss."""

Problem = Float[Tensor, "problem row feature"]


class Weights(NamedTuple):
    """Of one reader per problem; the intercept carries no penalty."""

    slope: Float[Tensor, "problem feature k"]
    intercept: Float[Tensor, "problem 1 k"]

    def logprobs(
        self, x: Problem, allowed: Bool[Tensor, "problem k"]
    ) -> Float[Tensor, "problem row k"]:
        """Log-probability of each candidate, -inf where there is none."""
        logits = torch.baddbmm(self.intercept, x, self.slope)
        return logits.masked_fill(~allowed[:, None], -torch.inf).log_softmax(-1)

    def moved(self, step: "Weights", size: Float[Tensor, " problem"]) -> "Weights":
        by = size[:, None, None]
        return Weights(self.slope - by * step.slope, self.intercept - by * step.intercept)


def fit_ridge(
    x: Problem,
    label: Int[Tensor, "problem row"],
    real: Bool[Tensor, "problem row"],
    allowed: Bool[Tensor, "problem k"],
    ridge: Float[Tensor, " problem"],
    start: Weights | None = None,
    tolerance: float = TOLERANCE,
) -> Weights:
    """Minimises each problem's mean loss + ridge/2 · ||slope||² by Newton's method.

    The steps are solved by conjugate gradients. A problem that is solved stands still while others
    go on, and what a problem gives does not depend on which others it is solved with, but for the
    rounding of a batched product.

    Args:
        real: False on rows that only fill up.
        start: weights of the same problems under another penalty.
    """
    share = real.to(x) / real.sum(1, keepdim=True).clamp_min(1)
    weights = start or Weights(
        x.new_zeros(len(x), x.shape[2], allowed.shape[1]),
        x.new_zeros(len(x), 1, allowed.shape[1]),
    )
    system = _System(x, x.mT.contiguous(), share, label, allowed, ridge[:, None, None])
    logprobs = weights.logprobs(x, allowed)
    loss = system.loss(weights, logprobs)
    for _ in range(NEWTON_STEPS):
        gradient = system.gradient(weights, logprobs)
        live = _dot(gradient, gradient).sqrt() > tolerance
        if not live.any():
            break
        step = system.solved(logprobs.exp(), gradient, live)
        size = live.to(x)
        for _ in range(HALVINGS):
            tried = weights.moved(step, size)
            worse = system.loss(tried, tried.logprobs(x, allowed)) > loss + NOISE
            if not worse.any():
                break
            size = torch.where(worse, size / 2, size)
        weights = weights.moved(step, size)
        logprobs = weights.logprobs(x, allowed)
        loss = system.loss(weights, logprobs)
    return weights


class _System(NamedTuple):
    """The loss of all problems, with its slope and its curvature."""

    x: Problem
    turned: Float[Tensor, "problem feature row"]
    share: Float[Tensor, "problem row"]
    label: Int[Tensor, "problem row"]
    allowed: Bool[Tensor, "problem k"]
    ridge: Float[Tensor, "problem 1 1"]

    def loss(
        self, weights: Weights, logprobs: Float[Tensor, "problem row k"]
    ) -> Float[Tensor, " problem"]:
        fit = -logprobs.gather(-1, self.label[..., None])[..., 0]
        penalty = self.ridge[:, 0, 0] / 2 * weights.slope.square().sum((1, 2))
        return (fit * self.share).sum(1) + penalty

    def gradient(self, weights: Weights, logprobs: Float[Tensor, "problem row k"]) -> Weights:
        truth = torch.nn.functional.one_hot(self.label, logprobs.shape[-1])
        return self._back((logprobs.exp() - truth) * self.share[..., None], weights.slope)

    def solved(
        self,
        p: Float[Tensor, "problem row k"],
        gradient: Weights,
        live: Bool[Tensor, " problem"],
    ) -> Weights:
        """The Newton step, by conjugate gradients under a diagonal bound of the curvature."""
        bound = torch.bmm(self.turned.square(), self.share[..., None]) / 2 + self.ridge
        x = Weights(torch.zeros_like(gradient.slope), torch.zeros_like(gradient.intercept))
        left = gradient
        z = Weights(left.slope / bound, left.intercept * 2)
        towards, size = z, _dot(left, z)
        enough = CG_TOLERANCE**2 * size
        for _ in range(CG_STEPS):
            curved = self._curved(p, towards)
            step = torch.where(live, size / _dot(towards, curved).clamp_min(1e-30), 0.0)
            x, left = x.moved(towards, -step), left.moved(curved, step)
            z = Weights(left.slope / bound, left.intercept * 2)
            new = _dot(left, z)
            live = live & (new > enough)
            if not live.any():
                break
            grown = torch.where(live, new / size.clamp_min(1e-30), 0.0)
            towards, size = z.moved(towards, -grown), new
        return x

    def _curved(self, p: Float[Tensor, "problem row k"], towards: Weights) -> Weights:
        z = torch.baddbmm(towards.intercept, self.x, towards.slope)
        z = p * (z - (p * z).sum(-1, keepdim=True)) * self.share[..., None]
        return self._back(z, towards.slope)

    def _back(
        self, z: Float[Tensor, "problem row k"], slope: Float[Tensor, "problem feature k"]
    ) -> Weights:
        return Weights(torch.bmm(self.turned, z) + self.ridge * slope, z.sum(1, keepdim=True))


def _dot(a: Weights, b: Weights) -> Float[Tensor, " problem"]:
    return (a.slope * b.slope).sum((1, 2)) + (a.intercept * b.intercept).sum((1, 2))
