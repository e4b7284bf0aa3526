"""How often sampling gives an answer away."""

import numpy as np
from jaxtyping import Float
from torch import Tensor


def leak(logp_nats: Float[Tensor, " question"], k: int) -> Float[Tensor, " question"]:
    """Probability that at least one of `k` samples is the answer: 1 - (1 - p)^k.

    Uniform guesses among 20 answers leak 56 % at 16 samples, so this says nothing without golds.

    Args:
        logp_nats: log p(answer | prompt), over the whole vocabulary.
        k: number of samples, 1 or more.
    """
    p = logp_nats.double().exp().clamp(max=1.0)
    return -(k * (-p).log1p()).expm1()


def leak_at(n: np.ndarray | int, c: np.ndarray | int, k: np.ndarray | int) -> np.ndarray:
    """Unbiased estimate of `leak` from samples: 1 - C(n - c, k) / C(n, k).

    The product of the ratios is summed in logarithms, so that large numbers neither overflow nor
    cancel.

    Args:
        n: samples drawn, per prompt.
        c: how many of them were the answer, 0 to n.
        k: samples that an attacker may draw, 1 to n.

    Source: the estimator of leak@k, 2511.04934.
    """
    n, c, k = np.broadcast_arrays(*(np.asarray(x, dtype=float) for x in (n, c, k)))
    total = np.zeros(n.shape)
    with np.errstate(divide="ignore"):
        for i in range(int(k.max(initial=0))):
            inside = (i < k) & (i < n)
            share = np.where(inside, c / np.where(inside, n - i, 1.0), 0.0)
            total += np.log1p(-share.clip(max=1.0))
    return np.asarray(-np.expm1(total))
