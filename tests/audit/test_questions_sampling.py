"""Leaks by sampling, against counting and against drawing."""

from math import comb

import numpy as np
import pytest
import torch

from workbench.audit.questions import leak_at
from workbench.audit.questions.sampling import leak


def test_leak_at_equals_counting() -> None:
    n, c, k = (x.reshape(-1) for x in np.meshgrid(range(1, 13), range(13), range(1, 13)))
    possible = (c <= n) & (k <= n)
    n, c, k = n[possible], c[possible], k[possible]
    wanted = [1 - comb(a - b, d) / comb(a, d) for a, b, d in zip(n, c, k, strict=True)]
    assert np.allclose(leak_at(n, c, k), wanted, atol=1e-12)
    assert len(wanted) > 500


def test_leak_at_is_stable_for_large_numbers() -> None:
    assert leak_at(10**9, 1, 128)[()] == pytest.approx(128e-9, rel=1e-9)
    assert leak_at(4000, 3000, 2000)[()] == 1.0
    assert leak_at(4000, 0, 128)[()] == 0.0


def test_leak_equals_powers_and_keeps_small_probabilities() -> None:
    p = torch.tensor([0.0, 1e-12, 0.05, 0.5, 1.0], dtype=torch.double)
    for k in (1, 16, 128):
        found = leak(p.log(), k)
        assert torch.allclose(found, 1 - (1 - p) ** k, atol=1e-9)
        assert float(found[1]) == pytest.approx(k * 1e-12, rel=1e-6)
    assert float(leak(torch.tensor([1 / 20]).log(), 16)[0]) == pytest.approx(0.56, abs=0.005)


def test_leak_at_of_drawn_samples_estimates_leak() -> None:
    p, n, k = 0.03, 200, 16
    drawn = np.random.default_rng(0).binomial(n, p, size=4000)
    wanted = float(leak(torch.tensor([p]).log(), k)[0])
    assert leak_at(n, drawn, k).mean() == pytest.approx(wanted, abs=0.01)
